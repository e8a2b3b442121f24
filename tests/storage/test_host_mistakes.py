"""A mistake of the host app in its logging, its listeners or its contexts loses no callback."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from flask import Flask, current_app, g, request
from sqlalchemy import URL, create_engine, event, select

from flask_imcallback import upgrade
from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage.tables import inbox
from support.apps import MakeApp, join, rows, wait_until
from support.callbacks import BODY, SECRET
from support.deliveries import make_entries
from support.lost import MARK

CALLBACK_URL = f"/imcallback/openim/{SECRET}/callbackAfterRemoveBlackCommand"

ENDS_THREAD = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


def post(app: Flask) -> int:
    return app.test_client().post(CALLBACK_URL, json=BODY).status_code


def put_into_spool(app: Flask) -> None:
    """Leave a delivery in the spool, as an earlier process does."""
    with app.app_context():
        drain = get_runtime().drain
        assert drain
        drain.spool.put(make_entries(app, 1)[0])


def create_tables(app: Flask) -> None:
    with app.app_context():
        upgrade()


@contextmanager
def without_table(app: Flask, name: str) -> Iterator[None]:
    """Rename a table, and rename it back in the end."""
    with app.app_context():
        engine = get_runtime().engine()
    with engine.begin() as connection:
        connection.exec_driver_sql(f"ALTER TABLE {name} RENAME TO away")
    yield
    with engine.begin() as connection:
        connection.exec_driver_sql(f"ALTER TABLE away RENAME TO {name}")


def is_numbered(app: Flask) -> bool:
    with app.app_context(), get_runtime().engine().connect() as connection:
        return not connection.execute(select(inbox)).all()


@contextmanager
def handler(emit: Callable[[logging.LogRecord], object]) -> Iterator[None]:
    """Add a log handler of the host app."""
    logger, added = logging.getLogger("flask_imcallback"), logging.NullHandler()
    added.handle = emit  # type: ignore[assignment, method-assign]
    logger.addHandler(added)
    try:
        yield
    finally:
        logger.removeHandler(added)


def need_request(record: logging.LogRecord) -> None:
    record.request_id = request.headers.get("X-Request-ID", "-")


def fail(record: logging.LogRecord) -> None:
    raise OSError("syslog is away")


def test_a_log_filter_that_needs_a_request(make_app: MakeApp) -> None:
    """The drain stores a callback of an earlier process, although it cannot log the outage."""
    app = make_app(migrate=False)
    put_into_spool(app)
    with handler(need_request):
        app.test_client().get("/imcallback/health")
        drain = app.extensions["imcallback"].drain
        wait_until(lambda: drain._problem)
        create_tables(app)
        wait_until(lambda: not drain.spool.waiting().count)
    assert len(rows(app)[0]) == 1


def test_a_log_handler_that_raises(make_app: MakeApp, capsys: pytest.CaptureFixture[str]) -> None:
    """The spool takes the callback, and stderr gets the line and the error of the handler."""
    app = make_app(migrate=False, IMCALLBACK_SECRETS=[SECRET])
    with handler(fail):
        assert post(app) == 200
        create_tables(app)
        wait_until(lambda: len(rows(app)[0]) == 1)
    errors = capsys.readouterr().err
    assert "The database does not store callbacks (OperationalError: no such table" in errors
    assert "OSError: syslog is away" in errors


def test_a_log_handler_that_raises_and_no_spool(
    make_app: MakeApp, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lost callback is on stderr."""
    app = make_app(migrate=False, IMCALLBACK_SECRETS=[SECRET], IMCALLBACK_SPOOL=None)
    with handler(fail):
        assert post(app) == 503
    (line,) = [line for line in capsys.readouterr().err.splitlines() if MARK in line]
    assert json.loads(json.loads(line)["body"]) == BODY


