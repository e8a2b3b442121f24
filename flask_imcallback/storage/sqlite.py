"""Settings and locks that make SQLite durable and let several processes write to one file."""

from __future__ import annotations

import atexit
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import parse_qs, unquote, urlsplit
from weakref import WeakSet

from sqlalchemy import URL, Connection, Engine, NullPool, Pool, QueuePool, event
from sqlalchemy.exc import DisconnectionError, SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry

from .database_errors import sqlite_code
from .threads import PerProcess

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

CACHE_KIB = 64 * 1024

WAL_CHECKPOINT_PAGES = 8000
"""Number of database pages (4 KiB) in the log before SQLite copies them into the database file."""

BUSY_TIMEOUT_MILLISECONDS = 5000
"""Time for which SQLite waits for a lock. No request waits that long: see `Writer`."""

FILE_KEY = "imcallback_file"
"""Key of `Connection.info` with the `OpenFile` of the connection, or None for a database in memory.
"""

Identity = tuple[int, int]
"""Device and inode of a file."""

LOCK_POLL_SECONDS = 0.0005

FORK_DELAY_SECONDS, FORK_POLL_SECONDS = 2.0, 0.005
"""Maximum time for which a fork waits for the transactions of other threads."""

MAX_GATE_SECONDS = 1.0
"""Maximum time for which a transaction waits for a fork. It must end before its deadline."""

UNSAFE_JOURNAL_MODES = ("off", "memory")
"""Modes in which a crash during a transaction destroys the database file."""

CHECKPOINT_SECONDS, CHECKPOINT_PAUSE_SECONDS = 1.0, 0.2
"""Maximum time, and the pause between two attempts, for the checkpoint of a process that ends."""

# A writer thread keeps its engine alive, so no engine that writes disappears from this set.
_engines: PerProcess[WeakSet[Engine]] = PerProcess(WeakSet)
"""Our engines of SQLite files in this process."""


_closed_before_fork: WeakSet[Engine] = WeakSet()
_given_up_before_fork: WeakSet[ConnectionOwner] = WeakSet()


class _ForkGate:
    """Keeps the threads of this process out of SQLite while the process forks.

    The child would inherit the locks inside the library, and no thread that releases them.
    """

    def __init__(self) -> None:
        self.is_shut = False
        self._in_use: set[object] = set()

    def enter(self, key: object) -> None:
        """Note that a connection is opened or used. Waits while the process forks."""
        self._in_use.add(key)
        if not self.is_shut:
            return
        deadline = time.monotonic() + MAX_GATE_SECONDS
        while self.is_shut and time.monotonic() < deadline:
            self._in_use.discard(key)
            time.sleep(FORK_POLL_SECONDS)
            self._in_use.add(key)

    def stay(self, key: object) -> None:
        """Note another key. The caller is inside with a first key, so a fork waits for it."""
        self._in_use.add(key)

    def leave(self, key: object) -> None:
        """Note that the connection rests in its pool, or is closed."""
        self._in_use.discard(key)

    @property
    def is_free(self) -> bool:
        """Whether no connection is in use."""
        return not self._in_use

    def open(self) -> None:
        self.is_shut = False

    def open_in_child(self) -> None:
        self.is_shut = False
        self._in_use.clear()


_gate = _ForkGate()


def _continue_in_child() -> None:
    _given_up_before_fork.clear()
    _gate.open_in_child()


class ConnectionOwner(Protocol):
    """An object that keeps a connection of a pool while nobody uses the connection."""

    def give_up_connection(self) -> None:
        """Close the connection, unless a transaction uses it. Returns immediately."""


def give_up_before_fork(owner: ConnectionOwner) -> None:
    """Close the connection of the owner before this process forks. See `close_before_fork`."""
    _given_up_before_fork.add(owner)


def close_before_fork(engine: Engine) -> None:
    """Close the idle connections of an engine before this process forks, if they open a file.

    SQLite remembers the locks of a process. A child would believe in locks that only its parent
    has. See https://sqlite.org/howtocorrupt.html, section 2.6.
    """
    if engine.dialect.name == "sqlite" and isinstance(engine.pool, QueuePool | NullPool):
        _closed_before_fork.add(engine)


def _close_idle_connections() -> None:
    """Wait a moment for the transactions that run, and close all connections."""
    _gate.is_shut = True
    deadline = time.monotonic() + FORK_DELAY_SECONDS
    while True:
        for owner in list(_given_up_before_fork):
            owner.give_up_connection()
        if _gate.is_free or time.monotonic() > deadline:
            break
        time.sleep(FORK_POLL_SECONDS)
    for engine in list(_closed_before_fork):
        with suppress(Exception):  # whatever the error is, the fork goes on
            engine.dispose()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(
        before=_close_idle_connections,
        after_in_parent=_gate.open,
        after_in_child=_continue_in_child,
    )


class _GuardedPool(Pool):
    """A pool that opens, lends and closes no connection while this process forks."""

    _is_disposed = False

    def dispose(self) -> None:
        self._is_disposed = True
        super().dispose()

    def _do_get(self) -> ConnectionPoolEntry:
        opening = object()
        _gate.enter(opening)
        try:
            record = super()._do_get()
            _gate.stay(record)
            return record
        finally:
            _gate.leave(opening)

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        try:
            super()._do_return_conn(record)
            if self._is_disposed:  # while the connection was in use. The engine has a new pool
                super().dispose()
        finally:
            _gate.leave(record)


class GuardedQueuePool(_GuardedPool, QueuePool):
    """A pool that keeps connections of SQLite."""


class GuardedNullPool(_GuardedPool, NullPool):
    """A pool that closes each connection of SQLite after its use."""


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
        time.sleep(LOCK_POLL_SECONDS)


