"""The cost of every value that a reader or an authentic sender can send is bounded."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from itertools import product
from typing import Any
from urllib.parse import urlencode

import pytest
from flask import Flask
from itsdangerous import URLSafeSerializer
from sqlalchemy import URL, text

from flask_imcallback.errors import TooWideError
from flask_imcallback.history import counts, load_delivery_query, statements
from flask_imcallback.history.finder import Finder
from flask_imcallback.history.resolve import ResolvedQuery
from flask_imcallback.history.statements import PageSpec
from flask_imcallback.history.time_limits import time_limit
from flask_imcallback.removals import Record
from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage import MAX_ID
from support.api import HISTORY, assert_problem, get, open_history
from support.apps import MakeApp, drop_triggers
from support.deliveries import MOMENT, store
from support.volumes import (
    FIRST_ID,
    analyze,
    insert_deliveries,
    insert_removals,
    insert_sources,
)

pytestmark = pytest.mark.slow

ROWS = 40_000
SINCE = MOMENT.isoformat()
UNTIL = (MOMENT + timedelta(days=2)).isoformat()


def fill(app: Flask, count: int = ROWS, sources: int = 1, **changes: str) -> None:
    """Insert removals and sources into the tables of an app."""
    with app.app_context(), get_runtime().engine().begin() as connection:
        insert_sources(connection, sources)
        insert_removals(connection, count, **changes)
    with app.app_context(), get_runtime().engine().begin() as connection:
        analyze(connection)


def seconds(function: Callable[[], object]) -> float:
    """Return the shortest duration of three calls."""
    durations = []
    for _ in range(3):
        start = time.perf_counter()
        function()
        durations.append(time.perf_counter() - start)
    return min(durations)


# Counts


def test_a_count_without_since_costs_little_more(make_app: MakeApp, database_url: URL) -> None:
    """The first removal is found in one statement, also if no removal matches."""
    app = open_history(make_app, database_url)
    fill(app, client_ip="'203.0.113.' || (n % 2)" if "sqlite" in str(database_url) else "'x'")
    with app.app_context():
        stats = get_runtime().history.stats
        filters: dict[str, Any] = {"owner_id": "alice", "target_id": "bob", "client_ip": "never"}
        until = MOMENT + timedelta(days=2)
        with_since = seconds(lambda: stats(since=MOMENT, until=until, **filters))
        without_since = seconds(lambda: stats(until=until, **filters))
    assert without_since < 5 * with_since + 0.1


@pytest.mark.parametrize("group_by", [None, "platform"])
def test_a_count_starts_at_the_first_match(
    make_app: MakeApp, database_url: URL, group_by: str | None
) -> None:
    """The first match lies beyond the first steps of the search."""
    app = open_history(make_app, database_url)
    fill(app, 30_000, client_ip="CASE WHEN n < 20000 THEN 'x' ELSE 'y' END")
    with app.app_context():
        found = get_runtime().history.stats(
            bucket="hour",
            group_by=group_by,
            account_id="alice",
            relation="friend",
            client_ip="y",
            until=MOMENT + timedelta(hours=9),
        )
    assert sum(row.count for row in found) == 10_000
    first = MOMENT + timedelta(seconds=20_000)
    assert found[0].bucket == first.replace(minute=0, second=0, microsecond=0)
    assert {row.group for row in found} == {None if group_by is None else "p0"}


def test_too_many_groups_are_refused(
    make_app: MakeApp, database_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database returns a bounded number of rows, and the answer says how to ask for less."""
    app = open_history(make_app, database_url)
    fill(app, 300, sources=300, source_id="n + 1")
    for module in (counts, statements):
        monkeypatch.setattr(module, "MAX_COUNT_ROWS", 100)
    response = get(app, f"{HISTORY}/stats?group_by=platform")
    problem = assert_problem(response, 422)
    assert problem["parameter"] == "group_by"
    assert problem["detail"].endswith("counts in the database. Use a shorter time or more filters")


SLOW = {
    "sqlite": "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r)"
    " SELECT MAX(n) FROM r",
    "postgresql": "SELECT pg_sleep(60)",
    "mysql": "SELECT COUNT(*) FROM seq_1_to_1000000 a, seq_1_to_1000000 b WHERE a.seq + b.seq = 0",
}


