"""What waits while the database takes nothing: nothing is lost, doubled, or in disorder."""

from __future__ import annotations

import logging
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import URL

from flask_imcallback import Record, removals_recorded, upgrade
from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage.drain import Drain
from flask_imcallback.storage.entries import Entry
from flask_imcallback.storage.spool import Spool
from support import faults, servers
from support.apps import MakeApp, rows, until
from support.callbacks import BODY, SECRET
from support.deliveries import ANONYMOUS, DELIVERY, MOMENT, entries_of, entry_of, write

ADDRESS = f"/imcallback/openim/{SECRET}/callbackAfterRemoveBlackCommand"
AWAY = URL.create("postgresql+psycopg", "user", "pass-word", "127.0.0.1", 1, "database")


def spool_of(app: Flask) -> Spool:
    with app.app_context():
        drain = get_runtime().drain
        assert drain
        return drain.spool


def put(app: Flask, *entries: Entry) -> None:
    """Into the spool, and nobody drains it yet."""
    for entry in entries:
        spool_of(app).put(Entry(entry.row, entry.removals))


def drain(app: Flask) -> str:
    """Another process that drains all it can."""
    with app.app_context():
        another = Drain(spool_of(app), get_runtime().engine, app.app_context, lambda _: None)
        return another.finish()


def post(app: Flask, owner: str = "alice") -> int:
    packet = BODY | {"ownerUserID": owner}
    return app.test_client().post(ADDRESS, json=packet).status_code


def test_a_callback_waits_for_the_database(database_url: URL, make_app: MakeApp) -> None:
    """It is answered OK, and is stored by itself as it was received when there are tables."""
    app = make_app(database_url, migrate=False, IMCALLBACK_SECRETS=[SECRET])
    owners = [f"owner{number}" for number in range(20)]
    assert [post(app, owner) for owner in owners] == [200] * 20
    waiting = spool_of(app).waiting()
    assert waiting.count == 20
    assert spool_of(app).path.stat().st_mode & 0o077 == 0
    time.sleep(0.5)
    with app.app_context():
        upgrade()
    until(lambda: len(rows(app)[0]) == 20)
    deliveries, removals = rows(app)
    assert [row["owner_id"] for row in removals] == owners
    assert deliveries[0]["received_at"] == waiting.oldest
    until(lambda: not spool_of(app).waiting().count)
    assert post(app, "direct") == 200
    assert rows(app)[1][-1]["owner_id"] == "direct"


def test_only_the_first_waits_for_a_database_that_hangs(
    database_servers: dict[str, servers.Server], make_app: MakeApp
) -> None:
    """By the deadline it is answered, those after it at once; all are in the history at last."""
    server = database_servers["postgresql"]
    with servers.database(server) as url, faults.proxy(url.port or 0) as proxy:
        through = url.set(port=proxy.port)
        app = make_app(through, IMCALLBACK_SECRETS=[SECRET], IMCALLBACK_DEADLINE=0.8)
        assert post(app, "before") == 200
        seconds = []
        with proxy.holding():
            for owner in ("first", "second", "third"):
                began = time.monotonic()
                assert post(app, owner) == 200
                seconds.append(time.monotonic() - began)
        assert 0.8 <= seconds[0] < 1.5
        assert max(seconds[1:]) < 0.5
        until(lambda: not spool_of(app).waiting().count)
        owners = [row["owner_id"] for row in rows(app)[1]]
        assert owners == ["before", "first", "second", "third"]


def test_what_was_stored_before_it_was_forgotten(database_url: URL, make_app: MakeApp) -> None:
    """A process that ended between the two commits doubles nothing."""
    app = make_app(database_url)
    entries = [entry_of(app, DELIVERY), *entries_of(app, 6)[1:]]
    put(app, *entries)
    write(app, *entries[::2])
    assert drain(app) == ""
    deliveries, removals = rows(app)
    assert [row["id"] for row in deliveries] == [entry.row["id"] for entry in entries]
    assert len(removals) == 12
    assert not spool_of(app).waiting().count


def test_repetitions_are_folded_over_both(database_url: URL, make_app: MakeApp) -> None:
    """A repetition in the spool, of one in the spool, of one that the database has."""
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


