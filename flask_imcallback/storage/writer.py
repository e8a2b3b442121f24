"""Deliveries into a database, many in one transaction, and never later than a deadline.

A thread of its own writes, so that no driver can hold up an answer: psycopg never gives up reading,
and a commit without its synchronous standby waits for ever. What arrives while it commits shares
the next transaction; alone, a delivery is written at once.
"""

from __future__ import annotations

import os
import random
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from sqlalchemy import Connection, Engine, select

from ..errors import StorageError
from ..removals import Status
from .database_errors import Fault, FileReplacedError, fault_of
from .entries import Entry
from .inserts import insert, learn_sources
from .sqlite import file_of, inode_of, turn
from .tables import delivery as delivery_table

MIN_WEIGHT, MAX_WEIGHT = 1000, 20_000
"""Of a transaction, about in rows; it is full as soon as it has reached it. The more share one, the
fewer pages of the indexes are written twice."""
LONG = 0.5
"""Seconds; after a transaction that took longer the next is smaller."""
LARGE = 256 * 1024
"""Bytes of a body from which it has a transaction of its own: one that the database finds too large
harms no other."""
ATTEMPTS = 20
"""Tries of a transaction whose keys are taken, or that loses against others."""
LONGEST_PAUSE = 0.4
INODE = "imcallback_inode"


@dataclass(eq=False)
class _Worker:
    thread: threading.Thread | None = None
    since: float = 0
    """When it began what it does, by the monotonic clock; 0 while it has nothing to do."""
    connection: Connection | None = None
    end_turn: Callable[[], None] = lambda: None
    is_left: bool = False
    """Whether it was given up; it ends when the driver lets it."""


