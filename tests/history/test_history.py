"""The query of the history in Python: it must agree with a list that Python filters and sorts."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from itertools import islice
from typing import Any

import pytest
import time_machine
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import URL

from flask_imcallback import HistoryQueryError
from flask_imcallback.history.history import Page, _record
from flask_imcallback.history.queries import TEXT_FILTERS, HistoryQuery, StatsQuery
from flask_imcallback.removals import Record, Relation
from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage.ids import moment_of
from support.apps import MakeApp
from support.deliveries import MICROSECOND, MOMENT, delivery_of, find, store, store_all

PAST = MOMENT.replace(year=2023)
# Pairs that a database confuses if it folds case, accents or blanks, and what quoting must survive.
ACCOUNTS = [
    "a",
    "A",
    "a ",
    " a",
    "\u00e1",
    "a\u0301",
    "ß",
    "ss",
    "😀",
    "😁",
    "'",
    '"',
    "\\",
    "%",
    "_",
]


def find_all(**filters: Any) -> list[Record]:
    """All pages, to the end."""
    page = find(**filters)
    found = page.data
    while page.next_cursor is not None:
        assert len(page.data) <= filters["limit"]
        page = find(cursor=page.next_cursor, **filters)
        assert not found or not page.data or page.data[0] != found[-1], "pages repeat"
        found += page.data
        assert len(found) < 20_000, "there is no end"
    return found


class Records(list[Record]):
    def __repr__(self) -> str:
        return "records"  # Hypothesis would show all of them


def store_variety() -> Records:
    """Deliveries of many kinds, in bursts whose removals overlap the next microseconds.

    They are of three times. What is only in the first, in the last, or in both is rare.
    """
    draw = random.Random(20261120)
    deliveries = []
    for number in range(260):
        days, seconds = number // 100 * 300, number % 100 // 8
        rare = [["oldest", "both"], [], ["newest", "both"]][number // 100]
        accounts = [*ACCOUNTS, *rare]
        of_time = [["r"], [], ["R"]][number // 100]
        deliveries.append(
            delivery_of(
                *((draw.choice(accounts), draw.choice(accounts)) for _ in range(draw.randrange(6))),
                at=PAST + timedelta(days=days, seconds=seconds, microseconds=draw.randrange(20)),
                relation=draw.choice(list(Relation)),
                provider=draw.choice(["openim", "tencent"]),
                command=draw.choice(["", "Sns.CallbackFriendDelete", "callbackX"]),
                app_id=draw.choice(["", "1400000000", "1400000001"]),
                client_ip=draw.choice(["", "203.0.113.7", "2001:db8::1"]),
                platform=draw.choice(["", "iOS", "ios", "iOS ", *rare]),
                request_id=draw.choice(["", *of_time, str(number % 7)]),
            )
        )
    return Records(store_all(deliveries))


def values(record: Record, name: str) -> tuple[Any, ...]:
    """What a filter of that name is compared with."""
    if name in ("account_id", "peer_id"):
        return record.owner_id, record.target_id
    return (getattr(record, name),)


NOBODY = [f"nobody{number}" for number in range(220)]


@st.composite
def some_filters(draw: st.DrawFn, records: list[Record]) -> dict[str, Any]:
    """Filters that usually let something through: they are made from a record."""
    likely, other = draw(st.sampled_from(records)), draw(st.sampled_from(records))
    filters: dict[str, Any] = {}
    names = st.sampled_from([*TEXT_FILTERS, "delivery_id"])
    for name in draw(st.sets(names, max_size=4)):
        choices = [*values(likely, name), *values(other, name)]
        one = st.sampled_from(choices)
        filters[name] = draw(one | st.lists(one, max_size=3))
    if "peer_id" in filters and "account_id" not in filters:
        filters["account_id"] = draw(st.sampled_from(values(likely, "account_id")))
    for name in draw(st.sets(st.sampled_from(TEXT_FILTERS), max_size=3)) & {*filters} - {
        "relation"
    }:
        filters[name] = [*NOBODY, *as_list(filters[name])]
    for name in draw(st.sets(st.sampled_from(["since", "until"]))):
        of = draw(st.sampled_from(records))
        moment = moment_of(of.id) + draw(st.integers(-1, 1)) * MICROSECOND
        filters[name] = moment.astimezone(timezone(timedelta(hours=draw(st.integers(-12, 14)))))
    filters["order"] = draw(st.sampled_from(["asc", "desc"]))
    filters["limit"] = draw(st.sampled_from([7, 30, 1000]))
    return filters


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def every_way(records: list[Record]) -> list[dict[str, Any]]:
    """Filters for each way to search, with those beside it that make it harder."""
    deliveries = sorted({record.delivery_id for record in records})
    middle = records[len(records) // 2]
    inside = moment_of(next(r.id for r in records if r.position == 2 and r.id > middle.id))
    two = ACCOUNTS[:2]
    return [
        {},
        # Pairs: one, several, both directions, of oneself, with what no index tells.
        {"owner_id": "a", "target_id": "A"},
        {"owner_id": two, "target_id": [*two, "ss"], "provider": "openim", "until": inside},
        {"account_id": two, "peer_id": two},
        {"account_id": "a", "peer_id": "a"},
        {"account_id": ["a", "a", "both"], "peer_id": [*two, "oldest"], "platform": ["", "iOS"]},
        {"account_id": [*ACCOUNTS, *NOBODY], "peer_id": [*ACCOUNTS, "both"], "owner_id": "both"},
        {"account_id": [*two, *NOBODY[:90]], "peer_id": [*two, "ß"]},
        {"owner_id": [*two, *NOBODY[:90]], "target_id": [*two, "ß"], "relation": "friend"},
        # One side, and an account on either.
        {"owner_id": ["a", "newest"], "account_id": ["a", "A", "both"]},
        {"target_id": ["a", "A", "oldest"], "account_id": ["a", "both"]},
        {"target_id": "a", "account_id": "A", "relation": "friend"},
        {"target_id": two, "account_id": [*ACCOUNTS, *NOBODY]},
        # An account on either side.
        {"account_id": "both"},
        {"account_id": two, "relation": "blacklist"},
        {"account_id": ACCOUNTS, "owner_id": ["oldest", "a"]},
        {"account_id": ACCOUNTS, "client_ip": "203.0.113.7", "since": inside},
        # One of several that might be narrow.
        {"request_id": "r", "owner_id": "a"},
        {"request_id": ["", "r"], "owner_id": ["newest", "both"]},
        {"request_id": "3", "client_ip": "", "target_id": "oldest"},
        {"request_id": "nothing", "client_ip": "", "platform": "iOS"},
        {"owner_id": "both", "platform": "newest"},
        # Sources: one, several, of which many or few are near.
        {
            "platform": "iOS ",
            "relation": "friend",
            "app_id": "",
            "command": "",
            "provider": "openim",
        },
        {"platform": ["iOS", "ios"]},
        {"platform": ["oldest", "newest"]},
        {"platform": "oldest", "app_id": "1400000000"},
        {"provider": "tencent", "since": inside, "until": moment_of(middle.id) + MICROSECOND},
        # More than are searched one by one.
        {"owner_id": [*ACCOUNTS, *NOBODY]},
        {"owner_id": [*two, *NOBODY], "target_id": [*ACCOUNTS, *NOBODY]},
        {"request_id": ["r", *NOBODY], "platform": ""},
        {"delivery_id": deliveries},
        {"delivery_id": deliveries[-205:], "owner_id": [*two, *NOBODY]},
        # Deliveries.
        {"delivery_id": middle.delivery_id},
        {"delivery_id": deliveries[1:99:7], "owner_id": ACCOUNTS, "account_id": "a"},
        {"delivery_id": [middle.delivery_id, 5], "since": moment_of(middle.delivery_id)},
        {"delivery_id": middle.delivery_id, "since": moment_of(middle.delivery_id) + MICROSECOND},
        {"since": inside, "until": inside},
        {"since": inside - MICROSECOND, "until": inside + 9 * MICROSECOND},
        {"since": datetime.max.replace(tzinfo=UTC), "platform": "", "owner_id": "a"},
    ]


def expected(records: list[Record], filters: Mapping[str, Any]) -> list[Record]:
    """The oracle."""
    found = []
    for record in sorted(records, key=lambda r: r.id, reverse=filters["order"] == "desc"):
        asked = {
            name: {*as_list(value)}
            for name, value in filters.items()
            if name in (*TEXT_FILTERS, "delivery_id")
        }
        meets = [bool({*values(record, name)} & asked[name]) for name in asked]
        if "peer_id" in filters:
            sides = values(record, "account_id")
            meets.append(
                any(
                    one in asked["account_id"] and other in asked["peer_id"]
                    for one, other in (sides, sides[::-1])
                )
            )
        if "since" in filters:
            meets.append(record.received_at >= filters["since"])
        if "until" in filters:
            meets.append(record.received_at < filters["until"])
        if all(meets):
            found.append(record)
    return found


def test_pages_equal_a_sorted_list(database_url: URL, make_app: MakeApp) -> None:
    """For any filters, order and limit, all pages are what Python filters from a list.

    So is the stream; and the counts are those of the list.
    """
    with make_app(database_url).app_context():
        records = store_variety()
        assert find_all(order="asc", limit=7) == records
        assert all(0 < record.id < 2**53 for record in records)
        owners = {record.owner_id for record in records if record.owner_id == record.target_id}
        assert owners >= {"a", "A"}, "nobody removes himself"

        def check(filters: dict[str, Any]) -> None:
            found = expected(records, filters)
            assert find_all(**filters) == found
            assert stream(**filters) == found
            counted = Counter(record.relation.value for record in found)
            assert count(**filters) == {None: len(found)}
            assert {**counted} == count("relation", **filters)

        for filters in every_way(records):
            many = len(expected(records, filters | {"order": "asc"}))
            for order in ("asc", "desc"):
                check({**filters, "order": order, "limit": max(9, many // 3)})

        settings(max_examples=40, deadline=None, database=None)(
            given(some_filters(records))(check)
        )()


def stream(**filters: Any) -> list[Record]:
    """All parts of the stream."""
    of = filters | {"limit": 1}
    parts = list(islice(get_runtime().history.stream(HistoryQuery.from_filters(**of)), 100))
    assert all(parts)
    assert len(parts) < 100, "there is no end"
    return [_record(values) for part in parts for values in part]


def count(group_by: str | None = None, **filters: Any) -> dict[str | None, int]:
    """By group."""
    query = HistoryQuery.from_filters(**filters)
    found: dict[str | None, int] = {} if group_by else {None: 0}
    for one in get_runtime().history.stats(query, StatsQuery(bucket="month", group_by=group_by)):
        found[one.group] = found.get(one.group, 0) + one.count
    return found


def test_a_page_may_find_little(database_url: URL, make_app: MakeApp) -> None:
    """Where much must be read for it; the pages after go on from there, to the last of them."""
    with make_app(database_url).app_context():
        deliveries = []
        for number in range(30):
            at = PAST + timedelta(minutes=number * 2)
            kind = {"platform": "rare", "client_ip": "rare", "relation": Relation.BLACKLIST}
            more: dict[str, Any] = kind if number in (5, 11, 12, 29) else {}
            deliveries.append(delivery_of(*[("o", "t")] * 30, at=at, **more))
        records = store_all(deliveries)
        middle = PAST + timedelta(minutes=23)
        for filters, is_short in (
            # As many pairs as are searched one by one.
            ({"owner_id": ["o", *NOBODY[:99]], "target_id": ["t", "x"], "platform": "rare"}, True),
            ({"account_id": "o", "client_ip": "rare"}, False),
            ({"owner_id": "o", "relation": "blacklist", "until": middle}, False),
        ):
            for order in ("asc", "desc"):
                found = expected(records, filters | {"order": order})
                page = find(order=order, limit=1000, **filters)
                assert (page.next_cursor is not None) == is_short
                assert find_all(order=order, limit=1000, **filters) == found
            assert stream(order=order, **filters) == found
            assert count(**filters) == {None: len(found)}


def test_a_stream_has_several_parts(make_app: MakeApp) -> None:
    """Where they meet nothing is lost, and nothing comes twice; also within a delivery."""
    with make_app().app_context():
        records = store_all(
            [
                delivery_of(
                    *((f"o{n % 2}", str(m)) for m in range(700)), at=PAST + timedelta(hours=n)
                )
                for n in range(9)
            ]
        )
        for filters in ({}, {"owner_id": "o1"}, {"owner_id": ["o0", "o1"]}):
            found = expected(records, filters | {"order": "asc"})
            assert stream(order="asc", **filters) == found
            assert stream(order="desc", **filters) == found[::-1]


def test_a_stream_ends_with_what_there_was(database_url: URL, make_app: MakeApp) -> None:
    """What is received after its begin is not in it, in either order."""
    with make_app(database_url).app_context():
        now = datetime.now(UTC) - timedelta(seconds=5)
        with time_machine.travel(now, tick=False):
            for minutes in range(9):
                store(*(("o", str(n)) for n in range(500)), at=now - timedelta(minutes=minutes))
            for order in ("asc", "desc"):
                query = HistoryQuery.from_filters(order=order)
                parts = get_runtime().history.stream(query)
                next(parts)
                store(("o", "later"), at=now + timedelta(seconds=2))
                assert sum(len(part) for part in parts) == 4500 - 2000


@pytest.mark.parametrize("account", ACCOUNTS)
def test_account_ids_are_compared_byte_for_byte(make_app: MakeApp, account: str) -> None:
    """Only the very same id is found, on either side."""
    with make_app().app_context():
        for other in ACCOUNTS:
            store((other, "target"), ("owner", other))
        assert [record.owner_id for record in find(owner_id=account).data] == [account]
        assert [record.target_id for record in find(target_id=account).data] == [account]
        assert len(find(account_id=account).data) == 2


def test_a_delivery_is_of_one_moment(database_url: URL, make_app: MakeApp) -> None:
    """since and until take a delivery as a whole, though its removals' ids are later moments."""
    with make_app(database_url).app_context():
        many = store(*(("many", str(number)) for number in range(9)))
        last = store(("last", "target"), at=MOMENT + 20 * MICROSECOND)
        cases = {-1: (many + last, []), 0: (many + last, []), 1: (last, many), 5: (last, many)}
        cases |= {20: (last, many), 21: ([], many + last)}
        for after, (later, earlier) in cases.items():
            moment = MOMENT + after * MICROSECOND
            assert find(since=moment, order="asc").data == later, after
            assert find(until=moment, order="asc").data == earlier, after
        assert find(since=MOMENT, until=MOMENT + MICROSECOND, order="asc").data == many


