"""The reasons why a database refuses the keys of a delivery."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, select

from ..removals import Status
from .entries import Entry
from .ids import IDS_PER_SECOND
from .tables import delivery as delivery_table
from .tables import removal as removal_table


@dataclass(frozen=True)
class AlreadyStored:
    """An entry that an earlier attempt has stored, in this process or in another drain."""

    delivery_id: int
    """The id of the delivery, which is another one if the first one was taken."""
    status: Status


@dataclass(frozen=True)
class Repetition:
    """A callback that the database holds already, as the delivery `first_id`."""

    first_id: int


@dataclass(frozen=True)
class TakenId:
    """An id that another delivery has, or that a removal of another delivery has."""


KeyConflict = AlreadyStored | Repetition | TakenId


def find_key_conflict(engine: Engine, entry: Entry) -> KeyConflict | None:
    """Return the reason why a key of the entry is taken, or None if all keys are free."""
    column, row = delivery_table.c, entry.row
    with engine.connect() as connection:
        same_id = select(column.nonce, column.status).where(column.id == row["id"])
        stored = connection.execute(same_id).one_or_none()
        if stored and stored.nonce == row["nonce"]:
            return AlreadyStored(row["id"], Status(stored.status))
        last_id = row["id"] + max(len(entry.removals), 1) - 1
        removal_ids = select(removal_table.c.id).where(
            removal_table.c.id.between(row["id"], last_id)
        )
        is_taken = stored or connection.scalar(removal_ids.limit(1)) is not None
        if is_taken and (moved := _find_moved(connection, row)):
            return moved
        if row["fingerprint"]:
            same_callback = select(column.id, column.nonce, column.status).where(
                column.fingerprint == row["fingerprint"]
            )
            first = connection.execute(same_callback).one_or_none()
            if first and first.nonce == row["nonce"]:
                return AlreadyStored(first.id, Status(first.status))
            if first:
                return Repetition(first.id)
    return TakenId() if is_taken else None


def _find_moved(connection: Connection, row: Mapping[str, Any]) -> AlreadyStored | None:
    """Return the delivery if an earlier attempt has stored it with a later id.

    That attempt found the id taken, too. So it is rare, and the rows of a second may be read.
    """
    column = delivery_table.c
    same_nonce = select(column.id, column.status).where(
        column.id.between(row["id"], row["id"] + IDS_PER_SECOND), column.nonce == row["nonce"]
    )
    moved = connection.execute(same_nonce.limit(1)).one_or_none()
    return moved and AlreadyStored(moved.id, Status(moved.status))
