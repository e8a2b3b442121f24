"""Many deliveries share a transaction, and each is stored completely, once, and by its deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from flask import Flask
from sqlalchemy import URL, Engine, create_engine, event, text

from flask_imcallback import StorageError
from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage.entries import Entry
from flask_imcallback.storage.ids import id_at
from flask_imcallback.storage.writer import LARGE_BODY_BYTES, Writer
from support import faults, servers
from support.apps import MakeApp, end_connections, rows, wait_until
from support.deliveries import ANONYMOUS, DELIVERY, MOMENT, entry_of, make_entries, write

HOLD_SECONDS = 30
"""Time after which a thread that a test blocks goes on by itself."""


def count_commits(app: Flask) -> Callable[[], int]:
    """Return a function that counts the commits from now on.

    The first delivery of a source needs a second transaction, so this function stores one before.
    """
    write(app, entry_of(app, replace(ANONYMOUS, received_at=MOMENT - timedelta(days=1))))
    commits: list[object] = []
    with app.app_context():
        event.listen(writing_engine(), "commit", commits.append)
    return lambda: len(commits)


def writing_engine() -> Engine:
    """Return the engine of the writer thread in the current app."""
    return get_runtime().process.get().engines.writing()


def new_writer(app: Flask) -> Writer:
    with app.app_context():
        return Writer(writing_engine, retry_until_deadline=False)


def test_deliveries_that_wait_share_a_transaction(database_url: URL, make_app: MakeApp) -> None:
    """A single delivery has one commit. Many parallel deliveries have fewer than one each."""
    app = make_app(database_url)
    commits = count_commits(app)
    write(app, *make_entries(app, 1))
    assert commits() == 1
    writer = new_writer(app)
    entries = make_entries(app, 300)[100:]

    def store(entry: Entry) -> None:
        with app.app_context():
            writer.write([entry], 30)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(store, entries))
    assert [entry.error for entry in entries] == [None] * 200
    assert len(rows(app)[0]) == 202
    assert commits() < 150


def test_one_bad_delivery_does_not_harm_the_others(database_url: URL, make_app: MakeApp) -> None:
    """The other deliveries of the transaction are stored. Only the bad delivery has an error."""
    app = make_app(database_url)
    entries = make_entries(app, 9)
    entries[4].row["provider"] = None
    write(app, *entries)
    assert [entry.error is None for entry in entries] == [True] * 4 + [False] + [True] * 4
    deliveries, removals = rows(app)
    assert [row["id"] for row in deliveries] == [
        entry.row["id"] for entry in entries if not entry.error
    ]
    assert len(removals) == 16


def test_a_repetition_in_the_same_transaction(database_url: URL, make_app: MakeApp) -> None:
    """Two arrivals of one callback that share a transaction are still one callback."""
    app = make_app(database_url)
    moments = (MOMENT, MOMENT + timedelta(milliseconds=1))
    first, second = (entry_of(app, replace(DELIVERY, received_at=moment)) for moment in moments)
    write(app, first, second, *make_entries(app, 9)[2:])
    deliveries, removals = rows(app)
    assert [row["status"] for row in deliveries[:2]] == ["recorded", "duplicate"]
    assert deliveries[1]["duplicate_of"] == first.row["id"]
    assert len(removals) == 16
    assert not second.removals


def test_a_stored_entry_is_not_stored_again(database_url: URL, make_app: MakeApp) -> None:
    """A retry after a commit with an unknown outcome recognizes its own rows by their nonce."""
    app = make_app(database_url)
    entries = [entry_of(app, DELIVERY), *make_entries(app, 5)[1:]]
    write(app, *entries)
    repetition = entry_of(app, replace(DELIVERY, received_at=MOMENT + timedelta(hours=1)))
    write(app, repetition.copy())
    retries = [entry.copy() for entry in (*entries, repetition)]
    write(app, *retries)
    assert [entry.error for entry in retries] == [None] * 6
    assert [len(entry.records()) for entry in retries] == [2] * 5 + [0]
    expected_ids = [entry.row["id"] for entry in (*entries, repetition)]
    assert [entry.row["id"] for entry in retries] == expected_ids
    deliveries, removals = rows(app)
    assert (len(deliveries), len(removals)) == (6, 10)


def test_a_moved_entry_is_not_stored_again(database_url: URL, make_app: MakeApp) -> None:
    """A copy that still has the old id is recognized, although that id is taken."""
    app = make_app(database_url)
    first = entry_of(app, ANONYMOUS)
    moved = Entry(first.row | {"nonce": b"another delivery"}, first.removals)
    copy = moved.copy()
    write(app, first)
    write(app, moved)
    write(app, copy)
    assert copy.error is None
    assert copy.row["id"] == moved.row["id"] != first.row["id"]
    deliveries, removals = rows(app)
    assert (len(deliveries), len(removals)) == (2, 4)


def test_a_delivery_moves_if_its_id_is_taken(database_url: URL, make_app: MakeApp) -> None:
    """Another process used the same microsecond, so the delivery gets an id a moment later."""
    app = make_app(database_url)
    first = entry_of(app, ANONYMOUS)
    second = Entry(first.row | {"nonce": b"another delivery"}, first.removals)
    write(app, first)
    write(app, second)
    assert id_at(MOMENT) < second.row["id"] < id_at(MOMENT + timedelta(seconds=1))
    deliveries, removals = rows(app)
    assert [row["nonce"] for row in deliveries] == [first.row["nonce"], b"another delivery"]
    assert [row["delivery_id"] for row in removals] == [id_at(MOMENT)] * 2 + [second.row["id"]] * 2
    assert removals[3]["id"] == second.row["id"] + 1


def test_a_large_body_has_its_own_transaction(make_app: MakeApp) -> None:
    """If a database refuses a large body, the other deliveries are not affected."""
    app = make_app()
    commits = count_commits(app)
    large = entry_of(app, replace(ANONYMOUS, body=b" " * LARGE_BODY_BYTES))
    write(app, *make_entries(app, 9)[1:], large)
    assert commits() == 2
    assert len(rows(app)[0]) == 10


def lock_table(url: URL) -> Callable[[], None]:
    """Lock the table of deliveries. Returns a function that unlocks it."""
    engine = create_engine(url)
    connection = engine.connect()
    if url.get_backend_name() == "sqlite":
        connection.exec_driver_sql("BEGIN EXCLUSIVE")
    elif url.get_backend_name() == "postgresql":
        connection.execute(text("LOCK TABLE imcallback_delivery IN ACCESS EXCLUSIVE MODE"))
    else:
        connection.execute(text("LOCK TABLES imcallback_delivery WRITE"))

    def unlock() -> None:
        connection.invalidate()
        connection.close()
        engine.dispose()

    return unlock


def test_the_deadline_holds_while_the_database_hangs(database_url: URL, make_app: MakeApp) -> None:
    """Each delivery gives up at its deadline, and later deliveries are stored without a delay."""
    app = make_app(database_url)
    writer = new_writer(app)
    unlock = lock_table(database_url)
    entries = make_entries(app, 3)
    for entry in entries:
        began = time.monotonic()
        with app.app_context():
            writer.write([entry], 0.3)
        assert isinstance(entry.error, StorageError)
        assert str(entry.error) == "the database did not store the delivery within 0.3 seconds"
        assert 0.3 <= time.monotonic() - began < 5
    unlock()
    retries = [entry.copy() for entry in entries]
    with app.app_context():
        writer.write(retries, 30)
    assert [entry.error for entry in retries] == [None] * 3
    deliveries, removals = rows(app)
    assert (len(deliveries), len(removals)) == (3, 6)


def writer_threads() -> int:
    return sum(thread.name == "imcallback-writer" for thread in threading.enumerate())


@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
def test_a_connection_that_hangs_blocks_no_thread(
    database: str, request: pytest.FixtureRequest, make_app: MakeApp
) -> None:
    """While the network delivers nothing, the number of writer threads does not grow."""
    server = request.getfixturevalue("database_servers")[database]
    with servers.database(server) as url, faults.proxy(url.port or 0) as proxy:
        app = make_app(url.set(port=proxy.port))
        writer = new_writer(app)
        first, *entries = make_entries(app, 5)
        with app.app_context():
            writer.write([first], 30)
            before = writer_threads()
            with proxy.holding():
                # One connection is open. A new connection would wait for the server's greeting.
                writer.write(entries[:1], 0.3)
                time.sleep(0.2)
                assert writer_threads() <= before
            writer.write(entries[1:], 30)
        assert [entry.error is None for entry in entries] == [False, True, True, True]


def test_a_blocked_thread_is_replaced(
    database_servers: dict[str, servers.Server], make_app: MakeApp
) -> None:
    """Deliveries that wait behind the blocked thread are stored by a new one."""
    is_released = threading.Event()
    with servers.database(database_servers["postgresql"]) as url:
        app = make_app(url)
        entries = make_entries(app, 3)
        with app.app_context():
            host = get_runtime().process.get().engines.host()
            writing_engine().dispose()
        writer = new_writer(app)

        def hang(*_: Any) -> None:
            event.remove(host, "do_connect", hang)
            is_released.wait(HOLD_SECONDS)

        def store(entry: Entry, seconds: float) -> float:
            began = time.monotonic()
            with app.app_context():
                writer.write([entry], seconds)
            return time.monotonic() - began

        event.listen(host, "do_connect", hang)
        with ThreadPoolExecutor(2) as pool:
            hanging = pool.submit(store, entries[0], 0.5)
            time.sleep(0.2)
            behind = pool.submit(store, entries[1], 20)
            assert hanging.result() < 1.5
            assert behind.result() < 5
        assert store(entries[2], 20) < 5
        assert [entry.error is None for entry in entries] == [False, True, True]
        threads = writer_threads()
        is_released.set()
        wait_until(lambda: writer_threads() < threads)


@pytest.mark.parametrize(("retry_until_deadline", "attempts"), [(True, 4), (False, 2)])
def test_a_refused_connection_is_retried(
    retry_until_deadline: bool,
    attempts: int,
    database_servers: dict[str, servers.Server],
    make_app: MakeApp,
) -> None:
    """A writer retries until the deadline without a spool, and only once with a spool."""
    with servers.database(database_servers["postgresql"]) as url:
        app = make_app(url)
        (entry,) = make_entries(app, 1)
        with app.app_context():
            host = get_runtime().process.get().engines.host()
            writing_engine().dispose()
        connections: list[None] = []

        def refuse(*_: Any) -> None:
            connections.append(None)
            if len(connections) < 4:
                raise psycopg.OperationalError("connection refused")

        event.listen(host, "do_connect", refuse)
        write(app, entry, retry_until_deadline=retry_until_deadline)
        assert (entry.error is None) == retry_until_deadline
        assert len(connections) == attempts


def test_an_abandoned_entry_keeps_its_id(make_app: MakeApp) -> None:
    """The spool holds the abandoned entry under its last id, so the writer must not change it."""
    app = make_app()
    first, second = entry_of(app, ANONYMOUS), entry_of(app, ANONYMOUS)
    second.assign_id(first.row["id"])
    write(app, first)
    with app.app_context():
        engine = writing_engine()

    def abandon(*_: Any) -> None:
        second.is_abandoned = True

    event.listen(engine, "rollback", abandon)
    write(app, second, seconds=1)
    assert second.row["id"] == first.row["id"]
    assert len(rows(app)[0]) == 1


@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
def test_lost_connections_are_replaced(
    database: str, request: pytest.FixtureRequest, make_app: MakeApp
) -> None:
    """The server closes all pooled connections, as a restart does, and no delivery fails."""
    server = request.getfixturevalue("database_servers")[database]
    with servers.database(server) as url:
        app = make_app(url)
        for entry in make_entries(app, 3):
            end_connections(app)
            write(app, entry)
            assert entry.error is None
        assert len(rows(app)[0]) == 3


def test_an_idle_writer_keeps_no_thread(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """Apps that nobody uses any more keep no threads. The next delivery starts another one."""
    monkeypatch.setattr("flask_imcallback.storage.writer.MAX_IDLE_SECONDS", 0.1)
    app = make_app()
    writer = new_writer(app)
    entries = make_entries(app, 2)
    with app.app_context():
        writer.write(entries[:1], 30)
        wait_until(lambda: writer._worker is None)
        writer.write(entries[1:], 30)
    assert [entry.error for entry in entries] == [None, None]


def test_a_deleted_database_file_is_noticed(tmp_path: Path, make_app: MakeApp) -> None:
    """A row in a deleted SQLite file would be lost with the process, so the write must fail."""
    path = tmp_path / "test.db"
    app = make_app(URL.create("sqlite", database=str(path)))
    first, second = make_entries(app, 2)
    write(app, first)
    for file in tmp_path.glob("test.db*"):
        file.unlink()
    write(app, second)
    assert second.error is not None
    assert "no such table" in str(second.error)


def test_a_row_in_a_deleted_database_file_is_not_stored(tmp_path: Path, make_app: MakeApp) -> None:
    """Two processes still have the deleted file open. The row that one of them has written there
    is not a stored row for the other one."""
    url = URL.create("sqlite", database=str(tmp_path / "test.db"))
    one, other = make_app(url), make_app(url)
    first, second, third = make_entries(one, 3)
    write(one, first)
    write(other, second)
    for file in tmp_path.glob("test.db*"):
        file.unlink()
    for app in (one, other):
        entry = third.copy()
        write(app, entry)
        assert "no such table" in str(entry.error)


FAIL = {
    "postgresql": """CREATE SEQUENCE tries;;
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF nextval('tries') = 1 THEN RAISE EXCEPTION 'on purpose' USING ERRCODE = '{code}'; END IF;
    RETURN NEW;
