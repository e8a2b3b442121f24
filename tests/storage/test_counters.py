"""Operators see how many callbacks were accepted and refused."""

from __future__ import annotations

import atexit
import json
import logging
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import count as count_up
from pathlib import Path

import pytest
import time_machine
from flask import Flask
from sqlalchemy import URL, event, select

from flask_imcallback import upgrade
from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage.counters import EXIT_SECONDS, MAX_KEYS, CallbackCounters
from flask_imcallback.storage.file_lock import file_lock
from flask_imcallback.storage.sqlite_files import sqlite_path
from flask_imcallback.storage.tables import counters as counter_table
from support import servers
from support.apps import MakeApp, rows, save_counts, wait_until
from support.callbacks import BODY, SECRET
from support.faults import in_child, locked

COMMAND = "callbackAfterRemoveBlackCommand"
CALLBACK_URL = f"/imcallback/openim/{SECRET}/{COMMAND}"
URL_WITHOUT_SECRET = "/imcallback/openim/x"
ACCEPTED_AT, REFUSED_AT = 1_700_000_100, 1_700_000_111


def test_python_http_and_command_line_show_the_counts(database_url: URL, make_app: MakeApp) -> None:
    """The counts of all processes are shown by command and reason, to readers only."""
    apps = [
        make_app(
            database_url,
            IMCALLBACK_SECRETS=[SECRET],
            IMCALLBACK_HISTORY_TOKENS=["a-token-of-readers"],
        )
        for _ in range(2)
    ]
    for app, seconds_before in zip(apps, (100, 0), strict=True):
        client = app.test_client()
        with time_machine.travel(ACCEPTED_AT - seconds_before, tick=False):
            response = client.post(CALLBACK_URL, json=BODY, buffered=True)
            assert response.status_code == 200
            save_counts(app)
        with time_machine.travel(REFUSED_AT - seconds_before, tick=False):
            response = client.post(URL_WITHOUT_SECRET, json=BODY, buffered=True)
            assert response.status_code == 403
            save_counts(app)
    client = apps[0].test_client()
    assert "callbacks" not in client.get("/imcallback/health").get_json()
    wrong = client.get("/imcallback/health", headers={"Authorization": "Bearer wrong"})
    assert "callbacks" not in wrong.get_json()
    health = client.get(
        "/imcallback/health", headers={"Authorization": "Bearer a-token-of-readers"}
    ).get_json()
    assert health["callbacks"] == [
        {
            "provider": "openim",
            "outcome": "accepted",
            "name": COMMAND,
            "count": 2,
            "last_at": "2023-11-14T22:15:00.000000Z",
        },
        {
            "provider": "openim",
            "outcome": "refused",
            "name": "the request has neither a secret path segment nor a password",
            "count": 2,
            "last_at": "2023-11-14T22:15:11.000000Z",
        },
    ]
    with apps[1].app_context():
        counts = get_runtime().counters.counts()
    assert [count.last_at for count in counts] == [
        datetime.fromtimestamp(seconds, UTC) for seconds in (ACCEPTED_AT, REFUSED_AT)
    ]
    status = apps[1].test_cli_runner().invoke(args=["imcallback", "status"])
    assert COMMAND in status.output


def test_the_counts_of_many_processes_add_up(database_url: URL, make_app: MakeApp) -> None:
    """Eight counters that save to an empty table at the same time lose no callback."""
    app = make_app(database_url)

    def count(_: int) -> None:
        engine = app.extensions["imcallback"].engine
        counters = CallbackCounters(engine, engine, app.app_context)
        for _ in range(5):
            counters.count_accepted("openim", "a")
            counters.count_refused("openim", "b")
        counters.flush(30)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(8)))
    with app.app_context():
        assert [count.count for count in get_runtime().counters.counts()] == [40, 40]


