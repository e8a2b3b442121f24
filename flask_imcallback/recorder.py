"""Deliveries and their removals into rows: one transaction each."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine, Row, insert, select
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from .errors import StorageError
from .events import Record, Removal, Status
from .models import delivery as delivery_table
from .models import id_at, moment_of
from .models import removal as removal_table
from .providers.base import UNSTORABLE, Origin

ATTEMPTS = 20
"""Ids to try; another process must have taken the very same microseconds each time."""
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
    duplicate_of: int | None = None

    @property
    def fingerprint(self) -> bytes | None:
        """What a repetition of this callback would have too; None if it cannot be told from others.

        An unreadable delivery has none: to repeat it is to be refused again.
        """
        folds = self.repeats_callbacks and self.origin.request_id
        if not folds or self.status in (Status.UNREADABLE, Status.DUPLICATE):
            return None
        parts = [self.provider, self.origin.app_id, self.origin.command, self.origin.request_id]
        return hashlib.sha256(json.dumps(parts).encode() + b"\n" + self.body).digest()


class Recorder:
    """Stores deliveries in the database of one app. Threads may share it."""

    def __init__(self, engine: Callable[[], Engine]) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._free_id = 0

    def record(self, delivery: Delivery) -> list[Record]:
        """Store the delivery with its removals; both are durable when this returns.

        The records are those of this delivery: none if it is a duplicate. Raises `StorageError`.
        """
        try:
            return self._record(delivery)
        except SQLAlchemyError as error:
            raise StorageError from error

    def _record(self, delivery: Delivery) -> list[Record]:
        engine = self._engine()
        for _ in range(ATTEMPTS):
            row, records = self._rows(delivery)
            try:
                with engine.begin() as connection:
                    connection.execute(insert(delivery_table), row)
                    if records:
                        connection.execute(insert(removal_table), [asdict(r) for r in records])
                return records
            except IntegrityError:
                if first := self._same_callback(engine, row["fingerprint"]):
                    delivery = replace(
                        delivery, status=Status.DUPLICATE, duplicate_of=first.id, removals=()
                    )
                else:
                    delivery = replace(delivery, received_at=datetime.now(UTC))
        raise StorageError(f"no id is free after {ATTEMPTS} attempts")

    def _same_callback(self, engine: Engine, fingerprint: bytes | None) -> Row[Any] | None:
        if fingerprint is None:
            return None
        is_same = delivery_table.c.fingerprint == fingerprint
        with engine.connect() as connection:
            return connection.execute(select(delivery_table.c.id).where(is_same)).one_or_none()

    def _rows(self, delivery: Delivery) -> tuple[dict[str, Any], list[Record]]:
        delivery_id = self._take_ids(id_at(delivery.received_at), len(delivery.removals))
        origin: dict[str, Any] = {
            name: _storable(name, text) for name, text in asdict(delivery.origin).items()
        }
        row: dict[str, Any] = origin | {
            "id": delivery_id,
            "received_at": moment_of(delivery_id),
            "provider": delivery.provider,
            "status": delivery.status,
            "duplicate_of": delivery.duplicate_of,
            "error": UNSTORABLE.sub("\ufffd", delivery.error),
            "removal_count": len(delivery.removals),
            "remote_addr": _storable("remote_addr", delivery.remote_addr),
            "authenticated_by": _storable("authenticated_by", delivery.authenticated_by),
            "query": UNSTORABLE.sub("\ufffd", delivery.query),
            "headers": json.dumps(dict(delivery.headers)),
            "body": delivery.body,
            "fingerprint": delivery.fingerprint,
        }
        records = [
            Record(
                id=delivery_id + position,
                delivery_id=delivery_id,
                position=position,
                received_at=row["received_at"],
                provider=delivery.provider,
                relation=removal.relation,
                owner_id=removal.owner_id,
                target_id=removal.target_id,
                **origin,
            )
            for position, removal in enumerate(delivery.removals)
        ]
        return row, records

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
