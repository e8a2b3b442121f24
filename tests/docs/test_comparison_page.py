"""The figures of the comparison stand in the results of the benchmark."""

from __future__ import annotations

import re

import pytest

from support import ROOT

PAGE = (ROOT / "docs/comparison.md").read_text("utf-8")
RESULTS = (ROOT / "benchmarks/RESULTS.md").read_text("utf-8")
CONTENDERS = {
    "flask-imcallback": "ours",
    "the app of an afternoon": "naive",
    "the same on Django's ORM": "django",
    "no storage at all": "floor",
}


def cells(text: str, name: str) -> list[str]:
    """Return the cells of the first row with this name."""
    row = re.search(rf"^\| {re.escape(name)}(?:, with .+?)? \| (.+) \|$", text, re.MULTILINE)
    assert row, name
    return row[1].split(" | ")


def figures(cell: str) -> str:
    """Return the requests per second and the p99 of a cell of the results."""
    found = re.fullmatch(r"([\d,]+) \(.+\)<br>[\d.,]+ / ([\d,]+) \(.+\)", cell)
    assert found, cell
    return f"{found[1]}, {found[2]}"


@pytest.mark.parametrize("name", CONTENDERS)
@pytest.mark.parametrize("database", ["SQLite", "PostgreSQL"])
def test_the_figures_are_measured(database: str, name: str) -> None:
    """Each cell has the figures of the benchmark, for the same number of connections."""
    results = RESULTS.partition(f"\n## {database}\n")[2].partition("\n## ")[0]
    shown = PAGE.partition(f"\n{database}, ")[2].partition("\n\n")[2].partition("\n\n")[0]
    assert cells(shown, name) == [figures(cell) for cell in cells(results, CONTENDERS[name])[:3]]
