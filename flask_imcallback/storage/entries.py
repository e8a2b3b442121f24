"""A delivery on its way into a database: as the receiver made it, and as rows."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..providers import Origin
from ..removals import Record, Removal, Status
from .ids import moment_of


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


BYTES_A_ROW = 1024


class Entry:
    """A delivery on its way into a database: its row, its removals, and what became of it."""

    def __init__(self, row: dict[str, Any], removals: Sequence[Removal]) -> None:
        self.row = row
        self.removals = removals
        self.weight = 1 + len(removals) + len(row["body"]) // BYTES_A_ROW
        """What it costs to store, about in rows."""
        self.done = threading.Event()
        self.is_abandoned = False
        """Nobody waits for it any more: a transaction that runs may end, but no other begins."""
        self.error: Exception | None = None

    def be_duplicate(self, first: int) -> None:
        """Become a repetition of the delivery with that id."""
        changes = {"status": Status.DUPLICATE.value, "duplicate_of": first, "fingerprint": None}
        self.row = self.row | changes | {"removal_count": 0}
        self.removals = ()

    def move(self, delivery_id: int) -> None:
        """Take another id, and its removals those that follow."""
        self.row = self.row | {"id": delivery_id, "received_at": moment_of(delivery_id)}

    def sources(self) -> set[tuple[str, ...]]:
        """Keys of `SOURCE`: there are as many as relations among the removals, at most."""
        row = self.row
        return {
            (row["provider"], row["app_id"], row["command"], relation.value, row["platform"])
            for relation in {removal.relation for removal in self.removals}
        }

    def triples(self, known: Mapping[tuple[str, ...], int]) -> list[tuple[int, str, str]]:
        """Source id, owner and target of each removal."""
        ids = {key[3]: known[key] for key in self.sources()}
        return [(ids[r.relation.value], r.owner_id, r.target_id) for r in self.removals]

    def records(self) -> list[Record]:
        """The removals as the history shows them."""
        names = ("provider", "app_id", "command", "client_ip", "platform", "request_id")
        shared = {name: self.row[name] for name in (*names, "received_at")}
        first = self.row["id"]
        return [
            Record(
                id=first + position,
                delivery_id=first,
                position=position,
                relation=removal.relation,
                owner_id=removal.owner_id,
                target_id=removal.target_id,
                **shared,
            )
            for position, removal in enumerate(self.removals)
        ]
