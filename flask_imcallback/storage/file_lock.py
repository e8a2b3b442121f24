"""Lock files, with which the processes that write to one SQLite file take turns."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_POLL_SECONDS = 0.0005


class LockTakenError(Exception):
    """Another process holds the lock file."""


@contextmanager
def file_lock(
    path: str | None, name: str = "lock", *, seconds: float | None = None
) -> Iterator[Callable[[], None]]:
    """Hold the lock file `path-name`. Yields a function that releases the lock early.

    Raises `LockTakenError` if the lock is not free within `seconds`.

    `flock` wakes waiting processes in order. SQLite polls instead, and can starve a process. There
    is no lock if `path` is None, on Windows, or if the lock file cannot be opened. This is safe,
    because the locks of SQLite still apply.
    """
    with ExitStack() as stack:
        # A separate file: opening and closing the database file would drop SQLite's locks.
        lock = _open_lock_file(f"{path}-{name}", beside=path) if path and fcntl else None
        if lock is not None:
            stack.callback(_close_lock_file, lock)
            _lock_file(lock, seconds)
        yield stack.close


def _lock_file(lock: int, seconds: float | None) -> None:
    """Wait for the lock. Raises `LockTakenError`. Some network file systems have no locks."""
    deadline = time.monotonic() + (seconds or 0)
    flags = fcntl.LOCK_EX if seconds is None else fcntl.LOCK_EX | fcntl.LOCK_NB
    with suppress(OSError):
        while True:
            try:
                fcntl.flock(lock, flags)
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise LockTakenError from None
                time.sleep(LOCK_POLL_SECONDS)


def _close_lock_file(lock: int) -> None:
    """Release the lock. A process that was forked meanwhile has the file open and would keep it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_UN)
    finally:
        os.close(lock)


def _open_lock_file(path: str, *, beside: str) -> int | None:
    """Open the lock file, or return None.

    A file that root creates gets the owner of the file beside it.
    """
    with suppress(OSError):
        with suppress(FileNotFoundError):
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        lock = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.geteuid() == 0:
            with suppress(OSError):
                owner = os.stat(beside)
                os.fchown(lock, owner.st_uid, owner.st_gid)
        return lock
    return None
