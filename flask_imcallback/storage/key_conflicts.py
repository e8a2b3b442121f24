"""The reasons why a database refuses the keys of a delivery."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, and_, or_, select

from ..removals import Status
from .commitments import commit_to_packet
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
        is_same = _is_same_delivery(row)
        same_id = select(is_same.label("is_same"), column.status).where(column.id == row["id"])
        stored = connection.execute(same_id).one_or_none()
        if stored and stored.is_same:
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


def _is_same_delivery(row: Mapping[str, Any]) -> ColumnElement[bool]:
    """Return the condition that a stored delivery is this one, also after a strip or an erasure.

    Both take the nonce away, and leave the commitment to the packet.
    """
    column = delivery_table.c
    # A repetition is stored without its fingerprint.
    commitments = [commit_to_packet({**row, "fingerprint": x}) for x in (row["fingerprint"], None)]
    has_nonce = and_(column.nonce.is_not(None), column.nonce == row["nonce"])
    has_commitment = and_(column.commitment.is_not(None), column.commitment.in_(commitments))
    return or_(has_nonce, has_commitment)


def _find_moved(connection: Connection, row: Mapping[str, Any]) -> AlreadyStored | None:
    """Return the delivery if an earlier attempt has stored it with a later id.

    That attempt found the id taken, too. So it is rare, and the rows of a second may be read.
    """
    column = delivery_table.c
    same_delivery = select(column.id, column.status).where(
        column.id.between(row["id"], row["id"] + IDS_PER_SECOND), _is_same_delivery(row)
    )
    moved = connection.execute(same_delivery.limit(1)).one_or_none()
    return moved and AlreadyStored(moved.id, Status(moved.status))
