"""Callbacks wait in the spool while the database is down, and none is lost or stored twice."""

from __future__ import annotations

import logging
import math
import re
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import URL

from flask_imcallback import (
    Cause,
    Record,
    Relation,
    Removal,
    StorageError,
    removals_recorded,
    upgrade,
)
from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage.drain import Drain, DrainState
from flask_imcallback.storage.entries import Entry
from flask_imcallback.storage.recorder import LARGE_ENTRY_ROWS
from flask_imcallback.storage.spool import SetAside, Spool, Waiting
from support import faults, servers
from support.apps import MakeApp, join, rows, wait_until
from support.callbacks import BODY, SECRET
from support.deliveries import ANONYMOUS, DELIVERY, MOMENT, entry_of, make_entries, record, write

CALLBACK_URL = f"/imcallback/openim/{SECRET}/callbackAfterRemoveBlackCommand"
NO_SERVER = URL.create("postgresql+psycopg", "user", "pass-word", "127.0.0.1", 1, "database")


def spool_of(app: Flask) -> Spool:
    with app.app_context():
        drain = get_runtime().drain
        assert drain
        return drain.spool


def put(app: Flask, *entries: Entry) -> None:
    """Put entries into the spool without starting a drain."""
    with app.app_context():
        for entry in entries:
            spool_of(app).put(entry.copy())


def new_drain(app: Flask) -> Drain:
    """Return a drain like the one of another process."""
    engines = get_runtime().process.get().engines
    return Drain(spool_of(app), engines.draining, app.app_context, lambda _: None)


def drain(app: Flask) -> str:
    """Drain the spool as another process does, and return the problem."""
    with app.app_context():
        return new_drain(app).drain_all()


def post(app: Flask, owner: str = "alice") -> int:
    packet = BODY | {"ownerUserID": owner}
    return app.test_client().post(CALLBACK_URL, json=packet).status_code


def test_callbacks_wait_until_the_database_has_tables(database_url: URL, make_app: MakeApp) -> None:
    """The answer is OK at once, and the callbacks are stored later in the order of arrival."""
    app = make_app(database_url, migrate=False, IMCALLBACK_SECRETS=[SECRET])
    owners = [f"owner{number}" for number in range(20)]
    assert [post(app, owner) for owner in owners] == [200] * 20
    waiting = spool_of(app).waiting()
    assert waiting.count == 20
    assert spool_of(app).path.stat().st_mode & 0o077 == 0
    time.sleep(0.5)
    with app.app_context():
        upgrade()
    wait_until(lambda: len(rows(app)[0]) == 20)
    deliveries, removals = rows(app)
    assert [row["owner_id"] for row in removals] == owners
    assert deliveries[0]["received_at"] == waiting.oldest
    wait_until(lambda: not spool_of(app).waiting().count)
    assert post(app, "direct") == 200
    assert rows(app)[1][-1]["owner_id"] == "direct"


def test_only_the_first_callback_waits_for_a_database_that_hangs(
    database_servers: dict[str, servers.Server], make_app: MakeApp
) -> None:
    """The first callback is answered by the deadline, later ones at once, and all are stored."""
    server = database_servers["postgresql"]
    with servers.database(server) as url, faults.proxy(url.port or 0) as proxy:
        proxied_url = url.set(port=proxy.port)
        app = make_app(proxied_url, IMCALLBACK_SECRETS=[SECRET], IMCALLBACK_DEADLINE=0.8)
        assert post(app, "before") == 200
        seconds = []
        with proxy.holding():
            for owner in ("first", "second", "third"):
                began = time.monotonic()
                assert post(app, owner) == 200
                seconds.append(time.monotonic() - began)
        assert 0.8 <= seconds[0] < 1.5
        assert max(seconds[1:]) < 0.5
        wait_until(lambda: not spool_of(app).waiting().count)
        owners = [row["owner_id"] for row in rows(app)[1]]
        assert owners == ["before", "first", "second", "third"]