def test_a_statement_has_a_time_limit(make_app: MakeApp, database_url: URL) -> None:
    """The database gives up after the limit, and the connection can be used again."""
    app = make_app(database_url)
    timeout = TooWideError("since", "is too early")
    with app.app_context(), get_runtime().engine().connect() as connection:
        start = time.monotonic()
        with (
            pytest.raises(TooWideError, match="since is too early"),
            time_limit(connection, 1, timeout),
        ):
            connection.execute(text(SLOW[connection.dialect.name]))
        assert 0.9 < time.monotonic() - start < 10
        connection.rollback()
        assert connection.scalar(text("SELECT COUNT(*) FROM imcallback_removal")) == 0


# Plans


@pytest.mark.parametrize(
    "pair", [{"account_id": "alice", "peer_id": "bob"}, {"owner_id": "alice", "target_id": "bob"}]
)
@pytest.mark.parametrize("narrow", [{"request_id": "needle"}, {"client_ip": "192.0.2.9"}])
def test_a_pair_does_not_hide_a_narrower_filter(
    make_app: MakeApp, database_url: URL, pair: dict[str, str], narrow: dict[str, str]
) -> None:
    """The oldest of many removals between two accounts is found at once by its request id."""
    app = open_history(make_app, database_url)
    ((name, value),) = narrow.items()
    changes: dict[str, Any] = {name: f"CASE WHEN n = 0 THEN '{value}' ELSE 'many' END"}
    fill(app, **changes)
    query = urlencode({**pair, **narrow})

    def ask(url: str) -> None:
        response = get(app, f"{url}?{query}", buffered=True)
        assert response.status_code == 200
        assert response.text.count("alice") == 1 or '"count": 1' in response.text

    for url in (HISTORY, f"{HISTORY}/stats", f"{HISTORY}/export"):
        assert seconds(partial(ask, url)) < 0.1, url


@pytest.mark.slow
def test_more_sources_than_parameters(make_app: MakeApp, database_url: URL) -> None:
    """With 70,000 platforms, every query with a filter of sources is answered."""
    app = open_history(make_app, database_url)
    fill(app, 70_000, sources=70_000, source_id="n + 1")
    for path, expected in (
        (f"{HISTORY}?provider=openim&limit=2", '"platform": "p69999"'),
        (f"{HISTORY}?provider=openim&relation=friend&order=asc&limit=1", '"platform": "p0"'),
        (f"{HISTORY}?provider=openim&account_id=alice&limit=1", '"platform": "p69999"'),
        (f"{HISTORY}?platform=p5&provider=openim", '"platform": "p5"'),
        (f"{HISTORY}/stats?provider=openim&until={UNTIL.replace('+', '%2B')}", '"count": '),
        (f"{HISTORY}/stats?group_by=relation&provider=openim", '"group": "friend"'),
    ):
        response = get(app, path)
        assert response.status_code == 200, response.text
        assert expected in response.text
    assert_problem(get(app, f"{HISTORY}/stats?group_by=platform"), 422)
    export = get(app, f"{HISTORY}/export?provider=openim", buffered=True)
    assert export.text.count('"target_id": "bob"') == 70_000
    page = app.test_client().get(
        "/imcallback/?provider=openim", headers={"Authorization": "Bearer old-token-of-readers"}
    )
    assert page.status_code == 200


MATCHES = {"owner_id": 3, "account_id": 3, "request_id": 0, "platform": 0, "delivery_id": 0}
"""The number of removals that match, by the filter that has many values."""


@pytest.mark.parametrize("name", MATCHES)
@pytest.mark.parametrize("count", [201, 10_000])
def test_a_page_with_many_values_ends(
    make_app: MakeApp, database_url: URL, name: str, count: int
) -> None:
    """A page reads a bounded part of the table. The pages together have all matches."""
    app = open_history(make_app, database_url)
    fill(app, 30_000, owner_id="CASE WHEN n < 3 THEN 'x1' ELSE 'alice' END")
    values: list[Any] = [f"x{number}" for number in range(count)]
    if name == "delivery_id":
        values = [FIRST_ID + number * 1_000_000 + 1 for number in range(count)]
    filters: dict[str, Any] = {name: values}
    with app.app_context():
        find = get_runtime().history.find
        start = time.perf_counter()
        page = find(**filters)
        assert time.perf_counter() - start < 20
        # Without a platform or a delivery of these values, no removal is read.
        assert bool(page.next_cursor) is (name not in ("platform", "delivery_id"))
        data = page.data
        while page.next_cursor:
            page = find(**filters, cursor=page.next_cursor)
            data += page.data
    assert len(data) == MATCHES[name]


