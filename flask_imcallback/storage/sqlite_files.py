"""The file of a SQLite database: its path, and what others do with it while it is open."""

from __future__ import annotations

import atexit
import os
import sqlite3
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit
from weakref import WeakSet

from sqlalchemy import URL, Connection, Engine, event
from sqlalchemy.exc import DisconnectionError

from .sqlite_forks import close_before_fork
from .threads import PerProcess

FILE_KEY = "imcallback_file"
"""Key of `Connection.info` with the `OpenFile` of the connection, or None for a database in memory.
"""

Identity = tuple[int, int]
"""Device and inode of a file."""

CHECKPOINT_SECONDS, CHECKPOINT_PAUSE_SECONDS = 1.0, 0.2
"""Maximum time, and the pause between two attempts, for the checkpoint of a process that ends."""

# A writer thread keeps its engine alive, so no engine that writes disappears from this set.
_engines: PerProcess[WeakSet[Engine]] = PerProcess(WeakSet)
"""Our engines of SQLite files in this process."""


def sqlite_path(engine: Engine) -> str | None:
    """Return the path of a SQLite file, or None for a database in memory or on a server."""
    return resolve_path(engine.url) if engine.dialect.name == "sqlite" else None


def resolve_path(url: URL) -> str | None:
    """Return the absolute path of the SQLite file without links, or None for a database in memory.

    A URL may name the file by its path or by a URI, see https://sqlite.org/uri.html.
    """
    database = url.database or ":memory:"
    if database.startswith("file:"):
        path, options = urlsplit(database).path, uri_options(url)
        is_in_memory = (
            options.get("mode") == "memory" or options.get("vfs") == "memdb" or ":memory:" in path
        )
        database = ":memory:" if is_in_memory else unquote(path)
    if database == ":memory:" or not database:
        return None
    return os.path.realpath(database)


def uri_options(url: URL) -> dict[str, str]:
    """Return the options of a URI of SQLite. SQLAlchemy moves them into the query of its URL."""
    options = dict(parse_qsl(urlsplit(url.database or "").query))
    options |= {name: value for name, value in url.query.items() if isinstance(value, str)}
    return options


def is_file_missing(engine: Engine) -> bool:
    """Return True if the SQLite file does not exist, or is empty. A connection creates a file.

    An empty file has no tables. A test of a host may have deleted the file just when a thread
    opened it.
    """
    path = sqlite_path(engine)
    try:
        return path is not None and os.path.getsize(path) == 0
    except FileNotFoundError:
        return True
    except OSError:  # the use of the file tells why
        return False


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
    paths: set[str | None] = set()
    for engine in list(_engines.get()):
        # SQLite reads the log next time. The path is unknown if the working folder was deleted.
        with suppress(Exception):  # also of a listener of the host app
            path = sqlite_path(engine)
            if path not in paths:
                paths.add(path)
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
