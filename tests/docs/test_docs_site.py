"""The site is built without a warning, and its pages have all that there is."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from html import unescape
from pathlib import Path

import click
import pytest

import flask_imcallback
from flask_imcallback.settings import PREFIX, Settings
from support import ROOT
from support.apps import MakeApp

DOCS = ROOT / "docs"


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make docs` builds."""
    folder = tmp_path_factory.mktemp("site")
    sphinx = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning"]
    done = subprocess.run(
        [*sphinx, DOCS, folder], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def text_of(page: Path) -> str:
    return unescape(re.sub("<[^>]+>", "", page.read_text("utf-8")))


def test_every_page_is_in_the_contents(site: Path) -> None:
    """The first page leads to all others, and all of README's links are pages."""
    index = (site / "index.html").read_text("utf-8")
    for page in DOCS.glob("*.md"):
        assert (site / f"{page.stem}.html").exists()
        assert page.stem == "index" or f'href="{page.stem}.html"' in index
    for path in re.findall(r"\]\(([\w/]+\.md)", (ROOT / "README.md").read_text("utf-8")):
        assert (ROOT / path).exists(), path


def test_every_setting_has_its_default(site: Path) -> None:
    """No more and no fewer, and each is explained."""
    setting = rf"^({PREFIX}\w+)¶\n+(?:.+\n)+Default: (.+?)(?:, in JSON .+)?$"
    found = re.findall(setting, text_of(site / "settings.html"), re.MULTILINE)
    known = [(PREFIX + f.name.upper(), repr(f.metadata["default"])) for f in fields(Settings)]
    assert found == known


def test_every_command_has_its_options(site: Path, make_app: MakeApp) -> None:
    """As `flask imcallback --help` and that of each command know them."""
    page = text_of(site / "command-line.html")
    group = make_app(IMCALLBACK_SECRETS=["a-secret-of-the-tests"]).cli.commands["imcallback"]
    assert isinstance(group, click.Group)
    sections = re.split(r"^flask imcallback (\w+)¶$", page, flags=re.MULTILINE)[1:]
    found = dict(zip(sections[::2], sections[1::2], strict=True))
    assert found.keys() == group.commands.keys()
    for name, command in group.commands.items():
        for parameter in command.params:
            shown = (
                parameter.opts
                if isinstance(parameter, click.Option)
                else [parameter.human_readable_name]
            )
            assert set(shown) <= set(re.findall(r"[\w-]+", found[name])), name


def test_every_public_name_is_explained(site: Path) -> None:
    """All of `__all__`, as targets of links."""
    page = (site / "python.html").read_text("utf-8")
    for name in flask_imcallback.__all__:
        assert f'id="flask_imcallback.{name}"' in page, name