def test_new_removals_do_not_disturb_pages(database_url: URL, make_app: MakeApp) -> None:
    """Newest first, what arrives between two pages neither repeats nor hides a removal."""
    with make_app(database_url).app_context():
        old = [store(("owner", str(n)), at=MOMENT + n * MICROSECOND)[0] for n in range(9)]
        seen: list[Record] = []
        cursor = None
        for number in range(3):
            page = find(limit=3, cursor=cursor)
            seen += page.data
            cursor = page.next_cursor
            store(("owner", "new"), at=MOMENT + timedelta(hours=number))
        assert cursor is None
        assert seen == old[::-1]


def test_the_last_page_has_no_cursor(make_app: MakeApp) -> None:
    """Also when it is full; and the limit is 100 unless told otherwise."""
    with make_app().app_context():
        assert find() == Page([], None)
        store(*(("owner", str(number)) for number in range(101)))
        assert find(limit=101).next_cursor is None
        first = find()
        assert len(first.data) == 100
        assert [record.position for record in find(cursor=first.next_cursor).data] == [0]


def test_a_limit_may_change_between_pages(make_app: MakeApp) -> None:
    """A cursor belongs to the filters and the order, in whatever order and form they are given."""
    with make_app().app_context():
        store(("a", "1"), ("b", "2"), ("a", "3"))
        page = find(owner_id=["a", "b"], limit=1, since=MOMENT)
        since = MOMENT.astimezone(timezone(timedelta(hours=8)))
        rest = find(owner_id={"b", "a"}, limit=5, since=since, cursor=page.next_cursor)
        assert [record.target_id for record in rest.data] == ["2", "1"]