def test_one_value_too_many_is_named(make_app: MakeApp) -> None:
    """All filters together have at most 10,000 values."""
    query = urlencode({"owner_id": ["x"] * 10_001}, doseq=True)
    problem = assert_problem(get(open_history(make_app), f"{HISTORY}?{query}"), 400)
    assert problem["detail"] == (
        "owner_id has 10001 values. All filters together may have at most 10000"
    )


@pytest.mark.parametrize(
    "query",
    ["x=1&" * 100_000, "a" * 1_000_000, "owner_id=" + "%F0%9F%98%80" * 100_000, "&" * 1_000_000],
    ids=["many parameters", "one name", "one value", "separators"],
)
def test_a_very_long_query_is_answered_at_once(make_app: MakeApp, query: str) -> None:
    """The answer to a wrong query is short, however long the query is."""
    app = open_history(make_app)
    start = time.perf_counter()
    response = get(app, f"{HISTORY}?{query}")
    assert time.perf_counter() - start < 10
    assert response.status_code in (200, 400)
    assert len(response.data) < 5_000


# Cursors

BOMB = [2, "digest", 0, [1, MAX_ID]]


def sign(key: str, content: Any) -> str:
    return str(URLSafeSerializer(key, salt="flask-imcallback-cursor").dumps(content))


@pytest.mark.parametrize("key", [None, "a secret key"], ids=["no key", "a key"])
@pytest.mark.parametrize(
    "cursor",
    [
        sign("", BOMB),
        sign("x", BOMB),
        sign("", [0] * 1_000_000),
        "x" * 1_000_000,
        "." + "x" * 10_000,
    ],
    ids=["empty key", "other key", "compressed", "long", "no signature"],
)
def test_a_forged_cursor_is_refused_at_once(
    make_app: MakeApp, key: str | None, cursor: str
) -> None:
    """Nobody can make a cursor without the key, also if the app has none."""
    app = open_history(make_app, SECRET_KEY=key)
    start = time.perf_counter()
    problem = assert_problem(get(app, f"{HISTORY}?cursor={cursor}"), 400)
    assert time.perf_counter() - start < 10
    detail = (
        "cursor is invalid: it was changed, cut off, or signed with another SECRET_KEY. "
        "Start again without it"
    )
    if key is None:
        detail += (
            ". The app has no SECRET_KEY, so a cursor is valid only in the process that made "
            "it. Set SECRET_KEY"
        )
    assert problem["detail"] == detail


def test_a_cursor_works_without_a_secret_key(make_app: MakeApp) -> None:
    """In one process, pages follow each other."""
    app = open_history(make_app, SECRET_KEY=None)
    with app.app_context():
        store(("a", "1"), ("a", "2"))
    first = get(app, f"{HISTORY}?limit=1").get_json()
    second = get(app, f"{HISTORY}?limit=1&cursor={first['next_cursor']}").get_json()
    assert [row["target_id"] for row in first["data"] + second["data"]] == ["2", "1"]


# Groups


