"""Follow the history: a reader that continues from its last cursor sees each removal once."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import pytest
import time_machine
from flask import Flask
from hypothesis import given, settings
from hypothesis import strategies as st
from itsdangerous import URLSafeSerializer
from sqlalchemy import URL, Connection, Engine, event

from flask_imcallback.history.cursors import MAX_RETURNED_RANGES, Position, fit_page
from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage.entries import Entry
from flask_imcallback.storage.ids import moment_of
from flask_imcallback.storage.inserts import ensure_sources, insert_entries
from support.api import HISTORY, get, open_history
from support.apps import MakeApp
from support.deliveries import MOMENT, find, make_delivery, store_all

PAST = MOMENT.replace(year=2024)
MICROSECONDS_PER_SECOND = 1_000_000
COMMIT_SECONDS = 6
"""Time between a removal's id and its commit: a little less than the promised 6.5 seconds."""


class Clock:
    """The clock of this process, which only a test moves."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.now = PAST
        self._traveller: Any = None

    def __enter__(self) -> Clock:
        self._traveller = self._stack.enter_context(time_machine.travel(self.now, tick=False))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def move(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self._traveller.move_to(self.now)


@pytest.fixture
def clock() -> Iterator[Clock]:
    """A clock that stands still."""
    with Clock() as clock:
        yield clock


class Reader:
    """A reader that follows the history, and counts how often it sees each removal."""

    def __init__(self, **filters: Any) -> None:
        self.filters = filters
        self.cursor: str | None = None
        self.seen: Counter[int] = Counter()
        self.longest = 0

    def read(self, limit: int = 1000) -> bool:
        """Read a page. Return True if there is a next page."""
        page = find(order="asc", limit=limit, cursor=self.cursor, **self.filters)
        ids = [record.id for record in page.data]
        assert ids == sorted(ids)
        assert len(ids) <= limit
        assert (page.next_cursor is None) != (page.resume_cursor is None)
        self.seen.update(ids)
        self.cursor = page.next_cursor or page.resume_cursor
        self.longest = max(self.longest, len(self.cursor or ""))
        return page.next_cursor is not None

    def read_all(self, limit: int = 1000) -> int:
        """Read to the end. Return the number of pages."""
        pages = 1
        while self.read(limit):
            pages += 1
            assert pages < 5000, "there is no end"
        return pages


class Writers:
    """Processes that record at the same time, each on its own connection.

    SQLite allows one writer. There, the whole transaction takes place at its end.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.is_late = engine.dialect.name == "sqlite"
        self.open: list[tuple[Entry, Connection]] = []
        self.stored: list[int] = []
        self._free: set[int] = set()

    def begin(self, at: datetime, removals: int) -> None:
        """Insert a delivery without committing it."""
        pairs = [("owner", str(number)) for number in range(removals)]
        entry = get_runtime().recorder.make_entry(make_delivery(*pairs, at=at))
        first = entry.row["id"]
        while self._free & set(range(first, first + removals)):
            first += 1
        self._free |= set(range(first, first + removals))
        entry.assign_id(first)
        connection = self.engine.connect()
        ensure_sources(connection, [entry])
        connection.begin()
        if not self.is_late:
            insert_entries(connection, [entry])
        self.open.append((entry, connection))

    def end(self, number: int, *, commit: bool = True) -> None:
        entry, connection = self.open.pop(number)
        if commit:
            if self.is_late:
                insert_entries(connection, [entry])
            connection.commit()
            self.stored += [record.id for record in entry.records()]
        connection.close()

    def end_before(self, moment: datetime) -> None:
        """Commit every transaction that began before `moment`."""
        for number in reversed(range(len(self.open))):
            if moment_of(self.open[number][0].row["id"]) < moment:
                self.end(number)


