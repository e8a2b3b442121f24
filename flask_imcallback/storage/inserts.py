# ruff: noqa: S608 (only names of tables, columns and types are put into the SQL text)
"""The INSERT statements for deliveries, removals and their sources."""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, cast

from sqlalchemy import Connection, Dialect, Table, select
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.engine.interfaces import DBAPIConnection

from .column_types import ExactText
from .engines import BEGIN_KEY
from .entries import Entry
from .tables import delivery as delivery_table
from .tables import inbox as inbox_table
from .tables import removal as removal_table
from .tables import source as source_table

DELIVERY_COLUMNS = tuple(
    column.name for column in delivery_table.columns if column.name != "commitment"
)

SOURCE_IDS_KEY = "imcallback_source_ids"
"""Key of `Connection.info` with the cache of known sources."""

SOURCES_READ_AT_KEY = "imcallback_sources_read_at"
"""Key of `Connection.info` with the time of the monotonic clock at which the cache was emptied."""

MAX_CACHE_SECONDS = 1
"""Time after which the cache is emptied. Somebody may have replaced the tables meanwhile, and then
another source may have the cached id."""

MAX_ROWS_PER_INSERT = 500
"""Rows in one statement. SQLite before 3.32 allows only 999 parameters, so the rows may be less."""

# pysqlite3, by which an app may replace the module, lacks this name.
SQLITE_LIMIT_VARIABLE_NUMBER: int = getattr(sqlite3, "SQLITE_LIMIT_VARIABLE_NUMBER", 9)

ARRAY_INSERT_THRESHOLD = 20
"""Number of removals from which PostgreSQL gets an array for each column."""


Row = tuple[Any, ...]

Execute = Callable[[str, Row], object]
"""A function that runs a statement in the style of the driver, with its parameters."""


def ensure_sources(connection: Connection, entries: Sequence[Entry]) -> None:
    """Add the missing sources of the entries, each in its own transaction.

    Two processes may add the same source at the same time, which does no harm. The ids are cached
    on the connection, because a new connection may lead to another database.
    """
    now = time.monotonic()
    if now - connection.info.get(SOURCES_READ_AT_KEY, -math.inf) > MAX_CACHE_SECONDS:
        connection.info.update({SOURCES_READ_AT_KEY: now, SOURCE_IDS_KEY: {}})
    source_ids = connection.info[SOURCE_IDS_KEY]
    keys = {key for entry in entries for key in entry.source_keys().values()}
    for key in keys - source_ids.keys():
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


def store_by_driver(connection: Connection, entry: Entry) -> None:
    """Store an entry as `store_entries` does, in half of its time. Raises the driver's own errors.

    After an error, the connection must be closed.
    """
    ensure_sources(connection, [entry])
    driver = cast(DBAPIConnection, connection.connection.dbapi_connection)
    cursor = driver.cursor()
    if connection.dialect.name == "sqlite":  # other drivers begin a transaction by themselves
        cursor.execute("BEGIN IMMEDIATE")
    elif BEGIN_KEY in connection.info:
        cursor.execute(connection.info[BEGIN_KEY])
    insert_entries(connection, [entry], cursor.execute)
    driver.commit()
    cursor.close()


def insert_entries(
    connection: Connection, entries: Sequence[Entry], execute: Execute | None = None
) -> None:
    """Insert the rows of all entries. Call `ensure_sources` on this connection before."""
    dialect, source_ids = connection.dialect, connection.info[SOURCE_IDS_KEY]
    execute = execute or connection.exec_driver_sql
    for start in range(0, len(entries), MAX_ROWS_PER_INSERT):
        deliveries: list[Row] = []
        inbox: list[Row] = []
        removals: list[Row] = []
        for entry in entries[start : start + MAX_ROWS_PER_INSERT]:
            ids = {kind: source_ids[key] for kind, key in entry.source_keys().items()}
            row = entry.delivery_values(ids)
            deliveries.append(tuple([row[name] for name in DELIVERY_COLUMNS]))
            inbox.append((row["id"],))
            removals += entry.removal_values(ids)
        if dialect.name == "postgresql":
            execute(*_insert_at_once(dialect, deliveries, inbox, removals))
        else:
            for table, rows in (
                (delivery_table, deliveries),
                (inbox_table, inbox),
                (removal_table, removals),
            ):
                for statement in _insert_rows(connection, table, rows):
                    execute(*statement)


