"""The spool: a SQLite file on this machine that holds deliveries for an unavailable database."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, Pool, create_engine, event
from sqlalchemy.exc import SQLAlchemyError

from ..errors import StorageError
from .database_errors import describe
from .engines import UNKNOWN_DATABASE, WRITES, begin_sqlite, create_private_file
from .entries import Entry
from .entry_codec import decode_entry, encode_entry
from .ids import moment_of
from .quiet_engines import QuietEngine, quiet_dialect
from .sqlite import limit_lock_wait, set_up_sqlite, use_wal
from .sqlite_files import watch_file
from .sqlite_forks import GuardedNullPool, GuardedQueuePool
from .writer import Writer

CREATE_TABLES = """
CREATE TABLE IF NOT EXISTS imcallback_spool (
    id INTEGER PRIMARY KEY,
    database TEXT NOT NULL,
    delivery_id INTEGER NOT NULL,
    entry BLOB NOT NULL,
    is_set_aside INTEGER NOT NULL DEFAULT 0,
    failures INTEGER NOT NULL DEFAULT 0,
    failed_at REAL,
    problem TEXT NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS ix_imcallback_spool_order
    ON imcallback_spool (database, is_set_aside, id);
CREATE INDEX IF NOT EXISTS ix_imcallback_spool_oldest
    ON imcallback_spool (database, delivery_id);
CREATE TABLE IF NOT EXISTS imcallback_spool_count (
    database TEXT NOT NULL,
    is_set_aside INTEGER NOT NULL,
    count INTEGER NOT NULL,
    PRIMARY KEY (database, is_set_aside)
);
CREATE TRIGGER IF NOT EXISTS imcallback_spool_insert AFTER INSERT ON imcallback_spool BEGIN
    INSERT OR IGNORE INTO imcallback_spool_count VALUES (NEW.database, NEW.is_set_aside, 0);
    UPDATE imcallback_spool_count SET count = count + 1
        WHERE database = NEW.database AND is_set_aside = NEW.is_set_aside;
END;
CREATE TRIGGER IF NOT EXISTS imcallback_spool_delete AFTER DELETE ON imcallback_spool BEGIN
    UPDATE imcallback_spool_count SET count = count - 1
        WHERE database = OLD.database AND is_set_aside = OLD.is_set_aside;
END;
CREATE TRIGGER IF NOT EXISTS imcallback_spool_update
    AFTER UPDATE OF database, is_set_aside ON imcallback_spool BEGIN
    INSERT OR IGNORE INTO imcallback_spool_count VALUES (NEW.database, NEW.is_set_aside, 0);
    UPDATE imcallback_spool_count SET count = count - 1
        WHERE database = OLD.database AND is_set_aside = OLD.is_set_aside;
    UPDATE imcallback_spool_count SET count = count + 1
        WHERE database = NEW.database AND is_set_aside = NEW.is_set_aside;
END;
"""
"""The triggers count the entries, so a health check is quick even if many entries wait.
`delivery_id` is the time at which the delivery was received."""

PUT_SECONDS = 3
"""Time that the spool may take to store a delivery. A late answer is better than no answer."""

MAX_MARKED_ENTRIES = 1000
"""Entries that get their mark in one transaction. Meanwhile the spool takes no delivery."""

READ_LOCK_MILLISECONDS = 500
"""Time for which a reader of the spool waits for a lock."""

MAX_CHUNK_ROWS = 4000
"""Maximum size of the deliveries that are read in one step, in rows (`Entry.weight`)."""

PROBE_BYTES = 64 * 1024
"""Bytes that `check_writable` writes to find a full disk."""

REMEDY = "check the disk, the permissions and IMCALLBACK_SPOOL"


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """A summary of the deliveries in a spool."""

    count: int
    """Number of deliveries that wait for this database."""
    oldest: datetime | None
    """Time at which the oldest delivery for this database was received, aware and in UTC. It may be
    set aside. None if there is no delivery."""
    set_aside: int
    """Number of deliveries that this database refused, while it stored others."""
    foreign: Mapping[str, int]
    """Number of deliveries that belong to another database, by the mark of that database."""

    @property
    def foreign_count(self) -> int:
        """Number of deliveries that belong to other databases."""
        return sum(self.foreign.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class SetAside:
    """A delivery that the database refused, while it stored others."""

    received_at: datetime
    """Time at which the delivery was received, aware and in UTC."""
    failures: int
    """Number of failed attempts to store it."""
    failed_at: datetime
    """Time of the last attempt, aware and in UTC."""
    problem: str
    """The last error of the database."""


class Spool:
    """A file that keeps deliveries until they are drained. Threads and processes may share it.

    Each process has its own object. `get_mark` returns the mark of the database for which the
    deliveries wait. Several databases may share a file: an app sees only the deliveries for its
    own database.
    """

    def __init__(self, path: Path, get_mark: Callable[[], str]) -> None:
        self.path = path
        self._get_mark = get_mark
        self._unmarked: list[int] = []
        """The ids of the deliveries that this process kept for `UNKNOWN_DATABASE`."""
        self._writing = self._new_engine(GuardedQueuePool, pool_size=1, max_overflow=-1)
        self._occasional = self._new_engine(GuardedNullPool)
        self._writer = Writer(lambda: self._writing, retry_until_deadline=False, store=self._insert)

    def _new_engine(self, pool_class: type[Pool], **options: Any) -> Engine:
        url = URL.create("sqlite", database=str(self.path))
        source = create_engine(url, creator=self._open, poolclass=pool_class, **options)
        # The listeners of the host app's classes are for other databases.
        engine = QuietEngine(
            source.pool,
            quiet_dialect(source.dialect),
            url,
            hide_parameters=True,
            execution_options={WRITES: True},
        )
        event.listen(engine, "connect", _set_up)
        event.listen(engine, "begin", begin_sqlite)
        watch_file(engine)
        return engine

    def _open(self) -> Any:
        create_private_file(self.path)  # the file holds packets, so other users may not read it
        return sqlite3.connect(self.path, check_same_thread=False)

    @property
    def mark(self) -> str:
        """The mark of the database that drains this spool."""
        return self._get_mark()

    def put(self, entry: Entry) -> None:
        """Keep an entry. It is durable when this method returns.

        Needs an app context at the first use of the database. Raises `StorageError`.
        """
        entry.database = self.mark  # the writer thread has no app context
        self._writer.write([entry], PUT_SECONDS)
        if entry.database == UNKNOWN_DATABASE:  # also after an error, because it may be stored
            self._unmarked.append(entry.row["id"])
        if entry.error:
            raise self._error("write", entry.error) from entry.error

    def _insert(self, connection: Connection, entries: Sequence[Entry]) -> None:
        rows = [(entry.database, entry.row["id"], encode_entry(entry)) for entry in entries]
        with connection.begin():
            connection.exec_driver_sql(
                "INSERT INTO imcallback_spool (database, delivery_id, entry) VALUES (?, ?, ?)", rows
            )

    def mark_own(self) -> None:
        """Mark the entries that this process kept before it could find out its database.

        Raises `StorageError`.
        """
        mark = self.mark
        if mark == UNKNOWN_DATABASE:
            return
        while ids := self._unmarked[:MAX_MARKED_ENTRIES]:
            with self.writing() as connection:
                connection.exec_driver_sql(
                    "UPDATE imcallback_spool SET database = ? "
                    "WHERE database = ? AND delivery_id = ?",
                    [(mark, UNKNOWN_DATABASE, delivery_id) for delivery_id in ids],
                )
            del self._unmarked[: len(ids)]  # other threads append meanwhile

    def waiting(self) -> Waiting:
        """Return a summary of the deliveries. Creates no file. Raises `StorageError`.

        The method is quick even if many deliveries wait.
        """
        mark = self.mark
        with self._looking() as connection:
            rows: list[tuple[str, int, int]] = []
            oldest: int | None = None
            if connection:
                rows = connection.execute(
                    "SELECT database, is_set_aside, count FROM imcallback_spool_count "
                    "WHERE count > 0"
                ).fetchall()
                (oldest,) = connection.execute(
                    "SELECT min(delivery_id) FROM imcallback_spool WHERE database = ?", (mark,)
                ).fetchone()
        foreign: dict[str, int] = {}
        for database, _, count in rows:
            if database != mark:
                foreign[database] = foreign.get(database, 0) + count
        own = {is_set_aside: count for database, is_set_aside, count in rows if database == mark}
        return Waiting(
            count=own.get(0, 0),
            oldest=None if oldest is None else moment_of(oldest),
            set_aside=own.get(1, 0),
            foreign=foreign,
        )

    def list_set_aside(self, limit: int = 20) -> list[SetAside]:
        """Return the deliveries that are set aside, oldest first. Raises `StorageError`."""
        query = (
            "SELECT delivery_id, failures, failed_at, problem FROM imcallback_spool "
            "WHERE database = ? AND is_set_aside = 1 ORDER BY id LIMIT ?"
        )
        with self._looking() as connection:
            rows = connection.execute(query, (self.mark, limit)).fetchall() if connection else []
        return [
            SetAside(
                received_at=moment_of(delivery_id),
                failures=failures,
                failed_at=moment_of(int(failed_at * 1_000_000)),
                problem=problem,
            )
            for delivery_id, failures, failed_at, problem in rows
        ]

    def read(self, after: int, limit: int) -> list[SpooledEntry]:
        """Return the next entries for this database, in the order in which they came.

        `after` is a `spool_id`. The entries fit into one transaction. An entry that this release
        cannot read is set aside. Raises `StorageError`.
        """
        query = (
            "SELECT id, entry, failures FROM imcallback_spool "
            "WHERE database = ? AND is_set_aside = 0 AND id > ? ORDER BY id LIMIT ?"
        )
        entries: list[SpooledEntry] = []
        unreadable: dict[int, Exception] = {}
        weight = 0
        with self._looking() as connection:
            rows = connection.execute(query, (self.mark, after, limit)) if connection else ()
            for spool_id, encoded, failures in rows:
                try:
                    entry = SpooledEntry(self, spool_id, failures, encoded)
                except Exception as error:  # damaged, or of a newer release
                    unreadable[spool_id] = error
                    continue
                entries.append(entry)
                weight += entry.weight
                if weight >= MAX_CHUNK_ROWS:
                    break
        if unreadable:
            with self.writing() as writing:
                for spool_id, problem in unreadable.items():
                    _note_failure(writing, spool_id, problem, is_set_aside=True)
        return entries

    def remove(self, entries: Sequence[SpooledEntry]) -> None:
        """Remove entries that the database has stored. Raises `StorageError`."""
        with self.writing() as connection:
            connection.exec_driver_sql(
                "DELETE FROM imcallback_spool WHERE id = ?",
                [(entry.spool_id,) for entry in entries],
            )

    def note_failures(self, entries: Sequence[SpooledEntry], *, is_set_aside: bool) -> None:
        """Store the errors of the entries, and set them aside if `is_set_aside`.

        Raises `StorageError`.
        """
        with self.writing() as connection:
            for entry in entries:
                _note_failure(connection, entry.spool_id, entry.error, is_set_aside=is_set_aside)

    def release_set_aside(self) -> int:
        """Return the entries that are set aside to the waiting entries. Returns their number.

        Raises `StorageError`.
        """
        if not os.path.lexists(self.path):
            return 0
        with self.writing() as connection:
            return connection.exec_driver_sql(
                "UPDATE imcallback_spool SET is_set_aside = 0 "
                "WHERE database = ? AND is_set_aside = 1",
                (self.mark,),
            ).rowcount

    def adopt(self, mark: str) -> int:
        """Take over the deliveries of another database. Returns their number.

        Call this method after the database has moved. `mark` is a key of `Waiting.foreign`. Raises
        `StorageError`, also if the database of this app is unknown.
        """
        if self.mark == UNKNOWN_DATABASE:
            raise StorageError(
                "cannot find out the database of this app: correct its configuration first"
            )
        if not os.path.lexists(self.path):
            return 0
        with self.writing() as connection:
            return connection.exec_driver_sql(
                "UPDATE imcallback_spool SET database = ?, is_set_aside = 0 WHERE database = ?",
                (self.mark, mark),
            ).rowcount

    def check_writable(self) -> None:
        """Check that the spool can be used before it is needed. Leaves no file behind.

        Raises `StorageError`.
        """
        try:
            if os.path.lexists(self.path):
                self._try_insert()
            _try_file(self.path.parent)
        except (SQLAlchemyError, sqlite3.Error, OSError) as error:
            raise self._error("write", error) from error

    def _try_insert(self) -> None:
        """Insert into the spool as `put` does, and roll back."""
        if not self.path.is_file():
            raise FileExistsError(f"{self.path} is not a regular file")
        with self._occasional.connect() as connection:
            limit_lock_wait(connection, READ_LOCK_MILLISECONDS)
            with connection.begin() as transaction:
                connection.exec_driver_sql(
                    "INSERT INTO imcallback_spool (database, delivery_id, entry) VALUES ('', 0, ?)",
                    (bytes(PROBE_BYTES),),
                )
                transaction.rollback()

    @contextmanager
    def _looking(self) -> Iterator[sqlite3.Connection | None]:
        """Yield a connection, or None if the spool is empty. Raises `StorageError`."""
        try:
            if not _exists(self.path):
                yield None
                return
            with closing(_connect(self.path, "rw", READ_LOCK_MILLISECONDS)) as connection:
                yield connection if _has_tables(connection) else None
        except (sqlite3.Error, OSError) as error:
            raise self._error("read", error) from error

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Yield a connection in a transaction. Raises `StorageError`."""
        try:
            with self._occasional.connect() as connection, connection.begin():
                yield connection
        except (SQLAlchemyError, OSError) as error:
            raise self._error("write", error) from error

    def dispose(self) -> None:
        """Close the idle connections of this process."""
        self._writing.dispose()

    def _error(self, verb: str, cause: Exception) -> StorageError:
        return StorageError(f"cannot {verb} the spool {self.path} ({describe(cause)}): {REMEDY}")


class SpooledEntry(Entry):
    """An entry that stays in a spool until the database has stored it."""

    def __init__(self, spool: Spool, spool_id: int, failures: int, encoded: bytes) -> None:
        super().__init__(*decode_entry(encoded))
        self._spool = spool
        self.spool_id = spool_id
        """The position of the entry in the order in which the entries came."""
        self.failures = failures
        """Number of attempts that failed while the database stored other entries."""

    def assign_id(self, delivery_id: int) -> None:
        """Give the entry another id, and write the id to the spool immediately.

        The id is written to the spool before the database gets it. So another drain recognizes the
        stored row after a crash.
        """
        super().assign_id(delivery_id)
        with self._spool.writing() as connection:
            connection.exec_driver_sql(
                "UPDATE imcallback_spool SET delivery_id = ?, entry = ? WHERE id = ?",
                (delivery_id, encode_entry(self), self.spool_id),
            )


def _set_up(driver: sqlite3.Connection, _: object) -> None:
    set_up_sqlite(driver)
    use_wal(driver)
    if not _has_tables(driver):
        driver.executescript(CREATE_TABLES)


def _has_tables(driver: sqlite3.Connection) -> bool:
    query = "SELECT 1 FROM sqlite_master WHERE name = 'imcallback_spool_update'"
    return driver.execute(query).fetchone() is not None


def _note_failure(
    connection: Connection, spool_id: int, error: Exception | None, *, is_set_aside: bool
) -> None:
    connection.exec_driver_sql(
        "UPDATE imcallback_spool SET is_set_aside = ?, failures = failures + 1, failed_at = ?, "
        "problem = ? WHERE id = ?",
        (int(is_set_aside), time.time(), describe(error), spool_id),
    )


def _exists(path: Path) -> bool:
    """Return True if the file exists. Raises `OSError` if the folder cannot be read."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    return True


def _connect(path: Path, mode: str, milliseconds: int) -> sqlite3.Connection:
    """Open an existing file without SQLAlchemy. `mode` is a mode of SQLite's URIs."""
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=milliseconds / 1000, isolation_level=None)


def _try_file(folder: Path) -> None:
    """Write a file without a name into the folder, or into the nearest folder that exists."""
    while not _exists(folder) and folder != folder.parent:
        folder = folder.parent
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(PROBE_BYTES))
        file.flush()
        os.fsync(file.fileno())
