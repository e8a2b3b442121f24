"""Counts of accepted and refused callbacks, for operators.

Each process counts in memory, and adds its counts to a small table from time to time. So a callback
costs no extra row, and a refused request costs none either. The log gets one line a
minute for each reason of refusal.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, Engine, insert, select
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from ..errors import ImCallbackError, StorageError
from ..storable_text import MAX_TEXT_LENGTH, make_storable
from .database_errors import Fault, classify, describe
from .sqlite import file_lock, sqlite_path
from .tables import counters as counter_table
from .threads import new_lock, start_thread

logger = logging.getLogger("flask_imcallback")

LOG_INTERVAL_SECONDS = 60
"""Minimum time between two log lines with the same provider and reason."""

SAVE_INTERVAL_SECONDS = 10
"""Time after which counts are saved. A process that is killed loses its unsaved counts."""

MAX_SAVE_ATTEMPTS = 20

MAX_SAVE_SECONDS = 60
"""Time after which a second thread may save, although the first thread still saves."""

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


class CallbackCounters:
    """The counters of one app in this process. Threads may share them.

    `saving` and `reading` return engines.
    """

    def __init__(self, saving: Callable[[], Engine], reading: Callable[[], Engine]) -> None:
        self._get_saving_engine = saving
        self._get_reading_engine = reading
        self._lock = new_lock()
        self._unsaved: dict[Key, tuple[int, datetime]] = {}
        self._keys: set[Key] = set()
        self._unlogged: dict[Key, int] = {}
        self._logged_at: dict[Key, float] = {}
        self._saved_at = 0.0
        self._saving_since = 0.0
        """Time of the monotonic clock, or 0 if no thread saves."""

    def count_accepted(self, provider: str, command: str) -> None:
        """Count a callback that is stored."""
        with self._lock:
            self._count((provider, ACCEPTED, command))

    def count_refused(self, provider: str, reason: str, detail: str = "") -> None:
        """Count a refusal, and log it at most once a minute for each reason.

        `reason` is one of a few fixed texts. `detail` describes the single request.
        """
        now = time.time()
        with self._lock:
            key = self._count((provider, REFUSED, reason))
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
        count, _ = self._unsaved.get(key, (0, None))
        self._unsaved[key] = count + 1, datetime.now(UTC)
        return key

    @property
    def is_due(self) -> bool:
        """Whether there are unsaved counts, and the last save is long enough ago."""
        is_old = abs(time.time() - self._saved_at) >= SAVE_INTERVAL_SECONDS
        return bool(self._unsaved) and is_old

    def save_soon(self, context: Callable[[], AbstractContextManager[object]]) -> None:
        """Save in another thread, because a database that hangs must not block a request.

        `context` makes an app context.
        """
        with self._lock:
            now = time.monotonic()
            if self._saving_since and now - self._saving_since < MAX_SAVE_SECONDS:
                return
            self._saving_since = now
        start_thread("imcallback-counters", lambda: self._save_in_context(context))

    def _save_in_context(self, context: Callable[[], AbstractContextManager[object]]) -> None:
        try:
            with context():
                self.save()
        except ImCallbackError as error:
            logger.warning("The counts of callbacks are not saved: %s", error)
        finally:
            self._saving_since = 0.0

    def save(self) -> None:
        """Add the unsaved counts to the table, or keep them for the next save and log a warning.

        Needs an app context.
        """
        engine = self._get_saving_engine()
        with self._lock:
            self._saved_at = time.time()
            unsaved, self._unsaved = self._unsaved, {}
        for attempts_left in reversed(range(MAX_SAVE_ATTEMPTS)):
            try:
                with file_lock(sqlite_path(engine)), engine.begin() as connection:
                    # The same order in all processes prevents deadlocks.
                    for key, (count, last_at) in sorted(unsaved.items()):
                        _add(connection, key, count, last_at)
                return
            except (SQLAlchemyError, OSError) as error:
                if classify(error) is Fault.RETRY and attempts_left:
                    continue  # MariaDB locks the gaps into which two processes insert rows
                logger.warning(
                    "The counts of accepted and refused callbacks are not saved (%s). They are "
                    "kept in memory and saved later. Check the database.",
                    describe(error),
                )
                break
        self._restore(unsaved)

    def _restore(self, unsaved: Mapping[Key, tuple[int, datetime]]) -> None:
        with self._lock:
            for key, (count, last_at) in unsaved.items():
                newer_count, newest = self._unsaved.get(key, (0, last_at))
                self._unsaved[key] = count + newer_count, newest

    def counts(self) -> list[CallbackCount]:
        """Return the saved counts of all processes. Raises `StorageError`."""
        column = counter_table.c
        query = select(counter_table).order_by(column.provider, column.outcome, column.name)
        try:
            with self._get_reading_engine().connect() as connection:
                return [CallbackCount(**row) for row in connection.execute(query).mappings()]
        except SQLAlchemyError as error:
            raise StorageError from error


def _add(connection: Connection, key: Key, count: int, last_at: datetime) -> None:
    """Add a count to its row, or insert the row."""
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
    if connection.execute(update).rowcount:
        return
    try:
        with connection.begin_nested():
            connection.execute(
                insert(counter_table).values(names | {"count": count, "last_at": last_at})
            )
    except IntegrityError:  # another process has inserted the row
        connection.execute(update)
