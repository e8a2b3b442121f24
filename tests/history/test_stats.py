"""Counts over time. They must equal what Python counts by the clocks of a time zone."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import time_machine
from sqlalchemy import URL

from flask_imcallback.errors import HistoryQueryError, TooWideError
from flask_imcallback.history import RemovalCount
from flask_imcallback.history.buckets import bucket_starts
from flask_imcallback.history.counts import MAX_COUNTS
from flask_imcallback.history.filters import GROUPS
from flask_imcallback.history.queries import BUCKETS, StatsQuery
from flask_imcallback.removals import Record, Relation
from flask_imcallback.runtime import get_runtime
from support.api import HISTORY, assert_problem, get, open_history
from support.apps import MakeApp
from support.deliveries import MICROSECOND, MOMENT, make_delivery, store, store_all

STATS = f"{HISTORY}/stats"
HOUR = timedelta(hours=1)
CHANGES = [
    ("UTC", datetime(2024, 2, 29, 23, tzinfo=UTC)),
    ("Asia/Shanghai", datetime(1986, 5, 3, 18, tzinfo=UTC)),
    ("Asia/Kolkata", datetime(2024, 12, 31, 18, 30, tzinfo=UTC)),
    ("Asia/Kathmandu", datetime(1985, 12, 31, 18, 30, tzinfo=UTC)),
    ("America/New_York", datetime(2024, 11, 3, 6, tzinfo=UTC)),
    ("America/Caracas", datetime(2007, 12, 9, 7, tzinfo=UTC)),
    ("America/Havana", datetime(2024, 11, 3, 5, tzinfo=UTC)),
    ("Europe/London", datetime(2024, 3, 31, 1, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2024, 4, 6, 15, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2024, 10, 5, 15, 30, tzinfo=UTC)),
    ("Pacific/Apia", datetime(2011, 12, 30, 10, tzinfo=UTC)),
    ("America/Sao_Paulo", datetime(2018, 11, 4, 3, tzinfo=UTC)),
    ("America/Sao_Paulo", datetime(2018, 2, 18, 2, tzinfo=UTC)),
]
"""Zones, each with a moment at which its clocks change or a bucket starts."""
ZONES = pytest.mark.parametrize(
    ("zone", "change"), [(ZoneInfo(name), change) for name, change in CHANGES]
)


def label(moment: datetime, bucket: str, zone: ZoneInfo) -> tuple[Any, ...]:
    """Return what the clocks of the zone show at the start of the bucket of `moment`.

    The offset tells apart the two hours that clocks show twice.
    """
    local = moment.astimezone(zone)
    if bucket == "hour":
        start = local.replace(minute=0, second=0, microsecond=0)
        return local.date(), local.hour, start.utcoffset()
    date = local.date()
    if bucket == "week":
        return date.isocalendar()[:2]
    return (date.year, date.month) if bucket == "month" else (date,)


def counts(bucket: str = "day", group_by: str | None = None, **filters: Any) -> list[RemovalCount]:
    return get_runtime().history.stats(bucket=bucket, group_by=group_by, **filters)


@ZONES
@pytest.mark.parametrize("bucket", BUCKETS)
def test_buckets_follow_the_clocks(zone: ZoneInfo, change: datetime, bucket: str) -> None:
    """Each moment is in the bucket of its hour, day, week or month, and buckets start once."""
    days = {"hour": 2, "day": 6, "week": 40, "month": 200}[bucket]
    since, until = change - timedelta(days=days), change + timedelta(days=days)
    starts = bucket_starts(since, until, bucket, zone, 500)
    assert starts == sorted(set(starts))
    assert starts[0] <= since < starts[1]
    assert starts[-1] < until
    labels = [label(start, bucket, zone) for start in starts]
    assert len(set(labels)) == len(labels)
    for start, before, after in zip(starts[1:], labels, labels[1:], strict=False):
        assert label(start - MICROSECOND, bucket, zone) == before
        assert label(start, bucket, zone) == after
    moment = since
    while moment < until:
        assert label(moment, bucket, zone) in labels
        moment += timedelta(minutes=15) if bucket == "hour" else timedelta(hours=11)


def test_half_an_hour_twice() -> None:
    """An hour lasts an hour and a half where clocks are put back by half an hour."""
    zone = ZoneInfo("Australia/Lord_Howe")
    change = next(change for name, change in CHANGES if name == zone.key)
    starts = bucket_starts(change - 2 * HOUR, change + 2 * HOUR, "hour", zone, 9)
    shown = [start.astimezone(zone).strftime("%H:%M%z") for start in starts]
    assert shown == ["00:00+1100", "01:00+1100", "02:00+1030", "03:00+1030"]
    assert starts[2] - starts[1] == 1.5 * HOUR


@pytest.mark.parametrize("bucket", BUCKETS)
def test_an_empty_period_has_no_buckets(bucket: str) -> None:
    """A period that ends before it starts has no buckets, even at the limits of Python."""
    zone = ZoneInfo("Asia/Shanghai")
    last = datetime.max.replace(tzinfo=UTC)
    for since, until in ((MOMENT, MOMENT), (MOMENT, MOMENT - HOUR), (last, MOMENT)):
        assert bucket_starts(since, until, bucket, zone, 10) == []
    assert len(bucket_starts(MOMENT, MOMENT + MICROSECOND, bucket, zone, 10)) == 1


def accounts(record: Record) -> tuple[str, ...]:
    """Return the accounts of a removal. The owner of a removal from a group is no account."""
    is_group = record.relation is Relation.GROUP
    return (record.target_id,) if is_group else (record.owner_id, record.target_id)


def store_around(changes: list[datetime]) -> list[Record]:
    """Store deliveries exactly at each change of clocks, close to it, and far from it."""
    draw = random.Random(7)
    deliveries = []
    for change in changes:
        for number in range(12):
            near = change + timedelta(seconds=draw.choice([-1, 1]) * draw.randrange(90_000))
            at = [change, change - MICROSECOND, near, near + timedelta(days=draw.randrange(40))]
            deliveries.append(
                make_delivery(
                    *[(draw.choice("ab"), draw.choice("bc")) for _ in range(draw.randrange(4))],
                    at=at[number % 4],
                    relation=draw.choice(list(Relation)),
                    provider=draw.choice(["openim", "tencent"]),
                    platform=draw.choice(["", "iOS"]),
                    command=draw.choice(["x", "y"]),
                    app_id=draw.choice(["", "14"]),
                )
            )
    return store_all(sorted(deliveries, key=lambda delivery: delivery.received_at))


def test_counts_equal_a_list(database_url: URL, make_app: MakeApp) -> None:
    """Counts agree with Python for every zone, bucket and group, with filters."""
    draw = random.Random(8)
    with make_app(database_url).app_context():
        records = store_around([change for _, change in CHANGES])
        for name, change in CHANGES:
            zone = ZoneInfo(name)
            for bucket in BUCKETS:
                days = {"hour": 3, "day": 40, "week": 200, "month": 2000}[bucket]
                since = change - timedelta(days=days, minutes=draw.randrange(60))
                until = change + timedelta(days=days, minutes=draw.randrange(60))
                filters: dict[str, Any] = draw.choice(
                    [{}, {"account_id": "a"}, {"owner_id": "a", "platform": "iOS"}, {"app_id": ""}]
                )
                group_by = draw.choice([None, *GROUPS])
                within = [
                    record
                    for record in records
                    if since <= record.received_at < until
                    and ("account_id" not in filters or "a" in accounts(record))
                    and ("owner_id" not in filters or record.owner_id == "a")
                    and ("platform" not in filters or record.platform == "iOS")
                    and ("app_id" not in filters or record.app_id == "")
                ]
                expected = Counter(
                    (
                        label(record.received_at, bucket, zone),
                        str(getattr(record, group_by)) if group_by else None,
                    )
                    for record in within
                )
                found = counts(bucket, group_by, since=since, until=until, tz=zone.key, **filters)
                assert {
                    (label(one.bucket, bucket, zone), one.group): one.count
                    for one in found
                    if one.count
                } == dict(expected), (name, bucket)
                order = [(one.bucket.astimezone(UTC), one.group or "") for one in found]
                assert order == sorted(order)
                assert all(one.bucket.tzinfo == zone for one in found)


def test_a_delivery_counts_at_its_time(database_url: URL, make_app: MakeApp) -> None:
    """All removals of a delivery count in one bucket, even if later ids are in the next one."""
    with make_app(database_url).app_context():
        midnight = datetime(2024, 5, 2, tzinfo=UTC)
        store(*(("o", str(number)) for number in range(9)), at=midnight - 2 * MICROSECOND)
        store(("o", "x"), at=midnight + 20 * MICROSECOND)
        until = midnight + HOUR
        for bucket in BUCKETS:
            found = counts(bucket, until=until)
            assert [one.count for one in found] == ([10] if bucket in ("week", "month") else [9, 1])
        assert [one.count for one in counts(since=midnight, until=until)] == [1]
        assert [one.count for one in counts(until=midnight)] == [9]
        near, next_to_it = midnight - 2 * MICROSECOND, midnight - MICROSECOND
        assert [one.count for one in counts("hour", since=near, until=next_to_it)] == [9]


def test_buckets_start_with_the_first_match_and_end_now(
    database_url: URL, make_app: MakeApp
) -> None:
    """Empty buckets between are returned. An older removal that does not match adds no bucket."""
    now = datetime(2024, 5, 10, 12, tzinfo=UTC)
    with make_app(database_url).app_context(), time_machine.travel(now, tick=False):
        store(("old", "t"), at=now - timedelta(days=5000))
        store(("a", "t"), at=now - timedelta(days=3))
        store(("b", "t"), ("a", "u"), at=now - timedelta(days=1))
        store(("a", "later"), at=now + HOUR)  # a clock ahead
        for filters in ({"owner_id": "a"}, {"owner_id": ["a", "no"]}, {"account_id": "a"}):
            found = counts(**filters)
            assert [(one.bucket.day, one.count) for one in found] == [
                (7, 1),
                (8, 0),
                (9, 1),
                (10, 0),
            ]
            assert len(counts("hour", **filters)) == 3 * 24
        grouped = counts(group_by="relation", owner_id=["a", "b"], until=now - timedelta(days=1))
        assert [(one.group, one.count) for one in grouped] == [("friend", n) for n in (1, 0, 0)]
        with pytest.raises(TooWideError) as caught:
            counts("hour")
        assert str(caught.value) == (
            "bucket makes more than 10000 counts from 2010-09-01 to 2024-05-10. "
            "Use a larger bucket or a shorter time"
        )


def test_no_data(make_app: MakeApp) -> None:
    """Without removals and without `since` there is no bucket. With `since`, counts are 0."""
    with make_app().app_context():
        since, until = MOMENT.replace(year=2024), MOMENT.replace(year=2024) + timedelta(days=2)
        none: list[dict[str, Any]] = [{}, {"owner_id": "x"}, {"platform": "x"}, {"owner_id": []}]
        for filters in none:
            assert counts(**filters) == []
            found = counts(since=since, until=until, **filters)
            assert [(one.group, one.count) for one in found] == [(None, 0)] * 3
            assert counts(group_by="platform", since=since, until=until, **filters) == []
        assert counts(since=until, until=since) == []
        assert counts(until=datetime(1960, 1, 1, tzinfo=UTC)) == []
        assert counts(since=datetime.max.replace(tzinfo=UTC), tz="Asia/Shanghai") == []


def test_too_many_counts(make_app: MakeApp) -> None:
    """Both too many buckets and too many groups are refused."""
    with make_app().app_context():
        start = datetime(2020, 1, 1, tzinfo=UTC)
        store_all([make_delivery(("o", "t"), at=start, platform=str(n)) for n in range(4)])
        most = MAX_COUNTS * HOUR
        assert len(counts("hour", since=start, until=start + most)) == MAX_COUNTS
        with pytest.raises(TooWideError) as caught:
            counts("hour", since=start, until=start + most + MICROSECOND)
        assert caught.value.parameter == "bucket"
        quarter = most / 4
        assert len(counts("hour", "platform", since=start, until=start + quarter)) == MAX_COUNTS
        with pytest.raises(TooWideError) as caught:
            counts("hour", "platform", since=start, until=start + quarter + HOUR)
        assert caught.value.parameter == "group_by"
        assert str(caught.value) == (
            "group_by makes 2501 buckets with 4 groups each, which is more than 10000 counts. "
            "Use a larger bucket or a shorter time"
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bucket": "minute"}, "bucket must be hour, day, week or month, not 'minute'"),
        (
            {"group_by": "owner_id"},
            "group_by must be provider, app_id, command, relation, cause or platform, "
            "not 'owner_id'",
        ),
        (
            {"tz": "Mars/Base"},
            "tz must name a time zone, such as Asia/Shanghai, not 'Mars/Base'",
        ),
        ({"relation": "x"}, "relation must be friend, blacklist, follow or group, not 'x'"),
        (
            {"limit": 5},
            "limit is not a filter of this method. The filters are provider, app_id, command, "
            "relation, owner_id, target_id, account_id, peer_id, actor_id, group_id, cause, "
            "platform, client_ip, request_id, delivery_id, since, until",
        ),
    ],
    ids=str,
)
def test_a_wrong_option_is_named(make_app: MakeApp, options: dict[str, Any], message: str) -> None:
    """The error names the option, shows its value and lists the alternatives."""
    with make_app(migrate=False).app_context(), pytest.raises(HistoryQueryError) as caught:
        get_runtime().history.stats(**options)
    assert str(caught.value) == message


def test_counts_as_json(database_url: URL, make_app: MakeApp) -> None:
    """A bucket is written with Z in UTC, and in another zone with the offset of its start."""
    app = open_history(make_app, database_url)
    with app.app_context():
        store(("o", "t"), at=datetime(2024, 11, 3, 12, tzinfo=UTC))
        store(("o", "t"), at=datetime(2024, 11, 4, 12, tzinfo=UTC), relation=Relation.BLACKLIST)
    given = {"since": "2024-11-03T12:00:00Z", "until": "2024-11-04T12:00:00.000001Z"}
    response = get(app, STATS, query_string=given)
    assert response.mimetype == "application/json"
    assert response.get_json() == {
        "data": [
            {"bucket": "2024-11-03T00:00:00Z", "group": None, "count": 1},
            {"bucket": "2024-11-04T00:00:00Z", "group": None, "count": 1},
        ]
    }
    given |= {"tz": "America/New_York", "group_by": "relation"}
    assert [
        list(row.values()) for row in get(app, STATS, query_string=given).get_json()["data"]
    ] == [
        ["2024-11-03T00:00:00-04:00", "blacklist", 0],
        ["2024-11-03T00:00:00-04:00", "friend", 1],
        ["2024-11-04T00:00:00-05:00", "blacklist", 1],
        ["2024-11-04T00:00:00-05:00", "friend", 0],
    ]
    for bucket, first in (("hour", "03T12:00"), ("week", "2024-10-28"), ("month", "2024-11-01")):
        query = {"bucket": bucket, "since": given["since"], "until": given["until"]}
        data = get(app, STATS, query_string=query).get_json()["data"]
        assert first in data[0]["bucket"]


@pytest.mark.parametrize(
    ("query", "parameter"),
    [("bucket=hour", "bucket"), ("bucket=hour&group_by=platform&tz=Asia/Tokyo", "bucket")],
)
def test_too_wide_is_422(make_app: MakeApp, query: str, parameter: str) -> None:
    """A count of too many buckets is a problem that names the parameter to change."""
    response = get(open_history(make_app), f"{STATS}?since=2001-01-01T00:00:00Z&{query}")
    problem = assert_problem(response, 422)
    assert problem["type"].endswith(":too-wide")
    assert problem["parameter"] == parameter
    assert problem["detail"].startswith(f"{parameter} ")


BAD_ZONES = [
    *("", "x" * 10_000, "../etc/passwd", "/etc/passwd", "America", "\0", "é", "UTC\n", " UTC", "."),
    *("GMT+25", "+08:00", "zone.tab", "America/", "America/New_York/x", "😀", "a" * 255 + "/b"),
]


@pytest.mark.parametrize("tz", BAD_ZONES, ids=lambda tz: ascii(tz)[:40])
def test_no_such_zone(make_app: MakeApp, tz: str) -> None:
    """An unknown time zone is refused over HTTP and in Python."""
    problem = assert_problem(get(open_history(make_app), STATS, query_string={"tz": tz}), 400)
    assert problem["parameter"] == "tz"
    with pytest.raises(HistoryQueryError) as caught:
        StatsQuery(tz=tz)
    assert problem["detail"] == str(caught.value)
    assert str(caught.value).startswith("tz must name a time zone, such as Asia/Shanghai, not ")


@pytest.mark.parametrize("tz", [None, 5, b"UTC", ["UTC"], "\udcff"], ids=ascii)
def test_a_time_zone_is_a_text(tz: Any) -> None:
    """A value of another type is refused as an unknown time zone is."""
    with pytest.raises(HistoryQueryError) as caught:
        StatsQuery(tz=tz)
    assert caught.value.parameter == "tz"
    assert str(caught.value) == f"tz must name a time zone, such as Asia/Shanghai, not {tz!r}"
