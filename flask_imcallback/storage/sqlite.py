"""What a SQLite file needs so that several processes may write to it, and a commit is durable."""

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
WAL_PAGES = 8000
"""Of 4 KiB; as many are written to the log before they are copied into the file."""


def set_durable_pragmas(connection: Any, _: object) -> None:
    """Writers and readers side by side; a commit is on disk when it returns."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    # Accounts come in no order: with SQLite's 2 MB and 4 MB, the pages of their indexes are read
    # and written again and again.
    cursor.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
    cursor.execute(f"PRAGMA wal_autocheckpoint={WAL_PAGES}")
    cursor.close()


def file_of(engine: Engine) -> str | None:
    """The path of a SQLite database; None if it is in memory, or not SQLite."""
    if engine.dialect.name != "sqlite":
        return None
    path = engine.url.database or ":memory:"
    return None if ":memory:" in path or path.startswith("file:") else path


def inode_of(path: str) -> tuple[int, int] | None:
    """What tells the file from another of that name; None if it is not there."""
    try:
        stat = os.stat(path)
    except FileNotFoundError:
        return None
    return stat.st_dev, stat.st_ino


@contextmanager
def turn(path: str | None) -> Iterator[Callable[[], None]]:
    """Wait until no other process has its turn at that file; what it gives ends the turn early.

    The kernel wakes one that waits. SQLite's own waiting is by polling, at which some starve; it
    still keeps out those that take no turns, so that this may be done without.
    """
    with ExitStack() as stack:
        if path is not None and fcntl is not None:
            # Beside the file: to open and close the file itself would give up SQLite's own locks.
            with suppress(OSError):
                lock = os.open(f"{path}-turn", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
                stack.callback(os.close, lock)
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield stack.close
