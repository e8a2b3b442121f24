"""The page on the data model shows the tables as the code defines them."""

from __future__ import annotations

import re

import pytest
from sqlalchemy import Index, Table, UniqueConstraint
from sqlalchemy.schema import ColumnCollectionConstraint

from flask_imcallback.storage.tables import metadata
from support import ROOT

PAGE = (ROOT / "docs/data-model.md").read_text("utf-8")
TABLES = [*metadata.tables.values()]


def section(table: Table) -> str:
    """Return the text below the heading of a table."""
    _, heading, rest = PAGE.partition(f"\n## {table.name}\n")
    assert heading, table.name
    return rest.partition("\n## ")[0]


def test_every_table_has_a_section() -> None:
    """The page has a section for each table, and no others."""
    headings = re.findall(r"^## (imcallback_\w+)$", PAGE, re.MULTILINE)
    assert set(headings) == {table.name for table in TABLES}


@pytest.mark.parametrize("table", TABLES, ids=str)
def test_every_column_has_a_row(table: Table) -> None:
    """The columns are in the order of the code, and the page marks those that can be null."""
    columns, _, _ = section(table).partition("\n| index |")
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|", columns, re.MULTILINE)
    assert [(name, "null" in type_) for name, type_ in rows] == [
        (column.name, bool(column.nullable)) for column in table.columns
    ]


@pytest.mark.parametrize("table", TABLES, ids=str)
def test_every_index_has_a_row(table: Table) -> None:
    """The page names each index, unique constraint and primary key with its columns."""
    _, _, indexes = section(table).partition("\n| index |")
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|", indexes, re.MULTILINE)
    unique = [one for one in table.constraints if isinstance(one, UniqueConstraint)]
    keys: list[Index | ColumnCollectionConstraint] = [table.primary_key, *unique, *table.indexes]
    assert {name: re.findall(r"`(\w+)`", columns) for name, columns in rows} == {
        str(key.name): [column.name for column in key.columns] for key in keys
    }