@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
def test_two_processes_insert_the_same_count(
    database: str,
    request: pytest.FixtureRequest,
    make_app: MakeApp,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Both processes find no row and insert one. PostgreSQL refuses one row, MariaDB deadlocks."""
    with servers.database(request.getfixturevalue("database_servers")[database]) as url:
        app = make_app(url)
        with app.app_context():
            engine = get_runtime().engine()
        updates = count_up()
        both_found_no_row = threading.Barrier(2)

        @event.listens_for(engine, "after_cursor_execute")
        def wait(_: object, __: object, statement: str, *___: object) -> None:
            if statement.startswith("UPDATE") and next(updates) < 2:
                both_found_no_row.wait(30)

        def save(_: int) -> None:
            counters = CallbackCounters(lambda: engine, lambda: engine, app.app_context)
            counters.count_accepted("openim", "a")
            counters.flush(30)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(save, range(2)))
        with app.app_context():
            assert [count.count for count in get_runtime().counters.counts()] == [2]
        assert "not saved" not in caplog.text


def test_the_counts_of_this_process_are_shown_at_once(make_app: MakeApp) -> None:
    """A reader does not wait for the save that comes every ten seconds."""
    with make_app().app_context():
        counters = get_runtime().counters
        for total in range(1, 4):
            counters.count_accepted("openim", "a")
            assert [count.count for count in counters.counts()] == [total]


def test_many_names_need_few_rows(make_app: MakeApp) -> None:
    """A caller may send any command name, so names above a limit are counted together."""
    app = make_app()
    with app.app_context():
        counters = get_runtime().counters
        for number in range(MAX_KEYS + 50):
            counters.count_accepted("openim", f"command{number}\0")
        save_counts(app)
        counts = {count.name: count.count for count in counters.counts()}
    assert len(counts) == MAX_KEYS + 1
    assert counts["others"] == 50
    assert counts["command0\ufffd"] == 1


def saved_counts(app: Flask) -> dict[str, int]:
    """Return the counts in the table by name, without those that this process has not saved."""
    with app.app_context(), get_runtime().engine().connect() as connection:
        rows = connection.execute(select(counter_table.c.name, counter_table.c["count"]))
        return {row[0]: row[1] for row in rows}


def test_counts_that_cannot_be_saved_are_saved_later(
    database_url: URL, make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """While the table is missing, a warning a minute says why, and no count is forgotten."""
    app = make_app(database_url)
    with app.app_context():
        counters, engine = get_runtime().counters, get_runtime().engine()
    counter_table.drop(engine)
    for seconds in (0, 1, 100):
        with time_machine.travel(1_700_000_000 + seconds, tick=False):
            counters.count_accepted("openim", "a")
            save_counts(app)
    counter_table.create(engine)
    counters.count_accepted("openim", "b")
    save_counts(app)
    with app.app_context():
        count, _ = counters.counts()
    assert (count.count, count.last_at.timestamp()) == (3, 1_700_000_100)
    warnings = [m for m in caplog.messages if m.startswith("The counts of accepted and refused")]
    assert len(warnings) == 2
    assert "imcallback_counter" in warnings[0]
    assert "They are kept in memory and saved later. Check the database." in warnings[0]


def test_counts_are_saved_without_further_callbacks(
    database_url: URL, make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A burst is saved soon after its last callback, and nobody has to ask for it."""
    monkeypatch.setattr("flask_imcallback.storage.counters.SAVE_INTERVAL_SECONDS", 0.5)
    app = make_app(database_url)
    counters = app.extensions["imcallback"].counters
    for _ in range(3):
        counters.count_accepted("openim", "a")
        counters.count_refused("openim", "b")
    wait_until(lambda: saved_counts(app) == {"a": 3, "b": 3}, seconds=10)
    counters.count_accepted("openim", "a")
    wait_until(lambda: saved_counts(app) == {"a": 4, "b": 3}, seconds=10)


def test_the_thread_ends_when_everything_is_saved(make_app: MakeApp) -> None:
    """An app that gets no callbacks has no thread for its counts."""
    app = make_app()
    app.extensions["imcallback"].counters.count_accepted("openim", "a")
    save_counts(app)
    wait_until(lambda: all(t.name != "imcallback-counters" for t in threading.enumerate()))


def test_counts_during_an_outage_need_little_memory(make_app: MakeApp) -> None:
    """Failed saves do not let the number of names in memory grow."""
    app = make_app(migrate=False)
    counters = app.extensions["imcallback"].counters
    for outage in range(3):
        for number in range(MAX_KEYS):
            counters.count_accepted("openim", f"{outage}-{number}")
        save_counts(app)
    with app.app_context():
        upgrade()
    counters.count_accepted("openim", "0-0")
    save_counts(app)
    counts = saved_counts(app)
    assert len(counts) == MAX_KEYS + 1
    assert sum(counts.values()) == 3 * MAX_KEYS + 1


def test_a_locked_database_delays_neither_a_count_nor_the_end(
    database_url: URL, make_app: MakeApp
) -> None:
    """While another transaction locks the table, counting takes no time, and a flush gives up."""
    app = make_app(database_url)
    counters = app.extensions["imcallback"].counters
    with locked(database_url, "imcallback_counter"):
        started_at = time.monotonic()
        counters.count_accepted("openim", "a")
        assert time.monotonic() - started_at < 0.5
        counters.flush(0.5)
        assert 0.4 < time.monotonic() - started_at < 1.5
    counters.flush(30)
    wait_until(lambda: saved_counts(app) == {"a": 1})


def test_a_save_that_hangs_is_given_up(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread saves the next counts, and the counts of the first thread are not lost."""
    monkeypatch.setattr("flask_imcallback.storage.counters.MAX_SAVE_SECONDS", 0.2)
    app = make_app()
    runtime = app.extensions["imcallback"]
    with app.app_context():
        path = sqlite_path(runtime.engine())
    with file_lock(path):
        runtime.counters.count_accepted("openim", "a")
        time.sleep(0.4)
        runtime.counters.count_accepted("openim", "b")
        assert [thread.name for thread in threading.enumerate()].count("imcallback-counters") == 2
    save_counts(app)
    wait_until(lambda: saved_counts(app) == {"a": 1, "b": 1})


def test_a_forked_child_leaves_the_counts_of_its_parent(make_app: MakeApp) -> None:
    """Parent and child save their own counts, each once, also those of the time of the fork."""
    app = make_app(IMCALLBACK_SECRETS=[SECRET])
    counters = app.extensions["imcallback"].counters
    counters.count_accepted("openim", "a")
    save_counts(app)
    counters.count_accepted("openim", "a")

    def count_in_child() -> None:
        app.extensions["imcallback"].counters.count_accepted("openim", "child")
        started_at = time.monotonic()
        atexit._run_exitfuncs()
        assert time.monotonic() - started_at < EXIT_SECONDS

    assert in_child(count_in_child) == 0
    assert saved_counts(app) == {"a": 1, "child": 1}
    save_counts(app)
    assert saved_counts(app) == {"a": 2, "child": 1}


PROGRAM = """
import sys
from flask import Flask
from flask_imcallback import ImCallback, upgrade

app = Flask("host", instance_path=sys.argv[1])
app.config["IMCALLBACK_SECRETS"] = ["a-secret-of-16-characters"]
ImCallback(app)
with app.app_context():
    upgrade()
for _ in range(9):
    app.test_client().post("/imcallback/openim/x", json={})
"""


@pytest.mark.slow
def test_the_counts_are_complete_when_the_interpreter_ends(
    make_app: MakeApp, tmp_path: Path
) -> None:
    """A program that ends right after its last callback saves all counts."""
    app = make_app()
    program = [sys.executable, "-c", PROGRAM, app.instance_path]
    subprocess.run(program, cwd=tmp_path, check=True, capture_output=True, timeout=30)
    assert list(saved_counts(app).values()) == [9]


def test_a_missing_counter_table_does_not_harm_callbacks(make_app: MakeApp) -> None:
    """The callback is stored and answered."""
    app = make_app(IMCALLBACK_SECRETS=[SECRET])
    client = app.test_client()
    with app.app_context(), get_runtime().engine().begin() as connection:
        connection.exec_driver_sql("DROP TABLE imcallback_counter")
    assert client.post(CALLBACK_URL, data=json.dumps(BODY), buffered=True).status_code == 200
    assert len(rows(app)[1]) == 1


def test_a_refusal_is_logged_once_a_minute(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """The line names provider, reason and detail, and later how many lines were left out."""
    app = make_app()
    with app.app_context(), caplog.at_level(logging.WARNING, "flask_imcallback"):
        counters = get_runtime().counters
        for seconds, detail in ((0, "5 seconds"), (30, "6 seconds"), (61, "")):
            with time_machine.travel(1_700_000_000 + seconds, tick=False):
                counters.count_refused("tencent", "RequestTime is old", detail)
    assert [line for line in caplog.messages if line.startswith("Refused")] == [
        "Refused a callback of tencent: RequestTime is old (5 seconds).",
        "Refused a callback of tencent: RequestTime is old. 1 more since the last such line.",
    ]