def test_an_id_that_is_taken_moves_once(
    database_url: URL, make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the process ends when the moved one is stored, but not yet forgotten."""
    app = make_app(database_url)
    first, taken = entry_of(app, ANONYMOUS), entry_of(app, DELIVERY)
    write(app, first)
    taken.move(first.row["id"])
    repeated = entry_of(app, replace(DELIVERY, received_at=MOMENT + timedelta(seconds=9)))
    put(app, taken, repeated)

    class Ended(BaseException):
        pass

    def end(*_: Any) -> None:
        raise Ended

    with monkeypatch.context() as patch, suppress(Ended):
        patch.setattr(Spool, "remove", end)
        drain(app)
    assert len(rows(app)[0]) == 2
    drain(app)
    deliveries, removals = rows(app)
    assert [row["status"] for row in deliveries] == ["recorded", "recorded", "duplicate"]
    assert deliveries[2]["duplicate_of"] == deliveries[1]["id"]
    assert [row["delivery_id"] for row in removals[2:]] == [deliveries[1]["id"]] * 2
    assert len(removals) == 4


def test_two_processes_drain_at_once(database_url: URL, make_app: MakeApp) -> None:
    """Each delivery is stored once, whoever is quicker."""
    app = make_app(database_url)
    put(app, *entries_of(app, 120))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: drain(app), range(4))) == [""] * 4
    deliveries, removals = rows(app)
    assert (len(deliveries), len(removals)) == (120, 240)


def test_one_that_cannot_be_stored_is_passed_over(make_app: MakeApp) -> None:
    """Those behind it are stored, and it stays; the database is not taken for away."""
    app = make_app(IMCALLBACK_SECRETS=[SECRET])
    entries = entries_of(app, 5)
    put(app, *entries)
    with app.app_context():
        engine = get_runtime().engine()
        with engine.begin() as connection:
            bad = entries[0].row["nonce"].hex()
            connection.exec_driver_sql(
                "CREATE TRIGGER bad BEFORE INSERT ON imcallback_delivery "
                f"WHEN NEW.nonce = x'{bad}' BEGIN SELECT RAISE(FAIL, 'bad'); END"
            )
    assert "bad" in drain(app)
    assert len(rows(app)[0]) == 4
    assert spool_of(app).waiting().count == 1
    assert post(app) == 200
    assert len(rows(app)[0]) == 5


def test_the_signal_comes_when_the_database_has_them(make_app: MakeApp) -> None:
    """A receiver finds in the history what it is told, with the ids that it is told."""
    app = make_app(migrate=False, IMCALLBACK_SECRETS=[SECRET])
    told: list[tuple[Record, bool]] = []

    def hear(sender: Flask, removals: list[Record]) -> None:
        told.extend((r, r.id in [row["id"] for row in rows(app)[1]]) for r in removals)

    with removals_recorded.connected_to(hear, app):
        assert post(app) == 200
        assert told == []
        with app.app_context():
            upgrade()
        until(lambda: told)
    assert [(record.owner_id, found) for record, found in told] == [("alice", True)]


def test_what_another_process_left_is_drained(make_app: MakeApp) -> None:
    """By the first request of any kind."""
    app = make_app()
    put(app, *entries_of(app, 3))
    fresh = make_app(migrate=False)
    fresh.test_client().get("/nothing")
    until(lambda: len(rows(app)[0]) == 3)


def test_a_spool_that_cannot_be_written(
    tmp_path: Path, make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """503, and the packet is in the log."""
    (tmp_path / "file").touch()
    spool = str(tmp_path / "file" / "spool.db")
    app = make_app(migrate=False, IMCALLBACK_SECRETS=[SECRET], IMCALLBACK_SPOOL=spool)
    assert post(app, "needle") == 503
    assert "needle" in caplog.text
    assert SECRET not in caplog.text


def test_a_spool_that_is_deleted_is_made_anew(tmp_path: Path, make_app: MakeApp) -> None:
    """What it held is gone; what comes is kept."""
    app = make_app(migrate=False, IMCALLBACK_SECRETS=[SECRET])
    assert post(app) == 200
    for file in tmp_path.rglob("imcallback_spool.db*"):
        file.unlink()
    assert post(app) == 200
    assert spool_of(app).waiting().count == 1


def test_health_tells_what_waits(make_app: MakeApp) -> None:
    """How much, and since when; whether or not the database answers."""
    app = make_app(migrate=False, IMCALLBACK_SECRETS=[SECRET])
    ask = app.test_client().get
    nothing = {"waiting": 0, "oldest": None}
    assert ask("/imcallback/health").get_json()["spool"] == nothing
    post(app)
    post(app)
    oldest = spool_of(app).waiting().oldest
    assert oldest
    told = {"waiting": 2, "oldest": oldest.strftime("%Y-%m-%dT%H:%M:%S.%fZ")}
    answer = ask("/imcallback/health")
    assert (answer.status_code, answer.get_json()["spool"]) == (503, told)
    with app.app_context():
        upgrade()
    until(lambda: not spool_of(app).waiting().count)
    answer = ask("/imcallback/health")
    assert (answer.status_code, answer.get_json()["spool"]) == (200, nothing)


def test_the_command_shows_and_drains(make_app: MakeApp) -> None:
    """Exit status 1 while something remains."""
    app, away = make_app(), make_app(AWAY, migrate=False)
    run = app.test_cli_runner().invoke
    assert run(args=["imcallback", "spool"]).output.startswith("0 waiting in ")
    put(app, *entries_of(app, 3))
    shown = run(args=["imcallback", "spool"])
    assert shown.exit_code == 0
    assert "3 waiting in " in shown.output
    assert "the oldest received at 2026-11-20 18:05:00.123456+00:00" in shown.output
    failed = away.test_cli_runner().invoke(args=["imcallback", "spool", "--drain"])
    assert failed.exit_code == 1
    assert "3 waiting" in failed.output
    assert "connection" in failed.output
    assert "pass-word" not in failed.output
    drained = run(args=["imcallback", "spool", "--drain"])
    assert (drained.exit_code, len(rows(app)[0])) == (0, 3)
    assert "3 drained\n0 waiting" in drained.output


def test_no_spool_no_command(make_app: MakeApp) -> None:
    """It says which setting is off."""
    result = make_app(IMCALLBACK_SPOOL=None).test_cli_runner().invoke(args=["imcallback", "spool"])
    assert result.exit_code == 1
    assert "IMCALLBACK_SPOOL" in result.output


def test_one_line_says_that_callbacks_wait_and_one_that_none_does(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """However many there are; without the packets, which are safe."""
    app = make_app(migrate=False, IMCALLBACK_SECRETS=[SECRET])
    with caplog.at_level(logging.WARNING, "flask_imcallback"):
        for _ in range(5):
            post(app, "needle")
        with app.app_context():
            upgrade()
        until(lambda: "All callbacks of" in caplog.text)
    lines = [line for line in caplog.messages if "spool" in line]
    assert len(lines) == 2
    assert "no such table" in lines[0]
    assert "needle" not in caplog.text


BEFORE_SOURCES = """
CREATE TABLE imcallback_removal (
    id INTEGER NOT NULL, delivery_id INTEGER NOT NULL, position INTEGER NOT NULL,
    received_at DATETIME NOT NULL, provider VARCHAR(32) NOT NULL, app_id VARCHAR(32) NOT NULL,
    command VARCHAR(255) NOT NULL, relation VARCHAR(16) NOT NULL, owner_id VARCHAR(255) NOT NULL,
    target_id VARCHAR(255) NOT NULL, client_ip VARCHAR(255) NOT NULL,
    platform VARCHAR(255) NOT NULL, request_id VARCHAR(255) NOT NULL,
    CONSTRAINT pk_imcallback_removal PRIMARY KEY (id)
)
"""
"""As spools had it until migration 0004."""


def old_entries(app: Flask, count: int) -> list[Entry]:
    """Of two platforms."""
    entries = entries_of(app, count)
    for entry in entries[::2]:
        entry.row["platform"] = "another"
    return entries


def make_old_spool(app: Flask, count: int) -> None:
    """Deliveries wait in a spool that an older release made."""
    entries = old_entries(app, count)
    repeated = [entry_of(app, replace(DELIVERY, received_at=MOMENT + timedelta(hours=1)))]
    put(app, *entries, *repeated)
    spool = spool_of(app)
    spool.engine.dispose()
    connection = sqlite3.connect(spool.path)
    connection.execute("ALTER TABLE imcallback_removal RENAME TO new")
    connection.execute(BEFORE_SOURCES)
    connection.execute(
        "INSERT INTO imcallback_removal SELECT r.id, delivery_id, r.id - delivery_id, received_at, "
        "s.provider, s.app_id, s.command, s.relation, owner_id, target_id, r.client_ip, "
        "s.platform, r.request_id FROM new r JOIN imcallback_source s ON s.id = source_id "
        "JOIN imcallback_delivery d ON d.id = delivery_id"
    )
    connection.execute("DROP TABLE new")
    connection.execute("DROP TABLE imcallback_source")
    connection.commit()
    connection.close()


def stored_in(app: Flask) -> list[dict[str, Any]]:
    names = ("owner_id", "target_id", "relation", "position", "platform", "command", "request_id")
    return [{name: row[name] for name in names} for row in rows(app)[1]]


def test_a_spool_of_an_older_release_is_drained(database_url: URL, make_app: MakeApp) -> None:
    """Its deliveries are stored with all that they had, and new ones can be put into it."""
    app, other = make_app(database_url), make_app()
    make_old_spool(app, 30)
    put(app, *entries_of(app, 40)[30:])
    assert spool_of(app).waiting().count == 41
    assert drain(app) == ""
    write(other, *old_entries(other, 30), *entries_of(other, 40)[30:])
    write(other, entry_of(other, replace(DELIVERY, received_at=MOMENT + timedelta(hours=1))))
    assert len(rows(app)[0]) == 41
    assert stored_in(app) == stored_in(other)
    assert not spool_of(app).waiting().count


OPEN = """
import sys, time
from pathlib import Path
from flask_imcallback.spool import Spool
while time.time() < float(sys.argv[2]):
    pass
spool = Spool(Path(sys.argv[1]))
print(spool.waiting().count, sum(len(entry.removals) for entry in spool.oldest(0, 500)))
"""


def test_processes_that_open_an_old_spool_at_once(make_app: MakeApp) -> None:
    """One of them takes it over, once; each finds all that waits."""
    app = make_app()
    make_old_spool(app, 200)
    command = [sys.executable, "-c", OPEN, str(spool_of(app).path), str(time.time() + 3)]
    opened = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)]
    assert [process.communicate(timeout=60)[0] for process in opened] == [b"201 402\n"] * 4
    assert [process.returncode for process in opened] == [0] * 4
    assert drain(app) == ""
    assert (len(rows(app)[0]), len(rows(app)[1])) == (201, 402)
