"""Hours, days, weeks and months, as the clocks of a time zone show them."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

from ..errors import TooWideError

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def starts_between(
    since: datetime, until: datetime, bucket: str, zone: ZoneInfo, most: int
) -> list[datetime]:
    """When the buckets begin, in UTC, that hold what is from `since` (inclusive) to `until`.

    All are aware. Raises `TooWideError` if there are more than `most`.
    """
    starts: list[datetime] = []
    if since >= until:
        return starts
    start = _floor(since.astimezone(zone), bucket)
    while start < until:
        if len(starts) == most:
            raise TooWideError("bucket", f"is too small for that time: more than {most} counts")
        starts.append(start)
        start = _next(start, bucket, zone)
    return starts


def _next(start: datetime, bucket: str, zone: ZoneInfo) -> datetime:
    """When the bucket after the one that begins then begins; in UTC."""
    if bucket == "hour":
        # Where clocks are put back by half an hour, an hour of theirs lasts half an hour longer.
        ends = (_floor((start + HOUR * many).astimezone(zone), bucket) for many in (1, 2))
        return next(end for end in ends if end > start)
    # From its middle on, the next is the same number of days away in every zone.
    days = {"day": 1, "week": 7, "month": 31}[bucket]
    return _floor((start + DAY * days + DAY / 2).astimezone(zone), bucket)


def _floor(local: datetime, bucket: str) -> datetime:
    """When the bucket begins that a moment of a zone is in; in UTC."""
    if bucket == "hour":
        return local.replace(minute=0, second=0, microsecond=0).astimezone(UTC)
    date = local.date()
    if bucket == "week":
        date -= DAY * date.weekday()
    elif bucket == "month":
        date = date.replace(day=1)
    # Where clocks are put forward at midnight, the day begins at one.
    return datetime.combine(date, time(), local.tzinfo).astimezone(UTC)
