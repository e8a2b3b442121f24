"""The site builds without a warning, and its pages are complete."""

from __future__ import annotations

import re
import subprocess
import sys
from configparser import ConfigParser
from dataclasses import fields
from html import unescape
from pathlib import Path

import click
import pytest

import flask_imcallback
from flask_imcallback.settings import PREFIX, Settings
from support import ROOT
from support.apps import MakeApp

pytestmark = pytest.mark.slow

DOCS = ROOT / "docs"


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site like `make docs`."""
    folder = tmp_path_factory.mktemp("site")
    sphinx = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning"]
    process = subprocess.run(
        [*sphinx, DOCS, folder], cwd=folder, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    return folder


def text_of(page: Path) -> str:
    """Return the text of an HTML page."""
    return unescape(re.sub("<[^>]+>", "", page.read_text("utf-8")))


def test_every_page_is_in_the_contents(site: Path) -> None:
    """The first page links to all other pages."""
    index = (site / "index.html").read_text("utf-8")
    for page in {*DOCS.glob("*.md")} - {DOCS / "index.md"}:
        assert f'href="{page.stem}.html"' in index, page.name


def test_a_chinese_page_names_its_language(site: Path) -> None:
    """Browsers learn the language of a page, and choose fonts for it."""
    for page, language in (("tencent", "en"), ("tencent.zh-CN", "zh-CN")):
        assert f'<html lang="{language}"' in (site / f"{page}.html").read_text("utf-8")


def test_next_leads_through_all_pages(site: Path) -> None:
    """A reader who follows the link at the end of each page reads every page once."""
    page, read = site / "index.html", []
    while page not in read:
        read.append(page)
        html = page.read_text("utf-8")
        if following := re.search(r'Next: <a href="(.+?)"', html):
            page = (page.parent / following[1]).resolve()
    files = [*DOCS.glob("*.md"), *DOCS.glob("decisions/*.md")]
    assert {*read} == {(site / file.relative_to(DOCS)).with_suffix(".html") for file in files}


def test_every_sidebar_has_the_contents(site: Path) -> None:
    """The sidebar of a page leads to the pages of all groups."""
    for file in [*DOCS.glob("*.md"), *DOCS.glob("decisions/*.md")]:
        page = (site / file.relative_to(DOCS)).with_suffix(".html")
        _, _, sidebar = page.read_text("utf-8").partition('class="sphinxsidebarwrapper"')
        for title in ("Quickstart", "Deployment", "Back up and restore", "Decisions"):
            assert f">{title}</a>" in sidebar, page


def test_every_setting_has_its_default(site: Path) -> None:
    """The page on settings has each setting with its docstring and default, and no others."""
    setting = rf"^({PREFIX}\w+)¶\n+(?:.+\n)+Default: (.+?)(?:, in JSON .+)?$"
    documented = re.findall(setting, text_of(site / "settings.html"), re.MULTILINE)
    settings = [(PREFIX + f.name.upper(), repr(f.metadata["default"])) for f in fields(Settings)]
    assert documented == settings


def test_every_command_has_its_options(site: Path, make_app: MakeApp) -> None:
    """The page on the command line has each command with all of its options."""
    page = text_of(site / "command-line.html")
    group = make_app(IMCALLBACK_SECRETS=["a-secret-of-the-tests"]).cli.commands["imcallback"]
    assert isinstance(group, click.Group)
    sections = re.split(r"^flask imcallback ([\w-]+)¶$", page, flags=re.MULTILINE)[1:]
    documented = dict(zip(sections[::2], sections[1::2], strict=True))
    assert documented.keys() == group.commands.keys()
    for name, command in group.commands.items():
        for parameter in command.params:
            options = (
                parameter.opts
                if isinstance(parameter, click.Option)
                else [parameter.human_readable_name]
            )
            assert set(options) <= set(re.findall(r"[\w-]+", documented[name])), name


def test_every_public_name_is_explained(site: Path) -> None:
    """Each name of `__all__` has an entry on the page of the Python API or of errors."""
    pages = "".join((site / name).read_text("utf-8") for name in ("python.html", "errors.html"))
    for name in flask_imcallback.__all__:
        assert f'id="flask_imcallback.{name}"' in pages, name


def test_every_supported_python_version_is_tested() -> None:
    """Package metadata, the page on versions and the workflow name the same Python versions."""
    config = ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg")
    classifiers = re.findall(r":: Python :: (3\.\d+)$", config["metadata"]["classifiers"], re.M)
    assert config["options"]["python_requires"] == f">={classifiers[0]}"
    versioning = (DOCS / "versioning.md").read_text("utf-8")
    assert f"| Python | {classifiers[0]} to {classifiers[-1]} |" in versioning
    workflow = (ROOT / ".github/workflows/tests.yml").read_text("utf-8")
    (matrix,) = re.findall(r"^ +python: \[(.+)\]$", workflow, re.MULTILINE)
    assert re.findall(r"[\d.]+", matrix) == classifiers
