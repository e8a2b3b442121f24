"""Deliveries before they are stored: from the receiver, and as rows of a database."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from ..providers import Origin
from ..removals import Record, Removal, Status
from ..storable_text import make_storable
from .column_types import ExactText
from .ids import moment_of
from .tables import SourceKey
from .tables import delivery as delivery_table
from .tables import source as source_table
from .threads import Signal

BYTES_PER_ROW = 1024
"""Number of bytes of a body that cost as much to store as one row."""

JSON_ENCODER = json.JSONEncoder(separators=(",", ":"))

NONCE_BYTES = 16
FINGERPRINT_BYTES = 16

COLUMN_LENGTHS = {
    column.name: column.type.length
    for column in [*source_table.columns, *delivery_table.columns]
    if isinstance(column.type, ExactText)
}
"""Maximum length of each text of a delivery, in code points."""


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """A single arrival of a callback, ready to be stored."""

    provider: str
    repeats_callbacks: bool
    """Whether equal request ids and bodies mean the same callback."""
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
        """A hash that all repetitions of this callback share.

        None if repetitions cannot be recognized. An unreadable delivery has no fingerprint, so each
        repetition is refused again.
        """
        can_repeat = self.repeats_callbacks and self.origin.request_id
        if not can_repeat or self.status is Status.UNREADABLE:
            return None
        parts = [self.provider, self.origin.app_id, self.origin.command, self.origin.request_id]
        digest = hashlib.sha256(json.dumps(parts).encode() + b"\n" + self.body).digest()
        return digest[:FINGERPRINT_BYTES]


class Entry:
    """A delivery on its way into a database: its row, its removals, and the result.

    The row has the columns of a delivery, and the provider and app of its source.
    """

    def __init__(self, row: dict[str, Any], removals: Sequence[Removal]) -> None:
        self.row = row
        self.removals = removals
        self.weight = 1 + len(removals) + len(row["body"]) // BYTES_PER_ROW
        """Estimated cost of storing the entry, in rows."""
        self.done: Signal
        """A signal of the writer: the entry is stored, or `error` is set."""
        self.database = ""
        """Mark of the database for which the entry waits. The spool sets it."""
        self.is_abandoned = False
        """Whether the caller timed out. A running transaction may finish, but none may start."""
        self.error: Exception | None = None
        self.was_stored_before = False
        """Whether the row was in the database already: another process or attempt stored it."""

    @classmethod
    def from_delivery(cls, delivery: Delivery, delivery_id: int) -> Self:
        """Return an entry for the delivery, with a new nonce.

        Characters that a database cannot store are replaced in all texts except the account ids.
        The provider has checked the account ids.
        """
        origin = delivery.origin
        texts = {
            "provider": delivery.provider,
            "app_id": origin.app_id,
            "command": origin.command,
            "status": delivery.status.value,
            "remote_addr": delivery.remote_addr,
            "authenticated_by": delivery.authenticated_by,
            "client_ip": origin.client_ip,
            "platform": origin.platform,
            "request_id": origin.request_id,
        }
        row = {
            **{name: make_storable(text, COLUMN_LENGTHS[name]) for name, text in texts.items()},
            "id": delivery_id,
            "duplicate_of": None,
            "error": make_storable(delivery.error),
            "removal_count": len(delivery.removals),
            "query": make_storable(delivery.query),
            "headers": JSON_ENCODER.encode(dict(delivery.headers)),
            "body": delivery.body,
            "fingerprint": delivery.fingerprint,
            "nonce": os.urandom(NONCE_BYTES),
        }
        return cls(row, delivery.removals)

    def copy(self) -> Entry:
        """Return an entry with the same row and removals, but without a result."""
        return Entry(self.row, self.removals)

    def mark_duplicate(self, first_id: int) -> None:
        """Turn the entry into a repetition of the delivery with the id `first_id`."""
        changes = {"status": Status.DUPLICATE.value, "duplicate_of": first_id, "fingerprint": None}
        self.row = self.row | changes | {"removal_count": 0}
        self.removals = ()

    def choose_step(self, limit: int) -> int:
        """Return a random distance to the next id, below `limit`, because the id is taken."""
        return random.randrange(1, limit)  # noqa: S311

    def assign_id(self, delivery_id: int) -> None:
        """Give the entry another id. The ids of its removals follow it."""
        self.row = self.row | {"id": delivery_id}

    @property
    def received_at(self) -> datetime:
        """The time of the delivery. Its id holds the time."""
        return moment_of(self.row["id"])

    def source_keys(self) -> dict[tuple[str, str], SourceKey]:
        """Return the source of each relation and cause of the removals, in the order of the packet.

        A delivery without removals has one source, which names no command and no platform. An
        authentic sender can invent both for each packet without removals, and the source table must
        stay small. The row of the delivery has them.
        """
        provider, app_id = self.row["provider"], self.row["app_id"]
        if not self.removals:
            return {("", ""): SourceKey(provider, app_id, "", "", "", "")}
        command, platform = self.row["command"], self.row["platform"]
        pairs = ((removal.relation.value, removal.cause.value) for removal in self.removals)
        kinds = dict.fromkeys(pairs)
        return {kind: SourceKey(provider, app_id, command, *kind, platform) for kind in kinds}

    def delivery_values(self, source_ids: Mapping[tuple[str, str], int]) -> dict[str, Any]:
        """Return the values of the row in the delivery table.

        `source_ids` are the ids of the sources in `source_keys`.
        """
        values = self.row | {"source_id": next(iter(source_ids.values()))}
        return values | {"command": "", "platform": ""} if self.removals else values

    def removal_values(
        self, source_ids: Mapping[tuple[str, str], int]
    ) -> list[tuple[int, int, int, str, str, str]]:
        """Return the rows in the removal table, in the order of its columns."""
        delivery_id = self.row["id"]
        return [
            (
                delivery_id + position,
                source_ids[removal.relation.value, removal.cause.value],
                position,
                removal.owner_id,
                removal.target_id,
                removal.actor_id,
            )
            for position, removal in enumerate(self.removals)
        ]

    def records(self) -> list[Record]:
        """Return the removals as records of the history."""
        names = ("provider", "app_id", "command", "client_ip", "platform", "request_id")
        shared = {name: self.row[name] for name in names}
        delivery_id = self.row["id"]
        return [
            Record(
                id=delivery_id + position,
                delivery_id=delivery_id,
                position=position,
                relation=removal.relation,
                owner_id=removal.owner_id,
                target_id=removal.target_id,
                actor_id=removal.actor_id,
                cause=removal.cause,
                received_at=self.received_at,
                **shared,
            )
            for position, removal in enumerate(self.removals)
        ]
