"""The counts of removals over time, as the first page shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from ...history import History, HistoryQuery, RemovalCount, StatsQuery
from ...storage import moment_of
from .overview import COUNT_PERIOD

MAX_BUCKETS = 500
BUCKET_WIDTHS = {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(weeks=1)}
"""The width of each bucket, from the smallest. `month` is used for a longer period."""


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """Counts of removals by time bucket and relation."""

    since: datetime
    until: datetime
    bucket: str
    counts: Sequence[RemovalCount]
    """In the order of the buckets. Each bucket has a count of every relation."""

    @property
    def relations(self) -> list[str]:
        return list(dict.fromkeys(count.group or "" for count in self.counts))

    @property
    def rows(self) -> list[tuple[datetime, list[int]]]:
        """The start of each bucket and its counts, in the order of `relations`."""
        width = len(self.relations) or 1
        rows = [self.counts[first : first + width] for first in range(0, len(self.counts), width)]
        return [(row[0].bucket, [count.count for count in row]) for row in rows]


def count_timeline(
    history: History, query: HistoryQuery, zone: ZoneInfo, now: datetime
) -> Timeline:
    """Count the removals that match a query, without its cursor, in buckets of a time zone.

    A query without `since` is counted for one month. Raises `StorageError`.
    """
    until = min(query.until or now, now)
    since = query.since or max(until, moment_of(0) + COUNT_PERIOD) - COUNT_PERIOD
    bucket = next(
        (b for b in BUCKET_WIDTHS if until - since <= MAX_BUCKETS * BUCKET_WIDTHS[b]), "month"
    )
    counts = history.read_counts(
        replace(query, cursor=None, since=since, until=until),
        StatsQuery(bucket=bucket, group_by="relation", tz=zone.key),
    )
    return Timeline(since=since, until=until, bucket=bucket, counts=counts)
