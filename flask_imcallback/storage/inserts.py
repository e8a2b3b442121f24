"""The INSERT statements for deliveries, removals and their sources."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple, cast

from sqlalchemy import Connection, Dialect, Table, select
from sqlalchemy.engine.default import DefaultDialect

from .entries import Entry
from .tables import delivery as delivery_table
from .tables import removal as removal_table
from .tables import source as source_table

REMOVAL_COLUMNS = ("id", "delivery_id", "source_id", "owner_id", "target_id", "actor_id")

SHARED_COLUMNS = ("client_ip", "request_id")
"""Columns of a removal that have one value for all removals of a delivery."""

SOURCE_IDS_KEY = "imcallback_source_ids"
"""Key of `Connection.info` with the cache of known sources."""

JSON_INSERT_THRESHOLD = 20
"""A delivery with this number of removals or more is inserted from one JSON array, on the databases
in `JSON_ROWS`. All its removals must have the same actor, as each known callback has."""

MAX_ROWS_PER_INSERT = 40
"""Rows in one statement. Older releases of SQLite allow 999 parameters."""


class JsonRows(NamedTuple):
    """SQL that turns a JSON array of `[source_id, owner_id, target_id]` into rows."""

    position: str
    source_id: str
    owner_id: str
    target_id: str
    table: str
    """The array as a table. `{}` stands for the parameter that holds the array."""


JSON_ROWS = {
    "sqlite": JsonRows(
        position="key",
        source_id="json_extract(value, '$[0]')",
        owner_id="json_extract(value, '$[1]')",
        target_id="json_extract(value, '$[2]')",
        table="json_each({})",
    ),
    "postgresql": JsonRows(
        position="number - 1",
        source_id="(item->>0)::int",
        owner_id="item->>1",
        target_id="item->>2",
        table="json_array_elements({}::json) WITH ORDINALITY AS removals(item, number)",
    ),
}
"""Dialect -> its SQL. Other dialects insert all removals as plain rows."""


def ensure_sources(connection: Connection, entries: Sequence[Entry]) -> None:
    """Add the missing sources of the removals, each in its own transaction.

    Two processes may add the same source at the same time, which does no harm. The ids are cached
    on the connection, because a new connection may lead to another database.
    """
    source_ids = connection.info.setdefault(SOURCE_IDS_KEY, {})
    for key in {key for entry in entries for key in entry.source_keys()} - source_ids.keys():
        values = key._asdict()
        conditions = (source_table.c[name] == value for name, value in values.items())
        with connection.begin():
            query = select(source_table.c.id).where(*conditions).order_by(source_table.c.id)
            source_id = connection.scalar(query.limit(1))
            if source_id is None:
                result: Any = connection.execute(source_table.insert().values(values))
                (source_id,) = result.inserted_primary_key
        source_ids[key] = source_id


def store_entries(connection: Connection, entries: Sequence[Entry]) -> None:
    """Store the entries in one transaction. Missing sources are added before it."""
    if connection.in_transaction():
        connection.rollback()
    ensure_sources(connection, entries)
    with connection.begin():
        insert_entries(connection, entries)


def insert_entries(connection: Connection, entries: Sequence[Entry]) -> None:
    """Insert the rows of all entries. Call `ensure_sources` on this connection before."""
    statements = _statements(connection.dialect)
    deliveries = [statements.delivery.bind(entry.row) for entry in entries]
    statements.delivery.run(connection, deliveries)
    insert_removals(connection, entries)


def insert_removals(connection: Connection, entries: Sequence[Entry]) -> None:
    """Insert the removals of all entries. Call `ensure_sources` on this connection before."""
    statements = _statements(connection.dialect)
    source_ids = connection.info[SOURCE_IDS_KEY]
    rows: list[tuple[Any, ...]] = []
    for entry in entries:
        values = entry.removal_values(source_ids)
        is_large = len(values) >= JSON_INSERT_THRESHOLD
        if statements.json_sql and is_large and entry.has_one_actor:
            parameters = statements.json_parameters(entry, values)
            connection.exec_driver_sql(statements.json_sql, parameters)
        else:
            rows += statements.removal_rows(entry, values)
    statements.removal.run(connection, rows)


class _Insert:
    """An INSERT of rows into a table. Compiling a SQLAlchemy insert for each row is slower."""

    def __init__(self, table: Table, names: Iterable[str], dialect: Dialect) -> None:
        self._converters: list[tuple[str, Callable[[Any], Any] | None]] = [
            (name, table.c[name].type.dialect_impl(dialect).bind_processor(dialect))
            for name in names
        ]
        quote = dialect.identifier_preparer.quote
        self.into = f"INSERT INTO {table.name} ({', '.join(quote(name) for name in names)})"
        # The host app may choose another style for statements that SQLAlchemy compiles.
        style = cast(DefaultDialect, dialect).default_paramstyle
        self.placeholder = "?" if style == "qmark" else "%s"
        self._values = f"({', '.join([self.placeholder] * len(self._converters))})"

    def run(self, connection: Connection, rows: list[tuple[Any, ...]]) -> None:
        """Insert rows that `bind` has made.

        The executemany of the drivers is slower: sqlite3 and psycopg release the GIL for each row,
        and then compete with all request threads to get it back.
        """
        for start in range(0, len(rows), MAX_ROWS_PER_INSERT):
            chunk = rows[start : start + MAX_ROWS_PER_INSERT]
            sql = f"{self.into} VALUES {', '.join([self._values] * len(chunk))}"
            connection.exec_driver_sql(sql, tuple(chain.from_iterable(chunk)))

    def bind(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the values of a row in the form that the driver expects."""
        return tuple(
            row[name] if convert is None or row[name] is None else convert(row[name])
            for name, convert in self._converters
        )


class _Statements:
    """The prepared INSERT statements of one dialect."""

    def __init__(self, dialect: Dialect) -> None:
        self.delivery = _Insert(delivery_table, delivery_table.columns.keys(), dialect)
        self.removal = _Insert(removal_table, REMOVAL_COLUMNS + SHARED_COLUMNS, dialect)
        self._shared = _Insert(removal_table, SHARED_COLUMNS, dialect)
        self.json_sql = ""
        """Inserts the removals of one delivery. Empty if the dialect is not in `JSON_ROWS`."""
        if json_rows := JSON_ROWS.get(dialect.name):
            mark = self.removal.placeholder
            columns = (
                f"{mark} + {json_rows.position}",
                mark,
                json_rows.source_id,
                json_rows.owner_id,
                json_rows.target_id,
                mark,
                *[mark] * len(SHARED_COLUMNS),
            )
            table = json_rows.table.format(mark)
            self.json_sql = f"{self.removal.into} SELECT {', '.join(columns)} FROM {table}"  # noqa: S608

    def removal_rows(
        self, entry: Entry, values: list[tuple[int, str, str]]
    ) -> list[tuple[Any, ...]]:
        """Return one row for each removal."""
        delivery_id, shared = entry.row["id"], self._shared.bind(entry.row)
        return [
            (delivery_id + position, delivery_id, *value, removal.actor_id, *shared)
            for position, (value, removal) in enumerate(zip(values, entry.removals, strict=True))
        ]

    def json_parameters(self, entry: Entry, values: list[tuple[int, str, str]]) -> tuple[Any, ...]:
        """Return the parameters of `json_sql`."""
        delivery_id, shared = entry.row["id"], self._shared.bind(entry.row)
        actor_id = entry.removals[0].actor_id
        return delivery_id, delivery_id, actor_id, *shared, json.dumps(values)


@lru_cache
def _statements(dialect: Dialect) -> _Statements:
    return _Statements(dialect)
