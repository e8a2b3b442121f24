"""The writer: it stores deliveries in a database, many in one transaction.

A caller waits until a deadline at most. A dedicated thread writes to the database, so no driver can
delay an answer: psycopg can wait for a reply without end, and a commit without its synchronous
standby waits without end. Deliveries that arrive during a commit share the next transaction. A
single delivery is written immediately.
"""

from __future__ import annotations

import os
import queue
import socket
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine

from ..errors import StorageError
from ..logger import logger
from ..removals import Status
from .database_errors import DeadlineError, Fault, FileReplacedError, classify
from .engines import drop_idle_connections
from .entries import Entry
from .file_lock import file_lock
from .inserts import store_entries
from .key_conflicts import AlreadyStored, KeyConflict, Repetition, TakenId, find_key_conflict
from .memory import hold_connection, shares_connection
from .sqlite_files import is_file_current, sqlite_path
from .threads import new_lock, new_queue, new_signal, start_thread

MIN_TRANSACTION_ROWS, MAX_TRANSACTION_ROWS = 1000, 20_000
"""Bounds of the size of a transaction, in rows (`Entry.weight`). Larger transactions write the
same index pages less often."""

SLOW_TRANSACTION_SECONDS = 0.5
"""After a transaction that took longer, the next one is smaller."""

LARGE_BODY_BYTES = 256 * 1024
"""Bodies of this size or larger are stored in their own transaction. If the database refuses the
body, other deliveries are not affected."""

MAX_IDLE_SECONDS = 5
"""Time without an entry after which a worker ends. The next entry starts another one."""

MAX_ATTEMPTS = 20
"""Attempts to run a transaction whose keys are taken, or that loses against other transactions."""

MAX_RETRY_PAUSE_SECONDS = 0.4

MAX_INVISIBLE_CONFLICTS = 5
"""Attempts after an error about a key that no visible row has. A node of a Galera cluster knows
about the rows of other nodes before it shows them."""

INVISIBLE_CONFLICT_PAUSE_SECONDS = 0.05

FIRST_ID_STEP_MICROSECONDS = 1000
"""A taken id moves by less than this step. The step doubles with each attempt."""


class _QueuedEntry(NamedTuple):
    """An entry that waits for the writer thread."""

    engine: Engine
    deadline: float
    """Time of the monotonic clock."""
    entry: Entry


@dataclass(eq=False)
class _Worker:
    """The state of a writer thread."""

    busy_since: float = 0
    """Time of the monotonic clock at which the current work began, or 0 if the worker is idle."""
    connection: Connection | None = None
    release_lock: Callable[[], None] = lambda: None
    is_abandoned: bool = False
    """Whether the writer has given up this thread. The thread ends when the driver returns."""