@pytest.mark.parametrize(
    "filters",
    [
        {"order": "asc"},
        {"owner_id": "owner"},
        {"account_id": "owner"},
        {"delivery_id": 1},
        {"delivery_id": []},
        {"since": MOMENT},
        {"until": MOMENT},
    ],
    ids=str,
)
def test_a_cursor_is_of_its_filters(make_app: MakeApp, filters: dict[str, Any]) -> None:
    """With other filters or another order it is refused."""
    with make_app().app_context():
        store(("owner", "1"), ("owner", "2"))
        cursor = find(limit=1).next_cursor
        with pytest.raises(HistoryQueryError) as caught:
            find(cursor=cursor, **filters)
        assert caught.value.parameter == "cursor"


@pytest.mark.parametrize("cursor", ["", "x", ".", "1.2.3", "\ud800", "\0", "é", "x" * 10_000])
def test_garbage_is_no_cursor(make_app: MakeApp, cursor: str) -> None:
    """It is refused, whatever it is."""
    with make_app().app_context(), pytest.raises(HistoryQueryError) as caught:
        find(cursor=cursor)
    assert caught.value.parameter == "cursor"


def test_a_cursor_is_signed(make_app: MakeApp) -> None:
    """A changed one is refused, and one of another SECRET_KEY; a fallback key is still good."""
    with make_app(SECRET_KEY="old").app_context():
        store(("owner", "1"), ("owner", "2"))
        cursor = find(limit=1).next_cursor or ""
    with make_app(SECRET_KEY="new", SECRET_KEY_FALLBACKS=["old"]).app_context():
        assert len(find(cursor=cursor).data) == 1
        changed = [
            f"{cursor[:at]}{'AB'[c == 'A']}{cursor[at + 1 :]}" for at, c in enumerate(cursor)
        ]
        # The last character of base64 has bits that count for nothing.
        for forged in [*changed[:-1], cursor[:-5], cursor + "A"]:
            with pytest.raises(HistoryQueryError) as caught:
                find(cursor=forged)
            assert caught.value.parameter == "cursor"
    with make_app(SECRET_KEY="new").app_context(), pytest.raises(HistoryQueryError):
        find(cursor=cursor)