def test_a_large_delivery_is_spooled_first(
    database_url: URL, make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """The IM server does not wait for the database. The next delivery need not wait either."""
    app = make_app(database_url, IMCALLBACK_SECRETS=[SECRET], IMCALLBACK_DEADLINE=30)
    removals = tuple(
        Removal(Relation.GROUP, "group", f"member{number}") for number in range(LARGE_ENTRY_ROWS)
    )
    with app.app_context():
        recorder = get_runtime().recorder
        assert recorder.record(replace(ANONYMOUS, removals=removals)) is None
        assert recorder.record(ANONYMOUS)
    wait_until(lambda: len(rows(app)[1]) == LARGE_ENTRY_ROWS + 2)
    assert caplog.messages == []


def test_a_large_delivery_without_a_spool_is_stored_at_once(make_app: MakeApp) -> None:
    """The database is the only place for it."""
    app = make_app(IMCALLBACK_SPOOL=None, IMCALLBACK_DEADLINE=30)
    removals = (Removal(Relation.GROUP, "group", "member"),) * LARGE_ENTRY_ROWS
    assert len(record(app, replace(ANONYMOUS, removals=removals))) == LARGE_ENTRY_ROWS


def test_an_interrupted_drain_stores_nothing_twice(database_url: URL, make_app: MakeApp) -> None:
    """A process may end after the database has stored an entry, and before the spool forgets it."""
    app = make_app(database_url)
    entries = [entry_of(app, DELIVERY), *make_entries(app, 6)[1:]]
    put(app, *entries)
    write(app, *entries[::2])
    assert drain(app) == ""
    deliveries, removals = rows(app)
    assert [row["id"] for row in deliveries] == [entry.row["id"] for entry in entries]
    assert len(removals) == 12
    assert not spool_of(app).waiting().count


def test_a_removal_keeps_its_actor_and_cause_in_the_spool(make_app: MakeApp) -> None:
    """A removal from a group is stored unchanged after it waited in the spool."""
    app = make_app()
    kicked = Removal(Relation.GROUP, "group", "bob", "alice", Cause.KICKED)
    removals = (kicked, Removal(Relation.FOLLOW, "alice", "bob"))
    entry = entry_of(app, replace(DELIVERY, removals=removals))
    put(app, entry)
    assert drain(app) == ""
    assert rows(app)[1] == [record._asdict() for record in entry.records()]


def test_repetitions_are_recognized_across_spool_and_database(
    database_url: URL, make_app: MakeApp
) -> None:
    """The spool holds three repetitions of a callback that the database already has."""
    app = make_app(database_url)
    moments = [MOMENT + timedelta(seconds=number) for number in range(4)]
    first, second, third, fourth = (
        entry_of(app, replace(DELIVERY, received_at=moment)) for moment in moments
    )
    write(app, third)
    put(app, first, second, fourth)
    drain(app)
    deliveries, removals = rows(app)
    assert [row["id"] for row in deliveries] == [
        entry.row["id"] for entry in (first, second, third, fourth)
    ]
    assert [row["status"] for row in deliveries] == ["duplicate"] * 2 + ["recorded", "duplicate"]
    assert {row["duplicate_of"] for row in deliveries} == {None, third.row["id"]}
    assert {row["delivery_id"] for row in removals} == {third.row["id"]}
    assert len(removals) == 2


def test_a_new_id_survives_the_end_of_the_process(
    database_url: URL, make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process ends after it stored an entry under a new id. The next drain recognizes the row.

    The test replaces `Spool.remove` to stop the process at this exact point.
    """
    app = make_app(database_url)
    first, conflicting = entry_of(app, ANONYMOUS), entry_of(app, DELIVERY)
    write(app, first)
    conflicting.assign_id(first.row["id"])
    repetition = entry_of(app, replace(DELIVERY, received_at=MOMENT + timedelta(seconds=9)))
    put(app, conflicting, repetition)

    class ProcessEnds(BaseException):
        pass

    def end_process(*_: Any) -> None:
        raise ProcessEnds

    with monkeypatch.context() as patch, suppress(ProcessEnds):
        patch.setattr(Spool, "remove", end_process)
        drain(app)
    assert len(rows(app)[0]) == 3
    drain(app)
    deliveries, removals = rows(app)
    assert [row["status"] for row in deliveries] == ["recorded", "recorded", "duplicate"]
    assert deliveries[2]["duplicate_of"] == deliveries[1]["id"]
    assert [row["delivery_id"] for row in removals[2:]] == [deliveries[1]["id"]] * 2
    assert len(removals) == 4


def test_several_processes_drain_one_spool(database_url: URL, make_app: MakeApp) -> None:
    """Four drains work at the same time, and each delivery is stored once."""
    app = make_app(database_url)
    put(app, *make_entries(app, 120))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: drain(app), range(4))) == [""] * 4
    deliveries, removals = rows(app)
    assert (len(deliveries), len(removals)) == (120, 240)


def refuse_nonce(app: Flask, entry: Entry) -> None:
    """Let the database of the app refuse this entry, and no other."""
    with app.app_context(), get_runtime().engine().begin() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER refuse BEFORE INSERT ON imcallback_delivery "
            f"WHEN NEW.nonce = x'{entry.row['nonce'].hex()}' "
            "BEGIN SELECT RAISE(FAIL, 'refused on purpose'); END"
        )


def test_a_refused_delivery_does_not_block_the_others(make_app: MakeApp) -> None:
    """The delivery stays in the spool, later ones are stored, and the database counts as up."""
    app = make_app(IMCALLBACK_SECRETS=[SECRET])
    entries = make_entries(app, 5)
    put(app, *entries)
    refuse_nonce(app, entries[0])
    assert drain(app) == "IntegrityError: refused on purpose"
    assert len(rows(app)[0]) == 4
    waiting = spool_of(app).waiting()
    assert (waiting.count, waiting.set_aside) == (0, 1)
    assert post(app) == 200
    assert len(rows(app)[0]) == 5


REFUSE = {
    "sqlite": """CREATE TRIGGER refuse BEFORE INSERT ON imcallback_removal
WHEN NEW.owner_id = 'bad' BEGIN SELECT RAISE(ABORT, 'refused on purpose'); END""",
    "postgresql": """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF NEW.owner_id = 'bad' THEN RAISE EXCEPTION 'refused on purpose'; END IF; RETURN NEW; END $$;;
CREATE TRIGGER refuse BEFORE INSERT ON imcallback_removal FOR EACH ROW EXECUTE FUNCTION refuse()""",
    "mysql": """CREATE TRIGGER refuse BEFORE INSERT ON imcallback_removal FOR EACH ROW
IF NEW.owner_id = 'bad' THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'refused on purpose';
END IF""",
}
"""Triggers that let the database refuse the removals of one account."""


@pytest.mark.slow
def test_a_refused_callback_is_set_aside_and_delays_nobody(
    database_url: URL, make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """It is counted, it mutes no log line, and it is stored once the database takes it."""
    app = make_app(database_url, IMCALLBACK_SECRETS=[SECRET])
    with app.app_context(), get_runtime().engine().begin() as connection:
        for statement in REFUSE[database_url.get_backend_name()].split(";;"):
            connection.exec_driver_sql(statement)
    assert post(app, "bad") == 200
    began = time.monotonic()
    assert [post(app, f"good{number}") for number in range(5)] == [200] * 5
    assert time.monotonic() - began < 5
    assert len(rows(app)[1]) == 5
    wait_until(lambda: waiting_in(app).set_aside == 1)
    (entry,) = spool_entries(app)
    assert "refused on purpose" in entry.problem
    refusals = [line for line in caplog.messages if "The callback is set aside in" in line]
    assert len(refusals) == 1
    caplog.clear()

    wait_until(lambda: not get_drain(app)._problem)
    with faults.locked(database_url):
        assert post(app, "later") == 200
    assert [line for line in caplog.messages if "does not store callbacks" in line]
    wait_until(lambda: len(rows(app)[1]) == 6)

    with app.app_context(), get_runtime().engine().begin() as connection:
        on = " ON imcallback_removal" if connection.dialect.name == "postgresql" else ""
        connection.exec_driver_sql(f"DROP TRIGGER refuse{on}")
    assert drain(app) == ""
    assert "bad" in {row["owner_id"] for row in rows(app)[1]}
    assert waiting_in(app).set_aside == 0


def get_drain(app: Flask) -> Drain:
    with app.app_context():
        drain = get_runtime().drain
        assert drain
        return drain


def waiting_in(app: Flask) -> Waiting:
    with app.app_context():
        return spool_of(app).waiting()


def spool_entries(app: Flask) -> list[SetAside]:
    with app.app_context():
        return spool_of(app).list_set_aside()


def test_a_set_aside_callback_is_tried_when_a_process_starts(make_app: MakeApp) -> None:
    """The first callback of a new process releases what an earlier process set aside."""
    app = make_app(IMCALLBACK_SECRETS=[SECRET])
    (entry,) = make_entries(app, 1)
    put(app, entry)
    with app.app_context():
        (spooled,) = spool_of(app).read(0, 1)
        spooled.error = ValueError("refused before")
        spool_of(app).note_failures([spooled], is_set_aside=True)
    waiting = waiting_in(app)
    assert (waiting.count, waiting.set_aside, waiting.oldest) == (0, 1, MOMENT)
    new_process = make_app(migrate=False, IMCALLBACK_SECRETS=[SECRET])
    assert post(new_process) == 200
    wait_until(lambda: len(rows(app)[0]) == 2)


def test_two_deployments_in_one_folder_never_mix(
    make_app: MakeApp, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A deployment leaves the callbacks of another database alone, and reports them once."""
    production = make_app(NO_SERVER, migrate=False, IMCALLBACK_SECRETS=[SECRET])
    assert [post(production, f"production{number}") for number in range(5)] == [200] * 5
    url = URL.create("sqlite", database=str(tmp_path / "staging.db"))
    staging = make_app(url, IMCALLBACK_SECRETS=[SECRET])
    assert post(staging, "staging") == 200
    assert drain(staging) == ""
    mark = "postgresql://user@127.0.0.1:1/database"
    assert waiting_in(staging).foreign == {mark: 5}
    assert waiting_in(production).count == 5
    assert {row["owner_id"] for row in rows(staging)[1]} == {"staging"}
    line = f"Run `flask imcallback spool --adopt {mark}` if the database has moved"
    wait_until(lambda: sum(line in message for message in caplog.messages) == 1)
    assert "pass-word" not in caplog.text


def test_a_database_that_moved_adopts_its_callbacks(make_app: MakeApp, tmp_path: Path) -> None:
    """The command takes the mark from the report. Then the drain stores the callbacks."""
    old = make_app(NO_SERVER, migrate=False, IMCALLBACK_SECRETS=[SECRET])
    assert post(old, "alice") == 200
    new = make_app(URL.create("sqlite", database=str(tmp_path / "new.db")))
    with new.app_context():
        (mark,) = spool_of(new).waiting().foreign
        assert spool_of(new).adopt("another") == 0
        assert spool_of(new).adopt(mark) == 1
    assert drain(new) == ""
    assert [row["owner_id"] for row in rows(new)[1]] == ["alice"]


def test_a_hanging_commit_that_succeeds_later_is_stored_once(
    database_servers: dict[str, servers.Server], make_app: MakeApp
) -> None:
    """The first commit hangs in the network, and the callback goes to the spool with its id.

    Another callback in the spool has the same id, because another process used the microsecond.
    """
    server = database_servers["postgresql"]
    with servers.database(server) as url, faults.proxy(url.port or 0) as proxy:
        app = make_app(url.set(port=proxy.port), IMCALLBACK_DEADLINE=0.5)
        record(app, ANONYMOUS)  # a new source would have a commit of its own
        first = replace(ANONYMOUS, received_at=MOMENT + timedelta(seconds=1))
        other = entry_of(app, replace(first, body=b"another"))
        put(app, other)
        with app.app_context():
            runtime = get_runtime()
            runtime.recorder._ids._next_free_id = 0
            assert runtime.drain
            runtime.drain._retry_at = math.inf  # only the failure starts the drain
            with proxy.holding_commits():
                assert runtime.recorder.record(first) is None
        wait_until(lambda: not waiting_in(app).count)
        deliveries, removals = rows(app)
        bodies = [row["body"] for row in deliveries[1:]]
        assert sorted(bodies) == sorted([first.body, b"another"])
        assert len(removals) == 6


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"version": 2}', "a newer release of flask-imcallback wrote this entry (version 2)"),
        (b"\xff", "codec can't decode byte"),
        (b"{}", "KeyError"),
        (
            b'{"version": 1, "row": {"id": 1e999, "body": null, "fingerprint": null, '
            b'"nonce": null}}',
            "OverflowError",
        ),
    ],
    ids=["newer", "damaged", "incomplete", "no time"],
)
def test_an_unreadable_entry_is_set_aside_and_kept(
    make_app: MakeApp, content: bytes, problem: str
) -> None:
    """The others are stored. The entry waits for the release that can read it."""
    app = make_app()
    put(app, *make_entries(app, 2))
    with app.app_context(), spool_of(app).writing() as connection:
        connection.exec_driver_sql("UPDATE imcallback_spool SET entry = ? WHERE id = 1", (content,))
    assert problem in drain(app)
    assert len(rows(app)[0]) == 1
    assert waiting_in(app).set_aside == 1


