"""The thread that moves spooled deliveries into the database."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from sqlalchemy import (
    Engine,
)

from ..removals import Record
from .database_errors import reason_of
from .spool import Spool
from .sqlite import turn
from .writer import Writer

logger = logging.getLogger("flask_imcallback")

MAX_CHUNK = 500
"""Deliveries that are drained in one go."""

DRAIN_SECONDS = 10
"""What a chunk may take; the next is smaller if it takes longer."""

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0
"""Seconds between two tries to drain while the database is away."""


class Drain:
    """Brings what waits in a spool into the database, oldest first, by a thread of this process.

    Processes take turns, chunk by chunk, so that each learns when the database is back. A delivery
    that fails alone is passed over, and tried again after the others.
    """

    def __init__(
        self,
        spool: Spool,
        engine: Callable[[], Engine],
        context: Callable[[], AbstractContextManager[object]],
        announce: Callable[[Callable[[], list[Record]]], None],
    ) -> None:
        self.spool = spool
        self._writer = Writer(engine, patient=False)
        self._context = context
        self._announce = announce
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_wanted = False
        self._most = MAX_CHUNK
        self._after = 0
        self._problem = ""
        self.is_away = False
        """Whether the database took nothing when it was last tried."""

    def start(self) -> None:
        """Drain until nothing waits, in another thread."""
        with self._lock:
            self._is_wanted = True
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._run, name="imcallback-drain", daemon=True
                )
                self._thread.start()

    def leave(self, error: BaseException) -> None:
        """Note that the database takes nothing, until something is drained."""
        self.is_away = True
        self._tell(reason_of(error))

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while True:
            with self._lock:
                self._is_wanted = False
            try:
                with self._context():
                    took = self.step()
            except Exception as error:
                self._tell(reason_of(error))
                took = False
            if took is None:
                with self._lock:
                    if not self._is_wanted:
                        self._thread = None
                        return
            elif took:
                pause = FIRST_PAUSE
                time.sleep(0.001)  # another process may have its turn
            else:
                time.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)

    def finish(self) -> str:
        """Drain until nothing waits, or the database takes no more: why, empty if it took all.

        Needs an app context. Raises `StorageError` if the spool cannot be read or written.
        """
        while self.step():
            pass
        return self._problem

    def step(self) -> bool | None:
        """Drain a chunk: whether the database took any of it; None if nothing waits.

        Needs an app context. Raises `StorageError` if the spool cannot be read or written.
        """
        with turn(f"{self.spool.path}-drain"):
            chunk = self.spool.oldest(self._after, self._most)
            if not chunk:
                if self._after:  # those passed over
                    self._after = 0
                    return False
                self.is_away = False
                self._tell("")
                return None
            self._writer.write(chunk, DRAIN_SECONDS)
            stored = [entry for entry in chunk if entry.error is None]
            if stored:
                self.spool.remove(stored)
        for entry in stored:
            self._announce(entry.records)
        failed = next((entry.error for entry in chunk if entry.error), None)
        if failed:
            self._tell(reason_of(failed))
        if not stored:
            self._most = max(1, len(chunk) // 2)
            self._after = chunk[0].row["id"] if len(chunk) == 1 else self._after
        elif self.is_away:
            self.is_away, self._after = False, 0
        elif failed:
            self._after = chunk[-1].row["id"]
        else:
            self._most = min(self._most * 2, MAX_CHUNK)
        return bool(stored)

    def _tell(self, problem: str) -> None:
        """Log what changed."""
        if problem and not self._problem:
            logger.error("Callbacks wait in %s: %s", self.spool.path, problem)
        elif not problem and self._problem:
            logger.warning("All callbacks of %s are in the database", self.spool.path)
        self._problem = problem
