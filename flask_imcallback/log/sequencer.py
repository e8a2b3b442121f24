# ruff: noqa: S608 (only whole numbers are put into the SQL text)
"""The sequencer: a thread that gives each committed entry its log position.

The transaction that stores an entry adds the id of the entry to the inbox. The sequencer moves the
ids from the inbox into the log. Each recording process has a sequencer. The primary key of the log
lets only one of them give out a position. The others try again.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress

from sqlalchemy import Connection, Engine, select
from sqlalchemy.exc import DBAPIError

from ..logger import logger
from ..storage import (
    Fault,
    Signal,
    classify,
    describe,
    drop_idle_connections,
    file_lock,
    for_reading,
    hold_connection,
    inbox,
    is_file_missing,
    is_read_only,
    log,
    new_lock,
    new_queue,
    new_signal,
    sqlite_path,
    start_thread,
    uses_shared_connection,
)
from .entries import find_last_position, find_unnumbered

BATCH_ENTRIES = 1000
"""Maximum number of entries that one transaction numbers."""

PAUSE_SECONDS = 0.2
"""Pause between two rounds, so that a busy app needs few transactions."""

CATCH_UP_PAUSE_SECONDS = 0.02
"""Pause between two rounds while a caller of `catch_up` waits."""

MAX_PAUSE_SECONDS = 5.0
"""Maximum pause while the database numbers nothing."""

MAX_FAILURES = 20
"""Failed rounds after which the thread ends. The next stored entry starts it again."""

MAX_IDLE_SECONDS = 5.0
"""Time without a stored entry after which the thread ends."""

FOLLOW_UP_SECONDS = 1.0
"""Minimum time between two calls of `follow_up`."""


class NumberedElsewhereError(Exception):
    """Another process has numbered the same entries, or has given out the same positions."""


class Sequencer:
    """The numbering of the entries of one app in one process. Threads may share it.

    =============================  =================================  ============================
    a round of the thread is due   when                               if it fails
    =============================  =================================  ============================
    `wake`: an entry was stored    0.2 s after the round before       again after 0.4 s to 5 s
    `catch_up`: a caller waits     0.02 s after the round before      the caller waits no longer
    `follow_up` has asked for it   after the seconds that it gave     logged, again after 5 s
    =============================  =================================  ============================

    `engine` returns the engine of the thread, and may need the `context`. `follow_up` is called in
    the thread after numbering, at most once a second. It returns the seconds after which it must be
    called again even if nothing is stored, or None.
    """

    def __init__(
        self,
        engine: Callable[[], Engine],
        context: Callable[[], AbstractContextManager[object]],
        follow_up: Callable[[], float | None] | None = None,
    ) -> None:
        self._get_engine = engine
        self._context = context
        self._follow_up = follow_up
        self._follow_up_at = 0.0
        """Time of the monotonic clock before which `follow_up` is not called."""
        self._lock = new_lock()
        self._tokens = new_queue()
        """Each token wakes the thread."""
        self.is_running = False
        """Whether the thread exists."""
        self._is_due = False
        """Whether an entry was stored since the last round began."""
        self._is_stopped = False
        self._waiters: list[Signal] = []
        self._failures = 0

    def wake(self) -> None:
        """Number the stored entries soon, in the thread. Returns immediately.

        The entries of a database in memory wait for `catch_up`.
        """
        # A round sets `_is_due` to False before the round reads the inbox.
        if not self._is_due and not uses_shared_connection(self._get_engine):
            self._is_due = True
            self._wake_thread()

    def catch_up(self, seconds: float) -> None:
        """Number the stored entries now, and wait for it at most `seconds`.

        Nothing is numbered if the app may not write to the database.
        """
        if self._is_stopped:
            return
        if uses_shared_connection(self._get_engine):
            self._run_round(is_for_readers=False)
            return
        waiter = new_signal()
        with self._lock:
            self._waiters.append(waiter)
        self._wake_thread()
        waiter.wait(seconds)

    def stop(self) -> None:
        """End the thread after its round. Other processes number what this process stores later."""
        self._is_stopped = True
        self._tokens.put(None)

    def _wake_thread(self) -> None:
        if self._is_stopped:
            return
        with self._lock:
            was_running, self.is_running = self.is_running, True
        if was_running:
            self._tokens.put(None)
            return
        try:
            start_thread("imcallback-sequencer", self._run)
        except RuntimeError:  # no thread is free. The next stored entry tries again
            self.is_running = self._is_due = False

    def _run(self) -> None:
        try:
            self._number_until_idle()
        except BaseException:
            self.is_running = self._is_due = False  # the next callback starts the thread again
            raise

    def _number_until_idle(self) -> None:
        seconds: float | None = None
        while self._wait(seconds):
            with self._lock:
                waiters, self._waiters = self._waiters, []
                is_for_readers = bool(waiters) and not self._is_due and not self._failures
                self._is_due = False
            seconds = self._run_round(is_for_readers=is_for_readers)
            for waiter in waiters:
                waiter.set()

    def _wait(self, seconds: float | None) -> bool:
        """Wait until a round is due. Returns False if the thread must end.

        A round is due after `seconds`, after an entry was stored, and for each call of `catch_up`.
        """
        now = time.monotonic()
        latest = now + (MAX_IDLE_SECONDS if seconds is None else seconds)
        while not self._is_stopped:
            due_at = latest
            is_wanted = self._waiters or (self._is_due and not self._failures)
            if is_wanted:
                due_at = now + (CATCH_UP_PAUSE_SECONDS if self._waiters else PAUSE_SECONDS)
            pause = min(due_at, latest) - time.monotonic()
            if pause > 0:
                with suppress(queue.Empty):
                    self._tokens.get(timeout=pause)
            elif is_wanted or seconds is not None:
                return True
            else:
                with self._lock:
                    if not self._is_due and not self._waiters:
                        self.is_running = False
                        return False
        self.is_running = False
        return False

    def _run_round(self, *, is_for_readers: bool) -> float | None:
        """Number all stored entries. Returns the seconds until the next round, or None."""
        engine: Engine | None = None
        try:
            with self._context():
                engine = self._get_engine()
                if is_file_missing(engine):  # a connection would create it again
                    self._failures = 0
                    return None
                with hold_connection(engine):
                    number_entries(engine)
                self._failures = 0
                return self._call_follow_up()
        except NumberedElsewhereError:
            return PAUSE_SECONDS
        except BaseException as error:  # the thread must survive
            if engine and classify(error) is Fault.DISCONNECTED:
                drop_idle_connections(engine)  # they all lead to this server
            if is_for_readers:
                return None  # they may not be allowed to write
            return self._note_failure(error)

    def _call_follow_up(self) -> float | None:
        now = time.monotonic()
        if self._follow_up is None:
            return None
        if now < self._follow_up_at:
            return self._follow_up_at - now
        self._follow_up_at = now + FOLLOW_UP_SECONDS
        try:
            return self._follow_up()
        except Exception:
            logger.exception("The work after the numbering of the log failed")
            return MAX_PAUSE_SECONDS

    def _note_failure(self, error: BaseException) -> float | None:
        """Log one line when the numbering begins to fail. Returns as `_run_round` does."""
        self._failures += 1
        # A process that can only read leaves the numbering to other processes.
        if self._failures == 1 and not is_read_only(error):
            logger.warning(
                "The log is not numbered, so the feed shows no new removals (%s). Check the "
                "database, and run `flask db upgrade` if a table is missing.",
                describe(error),
            )
        if self._failures == MAX_FAILURES:
            self._failures = 0
            return None
        return min(PAUSE_SECONDS * 2.0**self._failures, MAX_PAUSE_SECONDS)


def number_entries(engine: Engine) -> None:
    """Give each entry in the inbox its position, in one transaction for each batch.

    Raises `NumberedElsewhereError` if another process numbered at the same time, and the errors of
    SQLAlchemy.
    """
    # A read-only database allows this query, and it needs no lock.
    with for_reading(engine).connect() as connection:
        is_complete = find_unnumbered(connection) is None
    while not is_complete:
        # The lock lets the processes that write to a SQLite file take turns.
        with file_lock(sqlite_path(engine)), engine.connect() as connection:
            try:
                is_complete = number_batch(connection) < BATCH_ENTRIES
            except NumberedElsewhereError:
                drop_numbered(connection)
                raise
            except Exception as error:
                if classify(error) in (Fault.DUPLICATE_KEY, Fault.RETRY):
                    drop_numbered(connection)
                    raise NumberedElsewhereError from error
                raise


def number_batch(connection: Connection) -> int:
    """Number the first entries of the inbox in one transaction. Returns how many.

    Raises as `number_entries` does, and then nothing is numbered.
    """
    ids = select(inbox.c.entry_id).order_by(inbox.c.entry_id).limit(BATCH_ENTRIES)
    with connection.begin():
        entry_ids = connection.scalars(ids).all()
        if entry_ids:
            first = find_last_position(connection) + 1
            added = connection.exec_driver_sql(_insert(connection, first, entry_ids))
            removed = connection.exec_driver_sql(_delete(connection, first, entry_ids))
            if not added.rowcount == removed.rowcount == len(entry_ids):
                raise NumberedElsewhereError
    return len(entry_ids)


def drop_numbered(connection: Connection) -> None:
    """Delete ids from the inbox that have a position already, for example after a bad restore.

    Otherwise nothing could be numbered any more.
    """
    batch = select(inbox.c.entry_id).order_by(inbox.c.entry_id).limit(BATCH_ENTRIES).subquery()
    query = select(batch.c.entry_id).join(log, log.c.entry_id == batch.c.entry_id)
    with suppress(DBAPIError), connection.begin():  # the next round tries again
        if entry_ids := connection.scalars(query).all():
            connection.execute(inbox.delete().where(inbox.c.entry_id.in_(entry_ids)))


def _insert(connection: Connection, first: int, entry_ids: Sequence[int]) -> str:
    rows = ", ".join([f"({position}, {key})" for position, key in enumerate(entry_ids, first)])
    sql = f"INSERT INTO imcallback_log (position, entry_id) VALUES {rows}"
    # An error would be a line in the log of the server each time that two processes number.
    return f"{sql} ON CONFLICT DO NOTHING" if connection.dialect.name == "postgresql" else sql


def _delete(connection: Connection, first: int, entry_ids: Sequence[int]) -> str:
    if connection.dialect.name in ("mysql", "mariadb"):
        # With a list of ids, InnoDB may scan the table, and then locks it against new rows.
        return (
            "DELETE inbox FROM imcallback_log AS log STRAIGHT_JOIN imcallback_inbox AS inbox"
            " ON inbox.entry_id = log.entry_id"
            f" WHERE log.position BETWEEN {first} AND {first + len(entry_ids) - 1}"
        )
    return f"DELETE FROM imcallback_inbox WHERE entry_id IN ({', '.join(map(str, entry_ids))})"
