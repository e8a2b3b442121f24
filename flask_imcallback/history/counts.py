"""Counts of removals by time bucket and group."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from math import gcd
from typing import Any

from sqlalchemy import Connection

from ..errors import TooWideError
from ..storage import MAX_ID, id_at, moment_of
from .buckets import bucket_starts
from .finder import Finder
from .queries import HistoryQuery, StatsQuery
from .resolve import resolve
from .results import RemovalCount
from .statements import MAX_COUNT_ROWS
from .time_limits import time_limit

MAX_COUNTS = 10_000
"""Maximum number of counts in one answer."""
MAX_COUNT_SECONDS = 20
"""Seconds that each statement of a count may take."""
TOO_LONG = (
    f"makes a count that takes longer than {MAX_COUNT_SECONDS} seconds. Use a later since, an "
    "earlier until or more filters"
)
TOO_MANY = (
    f"makes more than {MAX_COUNT_ROWS} counts in the database. Use a shorter time or more filters"
)

CountKey = tuple[datetime, str | None]
"""The start of a bucket, and a group."""


def count_removals(
    connection: Connection, query: HistoryQuery, stats: StatsQuery
) -> list[RemovalCount]:
    """Return the counts of all buckets and groups. Raises `TooWideError` for too many counts."""
    until = min(query.until or datetime.now(UTC), moment_of(MAX_ID))
    resolved = resolve(connection, replace(query, until=until))
    finder = Finder(connection)
    with time_limit(connection, MAX_COUNT_SECONDS, TooWideError("since", TOO_LONG)):
        since = query.since
        if since is None:
            first = finder.find_first_delivery(resolved)
            since = until if first is None else moment_of(first)
        since = max(since, moment_of(0))
        starts = bucket_starts(since, until, stats.bucket, stats.zone, MAX_COUNTS)
        width = _common_width(starts)
        rows = finder.count(resolved, width, stats.group_by)
    if len(rows) > MAX_COUNT_ROWS:
        raise TooWideError("group_by", TOO_MANY)
    return _add_empty_buckets(_add_up(rows, starts, width), starts, stats)


def _common_width(starts: Sequence[datetime]) -> int:
    """Return the largest width in microseconds that divides every start.

    The database counts in buckets of this width. Each of its buckets lies in one bucket of the
    query.
    """
    return gcd(*map(id_at, starts)) if len(starts) > 1 else MAX_ID


def _add_up(rows: Iterable[Any], starts: Sequence[datetime], width: int) -> Counter[CountKey]:
    """Return the count of each bucket and group that has removals."""
    counts: Counter[CountKey] = Counter()
    for number, group, count in rows:
        start = starts[max(0, bisect_right(starts, moment_of(number * width)) - 1)]
        counts[start, group] += int(count)
    return counts


def _add_empty_buckets(
    counts: Counter[CountKey], starts: Sequence[datetime], stats: StatsQuery
) -> list[RemovalCount]:
    """Return a count for every bucket and every group, in the order of time and group."""
    groups = {group for _, group in counts}
    if stats.group_by is None:
        groups = {None}
    if len(starts) * len(groups) > MAX_COUNTS:
        problem = (
            f"makes {len(starts)} buckets with {len(groups)} groups each, which is more than "
            f"{MAX_COUNTS} counts. Use a larger bucket or a shorter time"
        )
        raise TooWideError("group_by", problem)
    zone, ordered_groups = stats.zone, sorted(groups, key=lambda group: group or "")
    return [
        RemovalCount(start.astimezone(zone), group, counts[start, group])
        for start in starts
        for group in ordered_groups
    ]
