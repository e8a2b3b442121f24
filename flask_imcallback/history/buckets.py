"""Time buckets: the hours, days, weeks and months of a time zone."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

from ..errors import TooWideError

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def bucket_starts(
    since: datetime, until: datetime, bucket: str, zone: ZoneInfo, max_buckets: int
) -> list[datetime]:
    """Return the starts, in UTC, of the buckets that contain the time from `since` to `until`.

    `since` is inclusive, `until` is exclusive, and both are aware. Raises `TooWideError` if there
    are more than `max_buckets`.
    """
    starts: list[datetime] = []
    if since >= until:
        return starts
    start = _start_of(since.astimezone(zone), bucket)
    while start < until:
        if len(starts) == max_buckets:
            problem = (
                f"makes more than {max_buckets} counts from {since:%Y-%m-%d} to {until:%Y-%m-%d}. "
                "Use a larger bucket or a shorter time"
            )
            raise TooWideError("bucket", problem)
        starts.append(start)
        start = _next_start(start, bucket, zone)
    return starts


def _next_start(start: datetime, bucket: str, zone: ZoneInfo) -> datetime:
    """Return the start, in UTC, of the bucket after the bucket that starts at `start`."""
    if bucket == "hour":
        # An hour is half an hour longer when clocks are put back by half an hour.
        starts = (_start_of((start + HOUR * count).astimezone(zone), bucket) for count in (1, 2))
        return next(later for later in starts if later > start)
    # Half a day after its start is always inside the next bucket, even if clocks change there.
    days = {"day": 1, "week": 7, "month": 31}[bucket]
    return _start_of((start + DAY * days + DAY / 2).astimezone(zone), bucket)


def _start_of(local: datetime, bucket: str) -> datetime:
    """Return the start, in UTC, of the bucket that contains `local`."""
    if bucket == "hour":
        return local.replace(minute=0, second=0, microsecond=0).astimezone(UTC)
    date = local.date()
    if bucket == "week":
        date -= DAY * date.weekday()
    elif bucket == "month":
        date = date.replace(day=1)
    # A day starts at one o'clock if clocks are put forward at midnight.
    return datetime.combine(date, time(), local.tzinfo).astimezone(UTC)
