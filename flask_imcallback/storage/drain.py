"""The drain: a thread that moves deliveries from the spool into the database."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from enum import Enum

from sqlalchemy import Engine

from ..removals import Record
from .database_errors import describe
from .spool import Spool, SpooledEntry
from .sqlite import file_lock
from .writer import Writer

logger = logging.getLogger("flask_imcallback")

MAX_CHUNK_DELIVERIES = 500
"""Maximum number of deliveries in one chunk."""

CHUNK_SECONDS = 10
"""Seconds that the database may take for a chunk. After a failure the next chunk is smaller."""

MIN_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.2, 5.0
"""Bounds of the pause between two attempts while the database is down."""

YIELD_SECONDS = 0.001
"""Pause after a stored chunk, in which another process can take the lock."""


class DrainResult(Enum):
    """The result of an attempt to drain a chunk."""

    EMPTY = "nothing waits"
    STORED = "the database stored at least one delivery"
    BLOCKED = "deliveries wait, and the database stored none of them"


class Drain:
    """A mover of deliveries from a spool into the database, oldest first.

    Processes take chunks in turn, so that every process learns when the database is back. A
    delivery that the database refuses alone is skipped, and retried after the others.
    """

    def __init__(
        self,
        spool: Spool,
        engine: Callable[[], Engine],
        context: Callable[[], AbstractContextManager[object]],
        announce: Callable[[Callable[[], list[Record]]], None],
    ) -> None:
        self.spool = spool
        self._writer = Writer(engine, retry_until_deadline=False)
        self._context = context
        self._announce = announce
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_requested = False
        self._chunk_limit = MAX_CHUNK_DELIVERIES
        self._skipped_up_to_id = 0
        """Deliveries up to this id failed, and wait until the drain has tried all later ones."""
        self._problem = ""
        self.database_is_down = False
        """Whether the database stored nothing at the last attempt."""

    def start(self) -> None:
        """Drain in another thread until the spool is empty."""
        with self._lock:
            self._is_requested = True
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._run, name="imcallback-drain", daemon=True
                )
                self._thread.start()

    def mark_database_down(self, error: BaseException) -> None:
        """Send new deliveries directly to the spool until the drain stores a chunk."""
        self.database_is_down = True
        self._log_change(describe(error))

    def finish(self) -> str:
        """Drain until the spool is empty or the database blocks.

        Returns the problem, or an empty text if the database stored everything. Needs an app
        context. Raises `StorageError` if the spool cannot be read or written.
        """
        while self.drain_chunk() is DrainResult.STORED:
            pass
        return self._problem

    def drain_chunk(self) -> DrainResult:
        """Move one chunk into the database.

        Needs an app context. Raises `StorageError` if the spool cannot be read or written.
        """
        with file_lock(f"{self.spool.path}-drain"):
            chunk = self.spool.read_oldest(self._skipped_up_to_id, self._chunk_limit)
            if not chunk:
                return self._reach_end()
            self._writer.write(chunk, CHUNK_SECONDS)
            stored = [entry for entry in chunk if entry.error is None]
            if stored:
                self.spool.remove(stored)
        for entry in stored:
            self._announce(entry.records)
        self._plan_next_chunk(chunk, stored)
        return DrainResult.STORED if stored else DrainResult.BLOCKED

    def _reach_end(self) -> DrainResult:
        if self._skipped_up_to_id:
            self._skipped_up_to_id = 0
            return DrainResult.BLOCKED
        self.database_is_down = False
        self._log_change("")
        return DrainResult.EMPTY

    def _plan_next_chunk(
        self, chunk: Sequence[SpooledEntry], stored: Sequence[SpooledEntry]
    ) -> None:
        """Choose where the next chunk starts, and its size."""
        error = next((entry.error for entry in chunk if entry.error), None)
        if error:
            self._log_change(describe(error))
        if not stored:
            self._chunk_limit = max(1, len(chunk) // 2)
            if len(chunk) == 1:
                self._skipped_up_to_id = chunk[0].row["id"]
        elif self.database_is_down:
            self.database_is_down, self._skipped_up_to_id = False, 0
        elif error:
            self._skipped_up_to_id = chunk[-1].row["id"]
        else:
            self._chunk_limit = min(self._chunk_limit * 2, MAX_CHUNK_DELIVERIES)

    def _run(self) -> None:
        pause = MIN_PAUSE_SECONDS
        while True:
            with self._lock:
                self._is_requested = False
            match self._try_chunk():
                case DrainResult.EMPTY:
                    with self._lock:
                        if not self._is_requested:
                            self._thread = None
                            return
                case DrainResult.STORED:
                    pause = MIN_PAUSE_SECONDS
                    time.sleep(YIELD_SECONDS)
                case DrainResult.BLOCKED:
                    time.sleep(pause)
                    pause = min(pause * 2, MAX_PAUSE_SECONDS)

    def _try_chunk(self) -> DrainResult:
        try:
            with self._context():
                return self.drain_chunk()
        except Exception as error:  # the thread must survive, whatever the error is
            self._log_change(describe(error))
            return DrainResult.BLOCKED

    def _log_change(self, problem: str) -> None:
        """Log one line when deliveries begin to wait, and one when none waits any more."""
        if problem and not self._problem:
            logger.error(
                "The database does not store callbacks (%s). They wait in the spool %s and are "
                "stored as soon as the database accepts them. Check the database, and run "
                "`flask db upgrade` if a table or column is missing.",
                problem,
                self.spool.path,
            )
        elif not problem and self._problem:
            logger.warning(
                "The database has stored all callbacks that waited in the spool %s.",
                self.spool.path,
            )
        self._problem = problem
