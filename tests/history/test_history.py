"""Query the history in Python. The results must equal a list that Python filters and sorts."""

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
from itsdangerous import URLSafeSerializer
from sqlalchemy import URL, Engine

from flask_imcallback import (
    Cause,
    HistoryFilters,
    HistoryQueryError,
    Page,
    Record,
    Relation,
    Status,
)
from flask_imcallback.history import finder
from flask_imcallback.history.filters import FILTERS, TEXT_FILTERS, RemovalFilters
from flask_imcallback.history.history import CHUNK_REMOVALS, History
from flask_imcallback.history.queries import HistoryQuery
from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage.ids import moment_of
from support.apps import MakeApp
from support.deliveries import MICROSECOND, MOMENT, find, make_delivery, store, store_all

PAST = MOMENT.replace(year=2023)
# Ids that a database confuses if it ignores case, accents or blanks, and ids with SQL characters.
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
    """Return the removals of all pages."""
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
    """A list with a short representation, because Hypothesis prints it."""

    def __repr__(self) -> str:
        return "records"


def store_variety() -> Records:
    """Store deliveries of many kinds in three periods.

    They come in bursts, so that the ids of one delivery overlap the times of the next. Some values
    are rare: they occur in the first period, in the last period, or in both.
    """
    draw = random.Random(20261120)
    deliveries = []
    for number in range(260):
        days, seconds = number // 100 * 300, number % 100 // 8
        rare = [["oldest", "both"], [], ["newest", "both"]][number // 100]
        accounts = [*ACCOUNTS, *rare]
        of_time = [["r"], [], ["R"]][number // 100]
        relation = draw.choice(list(Relation))
        is_group = relation is Relation.GROUP
        deliveries.append(
            make_delivery(
                *((draw.choice(accounts), draw.choice(accounts)) for _ in range(draw.randrange(6))),
                at=PAST + timedelta(days=days, seconds=seconds, microseconds=draw.randrange(20)),
                relation=relation,
                actor_id=draw.choice(["", *accounts]) if is_group else "",
                cause=draw.choice(list(Cause)[1:]) if is_group else Cause.NONE,
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
    """Return the values of a record that a filter is compared with."""
    is_group = record.relation == "group"
    if name in ("account_id", "peer_id"):
        return (record.target_id,) if is_group else (record.owner_id, record.target_id)
    if name == "group_id":
        return (record.owner_id,) if is_group else ()
    if name == "actor_id":
        return (record.actor_id,) if record.actor_id else ()
    return (getattr(record, name),)


NOBODY = [f"nobody{number}" for number in range(220)]


@st.composite
def some_filters(draw: st.DrawFn, records: list[Record]) -> dict[str, Any]:
    """Draw filters from the values of a record, so that they usually match something."""
    likely, other = draw(st.sampled_from(records)), draw(st.sampled_from(records))
    filters: dict[str, Any] = {}
    names = st.sampled_from([*TEXT_FILTERS, "delivery_id"])
    for name in draw(st.sets(names, max_size=4)):
        choices = [*values(likely, name), *values(other, name)] or ["a"]
        one = st.sampled_from(choices)
        filters[name] = draw(one | st.lists(one, max_size=3))
    if "peer_id" in filters and "account_id" not in filters:
        filters["account_id"] = draw(st.sampled_from(values(likely, "account_id")))
    longer = draw(st.sets(st.sampled_from(TEXT_FILTERS), max_size=3)) & {*filters}
    for name in longer - {"relation", "cause"}:
        filters[name] = [*NOBODY, *as_list(filters[name])]
    for name in draw(st.sets(st.sampled_from(["since", "until"]))):
        near = draw(st.sampled_from(records))
        moment = moment_of(near.id) + draw(st.integers(-1, 1)) * MICROSECOND
        filters[name] = moment.astimezone(timezone(timedelta(hours=draw(st.integers(-12, 14)))))
    filters["order"] = draw(st.sampled_from(["asc", "desc"]))
    filters["limit"] = draw(st.sampled_from([7, 30, 1000]))
    return filters


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def filters_for_every_plan(records: list[Record]) -> list[dict[str, Any]]:
    """Return filters for each query plan, alone and with conditions that the plan must check."""
    deliveries = sorted({record.delivery_id for record in records})
    middle = records[len(records) // 2]
    inside = moment_of(next(r.id for r in records if r.position == 2 and r.id > middle.id))
    two = ACCOUNTS[:2]
    return [
        {},
        # Pairs: one, several, both directions, one account twice, and conditions without index.
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
        {"account_id": "a", "relation": ["friend", "follow"]},
        # Groups, whose ids are also accounts, and their members.
        {"group_id": "a"},
        {"group_id": ["a", "A", "both"], "relation": "group", "cause": ["kicked", "dismissed"]},
        {"group_id": two, "relation": ["friend", "blacklist"]},
        {"group_id": two, "owner_id": ["a", "oldest"]},
        {"group_id": ACCOUNTS, "account_id": "a"},
        {"group_id": ["a", *NOBODY], "account_id": [*two, *NOBODY]},
        {"group_id": "a", "account_id": "a", "target_id": ["a", "A"]},
        {"group_id": ACCOUNTS, "account_id": two, "peer_id": ACCOUNTS},
        {"account_id": ["a", *NOBODY], "relation": "group"},
        {"account_id": two, "cause": "quit"},
        {"account_id": two, "peer_id": two, "relation": ["group", "friend"]},
        {"owner_id": ["a", "A"], "account_id": ["a", "A", "ss"], "relation": ["group", "friend"]},
        {"owner_id": [*two, *NOBODY], "account_id": [*two, *NOBODY], "cause": ["", "quit"]},
        {"target_id": two, "account_id": ["a", "both"], "cause": ["", "kicked"]},
        # Actors.
        {"actor_id": "a"},
        {"actor_id": ["a", "newest"], "cause": "kicked"},
        {"actor_id": "both", "owner_id": ACCOUNTS[:5], "target_id": ACCOUNTS[:8]},
        {"actor_id": [*two, *NOBODY], "account_id": ACCOUNTS[:9]},
        {"actor_id": two, "account_id": "both", "until": inside},
        # Several columns, of which one is selective.
        {"request_id": "r", "owner_id": "a"},
        {"request_id": ["", "r"], "owner_id": ["newest", "both"]},
        {"request_id": "3", "client_ip": "", "target_id": "oldest"},
        {"request_id": "nothing", "client_ip": "", "platform": "iOS"},
        {"owner_id": "both", "platform": "newest"},
        # Sources: one, several, with many or few matches nearby.
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
        # More values than a plan has ranges.
        {"owner_id": [*ACCOUNTS, *NOBODY]},
        {"owner_id": [*two, *NOBODY], "target_id": [*ACCOUNTS, *NOBODY]},
        {"request_id": ["r", *NOBODY], "platform": ""},
        {"delivery_id": deliveries},
        {"delivery_id": deliveries[-205:], "owner_id": [*two, *NOBODY]},
        # Deliveries, and periods that start within one.
        {"delivery_id": middle.delivery_id},
        {"delivery_id": deliveries[1:99:7], "owner_id": ACCOUNTS, "account_id": "a"},
        {"delivery_id": [middle.delivery_id, 5], "since": moment_of(middle.delivery_id)},
        {"delivery_id": middle.delivery_id, "since": moment_of(middle.delivery_id) + MICROSECOND},
        {"since": inside, "until": inside},
        {"since": inside - MICROSECOND, "until": inside + 9 * MICROSECOND},
        {"since": datetime.max.replace(tzinfo=UTC), "platform": "", "owner_id": "a"},
    ]


def expected(records: list[Record], filters: Mapping[str, Any]) -> list[Record]:
    """Return the records that must be found, in order."""
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
                len(sides) == 2
                and any(
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


@pytest.mark.slow
def test_pages_equal_a_sorted_list(database_url: URL, make_app: MakeApp) -> None:
    """Pages, the stream and the counts agree with a list, for any filters, order and limit."""
    with make_app(database_url).app_context():
        records = store_variety()
        assert find_all(order="asc", limit=7) == records
        assert all(0 < record.id < 2**53 for record in records)
        owners = {record.owner_id for record in records if record.owner_id == record.target_id}
        assert owners >= {"a", "A"}, "no account removes itself"

        def check(filters: dict[str, Any]) -> None:
            found = expected(records, filters)
            assert find_all(**filters) == found
            assert stream(**filters) == found
            assert count(**filters) == {None: len(found)}
            for name in ("relation", "cause"):
                assert count(name, **filters) == Counter(getattr(record, name) for record in found)

        for filters in filters_for_every_plan(records):
            many = len(expected(records, filters | {"order": "asc"}))
            for order in ("asc", "desc"):
                check({**filters, "order": order, "limit": max(9, many // 3)})

        settings(max_examples=40, deadline=None, database=None)(
            given(some_filters(records))(check)
        )()


def stream(**filters: Any) -> list[Record]:
    """Return all removals of the stream."""
    options = {name: value for name, value in filters.items() if name != "limit"}
    records = list(islice(get_runtime().history.stream(**options), 20_000))
    assert len(records) < 20_000, "there is no end"
    return records


def count(group_by: str | None = None, **filters: Any) -> dict[str | None, int]:
    """Return the number of removals by group."""
    options = {
        name: value for name, value in filters.items() if name in RemovalFilters.__annotations__
    }
    totals: dict[str | None, int] = {} if group_by else {None: 0}
    counts = get_runtime().history.stats(bucket="month", group_by=group_by, **options)
    for part in counts:
        totals[part.group] = totals.get(part.group, 0) + part.count
    return totals


def test_a_page_may_be_short(
    database_url: URL, make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page ends early if few of many entries match. The next pages return the rest."""
    monkeypatch.setattr(finder, "STEP_ENTRIES", (0, 100, 200))
    with make_app(database_url).app_context():
        deliveries = []
        for number in range(30):
            at = PAST + timedelta(minutes=number * 2)
            kind = {"platform": "rare", "client_ip": "rare", "relation": Relation.BLACKLIST}
            more: dict[str, Any] = kind if number in (5, 11, 12, 29) else {}
            deliveries.append(make_delivery(*[("o", "t")] * 30, at=at, **more))
        records = store_all(deliveries)
        middle = PAST + timedelta(minutes=23)
        for filters, is_short in (
            # No plan has as many ranges as this filter of sources has values.
            ({"owner_id": ["o", *NOBODY[:99]], "platform": ["rare", *NOBODY]}, False),
            ({"owner_id": "o", "target_id": "t", "command": ["x"]}, False),
            ({"account_id": "o", "client_ip": "rare"}, False),
            ({"account_id": ["o", *NOBODY], "client_ip": ["", "rare"], "request_id": "x"}, False),
            ({"client_ip": ["", "rare"], "owner_id": [*NOBODY, "x"]}, True),
            ({"owner_id": "o", "relation": "blacklist", "until": middle}, False),
        ):
            for order in ("asc", "desc"):
                found = expected(records, filters | {"order": order})
                page = find(order=order, limit=150, **filters)
                assert (page.next_cursor is not None) == is_short, filters
                assert find_all(order=order, limit=150, **filters) == found
            assert stream(order=order, **filters) == found
            assert count(**filters) == {None: len(found)}


def test_a_stream_reads_several_chunks(make_app: MakeApp) -> None:
    """No removal is lost or repeated where two chunks meet, even within a delivery."""
    with make_app().app_context():
        records = store_all(
            [
                make_delivery(
                    *((f"o{n % 2}", str(m)) for m in range(700)), at=PAST + timedelta(hours=n)
                )
                for n in range(9)
            ]
        )
        for filters in ({}, {"owner_id": "o1"}, {"owner_id": ["o0", "o1"]}):
            found = expected(records, filters | {"order": "asc"})
            assert stream(order="asc", **filters) == found
            assert stream(order="desc", **filters) == found[::-1]


def test_a_stream_ends_at_its_start_time(database_url: URL, make_app: MakeApp) -> None:
    """A removal that is received after the call is not in the stream, in either order."""
    with make_app(database_url).app_context():
        now = datetime.now(UTC) - timedelta(seconds=5)
        with time_machine.travel(now, tick=False):
            for minutes in range(9):
                store(*(("o", str(n)) for n in range(500)), at=now - timedelta(minutes=minutes))
            for order in ("asc", "desc"):
                records = get_runtime().history.stream(order=order)
                next(records)
                store(("o", "later"), at=now + timedelta(seconds=2))
                assert sum(1 for _ in records) == 4500 - 1


def test_a_stream_holds_no_transaction(database_url: URL, make_app: MakeApp) -> None:
    """A reader may take a long time between two removals."""
    with make_app(database_url).app_context():
        store(*(("o", str(n)) for n in range(CHUNK_REMOVALS + 1)), at=PAST)
        records = get_runtime().history.stream(order="asc")
        for _ in range(2):
            next(records)
            assert get_runtime().engine().pool.checkedout() == 0  # type: ignore[attr-defined]
        assert sum(1 for _ in records) == CHUNK_REMOVALS - 1


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"order": "x"}, "order must be desc or asc, not 'x'"),
        ({"owner_id": ""}, "owner_id must not be empty"),
        ({"limit": 5}, "limit is not a filter of this method. The filters are provider, app_id, "),
        (
            {"cursor": "x"},
            "cursor is not a filter of this method. The filters are provider, app_id, ",
        ),
    ],
    ids=str,
)
def test_a_stream_refuses_a_wrong_filter_at_the_call(filters: dict[str, Any], message: str) -> None:
    """The error is raised before the first removal is asked for, and without a database."""
    history = History(no_database, [])
    with pytest.raises(HistoryQueryError) as caught:
        history.stream(**filters)
    assert str(caught.value).startswith(message)


def no_database() -> Engine:
    raise AssertionError("the database was used")


@pytest.mark.parametrize("account", ACCOUNTS)
def test_account_ids_are_compared_byte_for_byte(make_app: MakeApp, account: str) -> None:
    """A filter finds only the exact id, on either side."""
    with make_app().app_context():
        for other in ACCOUNTS:
            store((other, "target"), ("owner", other))
        assert [record.owner_id for record in find(owner_id=account).data] == [account]
        assert [record.target_id for record in find(target_id=account).data] == [account]
        assert len(find(account_id=account).data) == 2


def test_a_delivery_has_one_time(database_url: URL, make_app: MakeApp) -> None:
    """A period contains all removals of a delivery or none, although their ids differ."""
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
    """A removal that arrives between two pages neither repeats nor hides another one."""
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
    """A full last page has no cursor either. The default limit is 100."""
    with make_app().app_context():
        assert find() == Page([], None)
        store(*(("owner", str(number)) for number in range(101)))
        assert find(limit=101).next_cursor is None
        first = find()
        assert len(first.data) == 100
        assert [record.position for record in find(cursor=first.next_cursor).data] == [0]


def test_a_limit_may_change_between_pages(make_app: MakeApp) -> None:
    """A cursor is valid for another limit, and for the same filters in another form."""
    with make_app().app_context():
        store(("a", "1"), ("b", "2"), ("a", "3"))
        page = find(owner_id=["a", "b"], limit=1, since=MOMENT)
        since = MOMENT.astimezone(timezone(timedelta(hours=8)))
        rest = find(owner_id={"b", "a"}, limit=5, since=since, cursor=page.next_cursor)
        assert [record.target_id for record in rest.data] == ["2", "1"]


OTHER_FILTERS = (
    "cursor belongs to other filters or another order. "
    "Repeat its filters and order, or start again without it"
)
NO_CURSOR = (
    "cursor is invalid: it was changed, cut off, or signed with another SECRET_KEY. "
    "Start again without it"
)


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
def test_a_cursor_belongs_to_its_filters(make_app: MakeApp, filters: dict[str, Any]) -> None:
    """A cursor is refused with other filters or another order."""
    with make_app().app_context():
        store(("owner", "1"), ("owner", "2"))
        cursor = find(limit=1).next_cursor
        with pytest.raises(HistoryQueryError) as caught:
            find(cursor=cursor, **filters)
    assert caught.value.parameter == "cursor"
    assert str(caught.value) == OTHER_FILTERS


@pytest.mark.parametrize("cursor", ["", "x", ".", "1.2.3", "\ud800", "\0", "é", "x" * 10_000])
def test_garbage_is_no_cursor(make_app: MakeApp, cursor: str) -> None:
    """A text that is no cursor is refused."""
    with make_app().app_context(), pytest.raises(HistoryQueryError) as caught:
        find(cursor=cursor)
    assert caught.value.parameter == "cursor"
    assert str(caught.value) == NO_CURSOR


def test_a_cursor_of_another_version_is_refused(make_app: MakeApp) -> None:
    """The error says that the reader must start again."""
    app = make_app()
    signer = URLSafeSerializer(app.config["SECRET_KEY"], salt="flask-imcallback-cursor")
    cursor = str(signer.dumps([1, HistoryQuery().digest, 5, []]))
    with app.app_context(), pytest.raises(HistoryQueryError) as caught:
        find(cursor=cursor)
    assert str(caught.value) == (
        "cursor is from another version of flask-imcallback. Start again without it"
    )


def test_a_cursor_is_signed(make_app: MakeApp) -> None:
    """A cursor is refused if it was changed or if the SECRET_KEY is new. A fallback key works."""
    with make_app(SECRET_KEY="old").app_context():
        store(("owner", "1"), ("owner", "2"))
        cursor = find(limit=1).next_cursor or ""
    with make_app(SECRET_KEY="new", SECRET_KEY_FALLBACKS=["old"]).app_context():
        assert len(find(cursor=cursor).data) == 1
        changed = [
            f"{cursor[:at]}{'AB'[c == 'A']}{cursor[at + 1 :]}" for at, c in enumerate(cursor)
        ]
        # Some bits of the last base64 character are not used, so that it may change.
        for forged in [*changed[:-1], cursor[:-5], cursor + "A"]:
            with pytest.raises(HistoryQueryError) as caught:
                find(cursor=forged)
            assert str(caught.value) == NO_CURSOR
    with make_app(SECRET_KEY="new").app_context(), pytest.raises(HistoryQueryError):
        find(cursor=cursor)


@pytest.mark.parametrize("name", FILTERS)
def test_no_alternatives_find_nothing(make_app: MakeApp, name: str) -> None:
    """An empty sequence matches nothing. None means that the filter is not used."""
    with make_app().app_context():
        store(("owner", "target"))
        account = {"account_id": "owner"} if name == "peer_id" else {}
        assert find(**{name: [], **account}).data == []
        assert len(find(**{name: None}).data) == 1


def test_alternatives_may_be_any_sequence_or_set(make_app: MakeApp) -> None:
    """A list, a tuple, a set and the keys of a dictionary have the same result."""
    with make_app().app_context():
        store(("a", "1"), ("b", "2"), ("c", "3"))
        for owners in (["a", "b"], ("a", "b"), {"a", "b"}, {"a": 1, "b": 2}.keys()):
            assert [record.owner_id for record in find(owner_id=owners).data] == ["b", "a"]


def test_every_filter_has_a_type_and_a_description() -> None:
    """The typed filters and the table of filters name the same filters in the same order."""
    names = [*FILTERS, "since", "until"]
    assert list(RemovalFilters.__annotations__) == names
    assert list(HistoryFilters.__annotations__) == [*names, "order", "limit", "cursor"]
    assert all(row.description for row in FILTERS.values())


def names_of(text: str, count: int) -> list[str]:
    return [f"{text}{number}" for number in range(count)]


def test_many_alternatives_of_several_filters(database_url: URL, make_app: MakeApp) -> None:
    """No database refuses thousands of values, whichever query plan is chosen."""
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
    """All filters together may have 10,000 values. The error names the filter with the most."""
    values: list[Any] = list(range(1, 9000)) if name == "delivery_id" else names_of("o", 8999)
    HistoryQuery.from_filters({name: values, "target_id": names_of("t", 1001)})
    with pytest.raises(HistoryQueryError) as caught:
        HistoryQuery.from_filters({name: values, "target_id": names_of("t", 1002)})
    assert caught.value.parameter == name
    assert str(caught.value) == (
        f"{name} has 8999 values. All filters together may have at most 10000"
    )


@pytest.mark.parametrize("name", ["owner_id", "account_id", "delivery_id"])
def test_many_alternatives(database_url: URL, make_app: MakeApp, name: str) -> None:
    """A filter may have thousands of values."""
    with make_app(database_url).app_context():
        (record,) = store(("owner", "target"))
        others = range(1, 3000) if name == "delivery_id" else map(str, range(1, 3000))
        assert find(**{name: [*others, values(record, name)[0]]}).data == [record]
        assert find(**{name: list(map(type(values(record, name)[0]), range(1, 3000)))}).data == []


class Nowhere(tzinfo):
    """A time zone without an offset."""

    def utcoffset(self, moment: datetime | None) -> None:
        return None

    dst = utcoffset

    def tzname(self, moment: datetime | None) -> None:
        return None


TEXT_ONLY = [name for name in TEXT_FILTERS if not FILTERS[name].choices]
NO_TEXTS = {
    "\0": "must not contain U+0000 or a lone surrogate: '\\x00'",
    "x\ud800": "must not contain U+0000 or a lone surrogate: 'x\\ud800'",
    "x" * 256: "must have at most 255 characters, not 256",
}
NO_STRINGS: list[Any] = [5, b"x", {}]
ID_RANGE = f"must be a whole number from 1 to {2**53}, not "
BAD_FILTERS: list[tuple[str, Any, str]] = [
    *((name, text, said) for name in TEXT_ONLY for text, said in NO_TEXTS.items()),
    *((name, v, f"must be a string, not {v!r}") for name in TEXT_ONLY for v in NO_STRINGS),
    *((name, ["x", None], "must be a string, not None") for name in TEXT_ONLY),
    *((name, "", "must not be empty") for name in ("provider", "owner_id", "target_id")),
    *((name, "", "must not be empty") for name in ("account_id", "actor_id", "group_id")),
    ("peer_id", "x", "needs account_id: it names the account on the other side"),
    *(
        ("relation", value, f"must be friend, blacklist, follow or group, not {shown}")
        for value, shown in (
            *(("", "''"), ("Friend", "'Friend'"), (["friend", "foe"], "'foe'"), (5, "5")),
        )
    ),
    ("cause", "left", "must be empty, kicked, quit or dismissed, not 'left'"),
    *(("delivery_id", n, f"{ID_RANGE}{n!r}") for n in (0, -1, "5", 5.0, True, 2**53 + 1, 10**30)),
    ("delivery_id", [1, "2"], f"{ID_RANGE}'2'"),
    *(
        ("limit", number, f"must be a whole number from 1 to 1000, not {number!r}")
        for number in (0, 1001, -1, True, "5", 5.0, [5], 10**30)
    ),
    *(("order", order, f"must be desc or asc, not {order!r}") for order in ("", "ASC", 1, ["asc"])),
    ("order", "x" * 99, f"must be desc or asc, not '{'x' * 59}…"),
    *(
        (name, moment, "must be a datetime with a time zone, not ")
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
    *(("cursor", cursor, f"must be a string, not {cursor!r}") for cursor in (5, b"x", ["x"])),
    *(
        (
            name,
            "x",
            f"is not a filter of this method{nearest} "
            f"The filters are {', '.join(HistoryFilters.__annotations__)}",
        )
        for name, nearest in (
            ("owner", ": did you mean owner_id?"),
            ("Owner_id", ": did you mean owner_id?"),
            ("ownerID", ": did you mean owner_id?"),
            ("peer", ": did you mean peer_id?"),
            ("client", ": did you mean client_ip?"),
            ("ordre", ": did you mean order?"),
            *((name, ".") for name in ("id", "texts", "digest", "page", "", "x" * 10_000)),
        )
    ),
]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    BAD_FILTERS,
    ids=lambda value: re.sub(r"[^!-~]+", "_", repr(value))[:40],
)
def test_a_bad_filter_is_named(name: str, value: Any, message: str) -> None:
    """The error names the filter, shows its value and needs no database."""
    with pytest.raises(HistoryQueryError) as caught:
        HistoryQuery.from_filters({name: value})
    assert caught.value.parameter == name
    if message.endswith("not "):
        assert str(caught.value).startswith(f"{name} {message}{repr(value)[:20]}")
    else:
        assert str(caught.value) == f"{name} {message}"


@pytest.mark.parametrize("moment", [datetime.min, datetime.max, datetime(1969, 12, 31)])
def test_any_moment_can_be_asked_for(
    database_url: URL, make_app: MakeApp, moment: datetime
) -> None:
    """A period may start or end at the first and the last moment of Python, with any offset."""
    with make_app(database_url).app_context():
        store(("owner", "target"))
        for hours in (-14, 0, 14):
            aware = moment.replace(tzinfo=timezone(timedelta(hours=hours)))
            is_past = moment.year < 2000
            assert len(find(since=aware).data) == is_past
            assert len(find(until=aware).data) == (not is_past)


def test_one_removal_and_its_delivery(database_url: URL, make_app: MakeApp) -> None:
    """`get` returns a removal and its delivery as plain values, also for a later position."""
    with make_app(database_url).app_context():
        records = store(("owner", "1"), ("owner", "2"), body=b"\0\xff packet")
        for record in records:
            detail = get_runtime().history.get(record.id)
            assert detail is not None
            assert detail.removal == record
            delivery = detail.delivery
            assert delivery.id == record.delivery_id == records[0].id
            assert delivery.body == b"\0\xff packet"
            assert type(delivery.body) is bytes
            assert delivery.headers == {"host": "example.com"}
            assert delivery.status is Status.RECORDED
            assert delivery.duplicate_of is None
            assert delivery.removal_count == 2
            assert delivery.received_at == MOMENT
            assert delivery.received_at.tzinfo is UTC
            assert not hasattr(delivery, "nonce")
            assert not hasattr(delivery, "fingerprint")


def test_an_unknown_id_is_none(make_app: MakeApp) -> None:
    """`get` and `get_delivery` return None for an id that nothing has."""
    with make_app().app_context():
        records = store(("owner", "1"))
        for unknown in (-1, 0, records[-1].id + 1, 2**53, 10**30):
            assert get_runtime().history.get(unknown) is None
            assert get_runtime().history.get_delivery(unknown) is None


def test_a_record_has_plain_values(database_url: URL, make_app: MakeApp) -> None:
    """A removal of a page equals the record of the signal, and its time is aware and in UTC."""
    with make_app(database_url).app_context():
        (stored,) = store(("owner", "target"), platform="iOS", relation=Relation.BLACKLIST)
        (record,) = find().data
        assert record == stored
        assert record.relation is Relation.BLACKLIST
        assert record.received_at == MOMENT
        assert record.received_at.tzinfo is UTC
