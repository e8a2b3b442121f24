"""The page on the architecture names files, functions and rules that exist."""

from __future__ import annotations

import re
from configparser import ConfigParser

import pytest

from support import ROOT

PAGE = (ROOT / "docs/architecture.md").read_text("utf-8")
PACKAGE = ROOT / "flask_imcallback"
MENTIONS = re.findall(r"`([\w/]+\.py)`, `(\w+)`", PAGE)


def layers() -> list[str]:
    """Return the layers of the import rule in `setup.cfg`, the highest first."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    (rule,) = [
        section["layers"]
        for name, section in config.items()
        if name.startswith("importlinter:contract:") and "layers" in section
    ]
    return rule.split("\n")[1:]


@pytest.mark.parametrize(
    ("file", "function"), sorted({*MENTIONS}), ids=lambda value: value.replace("/", "-")
)
def test_the_walks_name_functions_that_exist(file: str, function: str) -> None:
    """Each step of the two walks names a function that its file defines."""
    source = (PACKAGE / file).read_text("utf-8")
    assert re.search(rf"^\s*(async )?(def|class) {function}\b", source, re.MULTILINE)


def test_the_walks_are_complete() -> None:
    """Each step names at least one file and one function."""
    steps = re.findall(r"^\d+\. (.+)$", PAGE, re.MULTILINE)
    assert len(steps) > 20
    assert [step for step in steps if not re.match(r"`[\w/]+\.py`, `\w+`", step)] == []


def test_the_import_rule_is_the_one_that_is_checked() -> None:
    """The page shows the rule that import-linter checks."""
    (rule,) = re.findall(r"```text\n(.+?)```", PAGE, re.DOTALL)
    assert rule.split() == " > ".join(layers()).split()


def test_every_room_is_explained() -> None:
    """The table has each file and folder of the import rule."""
    rooms = [room for layer in layers() for room in layer.split(" | ")]
    rows = re.findall(r"^\| `(\w+)(?:/|\.py)` \|", PAGE, re.MULTILINE)
    assert sorted(rows) == sorted(rooms)