def set_up_sqlite(driver: Any) -> None:
    """Configure a connection of sqlite3 for durable transactions.

    Afterwards the driver begins no transaction by itself. Only SQLAlchemy begins transactions.
    """
    driver.rollback()  # a listener of the host app may have begun a transaction
    if hasattr(driver, "autocommit"):  # Python 3.12
        driver.autocommit = sqlite3.LEGACY_TRANSACTION_CONTROL  # type: ignore[attr-defined]
    driver.isolation_level = None
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


def sqlite_path(engine: Engine) -> str | None:
    """Return the path of a SQLite file, or None for a database in memory or on a server."""
    return resolve_path(engine.url) if engine.dialect.name == "sqlite" else None


def resolve_path(url: URL) -> str | None:
    """Return the absolute path of the SQLite file without links, or None for a database in memory.

    A URL may name the file by its path or by a URI, see https://sqlite.org/uri.html.
    """
    database = url.database or ":memory:"
    if database.startswith("file:"):
        uri = urlsplit(database)
        is_in_memory = "memory" in parse_qs(uri.query).get("mode", ()) or ":memory:" in uri.path
        database = ":memory:" if is_in_memory else unquote(uri.path)
    if database == ":memory:" or not database:
        return None
    return os.path.realpath(database)


def file_identity(path: str) -> Identity | None:
    """Return the device and inode of the file, or None if it does not exist."""
    try:
        stat = os.stat(path)
    except FileNotFoundError:
        return None
    return stat.st_dev, stat.st_ino


@dataclass(frozen=True)
class OpenFile:
    """The SQLite file of a connection, as it was when the connection was opened."""

    path: str
    identities: tuple[Identity | None, Identity | None]
    """The file and its log (`-wal`)."""

    @classmethod
    def of(cls, path: str) -> OpenFile:
        return cls(path, _identities(path))

    @property
    def is_current(self) -> bool:
        """Whether other processes see what the connection writes."""
        if self.identities[0] is None or self.identities != _identities(self.path):
            return False
        has_log = self.identities[1] is not None
        return not has_log or os.path.lexists(f"{self.path}-shm")


def _identities(path: str) -> tuple[Identity | None, Identity | None]:
    return file_identity(path), file_identity(f"{path}-wal")


def watch_file(engine: Engine) -> None:
    """Replace pooled connections whose SQLite file was deleted or replaced meanwhile.

    Such a connection still reads and writes the old file, which is lost with the process. The log
    and its index (`-shm`) are watched too: after a fork, SQLite can believe in a lock that only the
    parent had. Then another process can delete both while this connection uses them.

    A process that ends leaves a complete file.
    """
    _engines.get().add(engine)
    close_before_fork(engine)

    def note_file(driver: Any, record: Any) -> None:
        record.info[FILE_KEY] = None
        with suppress(UnicodeError):  # Python cannot name the file, so nobody can watch it
            path = _opened_path(driver, engine)
            record.info[FILE_KEY] = OpenFile.of(path) if path else None

    def check_file(_: object, record: Any, __: object) -> None:
        file: OpenFile | None = record.info[FILE_KEY]
        if file is not None and not file.is_current:
            raise DisconnectionError("the database file was deleted or replaced")

    event.listen(engine, "connect", note_file)
    event.listen(engine, "checkout", check_file)


def _opened_path(driver: Any, engine: Engine) -> str | None:
    """Return the path of the file that a connection has opened, or None without a file.

    A `creator` may open another file than the URL names.
    """
    try:
        path: str = driver.execute("PRAGMA database_list").fetchone()[2]
        return path or None
    except sqlite3.Error:  # the path is not UTF-8
        return sqlite_path(engine)


def is_file_current(connection: Connection) -> bool:
    """Return False if the file of the connection was deleted or replaced since it was opened.

    Returns True for a database without a file. Needs an engine that `watch_file` has prepared.
    """
    file: OpenFile | None = connection.info.get(FILE_KEY)
    return file is None or file.is_current


@atexit.register
def _empty_logs() -> None:
    """Leave complete SQLite files at the end of the process, for backups that copy only the file.

    No connection is closed: a process that forked after it opened a file could delete the log that
    its children still use.
    """
    by_path = {sqlite_path(engine): engine for engine in list(_engines.get())}
    for engine in by_path.values():
        with suppress(SQLAlchemyError, sqlite3.Error, OSError):  # SQLite reads the log next time
            _empty_log(engine)


def _empty_log(engine: Engine) -> None:
    """Copy the log of the file into the file, unless other processes use it for too long."""
    path, deadline = sqlite_path(engine), time.monotonic() + CHECKPOINT_SECONDS
    if path is None or not _has_log(path):
        return
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        # SQLite would wait with a lock that keeps other processes from writing.
        connection.exec_driver_sql("PRAGMA busy_timeout=0")
        while time.monotonic() < deadline:
            is_busy, _, _ = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()
            if not is_busy:
                return
            time.sleep(CHECKPOINT_PAUSE_SECONDS)


def _has_log(path: str) -> bool:
    """Return True if the file exists and has a log that is not empty."""
    with suppress(OSError):
        return os.path.lexists(path) and os.path.getsize(f"{path}-wal") > 0
    return False


class LockTakenError(Exception):
    """Another process holds the lock file."""


def fail_if_locked(connection: Connection) -> None:
    """Let SQLite raise an error at once if another process holds a lock.

    It cannot be interrupted while it waits for a lock.
    """
    driver: Any = connection.connection.driver_connection
    driver.execute("PRAGMA busy_timeout=0")


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
