"""The feed: a follower that stores the last position sees each removal once."""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import URL, event

from flask_imcallback import FeedRecord, HistoryQueryError, ImCallback, Record, StorageError
from flask_imcallback.history import FILTERS
from flask_imcallback.log import Feed, feed, sealer, sequencer
from flask_imcallback.removals import Cause, Relation, Status
from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage.entries import Entry
from flask_imcallback.storage.inserts import ensure_sources, insert_entries
from flask_imcallback.storage.tables import log
from support.api import MEMBERS, assert_problem, get, open_history
from support.apps import SERVERS, MakeApp, close_connections, drop_triggers, wait_until
from support.deliveries import (
    ANONYMOUS,
    DELIVERY,
    MOMENT,
    make_delivery,
    make_entries,
    store,
    store_all,
    write,
)
from support.feeds import Follower, check_log

FEED = "/imcallback/feed"


def read(**options: Any) -> feed.FeedPage:
    """Return a page of the current app's feed."""
    return get_runtime().feed.read(**options)


@pytest.mark.servers
def test_a_removal_of_the_feed_is_the_removal_of_the_history(
    database_url: URL, make_app: MakeApp
) -> None:
    """It has one field more: its log position."""
    with make_app(database_url).app_context():
        first = store(("a", "b"), ("a", "c"), platform="iOS", request_id="r", client_ip="::1")
        second = store(("g", "m"), relation=Relation.GROUP, cause=Cause.QUIT, actor_id="x")
        page = read()
    assert page.data == [(*first[0], 1), (*first[1], 1), (*second[0], 2)]
    assert [type(record) for record in page.data] == [FeedRecord] * 3
    assert FeedRecord._fields == (*Record._fields, "log_position")
    assert page.data[2].relation is Relation.GROUP
    assert page.data[2].cause is Cause.QUIT
    assert (page.last, page.head) == (2, 2)


@pytest.mark.servers
def test_a_page_holds_whole_deliveries(database_url: URL, make_app: MakeApp) -> None:
    """It ends after the delivery that reaches the limit."""
    with make_app(database_url).app_context():
        for size in (2, 1, 5, 1, 1):
            store(*[("a", str(number)) for number in range(size)])
        ends = {}
        for limit in (1, 2, 3, 4, 8, 9, 10, 1000):
            page = read(limit=limit)
            ends[limit] = (len(page.data), page.last, page.head)
        assert ends == {
            **{1: (2, 1, 5), 2: (2, 1, 5), 3: (3, 2, 5), 4: (8, 3, 5), 8: (8, 3, 5)},
            **{9: (9, 4, 5), 10: (10, 5, 5), 1000: (10, 5, 5)},
        }
        assert [record.log_position for record in read(after=1, limit=6).data] == [2] + [3] * 5
        assert read(after=5) == feed.FeedPage([], 5, 5)
        assert read(after=99) == feed.FeedPage([], 99, 5)  # an older backup was restored


def test_an_empty_log(make_app: MakeApp) -> None:
    """The first position is 1."""
    with make_app().app_context():
        assert read() == feed.FeedPage([], 0, 0)


@pytest.mark.servers
def test_deliveries_without_removals_have_positions(database_url: URL, make_app: MakeApp) -> None:
    """Duplicates, ignored and unreadable deliveries show no removals."""
    with make_app(database_url).app_context():
        other = replace(ANONYMOUS, removals=())
        store_all([DELIVERY])
        store_all([DELIVERY, replace(other, status=Status.IGNORED)])
        store_all([replace(other, status=Status.UNREADABLE, error="x")])
        store(("a", "b"))
        page = read()
        assert [record.log_position for record in page.data] == [1, 1, 5]
        assert (page.last, page.head) == (5, 5)
        assert (read(after=1, limit=1).last, read(after=1, limit=1).head) == (5, 5)


@pytest.mark.servers
def test_a_follower_sees_late_commits_once(database_url: URL, make_app: MakeApp) -> None:
    """A delivery that is committed an hour late, or by a clock that is wrong, is not missed."""
    with make_app(database_url).app_context():
        follower = Follower()
        expected: Counter[int] = Counter()
        hours = [0.0, -1.0, 0.001, 5.0, -100.0, 0.0, 1.0, -0.5, 0.0]
        for limit, hour in zip(itertools.cycle([1, 3]), hours, strict=False):
            at = MOMENT + timedelta(hours=hour)
            records = store(("a", "b"), ("a", "c"), at=at)
            expected.update(record.id for record in records)
            follower.read(limit)
        follower.read_all()
        assert follower.seen == expected
    assert check_log(database_url) == len(hours)


