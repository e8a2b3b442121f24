"""Settings and locks that make SQLite durable and let several processes write to one file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from sqlalchemy import Engine

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

CACHE_KIB = 64 * 1024

WAL_CHECKPOINT_PAGES = 8000
"""Pages of 4 KiB that SQLite writes to its log before it copies them into the database file."""


def set_durable_pragmas(connection: Any, _: object) -> None:
    """Let readers and a writer work at the same time, and write each commit to disk."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    # Account ids arrive in no order. SQLite's defaults, 2 MB of cache and 4 MB of log, make it
    # read and write the same index pages again and again.
    cursor.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
    cursor.execute(f"PRAGMA wal_autocheckpoint={WAL_CHECKPOINT_PAGES}")
    cursor.close()


def sqlite_path(engine: Engine) -> str | None:
    """Return the path of a SQLite database, or None for a database in memory or of another kind."""
    if engine.dialect.name != "sqlite":
        return None
    path = engine.url.database or ":memory:"
    return None if ":memory:" in path or path.startswith("file:") else path


def file_identity(path: str) -> tuple[int, int] | None:
    """Return the device and inode of the file, or None if it does not exist."""
    try:
        stat = os.stat(path)
    except FileNotFoundError:
        return None
    return stat.st_dev, stat.st_ino


@contextmanager
def file_lock(path: str | None) -> Iterator[Callable[[], None]]:
    """Hold the lock file of `path`. Yields a function that releases the lock early.

    `flock` wakes waiting processes in order. SQLite's own waiting polls and can starve a process.
    Working without this lock is safe, because SQLite's own locks still apply: there is no lock if
    `path` is None, on Windows, and if the lock file cannot be opened.
    """
    with ExitStack() as stack:
        if path is not None and fcntl is not None:
            # A separate file: opening and closing the database file would drop SQLite's locks.
            with suppress(OSError):
                lock = os.open(f"{path}-lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
                stack.callback(os.close, lock)
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield stack.close
