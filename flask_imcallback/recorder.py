"""Deliveries and their removals into rows, and these into the database, or else the spool."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Engine

from .errors import StorageError
from .events import Removal, Status
from .models import delivery as delivery_table
from .models import id_at, moment_of
from .providers.base import UNSTORABLE, Origin
from .spool import Drain
from .writer import Entry, Writer

SECOND = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """One arrival of a callback, to be stored."""

    provider: str
    repeats_callbacks: bool
    """Whether the same request id and body mean the same callback."""
    origin: Origin
    received_at: datetime
    remote_addr: str
    authenticated_by: str
    query: str
    headers: Mapping[str, str]
    body: bytes
    status: Status = Status.RECORDED
    removals: tuple[Removal, ...] = ()
    error: str = ""

    @property
    def fingerprint(self) -> bytes | None:
        """What a repetition of this callback would have too; None if it cannot be told from others.

        An unreadable delivery has none: to repeat it is to be refused again.
        """
        folds = self.repeats_callbacks and self.origin.request_id
        if not folds or self.status is Status.UNREADABLE:
            return None
        parts = [self.provider, self.origin.app_id, self.origin.command, self.origin.request_id]
        return hashlib.sha256(json.dumps(parts).encode() + b"\n" + self.body).digest()


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

    def record(self, delivery: Delivery) -> list[dict[str, Any]]:
        """Store the delivery with its removals; both are durable when this returns.

        Returns the rows of the removals that are in the database: none if it is a duplicate, or
        waits in the spool. Needs an app context. Raises `StorageError`.
        """
        entry = Entry(*self._rows(delivery))
        if self._drain is None or not self._drain.is_away:
            self._writer.write([entry], self._deadline)
            if entry.error is None:
                return entry.removals
        if self._drain is None:
            raise StorageError from entry.error
        if entry.error is not None:
            self._drain.leave(entry.error)
        self._drain.spool.put(Entry(entry.row, entry.removals), self._deadline)
        self._drain.start()
        return []

    def _rows(self, delivery: Delivery) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        delivery_id = self._take_ids(id_at(delivery.received_at), len(delivery.removals))
        origin: dict[str, Any] = {
            name: _storable(name, text) for name, text in asdict(delivery.origin).items()
        }
        row: dict[str, Any] = origin | {
            "id": delivery_id,
            "received_at": moment_of(delivery_id),
            "provider": delivery.provider,
            "status": delivery.status,
            "duplicate_of": None,
            "error": UNSTORABLE.sub("\ufffd", delivery.error),
            "removal_count": len(delivery.removals),
            "remote_addr": _storable("remote_addr", delivery.remote_addr),
            "authenticated_by": _storable("authenticated_by", delivery.authenticated_by),
            "query": UNSTORABLE.sub("\ufffd", delivery.query),
            "headers": json.dumps(dict(delivery.headers)),
            "body": delivery.body,
            "fingerprint": delivery.fingerprint,
            "nonce": os.urandom(16),
        }
        common = origin | {
            "delivery_id": delivery_id,
            "received_at": row["received_at"],
            "provider": delivery.provider,
        }
        removals = [
            common
            | {
                "id": delivery_id + position,
                "position": position,
                "relation": removal.relation,
                "owner_id": removal.owner_id,
                "target_id": removal.target_id,
            }
            for position, removal in enumerate(delivery.removals)
        ]
        return row, removals

    def _take_ids(self, first: int, count: int) -> int:
        """Move `first` up until it is free in this process, and take it and those that follow.

        A clock that was put back is followed at once: what it meets again the database refuses.
        """
        with self._lock:
            if 0 < self._free_id - first < SECOND:
                first = self._free_id
            self._free_id = first + max(count, 1)
            return first


def _storable(name: str, text: str) -> str:
    """What the column of that name can hold of a text that only accompanies the removals."""
    column: Any = delivery_table.c[name].type
    return UNSTORABLE.sub("\ufffd", text[: column.length])
