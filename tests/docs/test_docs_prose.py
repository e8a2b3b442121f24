"""Every Markdown page has plain headings, links that resolve, and no semicolons."""

from __future__ import annotations

import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from support import ROOT
from support.translations import anchor

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])
INCLUDED_PAGES = {"docs/security.md", "docs/changelog.md"}
"""These pages consist of an include directive."""


def name(page: Path) -> str:
    """Return the path of a page relative to the repository."""
    return page.relative_to(ROOT).as_posix()


def without_code(page: Path) -> str:
    """Return the text of a page with the content of its code blocks left out."""
    return re.sub(r"^( *)```.*?^\1```$", "", page.read_text("utf-8"), flags=re.S | re.M)


@cache
def anchors(page: Path) -> frozenset[str]:
    """Return the anchors of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", without_code(page), re.MULTILINE)
    return frozenset(anchor(heading) for heading in headings)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_prose_has_no_semicolon(page: Path) -> None:
    """A sentence has one idea, so prose needs no semicolon."""
    prose = re.sub(r"`[^`]*`|\]\([^)]*\)", "", without_code(page))
    lines = [line for line in prose.splitlines() if ";" in line and not line.startswith("|")]
    assert lines == []


@pytest.mark.parametrize(
    "page", [page for page in PAGES if name(page) not in INCLUDED_PAGES], ids=name
)
def test_headings_are_in_order(page: Path) -> None:
    """A page begins with its title, skips no level, and ends no heading with a full stop."""
    text = without_code(page)
    assert text.startswith("# ")
    headings = re.findall(r"^(#+) (.+)$", text, re.MULTILINE)
    levels = [len(marks) for marks, _ in headings]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert [title for _, title in headings if title.endswith((".", ":"))] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_resolve(page: Path) -> None:
    """Each relative link leads to a file, and to a heading of it if the link names one."""
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            source = {"docs/security.md": ROOT / "SECURITY.md"}.get(name(file), file)
            assert anchor in anchors(source), target