def test_no_alternatives_find_nothing(make_app: MakeApp) -> None:
    """An empty sequence is a filter that nothing meets; None is no filter."""
    with make_app().app_context():
        store(("owner", "target"))
        for name in (*TEXT_FILTERS, "delivery_id"):
            account = {"account_id": "owner"} if name == "peer_id" else {}
            assert find(**{name: [], **account}).data == [], name
            assert len(find(**{name: None}).data) == 1, name


def names_of(text: str, count: int) -> list[str]:
    return [f"{text}{number}" for number in range(count)]


def test_many_alternatives_of_several_filters(database_url: URL, make_app: MakeApp) -> None:
    """They are not too many for any database, in whatever way they are looked for."""
    with make_app(database_url).app_context():
        (record,) = store(("o3", "t4"), at=PAST, client_ip="c5", request_id="6")
        store(("o3", "x"), ("x", "t4"), at=PAST, client_ip="x")
        owners, targets = names_of("o", 200), names_of("t", 300)
        of_it: list[dict[str, Any]] = [
            {"owner_id": owners, "target_id": targets},
            {"owner_id": "o3", "target_id": targets[:150], "request_id": names_of("", 900)},
            {"account_id": owners[:100], "peer_id": targets},
            {"account_id": owners[:50], "peer_id": "t4", "client_ip": names_of("c", 900)},
            {"delivery_id": [record.delivery_id, 7], "owner_id": owners, "target_id": targets},
        ]
        for filters in of_it:
            assert find(**filters).data == [record]
            assert count(**filters) == {None: 1}
        most = {"account_id": names_of("o", 5000), "peer_id": names_of("t", 5000)}
        assert find(**most).data == [record]


