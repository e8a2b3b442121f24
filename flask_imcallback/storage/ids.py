"""The ids of deliveries and removals. Ids are times.

The id of a delivery is the microsecond in which it was received, counted from 1970. If this
process has used that id already, the delivery gets the next free id. If another process has used
it, the writer thread adds a random step. Removal `n` of the delivery has the id of the delivery
plus `n`. So one number orders the history by time and pages it. `since` and `until` are a range of
the primary key, and a process needs no query to find an id.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from .threads import new_lock

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

MICROSECOND = timedelta(microseconds=1)

IDS_PER_SECOND = 1_000_000

MAX_ID = 2**53
"""Every id is below this number until the year 2255, so JavaScript reads ids exactly."""

MAX_REMOVALS = 1_000_000
"""Every delivery has fewer removals, so their ids stay within one second of its id."""


def id_at(moment: datetime) -> int:
    """Return the id of a delivery that was received at `moment`, which must be aware."""
    return (moment - EPOCH) // MICROSECOND


def moment_of(delivery_id: int) -> datetime:
    """Return the time at which the delivery was received. The time is aware and in UTC."""
    return EPOCH + delivery_id * MICROSECOND


class IdAllocator:
    """A source of ids that are free in this process. Threads may share it."""

    def __init__(self) -> None:
        self._lock = new_lock()
        self._next_free_id = 0

    def allocate(self, received_at: datetime, removal_count: int) -> int:
        """Return an id for a delivery. The ids of its removals are reserved too.

        The allocator follows a clock that was set back. The database then refuses an id that is
        taken, as it does when another process uses the same id.
        """
        with self._lock:
            first_id = id_at(received_at)
            if 0 < self._next_free_id - first_id < IDS_PER_SECOND:
                first_id = self._next_free_id
            self._next_free_id = first_id + max(removal_count, 1)
            return first_id
