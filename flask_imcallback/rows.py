"""Deliveries and removals as rows, and the statements that insert them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

from sqlalchemy import Connection, Dialect, Table

from .events import Record, Removal, Status
from .models import delivery as delivery_table
from .models import moment_of
from .models import removal as removal_table

BYTES_A_ROW = 1024
OF_ITS_OWN = ("id", "delivery_id", "position", "relation", "owner_id", "target_id")
OF_DELIVERY = tuple(
    column.name for column in removal_table.columns if column.name not in OF_ITS_OWN
)
"""The columns of a removal that all of a delivery share."""
MANY = 20
"""Removals from which those of a delivery are given as one JSON array, where `PAIRS` says how."""
PAIRS = {
    "sqlite": ("key", "json_extract(value, '$[{}]')", "json_each({})"),
    "postgresql": (
        "n - 1",
        "p->>{}",
        "json_array_elements({}::json) WITH ORDINALITY AS pairs(p, n)",
    ),
}
"""By dialect: the position of a pair in the array, its texts, and the array as a table."""
AT_ONCE = 40
"""Rows of one statement; older releases of SQLite take 999 parameters."""


class Entry:
    """A delivery on its way into a database: its row, its removals, and what became of it."""

    def __init__(self, row: dict[str, Any], removals: Sequence[Removal]) -> None:
        self.row = row
        self.removals = removals
        self.weight = 1 + len(removals) + len(row["body"]) // BYTES_A_ROW
        """What it costs to store, about in rows."""
        self.done = threading.Event()
        self.is_abandoned = False
        """Nobody waits for it any more: a transaction that runs may end, but no other begins."""
        self.error: Exception | None = None

    def be_duplicate(self, first: int) -> None:
        """Become a repetition of the delivery with that id."""
        changes = {"status": Status.DUPLICATE.value, "duplicate_of": first, "fingerprint": None}
        self.row = self.row | changes | {"removal_count": 0}
        self.removals = ()

    def move(self, delivery_id: int) -> None:
        """Take another id, and its removals those that follow."""
        self.row = self.row | {"id": delivery_id, "received_at": moment_of(delivery_id)}

    def records(self) -> list[Record]:
        """The removals as the history shows them."""
        shared = {name: self.row[name] for name in OF_DELIVERY}
        first = self.row["id"]
        return [
            Record(
                id=first + position,
                delivery_id=first,
                position=position,
                relation=removal.relation,
                owner_id=removal.owner_id,
                target_id=removal.target_id,
                **shared,
            )
            for position, removal in enumerate(self.removals)
        ]


def insert(connection: Connection, entries: Sequence[Entry]) -> None:
    """Insert the rows of all entries."""
    inserts = _inserts(connection.dialect)
    inserts.delivery.run(connection, [inserts.delivery.bind(entry.row) for entry in entries])
    few: list[tuple[Any, ...]] = []
    for entry in entries:
        if inserts.many_sql and len(entry.removals) >= MANY:
            connection.exec_driver_sql(inserts.many_sql, inserts.many(entry))
        else:
            few += inserts.few(entry)
    inserts.removal.run(connection, few)


class _Insert:
    """An INSERT of rows into a table; to compile Core's for each row costs more than the rest."""

    def __init__(self, table: Table, names: Iterable[str], dialect: Dialect) -> None:
        self._convert: list[tuple[str, Callable[[Any], Any] | None]] = [
            (name, table.c[name].type.dialect_impl(dialect).bind_processor(dialect))
            for name in names
        ]
        quote = dialect.identifier_preparer.quote
        self.into = f"INSERT INTO {table.name} ({', '.join(quote(name) for name in names)})"
        self.mark = "?" if dialect.paramstyle == "qmark" else "%s"
        self.values = f"({', '.join([self.mark] * len(self._convert))})"

    def run(self, connection: Connection, rows: list[tuple[Any, ...]]) -> None:
        """Insert what `bind` made.

        Not by executemany: sqlite3 and psycopg give up Python's lock for each row of it, and wait
        in line for it among all requests.
        """
        for start in range(0, len(rows), AT_ONCE):
            some = rows[start : start + AT_ONCE]
            sql = f"{self.into} VALUES {', '.join([self.values] * len(some))}"
            connection.exec_driver_sql(sql, tuple(chain.from_iterable(some)))

    def bind(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        """The values of a row as the driver takes them."""
        return tuple(
            row[name] if convert is None or row[name] is None else convert(row[name])
            for name, convert in self._convert
        )


class _Inserts:
    """Those of one dialect."""

    def __init__(self, dialect: Dialect) -> None:
        self.delivery = _Insert(delivery_table, delivery_table.columns.keys(), dialect)
        self._shared = _Insert(removal_table, OF_DELIVERY, dialect)
        self.removal = _Insert(removal_table, OF_ITS_OWN + OF_DELIVERY, dialect)
        self.many_sql = ""
        if dialect.name in PAIRS:
            position, text, pairs = PAIRS[dialect.name]
            mark = self.removal.mark
            columns = [f"{mark} + {position}", mark, position]
            columns += [text.format(number) for number in range(3)] + [mark] * len(OF_DELIVERY)
            self.many_sql = (
                f"{self.removal.into} SELECT {', '.join(columns)} FROM {pairs.format(mark)}"  # noqa: S608
            )

    def few(self, entry: Entry) -> list[tuple[Any, ...]]:
        """The rows of the removals."""
        if not entry.removals:
            return []
        first, shared = entry.row["id"], self._shared.bind(entry.row)
        return [
            (first + position, first, position, *_pair(removal), *shared)
            for position, removal in enumerate(entry.removals)
        ]

    def many(self, entry: Entry) -> tuple[Any, ...]:
        """The removals as one JSON array."""
        first, shared = entry.row["id"], self._shared.bind(entry.row)
        return first, first, *shared, json.dumps([_pair(removal) for removal in entry.removals])


def _pair(removal: Removal) -> tuple[str, str, str]:
    return removal.relation.value, removal.owner_id, removal.target_id


@lru_cache
def _inserts(dialect: Dialect) -> _Inserts:
    return _Inserts(dialect)