def test_a_log_names_the_line_that_logged(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """The wrapper around the logger is not visible in the log."""
    app = make_app(migrate=False, IMCALLBACK_SECRETS=[SECRET])
    assert post(app) == 200
    record = next(record for record in caplog.records if "does not store" in record.message)
    assert (record.name, record.filename) == ("flask_imcallback", "drain.py")


@contextmanager
def ending_thread(name: str) -> Iterator[list[threading.Thread]]:
    """Let the log end a thread, as a handler does that calls `sys.exit`. Yield its threads."""
    ended: list[threading.Thread] = []

    def exit_(record: logging.LogRecord) -> None:
        if threading.current_thread().name == name:
            ended.append(threading.current_thread())
            raise SystemExit

    with handler(exit_):
        yield ended
        wait_until(lambda: ended)
    ended[0].join(30)
    assert not ended[0].is_alive()


@ENDS_THREAD
def test_a_drain_that_a_log_handler_ends(make_app: MakeApp) -> None:
    """The next callback starts the drain again."""
    app = make_app(migrate=False, IMCALLBACK_SECRETS=[SECRET])
    put_into_spool(app)
    with ending_thread("imcallback-drain"):
        app.test_client().get("/imcallback/health")
    create_tables(app)
    assert post(app) == 200
    wait_until(lambda: len(rows(app)[0]) == 2)


@ENDS_THREAD
def test_a_sequencer_that_a_log_handler_ends(make_app: MakeApp) -> None:
    """The next callback is numbered."""
    app = make_app(IMCALLBACK_SECRETS=[SECRET])
    with app.app_context():
        runtime = get_runtime()
        with without_table(app, "imcallback_inbox"), ending_thread("imcallback-sequencer"):
            runtime.sequencer.wake()
        assert post(app) == 200
        wait_until(lambda: is_numbered(app))


@ENDS_THREAD
def test_counters_that_a_log_handler_ends(make_app: MakeApp) -> None:
    """The next callback saves the counts of both."""
    app = make_app()
    with app.app_context():
        counters = get_runtime().counters
        with without_table(app, "imcallback_counter"), ending_thread("imcallback-counters"):
            counters.count_accepted("openim", "a")
        counters.count_accepted("openim", "a")
        assert [count.count for count in counters.counts()] == [2]


@pytest.mark.parametrize("name", ["connect", "do_connect"])
def test_a_listener_that_needs_an_app_context(
    name: str, database_url: URL, make_app: MakeApp
) -> None:
    """Every thread that opens a connection has an app context. The spool stays unused."""
    engine = create_engine(database_url)
    threads: set[str] = set()

    def listen(*arguments: Any) -> None:
        assert current_app.config["IMCALLBACK_SECRETS"]
        threads.add(threading.current_thread().name)

    event.listen(engine, name, listen)
    app = make_app(engine=engine, IMCALLBACK_SECRETS=[SECRET], IMCALLBACK_SPOOL=None)
    for _ in range(3):
        assert post(app) == 200
    assert app.test_client().get("/imcallback/health").status_code == 200
    with app.app_context():
        assert get_runtime().counters.counts()[0].count == 3
    wait_until(lambda: is_numbered(app))
    assert len(rows(app)[0]) == 3
    assert threads >= {
        "imcallback-writer",
        "imcallback-counters",
        "imcallback-health",
        "imcallback-sequencer",
    }
    engine.dispose()


def test_a_drain_with_a_listener_that_needs_an_app_context(
    make_app: MakeApp, database_url: URL
) -> None:
    """The writer thread of the drain has an app context, too."""
    engine = create_engine(database_url)
    event.listen(engine, "connect", lambda *_: current_app.config)
    app = make_app(engine=engine, migrate=False, IMCALLBACK_SECRETS=[SECRET])
    assert post(app) == 200
    create_tables(app)
    wait_until(lambda: len(rows(app)[0]) == 1)
    engine.dispose()


def test_a_teardown_function_that_needs_a_request(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """The threads do their work, the drain ends, and the log has one line about the function."""
    app = make_app(migrate=False, IMCALLBACK_SECRETS=[SECRET])

    @app.teardown_appcontext
    def close(error: BaseException | None) -> None:
        if threading.current_thread().name.startswith("imcallback"):
            g.connection_of_the_request.close()

    assert post(app) == 200
    create_tables(app)
    wait_until(lambda: len(rows(app)[0]) == 1)
    join("imcallback-drain")
    with app.app_context():
        assert get_runtime().counters.counts()[0].count == 1
    wait_until(lambda: is_numbered(app))
    lines = [line for line in caplog.messages if "connection_of_the_request" in line]
    assert len(lines) == 1
    assert lines[0].startswith("A function of the app failed at the end of an app context")
    assert "not saved (AttributeError" not in caplog.text
    assert "not numbered (AttributeError" not in caplog.text