END $$;;
CREATE TRIGGER fail BEFORE INSERT ON imcallback_delivery FOR EACH ROW EXECUTE FUNCTION fail()""",
    "mariadb": """CREATE SEQUENCE tries;;
CREATE TRIGGER fail BEFORE INSERT ON imcallback_delivery FOR EACH ROW
    IF nextval(tries) = 1 THEN
        SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {code}, MESSAGE_TEXT = 'on purpose';
    END IF""",
}
"""Triggers that make the first INSERT fail. A sequence also counts in rolled-back transactions."""


@pytest.mark.parametrize(
    ("database", "code", "is_retried"),
    [
        *(("postgresql", code, True) for code in ("40001", "40P01", "57P01", "25006", "08006")),
        *(("postgresql", code, False) for code in ("53100", "42501", "XX000", "P0001")),
        *(("mariadb", code, True) for code in (1213, 1047, 1180, 1290, 2013, 2006)),
        *(("mariadb", code, False) for code in (1114, 1205, 1142)),
    ],
)
def test_a_transaction_that_may_succeed_is_retried(
    database: str,
    code: str | int,
    is_retried: bool,
    request: pytest.FixtureRequest,
    make_app: MakeApp,
) -> None:
    """The writer retries after the error codes of conflicts and lost servers, and no others."""
    server = request.getfixturevalue("database_servers")[database]
    with servers.database(server) as url:
        app = make_app(url)
        with app.app_context(), get_runtime().engine().begin() as connection:
            for statement in FAIL[database].format(code=code).split(";;"):
                connection.exec_driver_sql(statement)
        (entry,) = make_entries(app, 1)
        write(app, entry)
        assert (entry.error is None) == is_retried
        assert len(rows(app)[1]) == (2 if is_retried else 0)
        sql = "SELECT nextval('tries')" if database == "postgresql" else "SELECT nextval(tries)"
        with app.app_context(), get_runtime().engine().connect() as connection:
            assert connection.exec_driver_sql(sql).scalar_one() == (3 if is_retried else 2)
