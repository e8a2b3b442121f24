"""The drain: a thread that moves deliveries from the spool into the database."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from enum import Enum, auto

from sqlalchemy import Engine

from ..errors import StorageError
from ..logger import logger
from ..removals import Record
from .database_errors import Fault, classify, concerns_entry, describe
from .engines import UNKNOWN_DATABASE
from .entries import Entry
from .file_lock import file_lock
from .spool import Spool, SpooledEntry
from .threads import new_lock, start_thread
from .writer import Writer

MAX_CHUNK_DELIVERIES = 500
"""Maximum number of deliveries in one chunk."""

CHUNK_SECONDS = 10
"""Seconds that the database may take for a chunk. After a failure the next chunk is smaller."""

MIN_ROWS_PER_SECOND = 2000
"""A delivery with very many removals gets more time than `CHUNK_SECONDS`: a second for this number
of rows (`Entry.weight`)."""

MIN_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.2, 5.0
"""Bounds of the pause between two attempts while the database stores nothing."""

YIELD_SECONDS = 0.001
"""Pause after a stored chunk, in which another process can take the lock."""

MAX_FAILURES = 3
"""Number of failures after which an entry is set aside, if the database stored others meanwhile."""

MAX_PAUSES_OF_DRAIN_ALL = 3 * MAX_FAILURES
"""Steps without a result after which `Drain.drain_all` gives up."""

RETRY_SECONDS = 3600
"""Time after which the entries that are set aside are tried again."""

LOG_INTERVAL_SECONDS = 60
"""Minimum time between two log lines about entries that are set aside, or about new reasons."""


class DrainState(Enum):
    """The state of the drain after its last step."""

    IDLE = auto()
    """No delivery waits."""
    DRAINING = auto()
    """The database stores deliveries."""
    PROBING = auto()
    """The database stored no delivery of the last chunk."""


class Drain:
    """A mover of deliveries from a spool into the database, oldest first.

    One step takes a chunk, and decides by the result:

    | before             | the chunk                    | after    | then                          |
    |--------------------|------------------------------|----------|-------------------------------|
    | any                | is empty, nothing is skipped | IDLE     | the thread ends               |
    | any                | is empty after skipped ones  | PROBING  | pause, begin again            |
    | IDLE or DRAINING   | stored, at least in part     | DRAINING | take the next chunk           |
    | PROBING            | stored                       | DRAINING | begin again with the oldest   |
    | any                | all of it is set aside       | DRAINING | take the next chunk           |
    | IDLE or DRAINING   | nothing stored               | PROBING  | pause, take half as many      |
    | PROBING            | nothing stored               | PROBING  | pause longer, skip this entry |

    An entry is set aside if the database refuses it and stores others. Then it delays no other
    entry. The drain tries it again every hour, and when a process starts.

    Each process has its own drain. Processes drain in turn. So each process notices when the
    database works again.
    """

    def __init__(
        self,
        spool: Spool,
        engine: Callable[[], Engine],
        context: Callable[[], AbstractContextManager[object]],
        announce: Callable[[Callable[[], list[Record]]], None],
        on_stored: Callable[[], None] = lambda: None,
    ) -> None:
        self.spool = spool
        self._writer = Writer(
            engine, retry_until_deadline=False, context=context, on_stored=on_stored
        )
        self._context = context
        self._announce = announce
        self._lock = new_lock()
        self._is_running = False
        self._was_started_again = False
        self._state = DrainState.IDLE
        self._chunk_limit = MAX_CHUNK_DELIVERIES
        self._skipped_up_to = 0
        """Entries up to this position were tried. The failed entries wait until the drain has tried
        all later entries."""
        self._failed_at: dict[bytes, float] = {}
        """Time of the last failure of each entry, by its nonce."""
        self._stored_at = 0.0
        """Time at which the database last stored an entry."""
        self._retry_at = 0.0
        self._problem = ""
        self._problem_logged_at = -float(LOG_INTERVAL_SECONDS)
        self.spool_problem = ""
        """The reason why the spool could not be read or written in the last step, or empty."""
        self._set_aside_logged_at = -float(LOG_INTERVAL_SECONDS)
        self._is_foreign_logged = False
        self.database_is_down = False
        """Whether new deliveries go to the spool immediately."""

    def start(self) -> None:
        """Drain in another thread until the spool is empty.

        If the process cannot start a thread, the next callback tries again.
        """
        with self._lock:
            self._was_started_again = True
            if self._is_running:
                return
            self._is_running = True
        try:
            start_thread("imcallback-drain", self._run)
        except RuntimeError as error:
            self._is_running, self._retry_at = False, 0.0
            self._begin_outage(describe(error))

    def start_if_due(self) -> None:
        """Start if the spool may hold deliveries of an earlier process, or entries set aside."""
        if time.monotonic() >= self._retry_at and os.path.lexists(self.spool.path):
            self.start()

    def note_stored(self) -> None:
        """Note that the database has stored a delivery."""
        self._stored_at = time.monotonic()

    def note_failure(self, entry: Entry, error: BaseException) -> None:
        """Note that the database did not store an entry. The entry goes to the spool.

        If the error may concern other entries too, later deliveries go to the spool immediately.
        """
        if concerns_entry(error):
            self._failed_at[entry.row["nonce"]] = time.monotonic()
        else:
            self.database_is_down = True
        self._begin_outage(describe(error))

    def note_spool_failure(self) -> None:
        """Note that the spool fails. The next delivery tries the database again."""
        self.database_is_down = False

    def drain_all(self) -> str:
        """Drain until the spool is empty or the database stores nothing.

        Entries that were set aside are tried, too. Returns the problem, or an empty text. Needs an
        app context. Raises `StorageError` if the spool cannot be read or written.
        """
        self._release_set_aside()
        pauses = 0
        while (state := self.step()) is not DrainState.IDLE:
            pauses += state is DrainState.PROBING
            if self.database_is_down or pauses > MAX_PAUSES_OF_DRAIN_ALL:
                break
        waiting = self.spool.waiting()
        if self._problem or not waiting.set_aside:
            return self._problem
        return self.spool.list_set_aside(1)[0].problem

    def step(self) -> DrainState:
        """Move one chunk into the database, and return the new state.

        Needs an app context. Raises `StorageError` if the spool cannot be read or written.
        """
        with file_lock(str(self.spool.path), "drain-lock"):
            self.spool.mark_own()
            chunk = self.spool.read(self._skipped_up_to, self._chunk_limit)
            if not chunk:
                return self._restart_or_end()
            stored, failed = self._store(chunk)
            if stored:
                self.spool.remove(stored)
            set_aside = self._judge(chunk, failed)
        for entry in stored:
            self._announce(entry.records)
        self._state = self._next_state(chunk, bool(stored), len(set_aside) == len(failed))
        return self._state

    def _store(
        self, chunk: Sequence[SpooledEntry]
    ) -> tuple[list[SpooledEntry], list[SpooledEntry]]:
        """Try to store the chunk. Returns the stored entries and the failed entries."""
        weight = sum(entry.weight for entry in chunk)
        try:
            self._writer.write(chunk, max(CHUNK_SECONDS, weight / MIN_ROWS_PER_SECOND))
        except Exception as error:  # the host app gives no engine
            for entry in chunk:
                entry.error = error
        stored = [entry for entry in chunk if entry.error is None]
        if stored:
            self.note_stored()
        return stored, [entry for entry in chunk if entry.error is not None]

    def _judge(
        self, chunk: Sequence[SpooledEntry], failed: Sequence[SpooledEntry]
    ) -> list[SpooledEntry]:
        """Count the failures of entries while the database stores others.

        Sets entries aside that fail too often. Returns these entries.
        """
        now, counted = time.monotonic(), []
        for entry in failed:
            failed_before = self._failed_at.get(entry.row["nonce"], now)
            self._failed_at[entry.row["nonce"]] = now
            has_stored_since = failed_before < self._stored_at
            if concerns_entry(entry.error):
                is_counted = has_stored_since or len(failed) < len(chunk) or entry.failures > 0
            else:  # a slow database also lets many entries of a chunk fail
                is_slow = classify(entry.error) is Fault.FATAL
                is_counted = is_slow and has_stored_since and len(chunk) == 1
            if is_counted:
                counted.append(entry)
        set_aside = [entry for entry in counted if entry.failures + 1 >= MAX_FAILURES]
        noted = [entry for entry in counted if entry not in set_aside]
        if noted:
            self.spool.note_failures(noted, is_set_aside=False)
        if set_aside:
            self.spool.note_failures(set_aside, is_set_aside=True)
            self._log_set_aside(set_aside[0].error)
        return set_aside

    def _next_state(
        self, chunk: Sequence[SpooledEntry], has_stored: bool, has_set_aside_all: bool
    ) -> DrainState:
        """Choose the next state, and the start and the size of the next chunk."""
        error = next((entry.error for entry in chunk if entry.error), None)
        if has_stored or has_set_aside_all:
            self.database_is_down = False
            if self._state is DrainState.PROBING:
                self._skipped_up_to = 0
            elif error:
                self._skipped_up_to = chunk[-1].spool_id
            else:
                self._chunk_limit = min(self._chunk_limit * 2, MAX_CHUNK_DELIVERIES)
            return DrainState.DRAINING
        if error and not concerns_entry(error):
            self.database_is_down = True
        self._begin_outage(describe(error))
        if len(chunk) == 1:
            self._skipped_up_to = chunk[0].spool_id
        self._chunk_limit = max(1, len(chunk) // 2)
        return DrainState.PROBING

    def _restart_or_end(self) -> DrainState:
        if self._skipped_up_to:
            self._skipped_up_to = 0
            self._state = DrainState.PROBING
            return self._state
        self.database_is_down = False
        self._failed_at.clear()
        self._end_outage()
        self._state = DrainState.IDLE
        return self._state

    def _run(self) -> None:
        try:
            self._drain_until_empty()
        except BaseException:
            self._is_running, self._retry_at = False, 0.0  # the next callback starts it again
            raise

    def _drain_until_empty(self) -> None:
        pause = MIN_PAUSE_SECONDS
        while True:
            with self._lock:
                self._was_started_again = False
            match self._try_step():
                case DrainState.IDLE:
                    with self._lock:
                        if not self._was_started_again:
                            self._is_running = False
                            return
                case DrainState.DRAINING:
                    pause = MIN_PAUSE_SECONDS
                    time.sleep(YIELD_SECONDS)
                case DrainState.PROBING:
                    time.sleep(pause)
                    pause = min(pause * 2, MAX_PAUSE_SECONDS)

    def _try_step(self) -> DrainState:
        try:
            with self._context():
                if time.monotonic() >= self._retry_at:
                    self._release_set_aside()
                    self._log_foreign()
                state = self.step()
            self.spool_problem = ""
            return state
        # A receiver of the signal may raise SystemExit, but the thread must survive.
        except BaseException as error:
            if isinstance(error, StorageError):
                self.note_spool_failure()
                self.spool_problem = str(error)
            self._begin_outage(describe(error))
            return DrainState.PROBING

    def _release_set_aside(self) -> None:
        self._retry_at = time.monotonic() + RETRY_SECONDS
        self.spool.release_set_aside()

    def _begin_outage(self, problem: str) -> None:
        """Log one line when deliveries begin to wait, and when the reason changes."""
        now = time.monotonic()
        is_new = problem != self._problem and now - self._problem_logged_at >= LOG_INTERVAL_SECONDS
        if is_new or not self._problem:
            self._problem_logged_at = now
            logger.error(
                "The database does not store callbacks (%s). They wait in the spool %s and are "
                "stored as soon as the database accepts them. Check the database, and run "
                "`flask db upgrade` if a table or column is missing.",
                problem,
                self.spool.path,
            )
        self._problem = problem

    def _end_outage(self) -> None:
        """Log one line when no delivery waits any more."""
        if self._problem:
            set_aside = self.spool.waiting().set_aside
            logger.warning(
                "The database has stored all callbacks that waited in the spool %s%s.",
                self.spool.path,
                f", except {set_aside} that are set aside" if set_aside else "",
            )
        self._problem = ""

    def _log_set_aside(self, error: Exception | None) -> None:
        if time.monotonic() - self._set_aside_logged_at < LOG_INTERVAL_SECONDS:
            return
        self._set_aside_logged_at = time.monotonic()
        logger.error(
            "The database refuses a callback, but stores others (%s). The callback is set aside in "
            "the spool %s and tried again every hour. `flask imcallback spool` lists it.",
            describe(error),
            self.spool.path,
        )

    def _log_foreign(self) -> None:
        """Log once that the spool holds deliveries of other databases."""
        foreign = self.spool.waiting().foreign
        if self._is_foreign_logged or not foreign:
            return
        self._is_foreign_logged = True
        for mark, count in foreign.items():
            if mark == UNKNOWN_DATABASE:
                logger.error(
                    "%s callbacks in the spool %s are from a process that could not find out its "
                    "database. Run `flask imcallback spool --adopt %s`, unless another deployment "
                    "uses the same spool.",
                    count,
                    self.spool.path,
                    mark,
                )
                continue
            logger.error(
                "%s callbacks in the spool %s belong to the database %s, but this app uses %s. "
                "They stay in the spool. Run `flask imcallback spool --adopt %s` if the database "
                "has moved. Otherwise set a different IMCALLBACK_SPOOL for each deployment.",
                count,
                self.spool.path,
                mark,
                self.spool.mark,
                mark,
            )
