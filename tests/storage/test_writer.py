"""Many deliveries in one transaction, each whole, once, and by its deadline."""

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
from sqlalchemy import URL, create_engine, event, text

from flask_imcallback import StorageError
from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage.entries import Entry
from flask_imcallback.storage.ids import id_at
from flask_imcallback.storage.writer import LARGE, Writer
from support import faults, servers
from support.apps import MakeApp, rows, until
from support.deliveries import ANONYMOUS, DELIVERY, MOMENT, entries_of, entry_of, write


def count_commits(app: Flask) -> Callable[[], int]:
    """After a delivery from the same source, which the first one adds in a transaction before."""
    write(app, entry_of(app, replace(ANONYMOUS, received_at=MOMENT - timedelta(days=1))))
    commits: list[object] = []
    with app.app_context():
        event.listen(get_runtime().engine(), "commit", commits.append)
    return lambda: len(commits)


def test_what_waits_shares_a_transaction(database_url: URL, make_app: MakeApp) -> None:
    """Alone a delivery has one at once; many at once have fewer than one each."""
    app = make_app(database_url)
    commits = count_commits(app)
    write(app, *entries_of(app, 1))
    assert commits() == 1
    with app.app_context():
        writer = Writer(get_runtime().engine, patient=False)
    entries = entries_of(app, 300)[100:]

    def store(entry: Entry) -> None:
        with app.app_context():
            writer.write([entry], 30)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(store, entries))
    assert [entry.error for entry in entries] == [None] * 200
    assert len(rows(app)[0]) == 202
    assert commits() < 150


def test_one_bad_delivery_harms_no_other(database_url: URL, make_app: MakeApp) -> None:
    """Those of its transaction are stored, each whole; it alone has an error."""
    app = make_app(database_url)
    entries = entries_of(app, 9)
    entries[4].row["provider"] = None
    write(app, *entries)
    assert [entry.error is None for entry in entries] == [True] * 4 + [False] + [True] * 4
    deliveries, removals = rows(app)
    assert [row["id"] for row in deliveries] == [e.row["id"] for e in entries if not e.error]
    assert len(removals) == 16


def test_a_repetition_in_the_same_transaction(database_url: URL, make_app: MakeApp) -> None:
    """Two arrivals of one callback that are written together are still one callback."""
    app = make_app(database_url)
    moments = (MOMENT, MOMENT + timedelta(milliseconds=1))
    first, second = (entry_of(app, replace(DELIVERY, received_at=moment)) for moment in moments)
    write(app, first, second, *entries_of(app, 9)[2:])
    deliveries, removals = rows(app)
    assert [row["status"] for row in deliveries[:2]] == ["recorded", "duplicate"]
    assert deliveries[1]["duplicate_of"] == first.row["id"]
    assert len(removals) == 16
    assert not second.removals


def test_what_was_stored_before_is_not_stored_again(database_url: URL, make_app: MakeApp) -> None:
    """As after a commit whose outcome nobody learnt, with and without a fingerprint."""
    app = make_app(database_url)
    entries = [entry_of(app, DELIVERY), *entries_of(app, 5)[1:]]
    write(app, *entries)
    repeated = entry_of(app, replace(DELIVERY, received_at=MOMENT + timedelta(hours=1)))
    write(app, Entry(repeated.row, repeated.removals))
    again = [Entry(entry.row, entry.removals) for entry in (*entries, repeated)]
    write(app, *again)
    assert [entry.error for entry in again] == [None] * 6
    assert [len(entry.records()) for entry in again] == [2] * 5 + [0]
    assert [e.row["id"] for e in again] == [e.row["id"] for e in (*entries, repeated)]
    deliveries, removals = rows(app)
    assert (len(deliveries), len(removals)) == (6, 10)


def test_another_delivery_with_that_id_moves(database_url: URL, make_app: MakeApp) -> None:
    """It was made by another process in the same microsecond; a moment later it is free."""
    app = make_app(database_url)
    first = entry_of(app, ANONYMOUS)
    row = first.row | {"nonce": b"another delivery"}
    second = Entry(row, first.removals)
    write(app, first)
    write(app, second)
    assert id_at(MOMENT) < second.row["id"] < id_at(MOMENT + timedelta(seconds=1))
    deliveries, removals = rows(app)
    assert [row["nonce"] for row in deliveries] == [first.row["nonce"], b"another delivery"]
    assert [row["delivery_id"] for row in removals] == [id_at(MOMENT)] * 2 + [second.row["id"]] * 2
    assert removals[3]["id"] == second.row["id"] + 1


