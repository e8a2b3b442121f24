"""Counts of accepted and refused callbacks, for operators.

Each process counts in memory, and a thread adds its counts to a small table. So a callback costs no
extra row, and a refused request costs none either. The log gets one line a minute for each reason
of refusal.
"""

from __future__ import annotations

import atexit
import os
import queue
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import Lock
from typing import Any

from sqlalchemy import Connection, Engine, insert, select
from sqlalchemy.exc import SQLAlchemyError

from ..errors import StorageError
from ..logger import logger
from ..storable_text import MAX_TEXT_LENGTH, make_storable
from .database_errors import Fault, classify, describe
from .file_lock import file_lock
from .memory import hold_connection, uses_shared_connection
from .sqlite_files import is_file_missing, sqlite_path
from .tables import counters as counter_table
from .threads import new_lock, new_queue, runs_in_gevent, start_thread
from .writer import interrupt

LOG_INTERVAL_SECONDS = 60
"""Minimum time between two log lines with the same provider and reason."""

SAVE_INTERVAL_SECONDS = 5
"""Time between two saves. A process that is killed loses the counts of this time."""

MAX_SAVE_ATTEMPTS = 20

MAX_FAILURES = 12
"""Saves that fail one after the other, after which the thread ends. The next callback, or the next
reader of the counts, starts another one."""

MAX_SAVE_SECONDS = 60
"""Time after which a save is given up, because its connection hangs."""

FLUSH_SECONDS = 1
"""Time that a reader of the counts waits until this process has saved its own."""

EXIT_SECONDS = 2
"""Time that a process gives to its last save when it stops."""

MAX_KEYS = 200
"""Maximum number of different counts in one process. Further names are counted together as
`OTHER_NAMES`, because an IM server chooses the names of its commands."""

OTHER_NAMES = "others"

ACCEPTED, REFUSED = "accepted", "refused"


@dataclass(frozen=True, slots=True)
class CallbackCount:
    """The number of callbacks with the same provider, outcome and name."""

    provider: str
    outcome: str
    """"accepted" or "refused"."""
    name: str
    """The command of accepted callbacks, or the reason of refused callbacks."""
    count: int
    last_at: datetime
    """Time of the newest of these callbacks, aware and in UTC."""


Key = tuple[str, str, str]
"""Provider, outcome and name."""


@dataclass(eq=False)
class _Saver:
    """A thread that saves counts until all are saved."""

    wake: Any = field(default_factory=new_queue)
    """An item in this queue begins the last save immediately."""
    running: Lock = field(default_factory=new_lock)
    """A lock that the thread holds until it ends."""
    saving_since: float = 0
    """Time of the monotonic clock, or 0 while the thread waits."""
    connection: Connection | None = None
    is_file_missing: bool = False
    """Whether the SQLite file was missing at the last save. A save must not create it again."""

    @property
    def hangs(self) -> bool:
        return 0 < self.saving_since < time.monotonic() - MAX_SAVE_SECONDS

    def wait(self, seconds: float) -> bool:
        """Wait at most `seconds`. Returns True if the last save must begin."""
        with suppress(queue.Empty):
            self.wake.get(timeout=max(0, seconds))
            return True
        return False