@pytest.mark.parametrize("name", ["owner_id", "delivery_id"])
def test_too_many_alternatives(name: str) -> None:
    """More than 10,000 of all filters together; the one that has most of them is named."""
    most: list[Any] = list(range(1, 9000)) if name == "delivery_id" else names_of("o", 8999)
    HistoryQuery.from_filters(**{name: most, "target_id": names_of("t", 1001)})
    with pytest.raises(HistoryQueryError) as caught:
        HistoryQuery.from_filters(**{name: most, "target_id": names_of("t", 1002)})
    assert caught.value.parameter == name
    assert "10000" in str(caught.value)


@pytest.mark.parametrize("name", ["owner_id", "account_id", "delivery_id"])
def test_many_alternatives(database_url: URL, make_app: MakeApp, name: str) -> None:
    """A filter may have thousands of them."""
    with make_app(database_url).app_context():
        (record,) = store(("owner", "target"))
        others = range(1, 3000) if name == "delivery_id" else map(str, range(1, 3000))
        assert find(**{name: [*others, values(record, name)[0]]}).data == [record]
        assert find(**{name: list(map(type(values(record, name)[0]), range(1, 3000)))}).data == []


class Nowhere(tzinfo):
    """A time zone that does not know its offset."""

    def utcoffset(self, moment: datetime | None) -> None:
        return None

    dst = utcoffset

    def tzname(self, moment: datetime | None) -> None:
        return None


