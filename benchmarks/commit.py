"""One bare durable commit: the least that storing a callback can cost.

The rows are those that ours has stored for one callback, read and written again with other ids by
the driver alone, one callback a transaction, on one connection.
"""

from __future__ import annotations

import random
import sqlite3
import statistics
import time
from typing import Any

import psycopg
import pymysql  # type: ignore[import-untyped]
from sqlalchemy import URL

CHUNK = 10_000
SECOND = 1_000_000
TABLES = ("imcallback_delivery", "imcallback_removal")


def connect(url: URL) -> Any:
    """A connection of the driver, as durable as ours."""
    if url.get_backend_name() == "sqlite":
        connection = sqlite3.connect(str(url.database), isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        return connection
    login = {"host": url.host, "port": url.port, "user": url.username}
    if url.get_backend_name() == "postgresql":
        return psycopg.connect(**login, dbname=url.database)  # type: ignore[arg-type]
    return pymysql.connect(**login, database=url.database)


class Copies:
    """The rows of the newest removal and its delivery, and the statements that store them anew."""

    def __init__(self, connection: Any) -> None:
        self._cursor = cursor = connection.cursor()
        self._tables = []
        mark = "?" if isinstance(connection, sqlite3.Connection) else "%s"
        for table in TABLES:
            cursor.execute(f"SELECT * FROM {table} ORDER BY id DESC LIMIT 1")
            row = cursor.fetchone()
            names = [column[0] for column in cursor.description]
            marks = ", ".join([mark] * len(names))
            sql = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})"
            self._tables.append((sql, dict(zip(names, row, strict=True))))
        connection.rollback()

    def insert(self, rows: list[dict[str, Any]]) -> None:
        """Rows that differ from the copied ones in what is given for each."""
        for sql, copied in self._tables:
            known = [{k: v for k, v in row.items() if k in copied} for row in rows]
            changed = [tuple((copied | row).values()) for row in known]
            if len(changed) == 1:
                self._cursor.execute(sql, changed[0])
            else:
                self._cursor.executemany(sql, changed)

    @property
    def id(self) -> int:
        return int(self._tables[0][1]["id"])


def p50(url: URL, commits: int) -> float:
    """Milliseconds; the database must hold a callback already."""
    connection = connect(url)
    copies = Copies(connection)
    cursor = connection.cursor()
    taken = []
    for number in range(1, commits + 1):
        new = {"id": copies.id + number, "delivery_id": copies.id + number}
        start = time.perf_counter()
        if isinstance(connection, sqlite3.Connection):
            cursor.execute("BEGIN IMMEDIATE")
        copies.insert([new])
        connection.commit()
        taken.append(time.perf_counter() - start)
    connection.close()
    return statistics.median(taken) * 1000


def fill(url: URL, removals: int) -> None:
    """Put in so many removals of random accounts, each in a delivery, a second behind another."""
    connection = connect(url)
    copies = Copies(connection)
    cursor = connection.cursor()
    first = copies.id - removals * SECOND
    for start in range(0, removals, CHUNK):
        ids = [first + number * SECOND for number in range(start, min(removals, start + CHUNK))]
        rows = [
            {"id": one, "delivery_id": one, "owner_id": _account(), "target_id": _account()}
            for one in ids
        ]
        if isinstance(connection, sqlite3.Connection):
            cursor.execute("BEGIN IMMEDIATE")
        copies.insert(rows)
        connection.commit()
    connection.close()


def _account() -> str:
    return f"user{random.randrange(1_000_000):06}"
