"""A request writes by itself while the database is well, and keeps its deadline."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from itertools import count
from typing import Any

import pytest
from flask import Flask
from pymysql.cursors import Cursor  # type: ignore[import-untyped]
from sqlalchemy import URL, event

from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage import direct_writer
from support import faults, servers
from support.apps import MakeApp, end_connections, rows, wait_until
from support.deliveries import ANONYMOUS, DELIVERY, MOMENT

MINUTE = timedelta(minutes=1)

warm_up_numbers = count(1)


def record(app: Flask, number: int, **changes: Any) -> bool:
    """Record a delivery. Returns whether the database has it, and not the spool."""
    delivery = replace(ANONYMOUS, received_at=MOMENT + number * MINUTE, **changes)
    with app.app_context():
        return get_runtime().recorder.record(delivery) is not None


@contextmanager
def commits_of_the_writer_thread(app: Flask) -> Iterator[list[str]]:
    """Yield a list that gets the name of the thread for each commit of the writer thread."""
    names: list[str] = []

    def note(_: object) -> None:
        names.append(threading.current_thread().name)

    with app.app_context():
        engine = get_runtime().process.get().engines.writing()
    event.listen(engine, "commit", note)
    yield names
    event.remove(engine, "commit", note)


def warm_up(app: Flask) -> None:
    """Store a delivery, and wait until the next request may write."""
    wait_until(lambda: record(app, -next(warm_up_numbers)))  # a busy machine needs the spool
    with app.app_context():
        writer = get_runtime().recorder._direct_writer
    wait_until(lambda: writer._connection is not None)
    assert record(app, -next(warm_up_numbers))  # adds the sources to the cache of the connection


def test_a_request_writes_by_itself(database_url: URL, make_app: MakeApp) -> None:
    """After the first delivery, the thread of the request writes, in one transaction."""
    app = make_app(database_url)
    with commits_of_the_writer_thread(app) as names:
        assert record(app, 0)
    assert set(names) == {"imcallback-writer"}
    warm_up(app)
    with commits_of_the_writer_thread(app) as names:
        assert record(app, 1)
        assert record(app, 2)
    assert names == []
    deliveries, removals = rows(app)
    assert (len(deliveries), len(removals)) == (5, 10)


def test_a_large_delivery_is_left_to_the_writer_thread(make_app: MakeApp) -> None:
    """A request does not hold up others with a delivery that needs long."""
    app = make_app()
    warm_up(app)
    with commits_of_the_writer_thread(app) as names:
        assert record(app, 0, body=b" " * 1024 * direct_writer.MAX_ENTRY_ROWS)
    assert names == ["imcallback-writer"]


def test_a_repetition_is_recognized(database_url: URL, make_app: MakeApp) -> None:
    """A direct write that finds its fingerprint taken is repeated by the writer thread."""
    app = make_app(database_url)
    warm_up(app)
    for number in range(2):
        delivery = replace(DELIVERY, received_at=MOMENT + number * MINUTE)
        with app.app_context():
            assert get_runtime().recorder.record(delivery)
    assert sorted(row["status"] for row in rows(app)[0]) == ["duplicate", *["recorded"] * 3]


def test_requests_that_write_at_once_lose_nothing(database_url: URL, make_app: MakeApp) -> None:
    """Direct writes and the writer thread share the database. Each delivery is stored once."""
    app = make_app(database_url)
    warm_up(app)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda number: record(app, number), range(200)))
    assert results == [True] * 200
    deliveries, removals = rows(app)
    assert (len(deliveries), len(removals)) == (202, 404)


@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
def test_the_deadline_holds_while_the_network_hangs(
    database: str, request: pytest.FixtureRequest, make_app: MakeApp
) -> None:
    """The watchdog interrupts the driver, and the delivery waits in the spool."""
    server = request.getfixturevalue("database_servers")[database]
    with servers.database(server) as url, faults.proxy(url.port or 0) as proxy:
        app = make_app(url.set(port=proxy.port), IMCALLBACK_DEADLINE=0.5)
        warm_up(app)
        with proxy.holding():
            began = time.monotonic()
            with commits_of_the_writer_thread(app) as names:
                assert not record(app, 0)
            assert 0.5 <= time.monotonic() - began < 3
            assert names == []
        wait_until(lambda: len(rows(app)[0]) == 3)
        assert len(rows(app)[1]) == 6


def test_a_lock_of_another_program_does_not_block_the_request(make_app: MakeApp) -> None:
    """SQLite's own wait for a lock ignores interrupts, so a direct write does not wait for it."""
    app = make_app(IMCALLBACK_DEADLINE=0.5)
    warm_up(app)
    with app.app_context():
        path = get_runtime().engine().url.database or ""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    assert not record(app, 0)
    assert 0.5 <= time.monotonic() - began < 3
    other.execute("ROLLBACK")
    wait_until(lambda: len(rows(app)[0]) == 3)