class Writer:
    """Writes entries into the database of an engine. Threads may share it.

    A patient one tries again until the deadline where a connection is lost; others try once more.
    """

    def __init__(self, engine: Callable[[], Engine], *, patient: bool) -> None:
        self._get_engine = engine
        self._patient = patient
        self._lock = threading.Lock()
        self._queue: SimpleQueue[tuple[Engine, float, Entry]] = SimpleQueue()
        self._worker: _Worker | None = None
        self._most = MIN_WEIGHT

    def write(self, entries: Sequence[Entry], seconds: float) -> None:
        """Store each entry whole, or leave its `error`, in so many seconds.

        Needs what the engine needs, such as an app context. An entry that is not stored in time is
        abandoned: it may still be stored, but under no other id than it has then.
        """
        engine, end = self._get_engine(), time.monotonic() + seconds
        for entry in entries:
            self._queue.put((engine, end, entry))
        self._start()
        for entry in entries:
            if not entry.done.wait(end - time.monotonic()):
                self._abandon(entries, seconds)
                return

    def _start(self) -> None:
        """Have a worker: none is there at first, after a fork, and when one was given up."""
        worker = self._worker
        if worker and worker.thread and worker.thread.is_alive():
            return
        with self._lock:
            worker = self._worker
            if worker and worker.thread and worker.thread.is_alive():
                return
            self._worker = worker = _Worker()
            worker.thread = threading.Thread(
                target=self._work, args=(worker,), name="imcallback-writer", daemon=True
            )
            worker.thread.start()

    def _abandon(self, entries: Sequence[Entry], seconds: float) -> None:
        with self._lock:
            for entry in entries:
                if not entry.done.is_set():
                    entry.is_abandoned = True
                    entry.error = StorageError(f"the database took more than {seconds:g} seconds")
            worker = self._worker
            # Half of the time: it may have begun a little later than who waits for it.
            if worker is None or not 0 < worker.since < time.monotonic() - seconds / 2:
                return
            worker.is_left = True
            self._worker = None
        if worker.connection is not None:
            _hang_up(worker.connection)
        self._start()  # for those that are queued behind

    def _work(self, worker: _Worker) -> None:
        while not worker.is_left:
            first = self._queue.get()
            worker.since = time.monotonic()
            with turn(file_of(first[0])) as end_turn:  # what comes meanwhile shares the transaction
                began, worker.end_turn = time.monotonic(), end_turn
                self._write(first, worker)
            took = time.monotonic() - began
            self._most = max(MIN_WEIGHT, self._most // 2) if took > LONG else self._most * 2
            self._most = min(MAX_WEIGHT, self._most)
            worker.since = 0

    def _write(self, first: tuple[Engine, float, Entry], worker: _Worker) -> None:
        """Store an entry with those that wait behind it."""
        taken, weight = [first], first[2].weight
        with suppress(Empty):
            while weight < self._most:
                taken.append(self._queue.get_nowait())
                weight += taken[-1][2].weight
        engine, end = taken[-1][0], min(end for _, end, _ in taken)
        entries = [entry for _, _, entry in taken if not entry.is_abandoned]
        small = [entry for entry in entries if len(entry.row["body"]) < LARGE]
        large = [[entry] for entry in entries if len(entry.row["body"]) >= LARGE]
        for batch in [small, *large] if small else large:
            self._store(engine, batch, end, worker)

    def _store(self, engine: Engine, entries: list[Entry], end: float, worker: _Worker) -> None:
        """Store the entries in one transaction, or in several if one of them is in the way."""
        error = self._try(engine, entries, end, worker)
        if error is None or len(entries) == 1 or fault_of(error) is Fault.LOST:
            self._finish(entries, error)
            return
        half = len(entries) // 2
        self._store(engine, entries[:half], end, worker)
        self._store(engine, entries[half:], end, worker)

    def _try(
        self, engine: Engine, entries: list[Entry], end: float, worker: _Worker
    ) -> Exception | None:
        """Store the entries in one transaction, or say what is in the way.

        It is tried again as a whole, where it may succeed then.
        """
        error: Exception | None = None
        for attempt in range(ATTEMPTS):
            try:
                if fault_of(error) is Fault.TAKEN and self._is_stored(engine, entries[0], attempt):
                    return None
                _commit(engine, entries, worker)
                return None
            except Exception as failure:  # whatever it is, somebody waits for an answer
                error = failure
            fault = fault_of(error)
            if fault is Fault.LOST:
                if not getattr(error, "connection_invalidated", False):
                    engine.dispose()  # all that leads to this server
                if attempt and not self._patient:
                    break
                time.sleep(min(LONGEST_PAUSE, attempt**2 * 0.01))
            if fault is Fault.OTHER or (fault is Fault.TAKEN and len(entries) > 1):
                break
            if worker.is_left or time.monotonic() > end:
                break
        return error

    def _finish(self, entries: list[Entry], error: Exception | None) -> None:
        with self._lock:
            for entry in entries:
                if not entry.is_abandoned:
                    entry.error = error
                    entry.done.set()

    def _is_stored(self, engine: Engine, entry: Entry, attempt: int) -> bool:
        """Whether an entry whose keys are taken took them itself; otherwise it gets others.

        Raises `StorageError` if it is abandoned: another may be storing it as it is.
        """
        column, row = delivery_table.c, entry.row
        first = None
        with engine.connect() as connection:
            same_id = select(column.nonce, column.status).where(column.id == row["id"])
            stored = connection.execute(same_id).one_or_none()
            if stored and stored.nonce == row["nonce"]:
                if stored.status == Status.DUPLICATE:
                    entry.removals = ()
                return True
            if row["fingerprint"]:
                same_callback = select(column.id).where(column.fingerprint == row["fingerprint"])
                first = connection.scalar(same_callback)
        with self._lock:
            if entry.is_abandoned:
                raise StorageError("it was too late")
            if first is not None:
                entry.be_duplicate(first)
            else:
                # Whoever has the id is another process that received something in the same
                # microsecond, most likely; the more there are, the wider the steps.
                entry.move(row["id"] + random.randrange(1, 1000 << attempt))  # noqa: S311
        return False


def _commit(engine: Engine, entries: list[Entry], worker: _Worker) -> None:
    """All entries, durable when it returns."""
    path = file_of(engine)
    with engine.connect() as connection:
        worker.connection = connection
        try:
            if path and INODE not in connection.info:
                connection.info[INODE] = inode_of(path)
            learn_sources(connection, entries)
            with connection.begin():
                insert(connection, entries)
            worker.end_turn()
            inode = connection.info.get(INODE)
            if path and (inode is None or inode != inode_of(path)):
                raise FileReplacedError(f"{path} was deleted or replaced")
        finally:
            worker.connection = None


def _hang_up(connection: Connection) -> None:
    """Make the driver's call return that another thread waits for, where the driver has a way."""
    with suppress(Exception):
        driver: Any = connection.connection.driver_connection
        if isinstance(driver, sqlite3.Connection):
            driver.interrupt()
            return
        # PyMySQL tells no file descriptor of its own.
        source = driver if hasattr(driver, "fileno") else driver._sock
        with socket.socket(fileno=os.dup(source.fileno())) as duplicate:
            duplicate.shutdown(socket.SHUT_RDWR)
