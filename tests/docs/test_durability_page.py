"""The page about durability links each fault to a test that exists."""

from __future__ import annotations

import re

import pytest

from support import ROOT

PAGE = (ROOT / "docs/durability.md").read_text()
TESTS = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(test_\w+)`", PAGE))))
def test_each_named_test_exists(name: str) -> None:
    """A reader finds the test by its name."""
    assert f"def {name}(" in TESTS
