"""Cursors: where a page ended, signed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

MAX_SHOWN = 400
"""Runs of ids in a cursor, which has to fit an address."""

VERSION = 2
"""Of cursors."""


@dataclass(frozen=True)
class _Place:
    """Where a reader is: all up to an id was shown, and of those after it some runs of ids."""

    id: int
    shown: tuple[tuple[int, int], ...] = ()

    def has(self, removal_id: int) -> bool:
        return any(first <= removal_id <= last for first, last in self.shown)

    def move(self, settled: int, ids: Sequence[int]) -> _Place:
        """All up to `settled` was shown, too, and these."""
        runs: list[list[int]] = []
        shown = [one for first, last in self.shown for one in range(first, last + 1)]
        for one in sorted(one for one in [*shown, *ids] if one > settled):
            if runs and runs[-1][1] == one - 1:
                runs[-1][1] = one
            else:
                runs.append([one, one])
        return _Place(max(settled, self.id), tuple((first, last) for first, last in runs))


def _packed(place: _Place, digest: str) -> list[Any]:
    ends = [place.id, *(end for run in place.shown for end in run)]
    return [VERSION, digest, place.id, [b - a for a, b in pairwise(ends)]]


def _fit(
    place: _Place,
    settled: int,
    now: int,
    *,
    rows: list[Any],
    is_last: bool,
    end: int | None,
) -> tuple[list[Any], bool, _Place]:
    """What of the rows a page shows, whether it is the last, and where that leads.

    A removal can be stored a little later than its id says. So a cursor leads back to where nothing
    can come any more, and knows what of the rest was shown; what it cannot know waits. If that is
    of a clock ahead of ours, it waits too long for whoever asks for the next page at once.
    """
    reached = end if end is not None else rows[-1].id if rows else settled
    while True:
        bound = settled if is_last else min(settled, reached)
        after = place.move(bound, [row.id for row in rows])
        if len(after.shown) <= MAX_SHOWN or not rows:
            return rows, is_last, after
        fit = max(0, min(len(rows) - 1, len(rows) + MAX_SHOWN - len(after.shown)))
        is_last = fit == 0 and rows[0].id > now
        rows = rows[:fit]
        reached = rows[-1].id if rows else settled
