"""Settings that make connections of SQLite durable."""

from __future__ import annotations

import sqlite3
import time
from typing import Any

from sqlalchemy import Connection

from .database_errors import sqlite_code

CACHE_KIB = 64 * 1024

WAL_CHECKPOINT_PAGES = 8000
"""Number of database pages (4 KiB) in the log before SQLite copies them into the database file."""

BUSY_TIMEOUT_MILLISECONDS = 5000
"""Time for which SQLite waits for a lock. No request waits that long: see `Writer`."""

UNSAFE_JOURNAL_MODES = ("off", "memory")
"""Modes in which a crash during a transaction destroys the database file."""

BUSY_POLL_SECONDS = 0.0005


def use_wal(driver: Any, _: object = None) -> None:
    """Let readers and a writer work at the same time. The database file keeps this mode.

    SQLite itself does not wait while other processes use a file that has another mode.
    """
    deadline = time.monotonic() + BUSY_TIMEOUT_MILLISECONDS / 1000
    while True:
        try:
            driver.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if sqlite_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
        time.sleep(BUSY_POLL_SECONDS)


def set_up_sqlite(driver: Any) -> None:
    """Configure a connection of sqlite3 for durable transactions.

    Afterwards the driver begins no transaction by itself. Only SQLAlchemy begins transactions.
    """
    driver.rollback()  # a listener of the host app may have begun a transaction
    if hasattr(driver, "autocommit"):  # Python 3.12
        driver.autocommit = sqlite3.LEGACY_TRANSACTION_CONTROL  # type: ignore[attr-defined]
    driver.isolation_level = None
    driver.row_factory, driver.text_factory = None, str
    cursor = driver.cursor()
    # With FULL, a power cut can undo a commit in the journal mode DELETE, because SQLite does not
    # wait until the journal is gone from the disk. In the mode WAL, FULL and EXTRA are the same.
    cursor.execute("PRAGMA synchronous=EXTRA")
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MILLISECONDS}")
    (journal_mode,) = cursor.execute("PRAGMA journal_mode").fetchone()
    if journal_mode in UNSAFE_JOURNAL_MODES and is_file(cursor):
        cursor.execute("PRAGMA journal_mode=DELETE")
    # Account ids arrive in no order. SQLite's defaults, 2 MB of cache and 4 MB of log, make it
    # read and write the same index pages again and again.
    cursor.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
    cursor.execute(f"PRAGMA wal_autocheckpoint={WAL_CHECKPOINT_PAGES}")
    cursor.close()


def is_file(cursor: Any) -> bool:
    return any(row[2] for row in cursor.execute("PRAGMA database_list").fetchall())


def fail_if_locked(connection: Connection) -> None:
    """Let SQLite raise an error at once if another process holds a lock.

    It cannot be interrupted while it waits for a lock.
    """
    limit_lock_wait(connection, 0)


def limit_lock_wait(connection: Connection, milliseconds: int) -> None:
    """Let this connection wait for a lock of another process for at most this time."""
    driver: Any = connection.connection.driver_connection
    driver.execute(f"PRAGMA busy_timeout={milliseconds}")