def _insert_at_once(
    dialect: Dialect, deliveries: list[Row], inbox: list[Row], removals: list[Row]
) -> tuple[str, Row]:
    """Return one statement of PostgreSQL for the rows of three tables, and its parameters.

    One statement takes 0.6 of the time of three for one callback. An array for each column takes
    0.5 of the time for a thousand removals, but 1.2 of it for one.
    """
    inserts = [
        _insert_values(dialect, delivery_table, deliveries),
        _insert_values(dialect, inbox_table, inbox),
    ]
    if len(removals) >= ARRAY_INSERT_THRESHOLD:
        inserts.append(_insert_arrays(dialect, removal_table, removals))
    elif removals:
        inserts.append(_insert_values(dialect, removal_table, removals))
    *first, last = (sql for sql, _ in inserts)
    parts = ", ".join(f"part{number} AS ({sql})" for number, sql in enumerate(first))
    parameters = tuple(chain.from_iterable(values for _, values in inserts))
    return f"WITH {parts} {last}", parameters


def _insert_rows(
    connection: Connection, table: Table, rows: Sequence[Row]
) -> Iterator[tuple[str, Row]]:
    """Yield statements of many rows, with their parameters.

    An insert of SQLAlchemy takes 1.3 of the time for one callback. The executemany of sqlite3
    releases the GIL for each row. Beside busy threads it takes 1.5 of the time for 1,000 removals.
    """
    limit = MAX_ROWS_PER_INSERT
    driver: Any = connection.connection.driver_connection
    if len(rows) > 1 and hasattr(driver, "getlimit"):  # only SQLite
        limit = min(limit, driver.getlimit(SQLITE_LIMIT_VARIABLE_NUMBER) // len(rows[0]))
    for start in range(0, len(rows), limit):
        yield _insert_values(connection.dialect, table, rows[start : start + limit])


def _insert_values(dialect: Dialect, table: Table, rows: Sequence[Row]) -> tuple[str, Row]:
    """Return the INSERT of some rows, and its parameters."""
    values = ", ".join([_placeholders(dialect, len(rows[0]))] * len(rows))
    return f"{_insert_into(dialect, table)} VALUES {values}", tuple(chain.from_iterable(rows))


@lru_cache
def _placeholders(dialect: Dialect, count: int) -> str:
    # The host app may choose another style for statements that SQLAlchemy compiles.
    mark = "?" if cast(DefaultDialect, dialect).default_paramstyle == "qmark" else "%s"
    return f"({', '.join([mark] * count)})"


def _insert_arrays(dialect: Dialect, table: Table, rows: Sequence[Row]) -> tuple[str, Row]:
    """Return the INSERT of PostgreSQL with an array for each column, and its parameters."""
    types = [
        # A cast to a shorter text would cut it.
        "text" if isinstance(column.type, ExactText) else column.type.compile(dialect)
        for column in table.columns
    ]
    arrays = ", ".join(f"%s::{type_}[]" for type_ in types)
    columns = tuple(map(list, zip(*rows, strict=True)))
    return f"{_insert_into(dialect, table)} SELECT * FROM unnest({arrays})", columns


@lru_cache
def _insert_into(dialect: Dialect, table: Table) -> str:
    quote = dialect.identifier_preparer.quote
    names = DELIVERY_COLUMNS if table is delivery_table else table.columns.keys()
    return f"INSERT INTO {table.name} ({', '.join(map(quote, names))})"
