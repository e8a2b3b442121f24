"""The threads of an app that nobody uses any more leave its database file alone, and end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import URL

from flask_imcallback.log import sequencer
from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage import counters
from support.apps import MakeApp, wait_until
from support.deliveries import store

Running = Callable[[], list[str]]


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Running:
    """The names of the threads that the test has started, without those that end by themselves."""
    monkeypatch.setattr(sequencer, "MAX_IDLE_SECONDS", 0.1)
    others = {*threading.enumerate()}
    names = ("imcallback-counters", "imcallback-sequencer")
    return lambda: [
        thread.name for thread in {*threading.enumerate()} - others if thread.name in names
    ]


def test_a_deleted_file_is_not_created_again(
    make_app: MakeApp, tmp_path: Path, running: Running
) -> None:
    """A test of a host deletes the file after its last callback. No thread opens it again."""
    app = make_app(URL.create("sqlite", database=str(tmp_path / "test.db")))
    with app.app_context():
        store(("a", "b"))
        runtime = get_runtime()
        wait_until(lambda: not running())
        for file in tmp_path.glob("test.db*"):
            file.unlink()
        runtime.counters.count_accepted("openim", "a")
        runtime.sequencer.wake()
        runtime.sequencer.catch_up(10)
        runtime.counters.flush(10)
        wait_until(lambda: not running())
    assert [*tmp_path.glob("test.db*")] == []


def test_an_empty_file_keeps_no_thread(make_app: MakeApp, tmp_path: Path, running: Running) -> None:
    """A thread opened the file just when the test of a host deleted it."""
    file = tmp_path / "test.db"
    app = make_app(URL.create("sqlite", database=str(file)), migrate=False)
    file.touch()
    with app.app_context():
        runtime = get_runtime()
        runtime.counters.count_accepted("openim", "a")
        runtime.sequencer.wake()
        wait_until(lambda: not running(), seconds=3)
    assert file.stat().st_size == 0


def test_a_database_without_tables_keeps_no_thread(
    make_app: MakeApp, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread of the counters ends after some failures. The next reader saves the counts."""
    monkeypatch.setattr(counters, "SAVE_INTERVAL_SECONDS", 0.01)
    app = make_app()
    with app.app_context(), get_runtime().engine().connect() as connection:
        connection.exec_driver_sql("ALTER TABLE imcallback_counter RENAME TO away")
        connection.commit()
        get_runtime().counters.count_accepted("openim", "a")
        assert running() == ["imcallback-counters"]
        wait_until(lambda: not running())
        connection.exec_driver_sql("ALTER TABLE away RENAME TO imcallback_counter")
        connection.commit()
        assert [count.count for count in get_runtime().counters.counts()] == [1]
