"""Processes that a server forks share nothing of the storage."""

from __future__ import annotations

from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import URL, text

from flask_imcallback import ImCallback
from flask_imcallback.runtime import get_runtime
from support.apps import MakeApp, rows
from support.deliveries import ANONYMOUS, DELIVERY, record
from support.faults import in_child
from support.load import HEADER, SETTINGS, Load, check
from support.serving import serving
from support.torture import create_tables


def app_that_used_the_database() -> Flask:
    """Return an app whose module has used the database, as hosts do at import."""
    app = Flask("host")
    app.config.from_prefixed_env()
    ImCallback(app)
    with app.app_context():
        runtime = get_runtime()
        runtime.recorder.record(ANONYMOUS)
        assert len(runtime.history.find().data) == 2
        with app.extensions["sqlalchemy"].engine.connect() as connection:
            connection.execute(text("SELECT 1"))
    return app


@pytest.mark.slow
def test_workers_share_no_connection_over_a_fork(database_url: URL, tmp_path: Path) -> None:
    """The app is loaded, and uses the database, before gunicorn forks its workers.

    Every acknowledged callback is stored once.
    """
    create_tables(database_url)
    app = "storage.test_forks:app_that_used_the_database()"
    tests = str(Path(__file__).parents[1])
    variables = SETTINGS | {"PYTHONPATH": tests}
    with serving(
        tmp_path, "-w", "4", app=app, url=database_url, upgrade=False, **variables
    ) as running:
        with Load(running.port, clients=16).running() as load:
            load.wait_for(1000)
        running.wait_until_drained()
        assert not running.waiting()
    report = check(load.callbacks, database_url)
    table = f"\n{HEADER}\n{report.row('fork')}"
    assert report.acknowledged >= 1000, table
    assert report.refused == report.unanswered == report.faults == 0, table


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_lock_that_a_thread_holds_during_a_fork_stops_nobody(make_app: MakeApp) -> None:
    """Threads of the parent hold every lock of the storage while the process forks."""
    app = make_app()
    record(app, ANONYMOUS)
    state = app.extensions["imcallback"].process.get()
    drain = state.drain
    locks = [
        state.recorder._writer._lock,
        state.recorder._ids._lock,
        state.counters._lock,
        state.inspector._lock,
        drain._lock,
    ]
    for lock in locks:
        lock.acquire()
    try:
        status = in_child(lambda: record(app, DELIVERY))
    finally:
        for lock in locks:
            lock.release()
    assert status == 0
    assert len(rows(app)[0]) == 2
