"""How many callbacks were accepted and refused, and when the last one: for operators.

Counted in memory and added to a small table now and then, so that neither a flood of strangers nor
the ordinary callback costs a row. The log has a line for each reason, once a minute.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, Engine, insert, select
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from ..errors import StorageError
from ..text import MAX_TEXT_LENGTH, UNSTORABLE
from .database_errors import Fault, fault_of
from .sqlite import file_of, turn
from .tables import counters as table

logger = logging.getLogger("flask_imcallback")

LOG_SECONDS = 60
"""At most one line for a provider and a reason in this time."""
SAVE_SECONDS = 10
"""What is counted gets into the table this late; a process that is killed loses it."""
ATTEMPTS = 20
MAX_KEYS = 200
OTHER = "others"
ACCEPTED, REFUSED = "accepted", "refused"


@dataclass(frozen=True, slots=True)
class CallbackCount:
    """`what` is the command of accepted callbacks, the reason of refused ones."""

    provider: str
    outcome: str
    """accepted or refused"""
    what: str
    count: int
    last_at: datetime
    """Aware, UTC."""


Key = tuple[str, str, str]


class CallbackCounters:
    """That of one app in this process. Threads may share it."""

    def __init__(self, engine: Callable[[], Engine]) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._unsaved: dict[Key, tuple[int, datetime]] = {}
        self._unlogged: dict[Key, int] = {}
        self._logged_at: dict[Key, float] = {}
        self._saved_at = 0.0
        self._thread: threading.Thread | None = None

    def accept(self, provider: str, command: str) -> None:
        """CallbackCount a callback that is stored."""
        with self._lock:
            self._count((provider, ACCEPTED, command))

    def refuse(self, provider: str, reason: str, detail: str = "") -> None:
        """CallbackCount a refusal, and log it unless the same was logged a moment ago.

        `reason` is one of a few texts; what differs from case to case goes into `detail`.
        """
        now = time.time()
        with self._lock:
            key = self._count((provider, REFUSED, reason))
            if abs(now - self._logged_at.get(key, 0)) < LOG_SECONDS:
                self._unlogged[key] = self._unlogged.get(key, 0) + 1
                return
            self._logged_at[key] = now
            unlogged = self._unlogged.pop(key, 0)
        more = f"; {unlogged} more since this was last logged" if unlogged else ""
        detail = detail and f" ({detail})"
        logger.warning("Refused a callback of %s: %s%s%s", provider, reason, detail, more)

    def _count(self, key: Key) -> Key:
        if key not in self._unsaved and len(self._unsaved) >= MAX_KEYS:
            key = (key[0], key[1], OTHER)
        count, _ = self._unsaved.get(key, (0, None))
        self._unsaved[key] = count + 1, datetime.now(UTC)
        return key

    @property
    def is_due(self) -> bool:
        """Whether something was counted, and the last was not saved a moment ago."""
        return bool(self._unsaved) and abs(time.time() - self._saved_at) >= SAVE_SECONDS

    def save_soon(self, context: Callable[[], AbstractContextManager[object]]) -> None:
        """Save in a thread of its own, which a database that hangs may keep.

        `context` makes an app context.
        """
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._save_in, args=(context,), name="imcallback-counters", daemon=True
                )
                self._thread.start()

    def _save_in(self, context: Callable[[], AbstractContextManager[object]]) -> None:
        with context():
            self.save()

    def save(self) -> None:
        """Add to the table what was counted. Needs an app context; raises nothing foreseen."""
        with self._lock:
            self._saved_at = time.time()
            unsaved, self._unsaved = self._unsaved, {}
        engine = self._engine()
        for attempt in reversed(range(ATTEMPTS)):
            try:
                with turn(file_of(engine)), engine.begin() as connection:
                    # Always in one order, so that two processes cannot wait for each other.
                    for key, (count, last_at) in sorted(unsaved.items()):
                        _add(connection, key, count, last_at)
                return
            except SQLAlchemyError as error:
                if fault_of(error) is Fault.CONFLICT and attempt:
                    continue  # MariaDB locks gaps, in which the first rows of two are
                logger.warning("The callback counts are not saved yet: %s", type(error).__name__)
                break
        with self._lock:
            for key, (count, last_at) in unsaved.items():
                more, later = self._unsaved.get(key, (0, last_at))
                self._unsaved[key] = count + more, later

    def counts(self) -> list[CallbackCount]:
        """Those of all processes, as far as they are saved. Raises `StorageError`."""
        rows = select(table).order_by(table.c.provider, table.c.outcome, table.c.what)
        try:
            with self._engine().connect() as connection:
                return [CallbackCount(**row) for row in connection.execute(rows).mappings()]
        except SQLAlchemyError as error:
            raise StorageError from error


def _add(connection: Connection, key: Key, count: int, last_at: datetime) -> None:
    provider, outcome, what = key
    what = UNSTORABLE.sub("\ufffd", what[:MAX_TEXT_LENGTH])
    column = table.c
    one = (column.provider == provider) & (column.outcome == outcome) & (column.what == what)
    more = table.update().where(one).values(count=column.count + count, last_at=last_at)
    if connection.execute(more).rowcount:
        return
    try:
        with connection.begin_nested():
            row = {"provider": provider, "outcome": outcome, "what": what}
            connection.execute(insert(table), row | {"count": count, "last_at": last_at})
    except IntegrityError:  # another process was first
        connection.execute(more)
