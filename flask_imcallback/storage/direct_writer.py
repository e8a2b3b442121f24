"""The direct writer: it stores a delivery in the thread of the request.

Handing a delivery to the writer thread takes more time than its transaction. So a request writes by
itself while the database is well and nothing else waits to be stored. The writer thread does
everything else: it opens connections, waits for other processes, groups deliveries and retries.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress

from sqlalchemy import Connection, Engine, QueuePool
from sqlalchemy.exc import SQLAlchemyError

from ..logger import logger
from .database_errors import DeadlineError, FileReplacedError
from .entries import Entry
from .file_lock import LockTakenError, file_lock
from .inserts import store_by_driver
from .sqlite import fail_if_locked
from .sqlite_files import is_file_current, sqlite_path
from .sqlite_forks import give_up_before_fork
from .threads import new_lock, runs_in_gevent, start_thread
from .writer import can_interrupt, interrupt

MAX_ENTRY_ROWS = 1000
"""Deliveries of this size or larger (`Entry.weight`) are left to the writer thread."""

MAX_LOCK_SECONDS = 0.005
"""Maximum time for which a request waits for the lock file."""

MAX_IDLE_SECONDS = 30
"""A connection that was idle for longer is replaced. A firewall may have dropped it silently."""

PAUSE_SECONDS = 5
"""Time without direct writes after an error."""

STOP_SECONDS = 0.5
"""Maximum time for which `stop` waits for a write."""

WATCH_SECONDS = 0.05
"""Time between two checks of the deadline."""


class DirectWriter:
    """A connection by which one request at a time stores its delivery. Threads may share it.

    A driver may never return. So a watchdog thread interrupts a write at its deadline.
    """

    def __init__(self, engine: Callable[[], Engine]) -> None:
        self._get_engine = engine
        # A thread holds this lock while it uses the connection.
        self._turn = new_lock()
        self._connection: Connection | None = None
        # The SQLite file of the connection.
        self._path: str | None = None
        # Times of the monotonic clock. A deadline of 0 means that nobody writes.
        self._used_at = self._deadline = self._paused_until = 0.0
        # A thread holds this lock while it reads or changes the deadline or the watchdog.
        self._watch_lock = new_lock()
        self._is_watched = False
        give_up_before_fork(self)

    def write(self, entry: Entry, seconds: float) -> bool:
        """Store the entry within `seconds`. Returns False if the writer thread must store it.

        Raises `DeadlineError` if the write was interrupted. The database may have stored the entry
        nevertheless. Raises `RuntimeError` if the process cannot start a thread.
        """
        now = time.monotonic()
        if entry.weight >= MAX_ENTRY_ROWS or now < self._paused_until or runs_in_gevent():
            return False
        if not self._turn.acquire(blocking=False):
            return False
        try:
            if self._connection is None or self._is_idle:
                return False
            self._begin_watch(now + seconds)
            try:
                return self._try_write(self._connection, entry)
            finally:
                self._end_watch()
        finally:
            self._turn.release()

    def _try_write(self, connection: Connection, entry: Entry) -> bool:
        try:
            with file_lock(self._path, seconds=MAX_LOCK_SECONDS) as release_lock:
                store_by_driver(connection, entry)
                release_lock()
            if not is_file_current(connection):
                raise FileReplacedError("the database file was deleted or replaced")
        except LockTakenError:
            return False
        except Exception as error:  # the writer thread tries again, whatever the error is
            self._paused_until = time.monotonic() + PAUSE_SECONDS
            self._close()
            if time.monotonic() >= self._deadline:
                raise DeadlineError("the database did not store the delivery in time") from error
            logger.debug("The writer thread repeats a write that failed", exc_info=True)
            return False
        except BaseException:  # a time limit of the host app may end the request at any point
            self._give_up()
            raise
        return True

    def renew(self) -> None:
        """Open the connection if it is missing or was idle for long. The writer thread calls this.

        Its own transaction has just succeeded, so the database is well.
        """
        engine = self._get_engine()
        if runs_in_gevent() or not isinstance(engine.pool, QueuePool):
            return
        if not self._turn.acquire(blocking=False):
            return
        try:
            is_paused = time.monotonic() < self._paused_until
            if not is_paused and (self._connection is None or self._is_idle):
                self._close()
                with suppress(SQLAlchemyError):  # the next write of the writer thread tells why
                    self._open(engine)
        finally:
            self._turn.release()

    def _open(self, engine: Engine) -> None:
        connection = engine.connect()
        if not can_interrupt(connection):  # only the writer thread can keep the deadline
            connection.close()
            engine.dispose()
            self._paused_until = math.inf
            return
        if engine.dialect.name == "sqlite":
            fail_if_locked(connection)
        self._connection, self._path = connection, sqlite_path(engine)
        self._used_at = time.monotonic()

    @property
    def _is_idle(self) -> bool:
        return time.monotonic() - self._used_at > MAX_IDLE_SECONDS

    def give_up_connection(self, seconds: float = 0) -> None:
        """Close the connection, unless a write uses it for more than `seconds`."""
        if self._turn.acquire(timeout=seconds):
            try:
                self._close()
            finally:
                self._turn.release()

    def stop(self) -> None:
        """Close the connection, and leave all further writes to the writer thread."""
        self._paused_until = math.inf
        self.give_up_connection(STOP_SECONDS)

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):  # whatever the driver raises, nobody uses the connection
                connection.close()
                connection.engine.dispose()

    def _give_up(self) -> None:
        """Close the connection at once. Its transaction is open, and the driver may be confused."""
        if self._connection is not None:
            with suppress(Exception):
                self._connection.invalidate()
        self._close()

    def _begin_watch(self, deadline: float) -> None:
        with self._watch_lock:
            if not self._is_watched:
                start_thread("imcallback-watchdog", self._watch)
                self._is_watched = True
            self._deadline = deadline

    def _end_watch(self) -> None:
        with self._watch_lock:
            self._deadline, self._used_at = 0, time.monotonic()

    def _watch(self) -> None:
        """Interrupt a write that has reached its deadline. Returns when nobody writes any more."""
        while True:
            time.sleep(WATCH_SECONDS)
            now = time.monotonic()
            with self._watch_lock:
                connection = self._connection
                if 0 < self._deadline < now and connection is not None:
                    interrupt(connection)
                if not self._deadline and now - self._used_at > PAUSE_SECONDS:
                    self._is_watched = False
                    return
