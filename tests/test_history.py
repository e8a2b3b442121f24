"""The query of the history in Python: it must agree with a list that Python filters and sorts."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from typing import Any

import pytest
from conftest import MakeApp
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import URL

from flask_imcallback import HistoryQueryError
from flask_imcallback.events import Record, Relation, Removal
from flask_imcallback.history import Page
from flask_imcallback.models import moment_of
from flask_imcallback.providers.base import Origin
from flask_imcallback.query import TEXT_FILTERS, HistoryQuery
from flask_imcallback.recorder import Delivery
from flask_imcallback.state import get_state

MOMENT = datetime(2026, 11, 20, 18, 5, 0, 123456, UTC)
MICROSECOND = timedelta(microseconds=1)
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


def store(
    *pairs: tuple[str, str],
    at: datetime = MOMENT,
    relation: Relation = Relation.FRIEND,
    provider: str = "openim",
    body: bytes = b"{}",
    **origin: str,
) -> list[Record]:
    """Record a delivery of the current app that removes each pair of owner and target."""
    delivery = Delivery(
        provider=provider,
        repeats_callbacks=False,
        origin=Origin(**origin),
        received_at=at,
        remote_addr="192.0.2.1",
        authenticated_by="secret",
        query="command=x",
        headers={"host": "example.com"},
        body=body,
        removals=tuple(Removal(relation, owner, target) for owner, target in pairs),
    )
    stored = get_state().recorder.record(delivery)
    assert stored
    return stored.records()


def find(**filters: Any) -> Page:
    return get_state().history.find(**filters)


def find_all(**filters: Any) -> list[Record]:
    """All pages, to the end."""
    page = find(**filters)
    found = page.data
    while page.next_cursor is not None:
        assert len(page.data) == filters["limit"]
        page = find(cursor=page.next_cursor, **filters)
        assert not page.data or page.data[0] not in found, "pages repeat"
        found += page.data
    return found


def store_variety() -> list[Record]:
    """Deliveries of many kinds, in bursts whose removals overlap the next microseconds."""
    draw = random.Random(20261120)
    records: list[Record] = []
    for number in range(40):
        records += store(
            *((draw.choice(ACCOUNTS), draw.choice(ACCOUNTS)) for _ in range(draw.randrange(6))),
            at=MOMENT + timedelta(hours=number // 8, microseconds=draw.randrange(20)),
            relation=draw.choice(list(Relation)),
            provider=draw.choice(["openim", "tencent"]),
            command=draw.choice(["", "Sns.CallbackFriendDelete", "callbackX"]),
            app_id=draw.choice(["", "1400000000", "1400000001"]),
            client_ip=draw.choice(["", "203.0.113.7", "2001:db8::1"]),
            platform=draw.choice(["", "iOS", "ios", "iOS "]),
            request_id=draw.choice(["", "r", "R"]),
        )
    return records


def values(record: Record, name: str) -> tuple[Any, ...]:
    """What a filter of that name is compared with."""
    if name in ("account_id", "peer_id"):
        return record.owner_id, record.target_id
    return (getattr(record, name),)


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
    for name in draw(st.sets(st.sampled_from(["since", "until"]))):
        of = draw(st.sampled_from(records))
        moment = moment_of(of.id) + draw(st.integers(-1, 1)) * MICROSECOND
        filters[name] = moment.astimezone(timezone(timedelta(hours=draw(st.integers(-12, 14)))))
    filters["order"] = draw(st.sampled_from(["asc", "desc"]))
    filters["limit"] = draw(st.sampled_from([2, 7, 30, 1000]))
    return filters


def expected(records: list[Record], filters: Mapping[str, Any]) -> list[Record]:
    """The oracle."""
    found = []
    for record in sorted(records, key=lambda r: r.id, reverse=filters["order"] == "desc"):
        asked = {
            name: {*(value if isinstance(value, list) else [value])}
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
    """For any filters, order and limit, all pages are what Python filters from a list."""
    with make_app(database_url).app_context():
        records = store_variety()
        assert find_all(order="asc", limit=7) == records
        assert all(0 < record.id < 2**53 for record in records)

        @settings(max_examples=100, deadline=None, database=None)
        @given(some_filters(records))
        def check(filters: dict[str, Any]) -> None:
            assert find_all(**filters) == expected(records, filters)

        check()


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
            found = get_state().history.get(record.id)
            assert found is not None
            assert found[0] == record
            assert found[1]["id"] == record.delivery_id == records[0].id
            assert found[1]["body"] == b"\0\xff packet"
            assert found[1]["received_at"] == MOMENT
        for unknown in (-1, 0, records[-1].id + 1, 2**53, 10**30):
            assert get_state().history.get(unknown) is None