def test_a_large_body_has_a_transaction_of_its_own(make_app: MakeApp) -> None:
    """What a database finds too large takes none of its neighbours along."""
    app = make_app()
    commits = count_commits(app)
    large = entry_of(app, replace(ANONYMOUS, body=b" " * LARGE))
    write(app, *entries_of(app, 9)[1:], large)
    assert commits() == 2
    assert len(rows(app)[0]) == 10


def lock_table(url: URL) -> Callable[[], None]:
    """Keep everyone out of the deliveries, until what is returned is called."""
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


def test_a_database_that_hangs_is_given_up(database_url: URL, make_app: MakeApp) -> None:
    """By the deadline, again and again; as soon as it goes on, so do we."""
    app = make_app(database_url)
    with app.app_context():
        writer = Writer(get_runtime().engine, patient=False)
    unlock = lock_table(database_url)
    entries = entries_of(app, 3)
    for entry in entries:
        began = time.monotonic()
        with app.app_context():
            writer.write([entry], 0.3)
        assert isinstance(entry.error, StorageError)
        assert 0.3 <= time.monotonic() - began < 1
    unlock()
    again = [Entry(entry.row, entry.removals) for entry in entries]
    with app.app_context():
        writer.write(again, 30)
    assert [entry.error for entry in again] == [None] * 3
    deliveries, removals = rows(app)
    assert (len(deliveries), len(removals)) == (3, 6)


def writer_threads() -> int:
    return sum(thread.name == "imcallback-writer" for thread in threading.enumerate())


@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
def test_a_connection_that_hangs_keeps_no_thread(
    database: str, request: pytest.FixtureRequest, make_app: MakeApp
) -> None:
    """In a network that swallows all, as long as that lasts, threads do not become more."""
    server = request.getfixturevalue("database_servers")[database]
    with servers.database(server) as url, faults.proxy(url.port or 0) as proxy:
        app = make_app(url.set(port=proxy.port))
        with app.app_context():
            writer = Writer(get_runtime().engine, patient=False)
        first, *entries = entries_of(app, 5)
        with app.app_context():
            writer.write([first], 30)
            before = writer_threads()
            with proxy.holding():
                # One connection is open; what connects anew waits for the server's greeting.
                writer.write(entries[:1], 0.3)
                time.sleep(0.2)
                assert writer_threads() <= before
            writer.write(entries[1:], 30)
        assert [entry.error is None for entry in entries] == [False, True, True, True]


def test_a_thread_that_nothing_frees_is_left(
    database_servers: dict[str, servers.Server], make_app: MakeApp
) -> None:
    """Those that wait behind it are stored by another, as soon as it is given up."""
    free = threading.Event()
    with servers.database(database_servers["postgresql"]) as url:
        app = make_app(url)
        entries = entries_of(app, 3)
        with app.app_context():
            engine = get_runtime().engine()
            engine.dispose()
            writer = Writer(get_runtime().engine, patient=False)

        def hang(*_: Any) -> None:
            event.remove(engine, "do_connect", hang)
            free.wait(30)

        def store(entry: Entry, seconds: float) -> float:
            began = time.monotonic()
            with app.app_context():
                writer.write([entry], seconds)
            return time.monotonic() - began

        event.listen(engine, "do_connect", hang)
        with ThreadPoolExecutor(2) as pool:
            hanging = pool.submit(store, entries[0], 0.5)
            time.sleep(0.2)
            behind = pool.submit(store, entries[1], 20)
            assert hanging.result() < 1.5
            assert behind.result() < 5
        assert store(entries[2], 20) < 5
        assert [entry.error is None for entry in entries] == [False, True, True]
        threads = writer_threads()
        free.set()
        until(lambda: writer_threads() < threads)


