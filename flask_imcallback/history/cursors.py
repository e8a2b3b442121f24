"""Cursors: signed positions between two pages.

Transactions may commit out of id order. So a removal can appear with a smaller id than a removal
that was already returned. A position in ascending order therefore holds a high-water mark, and the
ids above it that were already returned. No new removal can appear at or below the mark. See
`fit_page`.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

from itsdangerous import BadSignature, URLSafeSerializer

from ..errors import HistoryQueryError
from ..storage import MAX_ID

MAX_RETURNED_RANGES = 400
"""Maximum number of id ranges in a cursor, so that the cursor fits into a URL."""
CURSOR_VERSION = 2
IdRange = tuple[int, int]


@dataclass(frozen=True)
class Position:
    """A position between two rows of a result."""

    high_water_mark: int
    """The next page starts after this id. In ascending order, no new removal can appear at
    or below it."""
    already_returned: tuple[IdRange, ...] = ()
    """Ranges of ids above the mark, by first and last id, that earlier pages returned."""

    def has_returned(self, removal_id: int) -> bool:
        return any(first <= removal_id <= last for first, last in self.already_returned)

    def advance(self, high_water_mark: int, returned: Sequence[int]) -> Position:
        """Return the position after the ids in `returned`, with the mark moved up."""
        known = [*self.already_returned, *((removal_id, removal_id) for removal_id in returned)]
        above = [
            (max(first, high_water_mark + 1), last)
            for first, last in known
            if last > high_water_mark
        ]
        return Position(max(high_water_mark, self.high_water_mark), tuple(_merge(sorted(above))))


def _merge(ranges: Iterable[IdRange]) -> list[IdRange]:
    """Merge sorted ranges that touch or overlap."""
    merged: list[IdRange] = []
    for first, last in ranges:
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


@dataclass(frozen=True)
class FittedPage:
    """The part of a page that a cursor can remember: its first ids."""

    count: int
    is_last: bool
    position: Position
    """The position after these ids."""


def fit_page(
    start: Position,
    ids: Sequence[int],
    *,
    is_last: bool,
    last_read_id: int,
    last_final_id: int,
    now_id: int,
) -> FittedPage:
    """Return the part of a page in ascending order that a cursor can remember.

    `ids` are all results after `start`, up to `last_read_id`. On the last page they are all
    results. No new removal with an id up to `last_final_id` can appear. `now_id` is the id of a
    delivery that is received now.
    """
    first_id = ids[0] if ids else now_id
    position = start.advance(last_final_id if is_last else min(last_final_id, last_read_id), ids)
    while ids and (surplus := len(position.already_returned) - MAX_RETURNED_RANGES) > 0:
        ids = ids[: max(0, len(ids) - surplus)]
        position = start.advance(min(last_final_id, ids[-1]) if ids else last_final_id, ids)
        # If the clock of a machine is ahead, its removals become final only later. A reader who
        # asks immediately would loop.
        is_last = not ids and first_id > now_id
    return FittedPage(len(ids), is_last, position)


class CursorCodec:
    """A codec between positions and signed texts.

    Without keys, it signs with the random key, so nobody can forge a cursor that is expensive to
    read. Such a cursor is valid in the processes that share the random key.
    """

    def __init__(self, secret_keys: Sequence[str], random_key: str = "") -> None:
        self._has_keys = bool(secret_keys)
        keys = secret_keys or random_key or secrets.token_hex(32)
        self._serializer = URLSafeSerializer(keys, salt="flask-imcallback-cursor")

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
            problem = (
                "is invalid: it was changed, cut off, or signed with another SECRET_KEY. "
                "Start again without it"
            )
            if not self._has_keys:
                problem += (
                    ". The app has no SECRET_KEY, so a cursor is valid only in the process "
                    "that made it. Set SECRET_KEY"
                )
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
        for step in steps[: 2 * MAX_RETURNED_RANGES]:
            ends.append(min(ends[-1] + step, MAX_ID))
        return Position(mark, tuple(zip(ends[1::2], ends[2::2], strict=True)))