@pytest.mark.servers
@pytest.mark.parametrize("database_url", SERVERS, indirect=True)
def test_a_transaction_that_stays_open_holds_nothing_up(
    database_url: URL, make_app: MakeApp
) -> None:
    """A follower sees what was committed meanwhile, and the late delivery after its commit."""
    with make_app(database_url).app_context():
        follower = Follower()
        late = get_runtime().recorder.make_entry(make_delivery(("late", "x")))
        with get_runtime().process.get().engines.draining().connect() as connection:
            ensure_sources(connection, [late])
            with connection.begin():
                insert_entries(connection, [late])
                for number in range(3):
                    store(("a", str(number)))
                    follower.read_all()
                assert len(follower.seen) == 3
        follower.read_all()
        assert len(follower.seen) == sum(follower.seen.values()) == 4
        assert follower.order[-1] == (4, late.row["id"])


@pytest.mark.servers
def test_what_waited_in_a_spool_is_not_missed(database_url: URL, make_app: MakeApp) -> None:
    """Deliveries that were received hours ago come after what the follower has read."""
    app = make_app(database_url)
    with app.app_context():
        drain = get_runtime().drain
        assert drain is not None
        follower = Follower()
        for number in range(3):
            store(("new", str(number)), at=datetime.now(UTC))
        follower.read_all()
        assert len(follower.seen) == 3
        old = make_entries(app, 30)
        for entry in old:
            drain.spool.put(entry)
        assert drain.drain_all() == ""
        follower.read_all()
        assert len(follower.seen) == sum(follower.seen.values()) == 3 + sum(map(size, old))
    assert check_log(database_url) == 33


def size(entry: Entry) -> int:
    return len(entry.removals)


@pytest.mark.servers
def test_a_reader_numbers_what_a_killed_process_left(database_url: URL, make_app: MakeApp) -> None:
    """One call is enough, also if no other process records."""
    app = make_app(database_url)
    write(app, *make_entries(app, 3))  # this writer wakes no sequencer
    with app.app_context():
        assert len(read().data) == 6


@pytest.mark.servers
@pytest.mark.parametrize("limit", [20, 1000])
def test_filters_match_as_in_the_history(database_url: URL, make_app: MakeApp, limit: int) -> None:
    """Random filters: the feed has exactly the removals that the history finds."""
    draw = random.Random(5)
    names = ["a", "b", "c", "A", "a "]
    with make_app(database_url).app_context():
        deliveries = []
        for number in range(150):
            relation = draw.choice([*Relation])
            pairs = [(draw.choice(names), draw.choice(names)) for _ in range(draw.choice([1, 3]))]
            deliveries.append(
                make_delivery(
                    *pairs,
                    at=MOMENT + timedelta(seconds=number),
                    relation=relation,
                    cause=draw.choice([*Cause]) if relation is Relation.GROUP else Cause.NONE,
                    actor_id=draw.choice(["", "a", "b"]),
                    provider=draw.choice(["openim", "tencent"]),
                    app_id=draw.choice(["", "1"]),
                    command=draw.choice(["", "x"]),
                    platform=draw.choice(["", "iOS"]),
                    client_ip=draw.choice(["", "::1"]),
                    request_id=draw.choice(["", "r"]),
                )
            )
        records = store_all(deliveries)
        choices: dict[str, Any] = {name: ["", "a", "b", "x", "1", "iOS"] for name in FILTERS}
        for name in ("owner_id", "target_id", "account_id", "peer_id", "actor_id", "group_id"):
            choices[name] = ["a", "b", "A"]
        choices |= {"provider": ["openim", "tencent"], "relation": [*Relation], "cause": [*Cause]}
        choices |= {"delivery_id": [record.delivery_id for record in records[:9]]}
        choices |= {"client_ip": ["", "::1"], "request_id": ["", "r"]}
        found = 0
        for _ in range(60):
            used = draw.sample([*FILTERS], draw.choice([0, 1, 1, 2, 2, 3]))
            filters: dict[str, Any] = {
                name: draw.sample(choices[name], draw.choice([1, 2])) for name in used
            }
            if "peer_id" in filters:
                filters.setdefault("account_id", ["a", "b"])
            if draw.random() < 0.3:
                filters["since"] = MOMENT + timedelta(seconds=draw.uniform(0, 150))
            if draw.random() < 0.3:
                filters["until"] = MOMENT + timedelta(seconds=draw.uniform(0, 150))
            follower = Follower(**filters)
            follower.read_all(limit)
            expected = [*get_runtime().history.stream(order="asc", **filters)]
            assert follower.seen == Counter(record.id for record in expected), filters
            assert follower.last == 150
            found += len(expected)
        assert found > 200