STEPS = st.lists(
    st.one_of(
        # The clock of the writer may be behind or ahead.
        st.tuples(
            st.just("begin"),
            st.sampled_from([-3.0, -0.5, 0.0, 0.00001, 0.5, 3.0, 60.0]) | st.floats(-3, 3),
            st.sampled_from([1, 1, 2, 5]),
        ),
        st.tuples(st.just("commit"), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("roll back"), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("read"), st.sampled_from([1, 2, 3, 100]), st.integers(1, 3)),
        st.tuples(st.just("wait"), st.sampled_from([0.1, 1.0, 4.0, 7.0, 70.0]), st.just(0)),
    ),
    min_size=5,
    max_size=40,
)


def test_a_reader_sees_every_removal_once(
    database_url: URL, make_app: MakeApp, clock: Clock
) -> None:
    """A reader misses and repeats nothing, however the transactions overlap."""
    with make_app(database_url).app_context():
        engine = get_runtime().engine()

        @settings(max_examples=60, deadline=None, database=None)
        @given(STEPS)
        def check(steps: list[tuple[str, Any, int]]) -> None:
            clock.move(1000)
            writers, reader = Writers(engine), Reader(since=clock.now - timedelta(seconds=100))
            for step, what, more in steps:
                if step == "begin":
                    writers.begin(clock.now + timedelta(seconds=what), more)
                elif step == "read":
                    for _ in range(more):
                        reader.read(what)
                elif step == "wait":
                    writers.end_before(clock.now + timedelta(seconds=what - COMMIT_SECONDS))
                    clock.move(what)
                elif writers.open:
                    writers.end(what % len(writers.open), commit=step == "commit")
            while writers.open:
                writers.end(0)
            reader.read_all(2)
            assert reader.seen == Counter(writers.stored)
            clock.move(100)
            reader.read_all()
            assert reader.seen == Counter(writers.stored)

        check()


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_a_transaction_that_commits_late(
    database_url: URL, make_app: MakeApp, clock: Clock, limit: int
) -> None:
    """A reader sees a removal that began first and was committed last."""
    with make_app(database_url).app_context():
        writers, reader = Writers(get_runtime().engine()), Reader()
        writers.begin(clock.now, 3)
        for number in range(1, 6):
            writers.begin(clock.now + timedelta(seconds=number / 10), 2)
            writers.end(1)
            clock.move(0.1)
            reader.read(limit)
        reader.read_all(limit)
        assert len(reader.seen) == 10
        clock.move(COMMIT_SECONDS - 1)
        reader.read_all(limit)
        writers.end(0)
        reader.read_all(limit)
        assert reader.seen == Counter(writers.stored)
        assert len(reader.seen) == 13


def payload(app: Flask, cursor: str | None) -> list[Any]:
    """Return the content of a cursor."""
    made = URLSafeSerializer(app.config["SECRET_KEY"], salt="flask-imcallback-cursor")
    found: list[Any] = made.loads(cursor or "")
    return found


def test_an_old_cursor_is_short(make_app: MakeApp, clock: Clock) -> None:
    """A cursor remembers no ids below the high-water mark, in the middle or at the end."""
    app = make_app()
    with app.app_context():
        store_all(
            [
                make_delivery(("o", "t"), ("o", "u"), at=clock.now + timedelta(seconds=n / 10))
                for n in range(50)
            ]
        )
        clock.move(5)
        for limit in (7, 100):
            page = find(order="asc", limit=limit)
            assert payload(app, page.next_cursor or page.resume_cursor)[3]
        clock.move(10)
        for limit in (7, 100):
            page = find(order="asc", limit=limit)
            assert payload(app, page.next_cursor or page.resume_cursor)[3] == []
        reader = Reader()
        reader.read_all()
        clock.move(10)
        reader.read_all()
        assert set(reader.seen.values()) == {1}
        assert len(reader.seen) == 100


def test_a_cursor_forgets_old_ids(make_app: MakeApp, clock: Clock) -> None:
    """Each page, even an empty one, forgets the returned ids below the high-water mark."""
    app = make_app()
    with app.app_context():
        reader = Reader()
        sizes = []
        for second in range(30):
            if second < 15:
                store_all([make_delivery(("o", str(n)), at=clock.now) for n in range(2)])
            reader.read_all(3)
            sizes.append(sum(payload(app, reader.cursor)[3][1::2]))
            clock.move(1)
        assert max(sizes) < 15
        assert sizes[-1] == 0
        assert len(reader.seen) == sum(reader.seen.values()) == 30


