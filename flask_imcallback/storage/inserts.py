"""Deliveries and removals as rows, and the statements that insert them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

from sqlalchemy import Connection, Dialect, Table, select

from .entries import Entry
from .tables import delivery as delivery_table
from .tables import removal as removal_table
from .tables import source as source_table

OF_ITS_OWN = ("id", "delivery_id", "source_id", "owner_id", "target_id")
OF_DELIVERY = ("client_ip", "request_id")
"""The columns of a removal that all of a delivery share."""
SOURCE = ("provider", "app_id", "command", "relation", "platform")
SOURCES = "imcallback_sources"
MANY = 20
"""Removals from which those of a delivery are given as one JSON array, where `TRIPLES` says how."""
TRIPLES = {
    "sqlite": (
        "key",
        "json_extract(value, '$[0]')",
        "json_extract(value, '$[1]')",
        "json_extract(value, '$[2]')",
        "json_each({})",
    ),
    "postgresql": (
        "n - 1",
        "(t->>0)::int",
        "t->>1",
        "t->>2",
        "json_array_elements({}::json) WITH ORDINALITY AS triples(t, n)",
    ),
}
"""By dialect: the position in the array, source id, owner, target, and the array as a table."""
AT_ONCE = 40
"""Rows of one statement; older releases of SQLite take 999 parameters."""


def learn_sources(connection: Connection, entries: Sequence[Entry]) -> None:
    """Have the sources of the removals in the database, in a transaction of its own.

    Two processes may add the same one at the same time. What is known goes with the connection.
    """
    known = connection.info.setdefault(SOURCES, {})
    for key in {key for entry in entries for key in entry.sources()} - known.keys():
        values = dict(zip(SOURCE, key, strict=True))
        same = (source_table.c[name] == value for name, value in values.items())
        with connection.begin():
            asked = select(source_table.c.id).where(*same).order_by(source_table.c.id)
            source_id = connection.scalar(asked.limit(1))
            if source_id is None:
                done: Any = connection.execute(source_table.insert().values(values))
                (source_id,) = done.inserted_primary_key
        known[key] = source_id


def insert(connection: Connection, entries: Sequence[Entry]) -> None:
    """Insert the rows of all entries, whose sources were learnt on this connection."""
    inserts = _inserts(connection.dialect)
    known = connection.info[SOURCES]
    inserts.delivery.run(connection, [inserts.delivery.bind(entry.row) for entry in entries])
    few: list[tuple[Any, ...]] = []
    for entry in entries:
        triples = entry.triples(known)
        if inserts.many_sql and len(triples) >= MANY:
            connection.exec_driver_sql(inserts.many_sql, inserts.many(entry, triples))
        else:
            few += inserts.few(entry, triples)
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
        if dialect.name in TRIPLES:
            position, *columns, triples = TRIPLES[dialect.name]
            mark = self.removal.mark
            columns = [f"{mark} + {position}", mark, *columns, *[mark] * len(OF_DELIVERY)]
            self.many_sql = (
                f"{self.removal.into} SELECT {', '.join(columns)} FROM {triples.format(mark)}"  # noqa: S608
            )

    def few(self, entry: Entry, triples: list[tuple[int, str, str]]) -> list[tuple[Any, ...]]:
        """The rows of the removals."""
        first, shared = entry.row["id"], self._shared.bind(entry.row)
        return [
            (first + position, first, *triple, *shared) for position, triple in enumerate(triples)
        ]

    def many(self, entry: Entry, triples: list[tuple[int, str, str]]) -> tuple[Any, ...]:
        """The removals as one JSON array."""
        first, shared = entry.row["id"], self._shared.bind(entry.row)
        return first, first, *shared, json.dumps(triples)


@lru_cache
def _inserts(dialect: Dialect) -> _Inserts:
    return _Inserts(dialect)
