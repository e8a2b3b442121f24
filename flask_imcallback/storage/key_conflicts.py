"""The reasons why a database refuses the keys of a delivery."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Engine, select

from ..removals import Status
from .entries import Entry
from .tables import delivery as delivery_table
from .tables import removal as removal_table


@dataclass(frozen=True)
class AlreadyStored:
    """An entry that an earlier attempt has stored, in this process or in another drain."""

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
            return AlreadyStored(Status(stored.status))
        if row["fingerprint"]:
            same_callback = select(column.id).where(column.fingerprint == row["fingerprint"])
            first_id = connection.scalar(same_callback)
            if first_id is not None:
                return Repetition(first_id)
        last_id = row["id"] + max(len(entry.removals), 1) - 1
        removal_ids = select(removal_table.c.id).where(
            removal_table.c.id.between(row["id"], last_id)
        )
        is_taken = stored or connection.scalar(removal_ids.limit(1)) is not None
    return TakenId() if is_taken else None