def test_last_moves_over_what_does_not_match(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page covers a bounded part of the log, and the next page begins after it."""
    with make_app().app_context():
        store_all([make_delivery(("a", str(number))) for number in range(50)])
        assert read(owner_id="b").last == 50
        monkeypatch.setattr(feed, "MAX_POSITIONS", 20)
        pages = [read(after=after, owner_id="b") for after in (0, 20, 40, 50)]
        assert [(page.data, page.last, page.head) for page in pages] == [
            ([], last, 50) for last in (20, 40, 50, 50)
        ]
        monkeypatch.setattr(feed, "MAX_READ_REMOVALS", 7)
        assert [read(after=after, owner_id="b").last for after in (0, 7, 45)] == [7, 14, 50]


def test_pruned_positions_are_passed(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """A follower that begins at the start moves on to the entries that remain."""
    monkeypatch.setattr(feed, "MAX_POSITIONS", 20)
    with make_app().app_context():
        store_all([make_delivery(("a", str(number))) for number in range(50)])
        read(after=40)
        with get_runtime().writing_engine().begin() as connection:
            drop_triggers(connection)
            connection.execute(log.delete().where(log.c.position <= 45))
        follower = Follower()
        follower.read_all()
        assert [position for position, _ in follower.order] == [46, 47, 48, 49, 50]


def test_a_large_delivery_is_one_page(make_app: MakeApp) -> None:
    """100,000 removals are read in seconds. A page that skips them needs no memory for them."""
    with make_app().app_context():
        store_all([make_delivery(*[("group", f"m{number}") for number in range(100_000)])])
        store(("a", "b"))
        began = time.process_time()
        page = read(limit=10)
        assert (len(page.data), page.last, page.head) == (100_000, 1, 2)
        assert len({record.target_id for record in page.data}) == 100_000
        assert [len(read(after=after, target_id="m7").data) for after in (0, 1)] == [1, 0]
        assert time.process_time() - began < 10


def test_a_page_reads_no_packets_and_few_rows(make_app: MakeApp) -> None:
    """A page of ten removals costs the same in a large log."""
    with make_app().app_context():
        store_all([make_delivery(("a", str(number))) for number in range(3000)])
        read(limit=1)
        statements: list[str] = []
        engine = get_runtime().engine()
        event.listen(engine, "before_cursor_execute", lambda *call: statements.append(call[2]))
        assert read(after=1000, limit=10).last == 1010
        assert len(statements) < 12
        assert not any("body" in statement for statement in statements)


@pytest.mark.servers
def test_a_read_only_database(
    database_url: URL,
    make_app: MakeApp,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A reader who may not write sees what has positions, without an error in the log."""
    monkeypatch.setattr(sequencer, "MAX_IDLE_SECONDS", 0.1)
    app = make_app(database_url)
    with app.app_context():
        store(("a", "b"))
        assert len(read().data) == 1
        wait_until(lambda: not get_runtime().sequencer.is_running)
    close_connections(app)
    other = make_app(database_url)
    write(other, *make_entries(other, 1))  # this writer wakes no sequencer
    close_connections(other)
    if database_url.get_backend_name() == "sqlite":
        query = {"mode": "ro", "uri": "true"}
        url = URL.create("sqlite", database=f"file:{database_url.database}", query=query)
        arguments: dict[str, Any] = {}
    elif database_url.get_backend_name() == "postgresql":
        url = database_url
        arguments = {"options": "-c default_transaction_read_only=on"}
    else:
        url = database_url
        arguments = {"init_command": "SET SESSION TRANSACTION READ ONLY"}
    reader = Flask("reader")
    reader.config["SQLALCHEMY_DATABASE_URI"] = url
    reader.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"connect_args": arguments}
    reader.config["IMCALLBACK_SPOOL"] = None
    ImCallback(reader)
    with reader.app_context():
        began = time.monotonic()
        pages = [read() for _ in range(3)]
        assert [(len(page.data), page.last, page.head) for page in pages] == [(1, 1, 1)] * 3
        assert time.monotonic() - began < 5
        get_runtime().sequencer.wake()  # the first request does this
        assert get_runtime().sealer.seal_if_due() == sealer.RETRY_SECONDS
        get_runtime().sequencer.catch_up(5)
    assert [line for line in caplog.messages if "The log is not" in line] == []
    close_connections(reader)
    with make_app(database_url).app_context():
        assert len(read().data) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"after": -1}, "after must be a whole number from 0 to 9007199254740992, not -1"),
        ({"after": "1"}, "after must be a whole number from 0 to 9007199254740992, not '1'"),
        ({"limit": 0}, "limit must be a whole number from 1 to 1000, not 0"),
        ({"limit": 1001}, "limit must be a whole number from 1 to 1000, not 1001"),
        ({"limit": True}, "limit must be a whole number from 1 to 1000, not True"),
        ({"owner_id": ""}, "owner_id must not be empty"),
        (
            {"order": "asc"},
            "order is not a filter of this method: did you mean provider? The filters are ",
        ),
        ({"peer_id": "a"}, "peer_id needs account_id: "),
        ({"since": "now"}, "since must be a datetime with a time zone, not 'now'"),
    ],
    ids=str,
)
def test_a_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    """The error is raised before the database is asked."""
    with pytest.raises(HistoryQueryError) as caught:
        Feed(None, None).read(**options)  # type: ignore[arg-type]
    assert str(caught.value).startswith(message)


