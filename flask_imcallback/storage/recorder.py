"""The recorder: it stores deliveries in the database, or else in the spool, or else in the log."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from sqlalchemy import Engine

from ..errors import StorageError
from .database_errors import describe
from .direct_writer import DirectWriter
from .drain import Drain
from .entries import Delivery, Entry
from .ids import IdAllocator
from .lost_callbacks import LostCallbacks
from .memory import shares_connection
from .writer import Writer

LARGE_ENTRY_ROWS = 20_000
"""Entries of this size or larger (`Entry.weight`) go to the spool first. A database may need
seconds for them. The IM server does not wait so long, and other deliveries need not wait either."""


class Recorder:
    """The recorder of the deliveries of one app in one process. Threads may share it.

    `context` makes an app context. `on_stored` is called after each transaction that stored
    deliveries. It must return immediately.
    """

    def __init__(
        self,
        engine: Callable[[], Engine],
        direct_engine: Callable[[], Engine],
        *,
        context: Callable[[], AbstractContextManager[object]],
        deadline: float,
        drain: Drain | None,
        lost_callbacks: LostCallbacks,
        on_stored: Callable[[], None],
    ) -> None:
        self._get_engine = engine
        self._is_shared: bool | None = None
        self._on_stored = on_stored
        self._direct_writer = DirectWriter(direct_engine)
        self._writer = Writer(
            engine,
            retry_until_deadline=drain is None,
            context=context,
            after_write=self._direct_writer.renew,
            on_stored=on_stored,
        )
        self._deadline = deadline
        self._drain = drain
        self._lost_callbacks = lost_callbacks
        self._ids = IdAllocator()

    def record(self, delivery: Delivery) -> Entry | None:
        """Store the delivery and its removals. Both are durable when this method returns.

        Returns the stored entry, which is a duplicate if the delivery repeats a callback. Returns
        None if the entry waits in the spool. Needs an app context. If neither the database nor the
        spool takes the delivery, the error log gets it, and the method raises `StorageError`.
        """
        entry = self.make_entry(delivery)
        try:
            return self._store(entry)
        except Exception as error:  # the log is the last place that can keep the packet
            problem = str(error) if isinstance(error, StorageError) else describe(error)
            self._lost_callbacks.write(entry, problem)
            raise

    def stop_direct_writes(self) -> None:
        """Close the connection of the requests. Deliveries are stored by the writer thread."""
        self._direct_writer.stop()

    def _shares_connection(self) -> bool:
        if self._is_shared is None:
            try:
                self._is_shared = shares_connection(self._get_engine())
            except Exception:  # the use of the database tells why
                return False
        return self._is_shared

    def _store(self, entry: Entry) -> Entry | None:
        # A database in memory is never unavailable, and the drain would use it in a thread.
        if self._drain is None or self._shares_connection():
            if error := self._try_database(entry):
                raise _storage_error(error) from error
            return entry
        self._drain.start_if_due()
        if self._drain.database_is_down or entry.weight >= LARGE_ENTRY_ROWS:
            return self._record_in_spool(entry, self._drain)
        error = self._try_database(entry)
        if error is None:
            self._drain.note_stored()
            return entry
        # The spool comes first, because a log handler of the host app may block or raise.
        spool_error = _try_spool(entry, self._drain)
        try:
            self._drain.note_failure(entry, error)
        finally:
            if spool_error is None:
                self._drain.start()
        if spool_error:
            self._drain.note_spool_failure()
            raise _storage_error(error, spool_error) from error
        return None

    def _record_in_spool(self, entry: Entry, drain: Drain) -> Entry | None:
        """Store the entry in the spool, or else in the database, which may work again."""
        spool_error = _try_spool(entry, drain)
        if spool_error is None:
            drain.start()
            return None
        drain.note_spool_failure()
        if error := self._try_database(entry):
            raise _storage_error(error, spool_error) from error
        drain.note_stored()
        return entry

    def _try_database(self, entry: Entry) -> Exception | None:
        """Store the entry in the database. Returns the error, if any."""
        deadline = time.monotonic() + self._deadline
        try:
            if self._writer.is_idle and self._direct_writer.write(entry, self._deadline):
                self._on_stored()
                return None
            self._writer.write([entry], deadline - time.monotonic())
        except Exception as error:  # without an engine, the spool must take the delivery
            return error
        return entry.error

    def make_entry(self, delivery: Delivery) -> Entry:
        """Return an entry for the delivery, with an id that is free in this process."""
        delivery_id = self._ids.allocate(delivery.received_at, len(delivery.removals))
        return Entry.from_delivery(delivery, delivery_id)


def _try_spool(entry: Entry, drain: Drain) -> Exception | None:
    """Store the entry in the spool. Returns the error, if any."""
    try:
        drain.spool.put(entry.copy())
    except StorageError as error:
        return error
    return None


def _storage_error(cause: Exception, spool_cause: Exception | None = None) -> StorageError:
    message = (
        f"cannot store the callback ({describe(cause)}): check that the database answers, and run "
        "`flask db upgrade` if a table or column is missing"
    )
    return StorageError(f"{message}. Also {spool_cause}" if spool_cause else message)