def test_a_receiver_that_ends_its_thread_does_not_end_the_drain(make_app: MakeApp) -> None:
    """A receiver of the signal raises SystemExit. The next callback is drained, too."""
    app = make_app(migrate=False, IMCALLBACK_SECRETS=[SECRET])

    def leave(_: Flask, removals: list[Record]) -> None:
        sys.exit(1)

    with removals_recorded.connected_to(leave):
        assert post(app, "first") == 200
        with app.app_context():
            upgrade()
        wait_until(lambda: len(rows(app)[1]) == 1)
    put(app, *make_entries(app, 1))
    drain = app.extensions["imcallback"].drain
    drain.start()
    wait_until(lambda: len(rows(app)[0]) == 2)


def test_the_drain_starts_when_a_thread_is_free(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process has too many threads for a moment. Nothing is lost, and the drain works later."""
    app = make_app(migrate=False, IMCALLBACK_SECRETS=[SECRET])
    assert post(app, "first") == 200
    wait_until(lambda: app.extensions["imcallback"].drain._problem)
    with app.app_context():
        upgrade()
    wait_until(lambda: len(rows(app)[1]) == 1)
    join("imcallback-drain")
    put(app, *make_entries(app, 1))
    with no_thread_starts(monkeypatch):
        app.extensions["imcallback"].drain.start()
        assert waiting_in(app).count == 1
    assert post(app, "second") == 200
    wait_until(lambda: len(rows(app)[0]) == 3)


@pytest.mark.parametrize("spool", [None, "spool.db"])
def test_callbacks_are_stored_when_a_thread_is_free(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch, spool: str | None
) -> None:
    """Without a thread, a callback gets 503 at once and is in the log. The next one is stored."""
    app = make_app(IMCALLBACK_SECRETS=[SECRET], IMCALLBACK_SPOOL=spool)
    with no_thread_starts(monkeypatch):
        began = time.monotonic()
        assert post(app, "first") == 503
        assert time.monotonic() - began < 1
        assert app.test_client().get("/imcallback/health").status_code == 503
    assert post(app, "second") == 200
    assert [row["owner_id"] for row in rows(app)[1]] == ["second"]
    assert app.test_client().get("/imcallback/health").status_code == 200


@contextmanager
def no_thread_starts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the start of threads fail, as it does above the limit of the system."""

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        yield


def test_a_look_into_a_large_spool_is_quick(make_app: MakeApp) -> None:
    """The number of waiting callbacks is known without counting them."""
    app = make_app(migrate=False)
    (entry,) = make_entries(app, 1)
    put(app, entry)
    double = (
        "INSERT INTO imcallback_spool (database, delivery_id, entry) "
        "SELECT database, delivery_id + id, entry FROM imcallback_spool"
    )
    with app.app_context(), spool_of(app).writing() as connection:
        for _ in range(16):
            connection.exec_driver_sql(double)
    began = time.monotonic()
    waiting = waiting_in(app)
    assert time.monotonic() - began < 2
    assert (waiting.count, waiting.oldest) == (2**16, MOMENT)


def test_a_drain_step_returns_the_state(make_app: MakeApp) -> None:
    """Nothing waits, the database stores deliveries, or it stored nothing of the last chunk."""
    app = make_app()
    (entry,) = make_entries(app, 1)
    with app.app_context():
        drain = new_drain(app)
        assert drain.step() is DrainState.IDLE
        put(app, entry)
        assert drain.step() is DrainState.DRAINING
        assert drain.step() is DrainState.IDLE
        (refused,) = make_entries(app, 1)
        refuse_nonce(app, refused)
        put(app, refused)
        assert [drain.step() for _ in range(3)] == [DrainState.PROBING] * 3


def test_the_signal_comes_when_the_database_has_the_removals(make_app: MakeApp) -> None:
    """A receiver finds each removal in the history, under the id that the signal has."""
    app = make_app(migrate=False, IMCALLBACK_SECRETS=[SECRET])
    signals: list[tuple[Record, bool]] = []

    def listen(sender: Flask, removals: list[Record]) -> None:
        stored_ids = [row["id"] for row in rows(app)[1]]
        signals.extend((removal, removal.id in stored_ids) for removal in removals)

    with removals_recorded.connected_to(listen, app):
        assert post(app) == 200
        assert signals == []
        with app.app_context():
            upgrade()
        wait_until(lambda: signals)
    assert [(removal.owner_id, is_stored) for removal, is_stored in signals] == [("alice", True)]


def test_the_first_request_starts_the_drain(make_app: MakeApp) -> None:
    """A new process drains what an earlier process left, after a request of any kind."""
    app = make_app()
    put(app, *make_entries(app, 3))
    new_process = make_app(migrate=False)
    new_process.test_client().get("/nothing")
    wait_until(lambda: len(rows(app)[0]) == 3)


def test_an_unwritable_spool_is_answered_with_503(
    tmp_path: Path, make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """The packet is in the log, together with the path of the spool and the remedy."""
    (tmp_path / "file").touch()
    spool = str(tmp_path / "file" / "spool.db")
    app = make_app(migrate=False, IMCALLBACK_SECRETS=[SECRET], IMCALLBACK_SPOOL=spool)
    assert post(app, "needle") == 503
    assert "needle" in caplog.text
    assert f"cannot write the spool {spool} (" in caplog.text
    assert "): check the disk, the permissions and IMCALLBACK_SPOOL" in caplog.text
    assert SECRET not in caplog.text


def test_a_damaged_spool_is_an_error_that_names_the_file(make_app: MakeApp) -> None:
    """The message names the path, the reason and the remedy."""
    spool = spool_of(make_app())
    spool.path.parent.mkdir(parents=True, exist_ok=True)
    spool.path.write_text("no database")
    message = (
        f"cannot read the spool {spool.path} (DatabaseError: file is not a database): "
        "check the disk, the permissions and IMCALLBACK_SPOOL"
    )
    with pytest.raises(StorageError, match=f"^{re.escape(message)}$"):
        spool.waiting()


def test_a_deleted_spool_is_created_again(tmp_path: Path, make_app: MakeApp) -> None:
    """The content of the deleted file is lost, but new callbacks are kept."""
    app = make_app(migrate=False, IMCALLBACK_SECRETS=[SECRET])
    assert post(app) == 200
    for file in tmp_path.rglob("imcallback_spool.db*"):
        file.unlink()
    assert post(app) == 200
    assert spool_of(app).waiting().count == 1


def test_health_shows_what_waits(make_app: MakeApp) -> None:
    """Health shows the number of waiting callbacks and the oldest, with or without a database."""
    app = make_app(migrate=False, IMCALLBACK_SECRETS=[SECRET])
    get = app.test_client().get
    empty = {"waiting": 0, "oldest": None, "set_aside": 0, "foreign": 0}
    assert get("/imcallback/health").get_json()["spool"] == empty
    post(app)
    post(app)
    oldest = spool_of(app).waiting().oldest
    assert oldest
    response = get("/imcallback/health")
    assert response.status_code == 503
    assert response.get_json()["spool"] == empty | {
        "waiting": 2,
        "oldest": oldest.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    }
    with app.app_context():
        upgrade()
    wait_until(lambda: not spool_of(app).waiting().count)
    response = get("/imcallback/health")
    assert (response.status_code, response.get_json()["spool"]) == (200, empty)


def test_the_spool_command_shows_and_drains(make_app: MakeApp) -> None:
    """The exit status is 1 if callbacks still wait after `--drain`."""
    app, without_database = make_app(), make_app(NO_SERVER, migrate=False)
    run = app.test_cli_runner().invoke
    assert run(args=["imcallback", "spool"]).output.startswith("0 waiting in ")
    put(app, *make_entries(app, 3))
    put(without_database, *make_entries(without_database, 2))
    shown = run(args=["imcallback", "spool"])
    assert shown.exit_code == 0
    assert "3 waiting in " in shown.output
    assert "the oldest received at 2026-11-20 18:05:00.123456+00:00" in shown.output
    run_without_database = without_database.test_cli_runner().invoke
    failed = run_without_database(args=["imcallback", "spool", "--drain"])
    assert failed.exit_code == 1
    assert "2 waiting" in failed.output
    assert "connection" in failed.output
    assert "pass-word" not in failed.output
    drained = run(args=["imcallback", "spool", "--drain"])
    assert (drained.exit_code, len(rows(app)[0])) == (0, 3)
    assert "3 drained\n0 waiting" in drained.output


def test_the_spool_command_needs_a_spool(make_app: MakeApp) -> None:
    """The error names the setting that is off."""
    result = make_app(IMCALLBACK_SPOOL=None).test_cli_runner().invoke(args=["imcallback", "spool"])
    assert result.exit_code == 1
    assert "IMCALLBACK_SPOOL" in result.output


def test_an_outage_is_logged_in_two_lines(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """The first line says that callbacks wait, and the second that none waits any more."""
    app = make_app(migrate=False, IMCALLBACK_SECRETS=[SECRET])
    path = spool_of(app).path
    end = f"The database has stored all callbacks that waited in the spool {path}."
    with caplog.at_level(logging.WARNING, "flask_imcallback"):
        for _ in range(5):
            post(app, "needle")
        with app.app_context():
            upgrade()
        wait_until(lambda: end in caplog.messages)
    assert [line for line in caplog.messages if "spool" in line] == [
        "The database does not store callbacks (OperationalError: no such table: "
        f"imcallback_source). They wait in the spool {path} and are stored as soon as the database "
        "accepts them. Check the database, and run `flask db upgrade` if a table or column is "
        "missing.",
        end,
    ]
    assert "needle" not in caplog.text
