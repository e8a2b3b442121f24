"""Measure a bare durable commit, which is the lower limit for storing a callback.

The benchmark reads the rows that flask-imcallback stored for one callback. The driver alone inserts
them again with other ids, one callback in each transaction, on one connection.
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

CHUNK_ROWS = 10_000
IDS_PER_SECOND = 1_000_000
TABLES = ("imcallback_delivery", "imcallback_removal")


def connect(url: URL) -> Any:
    """Return a driver connection that is as durable as the connections of flask-imcallback."""
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
    """The newest removal and its delivery, and the statements that insert them again."""

    def __init__(self, connection: Any) -> None:
        self._cursor = cursor = connection.cursor()
        self._tables = []
        placeholder = "?" if isinstance(connection, sqlite3.Connection) else "%s"
        for table in TABLES:
            cursor.execute(f"SELECT * FROM {table} ORDER BY id DESC LIMIT 1")
            row = cursor.fetchone()
            names = [column[0] for column in cursor.description]
            placeholders = ", ".join([placeholder] * len(names))
            sql = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({placeholders})"
            self._tables.append((sql, dict(zip(names, row, strict=True))))
        connection.rollback()

    def insert(self, rows: list[dict[str, Any]]) -> None:
        """Insert copies of the rows in which these values are replaced."""
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
    """Return the median duration of a commit in milliseconds. The database needs a callback."""
    connection = connect(url)
    copies = Copies(connection)
    cursor = connection.cursor()
    durations = []
    for number in range(1, commits + 1):
        new = {"id": copies.id + number, "delivery_id": copies.id + number}
        start = time.perf_counter()
        if isinstance(connection, sqlite3.Connection):
            cursor.execute("BEGIN IMMEDIATE")
        copies.insert([new])
        connection.commit()
        durations.append(time.perf_counter() - start)
    connection.close()
    return statistics.median(durations) * 1000


def fill(url: URL, removals: int) -> None:
    """Insert removals of random accounts, each in its own delivery, one second apart."""
    connection = connect(url)
    copies = Copies(connection)
    cursor = connection.cursor()
    first = copies.id - removals * IDS_PER_SECOND
    for start in range(0, removals, CHUNK_ROWS):
        ids = [
            first + number * IDS_PER_SECOND
            for number in range(start, min(removals, start + CHUNK_ROWS))
        ]
        rows = [
            {"id": id, "delivery_id": id, "owner_id": _account(), "target_id": _account()}
            for id in ids
        ]
        if isinstance(connection, sqlite3.Connection):
            cursor.execute("BEGIN IMMEDIATE")
        copies.insert(rows)
        connection.commit()
    connection.close()


def _account() -> str:
    return f"user{random.randrange(1_000_000):06}"