BAD_TEXTS: list[Any] = ["\0", "x\ud800", "x" * 256, 5, b"x", {}]
BAD_FILTERS: list[tuple[str, Any]] = [
    *((name, text) for name in TEXT_FILTERS for text in BAD_TEXTS),
    *((name, "") for name in ("provider", "relation", "owner_id", "target_id", "account_id")),
    *((name, ["x", None]) for name in TEXT_FILTERS if name != "relation"),
    ("relation", "Friend"),
    ("relation", ["friend", "foe"]),
    *(("delivery_id", number) for number in (0, -1, "5", 5.0, True, 2**53 + 1, 10**30, [1, "2"])),
    *(("limit", number) for number in (0, 1001, -1, True, "5", 5.0, [5], 10**30)),
    *(("order", order) for order in ("", "ASC", 1, ["asc"])),
    *(
        (name, moment)
        for name in ("since", "until")
        for moment in (
            MOMENT.replace(tzinfo=None),
            MOMENT.replace(tzinfo=Nowhere()),
            date(2026, 11, 20),
            "2026-11-20T18:05:00Z",
            1_700_000_000,
            [MOMENT],
        )
    ),
    *(("cursor", cursor) for cursor in (5, b"x", ["x"])),
    *((name, "x") for name in ("owner", "Owner_id", "peer", "id", "texts", "digest", "format", "")),
]


@pytest.mark.parametrize(
    ("name", "value"), BAD_FILTERS, ids=lambda value: re.sub(r"[^!-~]+", "_", repr(value))[:40]
)
def test_a_bad_filter_is_named(name: str, value: Any) -> None:
    """An unknown or malformed filter raises an error that names it, without a database."""
    with pytest.raises(HistoryQueryError) as caught:
        HistoryQuery.from_filters(**{name: value})
    assert caught.value.parameter == name
    assert str(caught.value)


@pytest.mark.parametrize("moment", [datetime.min, datetime.max, datetime(1969, 12, 31)])
def test_any_moment_can_be_asked_for(
    database_url: URL, make_app: MakeApp, moment: datetime
) -> None:
    """The first and the last that Python knows, too, with any offset."""
    with make_app(database_url).app_context():
        store(("owner", "target"))
        for hours in (-14, 0, 14):
            aware = moment.replace(tzinfo=timezone(timedelta(hours=hours)))
            is_past = moment.year < 2000
            assert len(find(since=aware).data) == is_past
            assert len(find(until=aware).data) == (not is_past)


def test_one_removal_and_its_delivery(database_url: URL, make_app: MakeApp) -> None:
    """`get` gives both, also for a later position, and None for an id that nothing has."""
    with make_app(database_url).app_context():
        records = store(("owner", "1"), ("owner", "2"), body=b"\0\xff packet")
        for record in records:
            found = get_runtime().history.get(record.id)
            assert found is not None
            assert found[0] == record
            assert found[1]["id"] == record.delivery_id == records[0].id
            assert found[1]["body"] == b"\0\xff packet"
            assert found[1]["received_at"] == MOMENT
        for unknown in (-1, 0, records[-1].id + 1, 2**53, 10**30):
            assert get_runtime().history.get(unknown) is None