@pytest.mark.parametrize(("limit", "removals"), [(20, 1), (1000, 1), (100, 3)])
def test_many_recent_removals(make_app: MakeApp, clock: Clock, limit: int, removals: int) -> None:
    """Pages get shorter when the cursor is full. Later, the reader sees all removals.

    The cursor always fits into a URL.
    """
    draw = random.Random(1)
    with make_app().app_context():
        moments = sorted(
            draw.sample(range(COMMIT_SECONDS * MICROSECONDS_PER_SECOND), MAX_RETURNED_RANGES * 3)
        )
        deliveries = [
            make_delivery(
                *(("o", str(n)) for n in range(removals)),
                at=clock.now + timedelta(microseconds=moment),
            )
            for moment in moments
        ]
        records = store_all(deliveries[::2])
        clock.move(COMMIT_SECONDS)
        reader = Reader()
        for _ in range(MAX_RETURNED_RANGES * removals // limit + 20):
            is_more = reader.read(limit)
        assert is_more
        assert MAX_RETURNED_RANGES <= len(reader.seen) <= MAX_RETURNED_RANGES * removals + 2
        clock.move(0.1)
        records += store_all(
            deliveries[1::2]
        )  # each has a smaller id than a removal that was returned
        for _ in range(9):
            clock.move(1)
            for _ in range(3):
                reader.read(limit)
        clock.move(9)
        reader.read_all(limit)
        assert reader.seen == Counter(record.id for record in records)
        assert reader.longest < 2500


def test_many_removals_of_a_clock_that_is_far_ahead(make_app: MakeApp, clock: Clock) -> None:
    """Removals that no cursor can hold wait for their time, and the reader is not kept busy."""
    with make_app().app_context():
        ahead = [
            clock.now + timedelta(hours=1, seconds=n) for n in range(MAX_RETURNED_RANGES + 100)
        ]
        records = store_all([make_delivery(("o", "t"), at=moment) for moment in ahead])
        reader = Reader()
        assert reader.read_all(100) < 9
        assert len(reader.seen) == MAX_RETURNED_RANGES
        records += store_all([make_delivery(("o", "now"), at=clock.now)])
        assert reader.read(100)  # the new removal waits until its id is below the high-water mark
        clock.move(10)
        assert reader.read_all(100) < 9
        assert reader.seen[records[-1].id] == 1
        clock.move(7200)
        reader.read_all(100)
        assert reader.seen == Counter(record.id for record in records)
        assert reader.longest < 2500


def test_returned_removals_are_skipped_together(make_app: MakeApp, clock: Clock) -> None:
    """Removals that were returned before cost few statements, however short the pages are."""
    with make_app().app_context():
        pairs = [("o", str(number)) for number in range(900)]
        store_all([make_delivery(*pairs, at=clock.now), make_delivery(("o", "last"), at=clock.now)])
        reader = Reader()
        reader.read(900)
        statements: list[str] = []
        engine = get_runtime().engine()

        def note(*arguments: Any) -> None:
            statements.append(arguments[2])

        event.listen(engine, "before_cursor_execute", note)
        assert reader.read_all(1) == 1
        event.remove(engine, "before_cursor_execute", note)
        assert len(reader.seen) == 901
        assert len(statements) < 5


@pytest.mark.parametrize("filters", [{}, {"owner_id": ["a", "b"]}, {"platform": "iOS"}])
def test_following_with_filters_and_limits(
    database_url: URL, make_app: MakeApp, clock: Clock, filters: dict[str, Any]
) -> None:
    """The limit may change between pages, and `until` may be past or among new removals."""
    with make_app(database_url).app_context():
        middle = clock.now + timedelta(seconds=2)
        readers = [Reader(**filters), Reader(**filters, until=middle), Reader(until=PAST)]
        for second in range(20):
            if second < 5:
                for owner, platform in (("a", "iOS"), ("b", "x"), ("c", "iOS")):
                    at = clock.now - timedelta(seconds=second % 3)
                    store_all([make_delivery((owner, str(second)), at=at, platform=platform)])
            for reader in readers:
                reader.read(1 + second % 3)
            clock.move(1)
        for reader in readers:
            reader.read_all(2)
            every = find(limit=1000, **reader.filters).data
            assert reader.seen == Counter(record.id for record in every)
        assert len(readers[0].seen) == (10 if filters else 15)
        assert 0 < len(readers[1].seen) < len(readers[0].seen)
        assert not readers[2].seen


def test_following_an_empty_history(database_url: URL, make_app: MakeApp, clock: Clock) -> None:
    """A page without removals has a cursor too, and continues with the first removal."""
    with make_app(database_url).app_context():
        readers = [
            Reader(),
            Reader(owner_id=["a", "b"]),
            Reader(platform="new"),
            Reader(owner_id=[]),
        ]
        for _ in range(2):
            assert [reader.read_all() for reader in readers] == [1] * 4
            clock.move(9)
        store_all([make_delivery(("a", "t"), at=clock.now, platform="new")])
        for reader in readers:
            reader.read_all()
        assert [len(reader.seen) for reader in readers] == [1, 1, 1, 0]


def cursor_for_later(response: Any) -> str | None:
    """Return the cursor of a last page for later."""
    return response.headers.get("Resume-Cursor")  # type: ignore[no-any-return]


@pytest.mark.parametrize("limit", [2, 100])
def test_following_over_http(make_app: MakeApp, clock: Clock, limit: int) -> None:
    """Only the last page in ascending order has a Resume-Cursor. It repeats no removal."""
    app = open_history(make_app)
    cursor: str | None = None
    seen: list[str] = []
    for number in range(6):
        with app.app_context():
            pairs = [("o", f"{number}.{n}") for n in range(3)]
            # Every other delivery is stored after a delivery that was received later.
            at = clock.now - timedelta(seconds=2 * (number % 2))
            store_all([make_delivery(*pairs, at=at)])
        while True:
            given = {"order": "asc", "limit": limit} | ({"cursor": cursor} if cursor else {})
            response = get(app, HISTORY, query_string=given)
            body = response.get_json()
            seen += [row["target_id"] for row in body["data"]]
            last = cursor_for_later(response)
            assert (last is None) == (body["next_cursor"] is not None)
            cursor = body["next_cursor"] or last
            if last:
                break
        clock.move(1)
    assert sorted(seen) == [f"{number}.{n}" for number in range(6) for n in range(3)]
    for order in ("desc", ""):
        given = {"order": order} if order else {}
        assert cursor_for_later(get(app, HISTORY, query_string=given)) is None


def test_following_rare_removals(make_app: MakeApp, clock: Clock) -> None:
    """A page that ends early because few entries match loses no recent removal."""
    filters = {
        "owner_id": ["o", *(f"nobody{number}" for number in range(99))],
        "target_id": ["t", "u"],
        "platform": "rare",
    }
    with make_app().app_context():
        reader, rare = Reader(**filters), 0
        for _ in range(2):
            deliveries = []
            for number in range(10):
                at = clock.now + timedelta(seconds=number / 20)
                platform = "rare" if number % 4 == 1 else "common"
                pairs = [("o", "t")] * (2 if platform == "rare" else 40)
                deliveries.append(make_delivery(*pairs, at=at, platform=platform))
                rare += 2 * (platform == "rare")
            store_all(deliveries[1::2])
            clock.move(1)
            reader.read(3)
            store_all(deliveries[::2])
            reader.read_all(3)
        clock.move(20)
        reader.read_all(3)
        assert set(reader.seen.values()) == {1}
        assert len(reader.seen) == rare


def test_a_clock_that_is_put_back(make_app: MakeApp, clock: Clock) -> None:
    """A clock that is put back a little repeats and loses no removal."""
    with make_app().app_context():
        for number in range(20):
            store_all([make_delivery(("o", str(number)), at=clock.now)])
            clock.move(1)
        reader = Reader()
        reader.read_all(3)
        clock.move(-4)
        for number in range(6):
            reader.read_all(3)
            store_all([make_delivery(("o", f"new{number}"), at=clock.now)])
            clock.move(1)
        clock.move(60)
        reader.read_all(3)
        assert reader.seen == Counter(record.id for record in find().data)
        assert len(reader.seen) == 26


def test_an_incomplete_page_says_when_to_retry(make_app: MakeApp, clock: Clock) -> None:
    """An empty page has Retry-After if more removals exist than the cursor can remember."""
    app = open_history(make_app)
    with app.app_context():
        moments = [
            clock.now + timedelta(microseconds=9 * n) for n in range(MAX_RETURNED_RANGES + 9)
        ]
        store_all([make_delivery(("o", "t"), at=moment) for moment in moments])
    clock.move(1)
    address = f"{HISTORY}?order=asc&limit=1000"
    answers = []
    for _ in range(2):
        answers.append(get(app, address))
        cursor = answers[-1].get_json()["next_cursor"]
        address = f"{HISTORY}?{urlencode({'order': 'asc', 'limit': 1000, 'cursor': cursor})}"
    assert [len(answer.get_json()["data"]) for answer in answers] == [MAX_RETURNED_RANGES, 0]
    assert [answer.headers.get("Retry-After") for answer in answers] == [None, "1"]


RECENT = 1_000
"""The high-water mark of these tests."""
FULL = [RECENT + 2 * number for number in range(MAX_RETURNED_RANGES)]
"""As many separate ids as a cursor can remember."""


@pytest.mark.parametrize(
    ("ids", "is_last", "count", "is_last_then", "mark"),
    [
        pytest.param([5, 7], False, 2, False, 7, id="old ids need no memory"),
        pytest.param([], True, 0, True, RECENT - 1, id="an empty last page moves to the mark"),
        pytest.param([5, *FULL], True, 401, True, RECENT - 1, id="a cursor can be full"),
        pytest.param([*FULL, 5_000], True, 400, False, RECENT - 1, id="the next page has the rest"),
        pytest.param([*FULL, 5_000, 6_000], False, 400, False, RECENT - 1, id="and so it goes on"),
    ],
)
def test_a_page_fits_its_cursor(
    ids: list[int], is_last: bool, count: int, is_last_then: bool, mark: int
) -> None:
    """A page returns as many removals as its cursor can remember."""
    page = fit_page(
        Position(-1),
        ids,
        is_last=is_last,
        last_read_id=max(ids, default=0),
        last_final_id=RECENT - 1,
        now_id=9_000,
    )
    assert (page.count, page.is_last, page.position.high_water_mark) == (count, is_last_then, mark)
    remembered = [removal_id for removal_id in ids[:count] if removal_id > mark]
    assert [page.position.has_returned(removal_id) for removal_id in remembered] == [
        True for _ in remembered
    ]


@pytest.mark.parametrize("now", [100_000, 4_000])
def test_a_full_cursor_returns_an_empty_page(now: int) -> None:
    """If the cursor is full, the page is empty. It is the last one if the ids are of the future."""
    start = Position(RECENT - 1, tuple((removal_id, removal_id) for removal_id in FULL))
    page = fit_page(
        start, [5_000], is_last=True, last_read_id=5_000, last_final_id=RECENT - 1, now_id=now
    )
    assert (page.count, page.is_last) == (0, now == 4_000)
    assert page.position == start


@pytest.mark.parametrize(
    ("returned", "mark", "ranges"),
    [
        ([4, 5, 6, 9], 3, ((4, 6), (9, 9))),
        ([4, 5, 6, 9], 5, ((6, 6), (9, 9))),
        ([], 20, ()),
        ([7], 0, ((3, 3), (7, 7))),
    ],
)
def test_a_position_advances(
    returned: list[int], mark: int, ranges: tuple[tuple[int, int], ...]
) -> None:
    """Ids become ranges, ids up to the mark are forgotten, and the mark never moves back."""
    position = Position(2, ((3, 3),)).advance(mark, returned)
    assert position == Position(max(2, mark), ranges)
