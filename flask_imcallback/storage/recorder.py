"""Deliveries and their removals into rows, and these into the database, or else the spool."""

from __future__ import annotations

import json
import os
import platform
import threading
from collections.abc import Callable
from zlib import crc32

from sqlalchemy import Engine

from ..errors import StorageError
from ..text import UNSTORABLE
from .column_types import ExactText
from .drain import Drain
from .entries import Delivery, Entry
from .ids import id_at, moment_of
from .tables import delivery as delivery_table
from .writer import Writer

SECOND = 1_000_000
WIDE = 20
"""Removals from which a delivery waits for a lane of its own process."""
LANES, LANE = 8, 1250
"""A hundredth of a second is divided into as many lanes of so many ids. Two processes that receive
deliveries of a thousand removals would often take the same ids, and wait for each other."""
HOST = platform.node().encode()
LENGTHS = {
    column.name: column.type.length
    for column in delivery_table.columns
    if isinstance(column.type, ExactText)
}


class Recorder:
    """Stores deliveries of one app, in its database or else in its spool. Threads may share it."""

    def __init__(
        self,
        engine: Callable[[], Engine],
        *,
        deadline: float,
        drain: Drain | None,
    ) -> None:
        self._writer = Writer(engine, patient=drain is None)
        self._deadline = deadline
        self._drain = drain
        self._lock = threading.Lock()
        self._free_id = 0

    def record(self, delivery: Delivery) -> Entry | None:
        """Store the delivery with its removals; both are durable when this returns.

        Returns what is in the database, which is a duplicate if the delivery is a repetition; None
        if it waits in the spool. Needs an app context. Raises `StorageError`.
        """
        entry = self._entry(delivery)
        if self._drain is None or not self._drain.is_away:
            self._writer.write([entry], self._deadline)
            if entry.error is None:
                return entry
        if self._drain is None:
            raise StorageError from entry.error
        if entry.error is not None:
            self._drain.leave(entry.error)
        self._drain.spool.put(Entry(entry.row, entry.removals))
        self._drain.start()
        return None

    def _entry(self, delivery: Delivery) -> Entry:
        delivery_id = self._take_ids(id_at(delivery.received_at), len(delivery.removals))
        origin = delivery.origin
        row = {
            "id": delivery_id,
            "received_at": moment_of(delivery_id),
            "provider": delivery.provider,
            "app_id": _storable("app_id", origin.app_id),
            "command": _storable("command", origin.command),
            "status": delivery.status.value,
            "duplicate_of": None,
            "error": UNSTORABLE.sub("\ufffd", delivery.error),
            "removal_count": len(delivery.removals),
            "remote_addr": _storable("remote_addr", delivery.remote_addr),
            "authenticated_by": _storable("authenticated_by", delivery.authenticated_by),
            "client_ip": _storable("client_ip", origin.client_ip),
            "platform": _storable("platform", origin.platform),
            "request_id": _storable("request_id", origin.request_id),
            "query": UNSTORABLE.sub("\ufffd", delivery.query),
            "headers": json.dumps(dict(delivery.headers)),
            "body": delivery.body,
            "fingerprint": delivery.fingerprint,
            "nonce": os.urandom(16),
        }
        return Entry(row, delivery.removals)

    def _take_ids(self, first: int, count: int) -> int:
        """Move `first` up until it is free in this process, and take it and those that follow.

        A clock that was put back is followed at once: what it meets again the database refuses.
        """
        with self._lock:
            if 0 < self._free_id - first < SECOND:
                first = self._free_id
            if count >= WIDE:
                first += _to_own_lane(first, count)
            self._free_id = first + max(count, 1)
            return first


def _to_own_lane(first: int, count: int) -> int:
    """How many ids there are to the next from which so many fit a lane, or a lane begins."""
    lane = (os.getpid() + crc32(HOST)) % LANES  # neighbours on a host have different ones
    into = (first - lane * LANE) % (LANES * LANE)
    return 0 if into == 0 or into + count <= LANE else LANES * LANE - into


def _storable(name: str, text: str) -> str:
    """What the column of that name can hold of a text that only accompanies the removals."""
    return UNSTORABLE.sub("\ufffd", text[: LENGTHS[name]])
