"""README is correct and short."""

from __future__ import annotations

import re

from flask_imcallback.providers import PROVIDERS
from support import ROOT

README = (ROOT / "README.md").read_text("utf-8")


def test_readme_lists_every_command() -> None:
    """README has a row for each recorded command, with its relation."""
    recorded = {c: r for provider in PROVIDERS for c, r in provider.commands.items()}
    for command, relation in recorded.items():
        assert re.search(rf"^\| `\w+` \| `{command}` \| `{relation}` \|", README, re.MULTILINE)


def test_readme_fits_on_two_screens() -> None:
    """README has at most 110 lines, and leaves the settings to their own page."""
    assert len(README.splitlines()) <= 110
    assert "docs/settings.md" in README
    assert "| `IMCALLBACK_" not in README
