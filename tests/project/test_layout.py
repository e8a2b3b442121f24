"""The tests keep to their own rooms."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support import ROOT

TESTS = sorted((ROOT / "tests").rglob("*.py"))


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_test_module_imports_another(path: Path) -> None:
    """Helpers that several test modules use are in tests/support."""
    text = path.read_text("utf-8")
    assert not re.findall(r"^\s*(?:from|import) (?:test_\w+|conftest)\b.*$", text, re.MULTILINE)
