"""Processes that a server forks share nothing of the storage."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import URL, text

from flask_imcallback import ImCallback
from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage import sqlite_forks
from flask_imcallback.storage.file_lock import file_lock
from support.apps import MakeApp, close_connections, rows, save_counts
from support.deliveries import ANONYMOUS, DELIVERY, MOMENT, record
from support.faults import fork, in_child
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
        state.sequencer._lock,
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


OPEN_AND_CLOSE = """import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("SELECT count(*) FROM imcallback_delivery").fetchone()
connection.close()"""


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_keeps_its_log_when_its_parent_closes_the_file(
    make_app: MakeApp, tmp_path: Path
) -> None:
    """After a fork, the child has its own locks. So no other process deletes the log it uses."""
    app = make_app(URL.create("sqlite", database=str(tmp_path / "test.db")))
    record(app, ANONYMOUS)
    save_counts(app)
    child_is_ready, parent_has_closed = os.pipe(), os.pipe()

    def child() -> None:
        record(app, DELIVERY)
        os.write(child_is_ready[1], b"1")
        os.read(parent_has_closed[0], 1)
        command = [sys.executable, "-c", OPEN_AND_CLOSE, str(tmp_path / "test.db")]
        subprocess.run(command, check=True)
        record(app, replace(ANONYMOUS, received_at=MOMENT + timedelta(seconds=1)))

    pid = fork(child)
    os.read(child_is_ready[0], 1)
    close_connections(app)
    os.write(parent_has_closed[1], b"1")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    with closing(sqlite3.connect(tmp_path / "test.db")) as connection:
        assert connection.execute("SELECT count(*) FROM imcallback_delivery").fetchone() == (3,)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_keeps_no_lock_file(tmp_path: Path) -> None:
    """A child that was forked while its parent had the lock has the lock file open, too."""
    path = tmp_path / "test.db"
    path.touch()
    may_end = os.pipe()
    with file_lock(str(path)):
        pid = fork(lambda: os.read(may_end[0], 1))
    try:
        with open(f"{path}-lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.write(may_end[1], b"1")
        os.waitpid(pid, 0)


def _fail_if_open(folder: Path) -> None:
    """Raise an error if this process has a file in the folder open, except for lock files."""
    paths = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    assert not [path for path in paths if path.startswith(f"{folder}/") and "-lock" not in path]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_has_no_database_file_open(
    make_app: MakeApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads of the parent open, use and close connections while the process forks."""
    monkeypatch.setattr(sqlite_forks, "FORK_DELAY_SECONDS", 20)  # a busy machine is slow
    monkeypatch.setattr(sqlite_forks, "MAX_GATE_SECONDS", 20)
    app = make_app(URL.create("sqlite", database=str(tmp_path / "test.db")))
    is_over = threading.Event()

    def repeat(function: Callable[[Flask], object]) -> None:
        while not is_over.is_set():
            function(app)

    functions = [store, save_counts, find]
    threads = [threading.Thread(target=repeat, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            assert in_child(lambda: _fail_if_open(tmp_path)) == 0
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def store(app: Flask) -> None:
    """Store a delivery in the database, or in the spool while the machine is too busy."""
    with app.app_context():
        get_runtime().recorder.record(ANONYMOUS)


def find(app: Flask) -> None:
    """Query the history."""
    with app.app_context():
        get_runtime().history.find()