class CallbackCounters:
    """The counters of one app in this process. Threads may share them.

    `saving` and `reading` return engines, and `context` makes an app context. While there are
    unsaved counts, a thread saves them every few seconds. A database that hangs delays neither a
    request nor the end of the process.
    """

    def __init__(
        self,
        saving: Callable[[], Engine],
        reading: Callable[[], Engine],
        context: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self._get_saving_engine = saving
        self._get_reading_engine = reading
        self._context = context
        self._lock = new_lock()
        self._unsaved: dict[Key, tuple[int, datetime]] = {}
        self._keys: set[Key] = set()
        self._unlogged: dict[Key, int] = {}
        self._logged_at: dict[Key, float] = {}
        self._failure_logged_at = 0.0
        self._saved_at = -float(SAVE_INTERVAL_SECONDS)
        """Time of the monotonic clock at which the newest save began."""
        self._saver: _Saver | None = None
        self._is_flushed_at_exit = False

    def count_accepted(self, provider: str, command: str) -> None:
        """Count a callback that is stored."""
        with self._lock:
            self._count((provider, ACCEPTED, command))

    def count_refused(
        self, provider: str, reason: str, detail: str = "", *, is_logged: bool = True
    ) -> None:
        """Count a refusal, and log it at most once a minute for each reason.

        `reason` is one of a few fixed texts. `detail` describes the single request. Pass False as
        `is_logged` if the caller logs each refusal.
        """
        now = time.time()
        with self._lock:
            key = self._count((provider, REFUSED, reason))
            if not is_logged:
                return
            if abs(now - self._logged_at.get(key, 0)) < LOG_INTERVAL_SECONDS:
                self._unlogged[key] = self._unlogged.get(key, 0) + 1
                return
            self._logged_at[key] = now
            unlogged = self._unlogged.pop(key, 0)
        detail = f" ({detail})" if detail else ""
        more = f" {unlogged} more since the last such line." if unlogged else ""
        logger.warning("Refused a callback of %s: %s%s.%s", provider, reason, detail, more)

    def _count(self, key: Key) -> Key:
        if key not in self._keys:
            if len(self._keys) >= MAX_KEYS:
                key = (key[0], key[1], OTHER_NAMES)
            else:
                self._keys.add(key)
        self._add_unsaved(key, 1, datetime.now(UTC))
        if self._saver is None or self._saver.hangs:
            self._start_saver()
        return key

    def _add_unsaved(self, key: Key, count: int, last_at: datetime) -> None:
        known_count, known_last_at = self._unsaved.get(key, (0, last_at))
        self._unsaved[key] = known_count + count, max(last_at, known_last_at)

    def _start_saver(self) -> None:
        """Start a thread that saves the counts. Gives up the thread before it, which hangs."""
        if self._saver is not None and self._saver.connection is not None:
            interrupt(self._saver.connection)
        if not self._is_flushed_at_exit:
            self._is_flushed_at_exit = True
            _flush_at_exit(self)
        saver = _Saver()
        saver.running.acquire()
        # Without a free thread, the counts wait for the next callback.
        with suppress(RuntimeError):
            start_thread("imcallback-counters", lambda: self._run(saver))
            self._saver = saver

    def flush(self, seconds: float) -> None:
        """Save all counts now. Returns when they are saved, when that fails, or after `seconds`.

        The method takes no lock that a request holds, so a signal handler may call it.
        """
        saver = self._saver
        if saver is not None:
            saver.wake.put(None)
            if saver.running.acquire(timeout=seconds):
                saver.running.release()

    def _run(self, saver: _Saver) -> None:
        try:
            with self._context():
                is_shared = uses_shared_connection(self._get_saving_engine)
            if not is_shared:
                self._save_until_done(saver)
            elif self._saver is saver:  # the reader of the counts saves them
                self._saver = None
        except BaseException:
            if self._saver is saver:
                self._saver = None  # the next callback starts another thread
            raise
        finally:
            saver.running.release()

    def _save_until_done(self, saver: _Saver) -> None:
        is_last, failures = False, 0
        while True:
            next_save_at = self._saved_at + SAVE_INTERVAL_SECONDS
            is_last = saver.wait(next_save_at - time.monotonic()) or is_last
            saver.saving_since = self._saved_at = time.monotonic()
            is_saved = self._save(saver)
            saver.saving_since = 0
            failures = 0 if is_saved else failures + 1
            is_last = is_last or saver.is_file_missing or failures == MAX_FAILURES
            with self._lock:
                is_current = self._saver is saver
                if is_current and self._unsaved and (is_saved or not is_last):
                    if is_last:  # requests have counted during the save
                        saver.wake.put(None)
                    continue
                if is_current:
                    self._saver = None
                return

    def _save(self, saver: _Saver) -> bool:
        """Add the unsaved counts to the table. Keeps them and returns False if that fails."""
        with self._lock:
            unsaved, self._unsaved = self._unsaved, {}
        try:
            with self._context():
                engine = self._get_saving_engine()
                saver.is_file_missing = is_file_missing(engine)
                if saver.is_file_missing:
                    raise FileNotFoundError("the database file is missing or empty")
                self._add_to_table(engine, unsaved, saver)
        except BaseException as error:  # whatever the error is, no count may be lost
            with self._lock:
                for key, (count, last_at) in unsaved.items():
                    self._add_unsaved(key, count, last_at)
            self._log_failure(error)
            return False
        return True

    def _add_to_table(
        self, engine: Engine, counts: Mapping[Key, tuple[int, datetime]], saver: _Saver
    ) -> None:
        """Add the counts in one transaction. Raises the error of the last attempt."""
        for attempts_left in reversed(range(MAX_SAVE_ATTEMPTS)):
            try:
                with (
                    hold_connection(engine),
                    file_lock(sqlite_path(engine)),
                    engine.connect() as connection,
                ):
                    saver.connection = connection
                    try:
                        with connection.begin():
                            # The same order in all processes prevents deadlocks.
                            for key, (count, last_at) in sorted(counts.items()):
                                _add(connection, key, count, last_at)
                    finally:
                        saver.connection = None
                return
            except SQLAlchemyError as error:
                # Another process has inserted the same row, or MariaDB has found a deadlock between
                # two such processes. The next attempt updates the row.
                is_retried = classify(error) in (Fault.DUPLICATE_KEY, Fault.RETRY)
                if not is_retried or not attempts_left:
                    raise

    def _log_failure(self, error: BaseException) -> None:
        now = time.time()
        if abs(now - self._failure_logged_at) < LOG_INTERVAL_SECONDS:
            return
        self._failure_logged_at = now
        logger.warning(
            "The counts of accepted and refused callbacks are not saved (%s). They are kept in "
            "memory and saved later. Check the database.",
            describe(error),
        )

    def counts(self) -> list[CallbackCount]:
        """Return the counts of all processes. Raises `StorageError`.

        Other processes may have newer counts, which they save within seconds.
        """
        if uses_shared_connection(self._get_saving_engine):
            self._save(_Saver())
        with self._lock:
            if self._unsaved and self._saver is None:
                self._start_saver()
        # Under gevent, all requests of the process would wait.
        self.flush(0 if runs_in_gevent() else FLUSH_SECONDS)
        column = counter_table.c
        query = select(counter_table).order_by(column.provider, column.outcome, column.name)
        try:
            with self._get_reading_engine().connect() as connection:
                return [CallbackCount(**row) for row in connection.execute(query).mappings()]
        except SQLAlchemyError as error:
            raise StorageError from error


def _add(connection: Connection, key: Key, count: int, last_at: datetime) -> None:
    """Add a count to its row, or insert the row.

    Raises `IntegrityError` if another process has inserted the row at the same time.
    """
    provider, outcome, name = key
    names = {
        "provider": provider,
        "outcome": outcome,
        "name": make_storable(name, MAX_TEXT_LENGTH),
    }
    column = counter_table.c
    update = (
        counter_table.update()
        .where(*(column[key] == value for key, value in names.items()))
        .values(count=column.count + count, last_at=last_at)
    )
    if not connection.execute(update).rowcount:
        connection.execute(
            insert(counter_table).values(names | {"count": count, "last_at": last_at})
        )


def _flush_at_exit(counters: CallbackCounters) -> None:
    """Save the counts when this process ends. A forked child leaves the counts of its parent."""
    process_id, reference = os.getpid(), weakref.ref(counters)

    def flush() -> None:
        living = reference()
        if living is not None and os.getpid() == process_id:
            living.flush(EXIT_SECONDS)

    atexit.register(flush)