@pytest.mark.parametrize(("patient", "tries"), [(True, 4), (False, 2)])
def test_who_has_no_spool_is_patient(
    patient: bool, tries: int, database_servers: dict[str, servers.Server], make_app: MakeApp
) -> None:
    """A server that refuses connections is tried until the deadline, or once more."""
    with servers.database(database_servers["postgresql"]) as url:
        app = make_app(url)
        (entry,) = entries_of(app, 1)
        with app.app_context():
            engine = get_runtime().engine()
        engine.dispose()
        made: list[None] = []

        def refuse(*_: Any) -> None:
            made.append(None)
            if len(made) < 4:
                raise psycopg.OperationalError("connection refused")

        event.listen(engine, "do_connect", refuse)
        write(app, entry, patient=patient)
        assert (entry.error is None) == patient
        assert len(made) == tries


def test_one_that_nobody_waits_for_takes_no_other_id(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits in a spool as it was when it was given up, and must be found by that id."""
    app = make_app()
    first, second = entry_of(app, ANONYMOUS), entry_of(app, ANONYMOUS)
    second.move(first.row["id"])
    write(app, first)
    with app.app_context():
        engine = get_runtime().engine()

    def give_up(*_: Any) -> None:
        second.is_abandoned = True

    event.listen(engine, "rollback", give_up)
    write(app, second, seconds=1)
    assert second.row["id"] == first.row["id"]
    assert len(rows(app)[0]) == 1


def end_connections(app: Flask) -> None:
    """Have the server close all connections of the app's pool."""
    with app.app_context():
        engine = get_runtime().engine()
        with create_engine(engine.url).connect() as connection:
            if engine.dialect.name == "postgresql":
                others = "pid <> pg_backend_pid() AND datname = current_database()"
                kill = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"
                connection.execute(text(kill)).all()
            else:
                others = "db = DATABASE() AND id <> CONNECTION_ID()"
                ids = f"SELECT id FROM information_schema.processlist WHERE {others}"
                for number in connection.scalars(text(ids)).all():
                    connection.execute(text(f"KILL {number}"))
            connection.invalidate()


@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
def test_a_lost_connection_is_made_anew(
    database: str, request: pytest.FixtureRequest, make_app: MakeApp
) -> None:
    """The server closed those of the pool, as one that was restarted did; nothing fails."""
    server = request.getfixturevalue("database_servers")[database]
    with servers.database(server) as url:
        app = make_app(url)
        for entry in entries_of(app, 3):
            end_connections(app)
            write(app, entry)
            assert entry.error is None
        assert len(rows(app)[0]) == 3


def test_a_deleted_file_is_noticed(tmp_path: Path, make_app: MakeApp) -> None:
    """What is written to a SQLite file without a name would be gone with the process."""
    path = tmp_path / "test.db"
    app = make_app(URL.create("sqlite", database=str(path)))
    first, second = entries_of(app, 2)
    write(app, first)
    for file in tmp_path.glob("test.db*"):
        file.unlink()
    write(app, second)
    assert second.error is not None
    assert "no such table" in str(second.error)


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
"""The first row that is inserted fails; a sequence counts on in what is rolled back."""


@pytest.mark.parametrize(
    ("database", "code", "is_tried_again"),
    [
        *(("postgresql", code, True) for code in ("40001", "40P01", "57P01", "25006", "08006")),
        *(("postgresql", code, False) for code in ("53100", "42501", "XX000", "P0001")),
        *(("mariadb", code, True) for code in (1213, 1047, 1180, 1290, 2013, 2006)),
        *(("mariadb", code, False) for code in (1114, 1205, 1142)),
    ],
)
def test_what_may_pass_is_tried_again(
    database: str,
    code: str | int,
    is_tried_again: bool,
    request: pytest.FixtureRequest,
    make_app: MakeApp,
) -> None:
    """The transaction as a whole, on the codes of conflicts and lost servers, and on no other."""
    server = request.getfixturevalue("database_servers")[database]
    with servers.database(server) as url:
        app = make_app(url)
        with app.app_context(), get_runtime().engine().begin() as connection:
            for statement in FAIL[database].format(code=code).split(";;"):
                connection.exec_driver_sql(statement)
        (entry,) = entries_of(app, 1)
        write(app, entry)
        assert (entry.error is None) == is_tried_again
        assert len(rows(app)[1]) == (2 if is_tried_again else 0)
        sql = "SELECT nextval('tries')" if database == "postgresql" else "SELECT nextval(tries)"
        with app.app_context(), get_runtime().engine().connect() as connection:
            assert connection.exec_driver_sql(sql).scalar_one() == (3 if is_tried_again else 2)