@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
def test_a_lost_connection_is_replaced(
    database: str, request: pytest.FixtureRequest, make_app: MakeApp
) -> None:
    """After an error, the writer thread stores deliveries. Direct writes begin again later."""
    server = request.getfixturevalue("database_servers")[database]
    with servers.database(server) as url:
        app = make_app(url)
        warm_up(app)
        end_connections(app)
        with commits_of_the_writer_thread(app) as names:
            assert record(app, 0)
            assert record(app, 1)
        assert set(names) == {"imcallback-writer"}
        with app.app_context():
            get_runtime().recorder._direct_writer._paused_until = 0
        warm_up(app)
        with commits_of_the_writer_thread(app) as names:
            assert record(app, 2)
        assert names == []
        assert len(rows(app)[0]) == 7


def test_an_idle_connection_is_replaced(database_url: URL, make_app: MakeApp) -> None:
    """A firewall may have dropped an idle connection, so the writer thread opens another one."""
    app = make_app(database_url)
    warm_up(app)
    with app.app_context():
        writer = get_runtime().recorder._direct_writer
    first = writer._connection
    writer._used_at -= direct_writer.MAX_IDLE_SECONDS + 1
    with commits_of_the_writer_thread(app) as names:
        assert record(app, 0)
    assert names == ["imcallback-writer"]
    wait_until(lambda: writer._connection not in (None, first))


@pytest.mark.slow
def test_the_watchdog_ends(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that receives nothing has no watchdog thread."""

    def watchdogs() -> int:
        return sum(thread.name == "imcallback-watchdog" for thread in threading.enumerate())

    wait_until(lambda: not watchdogs())
    monkeypatch.setattr(direct_writer, "PAUSE_SECONDS", 0.2)
    app = make_app()
    warm_up(app)
    assert watchdogs() == 1
    wait_until(lambda: not watchdogs())
    assert record(app, 0)
    assert watchdogs() == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_closes_the_connection(make_app: MakeApp) -> None:
    """SQLite must not be open during a fork. The parent opens the file again at its next write."""
    app = make_app()
    warm_up(app)
    with app.app_context():
        writer = get_runtime().recorder._direct_writer
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    assert writer._connection is None
    warm_up(app)
    assert len(rows(app)[0]) == 4


class TimeLimitError(BaseException):
    """An error like `gevent.Timeout`, which is no `Exception`."""


class LimitedCursor(Cursor):  # type: ignore[misc]
    """A cursor of a host whose time limit ends a request before a statement."""

    limited_statement = ""

    def execute(self, query: str, args: Any = None) -> Any:
        if LimitedCursor.limited_statement and LimitedCursor.limited_statement in query:
            LimitedCursor.limited_statement = ""
            raise TimeLimitError
        return super().execute(query, args)


def limit_cursors(driver: Any, _: object) -> None:
    driver.cursorclass = LimitedCursor


@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)
def test_a_time_limit_of_the_host_stores_no_half_delivery(
    database_url: URL, make_app: MakeApp
) -> None:
    """The limit ends a request between two statements. Its repetition is stored completely."""
    app = make_app(database_url)
    with app.app_context():
        event.listen(get_runtime().process.get().engines.direct(), "connect", limit_cursors)
    warm_up(app)
    with app.app_context():
        recorder = get_runtime().recorder
        LimitedCursor.limited_statement = "imcallback_inbox"
        with pytest.raises(TimeLimitError):
            recorder.record(DELIVERY)
        assert record(app, 1)
        assert recorder.record(DELIVERY)
    deliveries, removals = rows(app)
    assert [row["status"] for row in deliveries] == ["recorded"] * len(deliveries)
    assert len(removals) == 2 * len(deliveries) == 8