def test_a_group_with_the_id_of_an_account_costs_little(
    make_app: MakeApp, database_url: URL
) -> None:
    """A page reads a bounded part of 200,000 removals of the group, and finds the account's own."""
    app = open_history(make_app, database_url)
    count = 200_000
    is_own = f"n IN (3, {count // 2}, {count - 3})"
    with app.app_context(), get_runtime().engine().begin() as connection:
        insert_sources(connection, 2, relation="CASE WHEN n = 0 THEN 'group' ELSE 'friend' END")
        insert_removals(connection, count, source_id=f"CASE WHEN {is_own} THEN 2 ELSE 1 END")
        analyze(connection)
    # Only the index of sources tells which removals are from a group.
    min_pages: list[tuple[dict[str, Any], int]] = [
        ({"account_id": "alice"}, 20),
        ({"account_id": ["alice", "carol"], "since": MOMENT}, 20),
        ({"account_id": "alice", "relation": ["friend", "group"]}, 20),
        ({"account_id": "alice", "relation": "friend"}, 1),
        ({"account_id": "alice", "peer_id": "bob"}, 20),
        ({"account_id": "alice", "client_ip": "203.0.113.7"}, 20),
    ]
    for (filters, least), order in product(min_pages, ("asc", "desc")):
        assert least <= len(find_pages(app, order=order, **filters)) <= 50, filters
    with app.app_context():
        history = get_runtime().history
        for filters, _ in min_pages:
            assert sum(row.count for row in history.stats(**filters)) == 3
        members: list[dict[str, Any]] = [
            {"account_id": "bob", "relation": "group"},
            {"group_id": "alice"},
            {"group_id": "alice", "account_id": "bob"},
        ]
        for filters in members:
            assert len(history.find(**filters).data) == 100


def find_pages(app: Flask, **filters: Any) -> list[list[Record]]:
    """Return all pages. Each of them must take less than two seconds."""
    pages: list[list[Record]] = []
    cursor: str | None = None
    with app.app_context():
        while cursor or not pages:
            start = time.perf_counter()
            page = get_runtime().history.find(cursor=cursor, **filters)
            assert time.perf_counter() - start < 2
            pages.append(page.data)
            cursor = page.next_cursor
    assert sum(map(len, pages)) == 3
    return pages


def test_an_actor_is_found_at_once(make_app: MakeApp, database_url: URL) -> None:
    """An index has the actors, although most removals have none."""
    app = open_history(make_app, database_url)
    fill(app, actor_id="CASE WHEN n IN (5, 7) THEN 'mary' ELSE '' END")
    for path in (f"{HISTORY}?actor_id=mary", f"{HISTORY}?actor_id=mary&account_id=alice"):
        response = get(app, path)
        assert [row["actor_id"] for row in response.get_json()["data"]] == ["mary"] * 2
        assert seconds(partial(get, app, path)) < 0.1
    with app.app_context(), get_runtime().engine().connect() as connection:
        query = ResolvedQuery(columns={"actor_id": ("mary",)})
        finder = Finder(connection)
        assert len(finder.find(query, PageSpec(is_descending=True, limit=10)).rows) == 2
        statement, _ = finder.statements
        explain = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
        plan = connection.exec_driver_sql(f"{explain} {statement.sql}", statement.values)
        assert "ix_imcallback_removal_actor_id" in str(plan.all())


# Deliveries


def test_two_rare_statuses_are_found_at_once(make_app: MakeApp, database_url: URL) -> None:
    """The newest of each status are merged, so that the common status is not read."""
    app = open_history(make_app, database_url)
    with app.app_context():
        store(("a", "b"), at=MOMENT - timedelta(days=1))
        with get_runtime().engine().begin() as connection:
            drop_triggers(connection)
            connection.execute(text("UPDATE imcallback_delivery SET status = 'unreadable'"))
            status = f"CASE WHEN n < {ROWS // 2} THEN 'ignored' ELSE 'recorded' END"
            insert_deliveries(connection, ROWS, id=f"{FIRST_ID} + n", status=status)
    path = "/imcallback/deliveries?status=unreadable&status=duplicate"
    (row,) = get(app, path).get_json()["data"]
    assert row["status"] == "unreadable"
    assert seconds(lambda: get(app, path)) < 0.1
    query = load_delivery_query({"status": ["recorded", "unreadable"], "limit": ["2"]})
    with app.app_context():
        history = get_runtime().history
        page = history.deliveries(command="never")
        assert (page.data, page.next_cursor is None) == ([], False)
        assert seconds(lambda: history.deliveries(command="never")) < 0.5
        assert [row.id for row in history.read_delivery_page(query).data] == [
            FIRST_ID + ROWS - 1,
            FIRST_ID + ROWS - 2,
        ]
        found = history.deliveries(status=["recorded", "unreadable"], order="asc", limit=1)
        assert [row.status for row in found.data] == ["unreadable"]
