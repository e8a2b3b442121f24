"""Measure a bare durable commit, which is the lower limit for storing a callback.

The script reads the rows that flask-imcallback stored for one callback. The driver alone inserts
them again with other ids, one callback in each transaction, on one connection. The script prints
the median duration in milliseconds: `python benchmarks/commit.py sqlite:///im.db`
"""

from __future__ import annotations

import sqlite3
import statistics
import sys
import time
from typing import Any

import psycopg
import pymysql  # type: ignore[import-untyped]
from sqlalchemy import URL, make_url

COMMITS = 200
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


def read_newest(cursor: Any, table: str, placeholder: str) -> tuple[str, dict[str, Any]]:
    """Return the newest row, and the statement that inserts such a row."""
    cursor.execute(f"SELECT * FROM {table} ORDER BY id DESC LIMIT 1")
    names = [column[0] for column in cursor.description]
    row = dict(zip(names, cursor.fetchone(), strict=True))
    placeholders = ", ".join([placeholder] * len(names))
    return f"INSERT INTO {table} ({', '.join(names)}) VALUES ({placeholders})", row


def p50(url: URL) -> float:
    """Return the median duration of a commit in milliseconds. The database needs a callback."""
    connection = connect(url)
    cursor = connection.cursor()
    is_sqlite = isinstance(connection, sqlite3.Connection)
    inserts = [read_newest(cursor, table, "?" if is_sqlite else "%s") for table in TABLES]
    connection.rollback()
    newest_id = inserts[0][1]["id"]
    durations = []
    for number in range(1, COMMITS + 1):
        new_id = newest_id + number
        start = time.perf_counter()
        if is_sqlite:
            cursor.execute("BEGIN IMMEDIATE")
        for sql, row in inserts:
            row["id"] = new_id
            if "delivery_id" in row:
                row["delivery_id"] = new_id
            cursor.execute(sql, tuple(row.values()))
        connection.commit()
        durations.append(time.perf_counter() - start)
    connection.close()
    return statistics.median(durations) * 1000


if __name__ == "__main__":
    print(p50(make_url(sys.argv[1])))
