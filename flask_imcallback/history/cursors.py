"""Cursors: signed positions between two pages.

Transactions may commit out of id order, so that a removal can appear below an id that was already
returned. A position of a query in ascending order therefore holds a high-water mark, below which
no removal can appear, and the ids above it that were already returned. See `fit_page`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

from itsdangerous import BadSignature, URLSafeSerializer

from ..errors import HistoryQueryError

MAX_RETURNED_RANGES = 400
"""Maximum number of id ranges in a cursor, so that the cursor fits into a URL."""
CURSOR_VERSION = 2
IdRange = tuple[int, int]


@dataclass(frozen=True)
class Position:
    """A place between two rows of a result."""

    high_water_mark: int
    """The next page starts after this id. In ascending order, no removal can appear below it."""
    already_returned: tuple[IdRange, ...] = ()
    """Ranges of ids above the mark, by first and last id, that earlier pages returned."""

    def has_returned(self, removal_id: int) -> bool:
        return any(first <= removal_id <= last for first, last in self.already_returned)

    def advance(self, high_water_mark: int, returned: Sequence[int]) -> Position:
        """Return the position after the ids in `returned`, with the mark moved up."""
        known = chain.from_iterable(range(first, last + 1) for first, last in self.already_returned)
        ids = sorted(
            removal_id for removal_id in (*known, *returned) if removal_id > high_water_mark
        )
        mark = max(high_water_mark, self.high_water_mark)
        return Position(mark, tuple(_ranges(ids)))


def _ranges(ids: Sequence[int]) -> list[IdRange]:
    """Return the sorted ids as ranges without gaps."""
    ranges: list[IdRange] = []
    for removal_id in ids:
        if ranges and ranges[-1][1] == removal_id - 1:
            ranges[-1] = (ranges[-1][0], removal_id)
        else:
            ranges.append((removal_id, removal_id))
    return ranges


@dataclass(frozen=True)
class FittedPage:
    """The first ids of a page, as many as a cursor can remember."""

    count: int
    is_last: bool
    position: Position
    """The position after these ids."""


def fit_page(
    start: Position,
    ids: Sequence[int],
    *,
    is_last: bool,
    read_until: int,
    final_until: int,
    now: int,
) -> FittedPage:
    """Return the part of a page in ascending order that a cursor can remember.

    `ids` are all results between `start` and `read_until`, or the end if the page is the last one.
    No removal with an id up to `final_until` can appear any more. `now` is the id of this moment.
    """
    first_id = ids[0] if ids else now
    position = start.advance(final_until if is_last else min(final_until, read_until), ids)
    while ids and (surplus := len(position.already_returned) - MAX_RETURNED_RANGES) > 0:
        ids = ids[: max(0, len(ids) - surplus)]
        position = start.advance(min(final_until, ids[-1]) if ids else final_until, ids)
        # Removals of a clock ahead of ours become final too late for a reader who asks at once.
        is_last = not ids and first_id > now
    return FittedPage(len(ids), is_last, position)


class CursorCodec:
    """Encodes positions as signed texts, and decodes them."""

    def __init__(self, secret_keys: Sequence[str]) -> None:
        # Without a key, the signature only detects mistakes. A cursor holds no secret.
        self._serializer = URLSafeSerializer(secret_keys or "", salt="flask-imcallback-cursor")

    def encode(self, position: Position, digest: str) -> str:
        """Return the cursor of a position in the result of the query with this digest."""
        ends = [position.high_water_mark, *chain.from_iterable(position.already_returned)]
        steps = [after - before for before, after in pairwise(ends)]
        parts: list[Any] = [CURSOR_VERSION, digest, position.high_water_mark, steps]
        return str(self._serializer.dumps(parts))

    def decode(self, cursor: str, digest: str) -> Position:
        """Return the position. Raises `HistoryQueryError` if the cursor is of another query."""
        try:
            version, *parts = self._serializer.loads(cursor)
        except (BadSignature, ValueError, TypeError) as error:
            problem = "is not a cursor of this history. It was changed, cut off or made elsewhere"
            raise HistoryQueryError("cursor", problem) from error
        if version != CURSOR_VERSION:
            problem = "is from another version of flask-imcallback. Start again without it"
            raise HistoryQueryError("cursor", problem)
        query_digest, mark, steps = parts
        if query_digest != digest:
            problem = (
                "belongs to other filters or another order. "
                "Repeat its filters and order, or start again without it"
            )
            raise HistoryQueryError("cursor", problem)
        ends = [mark]
        for step in steps:
            ends.append(ends[-1] + step)
        return Position(mark, tuple(zip(ends[1::2], ends[2::2], strict=True)))