class Writer:
    """A queue of entries and the thread that stores them. The threads of a process may share it.

    `store` inserts entries by a connection. After a lost connection, a writer with
    `retry_until_deadline` retries until the deadline. Other writers retry once. Each transaction
    runs in a new `context`, because listeners of the host app may need an app context. `on_stored`
    is called in the writer thread when entries were stored. It must return immediately.
    """

    def __init__(
        self,
        engine: Callable[[], Engine],
        *,
        retry_until_deadline: bool,
        context: Callable[[], AbstractContextManager[object]] = nullcontext,
        store: Callable[[Connection, Sequence[Entry]], None] = store_entries,
        after_write: Callable[[], None] = lambda: None,
        on_stored: Callable[[], None] = lambda: None,
    ) -> None:
        self._get_engine = engine
        self._retry_until_deadline = retry_until_deadline
        self._context = context
        self._store_entries = store
        self._after_write = after_write
        self._on_stored = on_stored
        self._lock = new_lock()
        self._queue = new_queue()
        self._worker: _Worker | None = None
        self._max_rows = MIN_TRANSACTION_ROWS

    def write(self, entries: Sequence[Entry], seconds: float) -> None:
        """Store each entry completely within `seconds`, or set its `error`.

        The caller provides what the engine function needs, for example an app context. An entry
        that is not stored by the deadline is abandoned. A running transaction may still store it,
        with the id that it has now. Raises `StorageError` if the process cannot start a thread.
        """
        engine, deadline = self._get_engine(), time.monotonic() + seconds
        for entry in entries:
            entry.done = new_signal()
        if shares_connection(engine):
            with hold_connection(engine):
                self._store(engine, list(entries), deadline, _Worker())
            return
        for entry in entries:
            self._queue.put(_QueuedEntry(engine, deadline, entry))
        try:
            self._ensure_worker()
        except RuntimeError as error:
            self._abandon(entries, seconds)
            raise StorageError(f"the process cannot start a thread ({error})") from error
        for entry in entries:
            if not entry.done.wait(deadline - time.monotonic()):
                self._abandon(entries, seconds)
                return

    @property
    def is_idle(self) -> bool:
        """Whether no entry waits and none is being stored."""
        worker = self._worker
        return self._queue.empty() and (worker is None or not worker.busy_since)

    def _ensure_worker(self) -> None:
        """Start a worker if there is none. Raises `RuntimeError` if no thread is free."""
        with self._lock:
            if self._worker is not None:
                return
            worker = _Worker()
            start_thread("imcallback-writer", lambda: self._work(worker))
            self._worker = worker

    def _abandon(self, entries: Sequence[Entry], seconds: float) -> None:
        """Give up the unfinished entries, and the worker if it hangs."""
        with self._lock:
            for entry in entries:
                if not entry.done.is_set():
                    entry.is_abandoned = True
                    entry.error = DeadlineError(
                        f"the database did not store the delivery within {seconds:g} seconds"
                    )
            worker = self._worker
            # The worker hangs if it was busy for half of the time. It may have started after the
            # caller began to wait.
            if worker is None or not 0 < worker.busy_since < time.monotonic() - seconds / 2:
                return
            worker.is_abandoned = True
            self._worker = None
        if worker.connection is not None:
            interrupt(worker.connection)
        with suppress(RuntimeError):  # without a free thread, the next caller starts a worker
            self._ensure_worker()  # other callers wait for the queue

    def _work(self, worker: _Worker) -> None:
        while not worker.is_abandoned:
            try:
                first = self._queue.get(timeout=MAX_IDLE_SECONDS)
            except queue.Empty:
                if self._end_idle(worker):
                    return
                continue
            worker.busy_since = time.monotonic()
            try:
                with self._context():
                    self._write_in_turn(first, worker)
                    # Direct writes need not wait for the end of the context.
                    worker.busy_since = 0
            except Exception:  # the thread must survive, and its callers stop at their deadlines
                logger.exception("The writer thread failed unexpectedly")
            worker.busy_since = 0

    def _write_in_turn(self, first: _QueuedEntry, worker: _Worker) -> None:
        """Wait for the lock, then store an entry together with the entries behind it.

        Deliveries that arrive while this process waits for the lock share a transaction.
        """
        with file_lock(sqlite_path(first.engine)) as release_lock:
            started_at, worker.release_lock = time.monotonic(), release_lock
            self._write_queued(first, worker)
        self._adjust_transaction_size(time.monotonic() - started_at)
        if self._queue.empty():
            self._after_write()

    def _end_idle(self, worker: _Worker) -> bool:
        """Return True if the worker may end. An app that nobody uses any more keeps no thread."""
        with self._lock:
            if self._queue.empty() and self._worker is worker:
                self._worker = None
        return self._worker is not worker

    def _adjust_transaction_size(self, seconds: float) -> None:
        if seconds > SLOW_TRANSACTION_SECONDS:
            self._max_rows = max(MIN_TRANSACTION_ROWS, self._max_rows // 2)
        else:
            self._max_rows = min(MAX_TRANSACTION_ROWS, self._max_rows * 2)

    def _write_queued(self, first: _QueuedEntry, worker: _Worker) -> None:
        """Store an entry together with the entries that wait behind it."""
        queued, weight = [first], first.entry.weight
        with suppress(queue.Empty):
            while weight < self._max_rows:
                queued.append(self._queue.get_nowait())
                weight += queued[-1].entry.weight
        engine, deadline = queued[-1].engine, min(item.deadline for item in queued)
        entries = [item.entry for item in queued if not item.entry.is_abandoned]
        small = [entry for entry in entries if len(entry.row["body"]) < LARGE_BODY_BYTES]
        large = [[entry] for entry in entries if len(entry.row["body"]) >= LARGE_BODY_BYTES]
        for batch in [small, *large] if small else large:
            self._store(engine, batch, deadline, worker)

    def _store(
        self, engine: Engine, entries: list[Entry], deadline: float, worker: _Worker
    ) -> None:
        """Store the entries in one transaction, or in several if one entry makes it fail."""
        error = self._try_transaction(engine, entries, deadline, worker)
        if error is None or len(entries) == 1 or classify(error) is Fault.DISCONNECTED:
            self._finish(entries, error)
            return
        middle = len(entries) // 2
        self._store(engine, entries[:middle], deadline, worker)
        self._store(engine, entries[middle:], deadline, worker)

    def _try_transaction(
        self, engine: Engine, entries: list[Entry], deadline: float, worker: _Worker
    ) -> Exception | None:
        """Store the entries in one transaction. Returns None, or the error of the last attempt.

        A transaction is repeated as a whole as long as a repetition may succeed.
        """
        error: Exception | None = None
        for attempt in range(MAX_ATTEMPTS):
            try:
                if classify(error) is Fault.DUPLICATE_KEY:
                    conflict = find_key_conflict(engine, entries[0])
                    if conflict is None:
                        if attempt > MAX_INVISIBLE_CONFLICTS:
                            return error  # a trigger or another constraint refuses the entry
                        time.sleep(INVISIBLE_CONFLICT_PAUSE_SECONDS)
                    elif self._resolve_key_conflict(entries[0], conflict, attempt):
                        return None
                self._commit(engine, entries, worker)
                return None
            except Exception as failure:  # a caller waits for an answer, whatever the error is
                error = failure
            fault = classify(error)
            if fault is Fault.FATAL or (fault is Fault.DUPLICATE_KEY and len(entries) > 1):
                break
            if fault is Fault.DISCONNECTED and not self._reconnect(engine, error, attempt):
                break
            if worker.is_abandoned or time.monotonic() > deadline:
                break
        return error

    def _commit(self, engine: Engine, entries: list[Entry], worker: _Worker) -> None:
        """Store all entries in one transaction. They are durable when this function returns."""
        with engine.connect() as connection:
            worker.connection = connection
            try:
                self._store_entries(connection, entries)
                worker.release_lock()
                if not is_file_current(connection):
                    raise FileReplacedError("the database file was deleted or replaced")
            finally:
                worker.connection = None
                if worker.is_abandoned:
                    connection.invalidate()  # a socket of gevent serves only one thread

    def _reconnect(self, engine: Engine, error: Exception, attempt: int) -> bool:
        """Prepare another attempt after a lost connection. Returns False to give up."""
        if not getattr(error, "connection_invalidated", False):
            drop_idle_connections(engine)  # they all lead to this server
        if attempt and not self._retry_until_deadline:
            return False
        time.sleep(min(MAX_RETRY_PAUSE_SECONDS, attempt**2 * 0.01))
        return True

    def _resolve_key_conflict(self, entry: Entry, conflict: KeyConflict, attempt: int) -> bool:
        """Change the keys of the entry for another attempt. Returns True if it is stored already.

        Raises `DeadlineError` if the caller abandoned the entry: the caller may now be storing the
        entry elsewhere, under its present keys.
        """
        if isinstance(conflict, AlreadyStored):
            entry.was_stored_before = True
            if entry.row["id"] != conflict.delivery_id:
                entry.assign_id(conflict.delivery_id)
            if conflict.status is Status.DUPLICATE:
                entry.removals = ()
            return True
        with self._lock:
            if entry.is_abandoned:
                raise DeadlineError("the deadline passed while the delivery was being stored")
            match conflict:
                case Repetition(first_id):
                    entry.mark_duplicate(first_id)
                case TakenId():
                    # Another process probably used this microsecond. The random steps grow until
                    # many processes find free ids.
                    step = entry.choose_step(FIRST_ID_STEP_MICROSECONDS << attempt)
                    entry.assign_id(entry.row["id"] + step)
        return False

    def _finish(self, entries: list[Entry], error: Exception | None) -> None:
        with self._lock:
            for entry in entries:
                if not entry.is_abandoned:
                    entry.error = error
                    entry.done.set()
        if error is None:
            self._on_stored()


def interrupt(connection: Connection) -> None:
    """Abort the driver call that blocks a worker, if the driver allows it."""
    with suppress(Exception):
        driver: Any = connection.connection.driver_connection
        if isinstance(driver, sqlite3.Connection):
            driver.interrupt()
            return
        with socket.socket(fileno=os.dup(_find_socket(driver).fileno())) as duplicate:
            duplicate.shutdown(socket.SHUT_RDWR)


def can_interrupt(connection: Connection) -> bool:
    """Return False if the driver hides the socket of a connection, so that nobody can close it."""
    driver: Any = connection.connection.driver_connection
    return isinstance(driver, sqlite3.Connection) or _find_socket(driver) is not None


def _find_socket(driver: Any) -> Any:
    # PyMySQL has no public file descriptor.
    return driver if hasattr(driver, "fileno") else getattr(driver, "_sock", None)
