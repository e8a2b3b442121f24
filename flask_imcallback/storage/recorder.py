"""Store deliveries in the database, or in the spool while the database is unavailable."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Engine

from ..errors import StorageError
from .database_errors import describe
from .drain import Drain
from .entries import Delivery, Entry
from .ids import IdAllocator
from .writer import Writer


class Recorder:
    """The storage of one app's deliveries. Threads may share it."""

    def __init__(
        self,
        engine: Callable[[], Engine],
        *,
        deadline: float,
        drain: Drain | None,
    ) -> None:
        self._writer = Writer(engine, retry_until_deadline=drain is None)
        self._deadline = deadline
        self._drain = drain
        self._ids = IdAllocator()

    def record(self, delivery: Delivery) -> Entry | None:
        """Store the delivery and its removals. Both are durable when this method returns.

        Returns the stored entry, which is a duplicate if the delivery repeats a callback. Returns
        None if the entry waits in the spool. Needs an app context. Raises `StorageError`.
        """
        entry = self.make_entry(delivery)
        if self._drain is None or not self._drain.database_is_down:
            self._writer.write([entry], self._deadline)
            if entry.error is None:
                return entry
        if self._drain is None:
            raise _storage_error(entry.error) from entry.error
        if entry.error is not None:
            self._drain.mark_database_down(entry.error)
        self._drain.spool.put(entry.copy())
        self._drain.start()
        return None

    def make_entry(self, delivery: Delivery) -> Entry:
        """Return an entry for the delivery, with an id that is free in this process."""
        delivery_id = self._ids.allocate(delivery.received_at, len(delivery.removals))
        return Entry.from_delivery(delivery, delivery_id)


def _storage_error(cause: Exception | None) -> StorageError:
    return StorageError(
        f"cannot store the callback ({describe(cause)}): check that the database answers, and run "
        "`flask db upgrade` if a table or column is missing"
    )
