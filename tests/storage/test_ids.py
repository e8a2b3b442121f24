"""Ids are times: they are unique in a process and follow the clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from flask_imcallback.storage.ids import MAX_ID, IdAllocator, id_at, moment_of
from support.deliveries import MICROSECOND, MOMENT


def test_javascript_can_read_ids() -> None:
    """Ids stay below 2^53 for two centuries, so JavaScript reads them exactly."""
    assert id_at(datetime(2255, 1, 1, tzinfo=UTC)) < MAX_ID == 2**53


@pytest.mark.parametrize("moment", [MOMENT, datetime(1970, 1, 1, tzinfo=UTC)], ids=str)
def test_an_id_gives_its_time_back(moment: datetime) -> None:
    """The time of an id is the microsecond from which the id was made."""
    assert moment_of(id_at(moment)) == moment


@pytest.mark.parametrize(
    ("removal_count", "second_id"), [(0, 1), (1, 1), (2, 2), (19, 19)], ids=str
)
def test_a_delivery_starts_behind_the_removals_of_the_last(
    removal_count: int, second_id: int
) -> None:
    """Two deliveries of the same microsecond have different ids, and so have their removals."""
    ids = IdAllocator()
    assert ids.allocate(MOMENT, removal_count) == id_at(MOMENT)
    assert ids.allocate(MOMENT, removal_count) == id_at(MOMENT) + second_id


@pytest.mark.parametrize(
    ("moved_back", "expected"),
    [
        (MICROSECOND, id_at(MOMENT) + 1),
        (timedelta(seconds=2), id_at(MOMENT) - 2_000_000),
        (timedelta(hours=1), id_at(MOMENT) - 3_600_000_000),
    ],
    ids=str,
)
def test_ids_follow_a_clock_that_is_set_back(moved_back: timedelta, expected: int) -> None:
    """A step of less than a second is bridged. After a larger step the ids follow the clock."""
    ids = IdAllocator()
    ids.allocate(MOMENT, 1)
    assert ids.allocate(MOMENT - moved_back, 1) == expected
