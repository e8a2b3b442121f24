"""Ids are times: which id a delivery gets, and the time that an id stands for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

MICROSECOND = timedelta(microseconds=1)

MAX_ID = 2**53
"""Above all ids."""

MAX_REMOVALS = 1_000_000
"""A delivery has fewer; ids of its removals are less than a second behind its own."""


def id_at(moment: datetime) -> int:
    """The id of a delivery received at that moment, which is aware."""
    return (moment - EPOCH) // MICROSECOND


def moment_of(delivery_id: int) -> datetime:
    """When the delivery was received."""
    return EPOCH + delivery_id * MICROSECOND