def test_a_database_without_tables_is_an_error(make_app: MakeApp) -> None:
    """The message has the words of the database."""
    with (
        make_app(migrate=False).app_context(),
        pytest.raises(StorageError, match=r"cannot read the feed .*no such table"),
    ):
        read()


# HTTP


def test_the_feed_over_http(make_app: MakeApp) -> None:
    """The members are those of the history, and the log position is the last one."""
    app = open_history(make_app)
    with app.app_context():
        for number in range(5):
            store(("ä\u2028😀", str(number)), ("b", "c"))
    after, seen = 0, []
    while True:
        page = get(app, FEED, query_string={"after": after, "limit": 3}).get_json()
        seen += page["data"]
        after = page["last"]
        if after == page["head"]:
            break
    assert [row["log_position"] for row in seen] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert [*seen[0]] == [*MEMBERS, "log_position"]
    history = {row["id"]: row for row in get(app).get_json()["data"]}
    assert [{**history[row["id"]], "log_position": row["log_position"]} for row in seen] == seen
    rows = get(app, FEED, query_string={"owner_id": ["b", "x"], "target_id": "c"}).get_json()
    assert [row["owner_id"] for row in rows["data"]] == ["b"] * 5
    assert list(rows) == ["data", "last", "head"]


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("after=-1", "after must be a whole number, not '-1'"),
        ("after=x", "after must be a whole number, not 'x'"),
        ("after=1&after=2", "after must not be repeated, but is given 2 times"),
        ("after=9999999999999999", "after must be a whole number from 0 to 9007199254740992, not "),
        ("limit=0", "limit must be a whole number from 1 to 1000, not 0"),
        ("limit=1001", "limit must be a whole number from 1 to 1000, not 1001"),
        ("cursor=x", "cursor is not a parameter of this URL. The parameters are "),
        ("owner=x", "owner is not a parameter of this URL: did you mean owner_id? "),
        ("relation=x", "relation must be friend, blacklist, follow or group, not 'x'"),
        ("since=2026", "since must be a time with its offset, such as "),
    ],
)
def test_a_wrong_parameter_is_a_problem(make_app: MakeApp, query: str, detail: str) -> None:
    """The problem names the parameter."""
    problem = assert_problem(get(open_history(make_app), f"{FEED}?{query}"), 400)
    assert problem["detail"].startswith(detail)
    assert problem["parameter"] == query.partition("=")[0]


def test_the_feed_is_guarded(make_app: MakeApp) -> None:
    """The tokens of the history open it. Doubled and final slashes are served."""
    app = open_history(make_app)
    assert_problem(get(app, FEED, token=None), 401)
    assert_problem(get(app, FEED, token="wrong"), 401)
    assert get(app, "/imcallback//feed/").status_code == 200
    assert get(app, FEED, method="POST").status_code == 405
    assert_problem(get(make_app(), FEED), 403)
