"""The health check that monitors and load balancers call."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import URL, event

from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage import run_alembic
from flask_imcallback.web.health import CHECKS_PER_SECOND, MAX_CHECKS_WITHOUT_PAUSE
from support import faults, servers
from support.apps import MakeApp, wait_until
from support.callbacks import BODY, SECRET

HEALTH = "/imcallback/health"
EMPTY_SPOOL = {"waiting": 0, "oldest": None, "set_aside": 0, "foreign": 0}
TOKEN = "a-token-of-20-characters"


def test_health_follows_the_tables(database_url: URL, make_app: MakeApp) -> None:
    """The answer is 200 only while the tables are at the newest migration."""
    app = make_app(database_url, migrate=False)
    client = app.test_client()
    assert client.get(HEALTH).status_code == 503
    with app.app_context():
        run_alembic(get_runtime().engine(), "upgrade", "head")
    response = client.get(HEALTH)
    assert response.status_code == 200
    assert response.get_json() == {"status": "ok", "problem": "", "spool": EMPTY_SPOOL}
    assert response.headers["Cache-Control"] == "no-store"
    assert client.head(HEALTH).status_code == 200
    for revision in ("-1", "base"):
        with app.app_context():
            run_alembic(get_runtime().engine(), "downgrade", revision)
        response = client.get(HEALTH)
        assert response.status_code == 503
        assert response.get_json()["status"] == "unavailable"
        assert response.get_json()["problem"] == "the tables need flask db upgrade"


def test_newer_tables_are_healthy(make_app: MakeApp) -> None:
    """During an upgrade, hosts with the older release still work."""
    app = make_app()
    execute(app, "UPDATE alembic_version_imcallback SET version_num = '9999_new'")
    assert app.test_client().get(HEALTH).status_code == 200


def test_an_app_without_a_spool_is_healthy(make_app: MakeApp) -> None:
    """The body has no member `spool`."""
    response = make_app(IMCALLBACK_SPOOL=None).test_client().get(HEALTH)
    assert (response.status_code, response.get_json()) == (200, {"status": "ok", "problem": ""})


def test_readers_see_more(make_app: MakeApp, tmp_path: Path) -> None:
    """They see the counts of callbacks, the database, and what is wrong with the process."""
    app = make_app(IMCALLBACK_SECRETS=[SECRET], IMCALLBACK_HISTORY_TOKENS=[TOKEN])
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert app.test_client().get(HEALTH, headers=headers).get_json() == {
        "status": "ok",
        "problem": "",
        "spool": EMPTY_SPOOL,
        "findings": [],
        "database": f"sqlite:///{tmp_path.resolve()}/instance/imcallback.db",
        "callbacks": [],
    }
    wrong = {"Authorization": "Bearer another-token-of-a-reader"}
    assert set(app.test_client().get(HEALTH, headers=wrong).get_json()) == {
        "status",
        "problem",
        "spool",
    }


def test_an_unavailable_database_is_reported_without_secrets(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has the cause. Neither the log nor the answer has the password."""
    url = URL.create("postgresql+psycopg", "user", "pass-word", "127.0.0.1", 1, "database")
    app = make_app(url, migrate=False, IMCALLBACK_HISTORY_TOKENS=[TOKEN])
    headers = {"Authorization": f"Bearer {TOKEN}"}
    for response in (
        app.test_client().get(HEALTH),
        app.test_client().get(HEALTH, headers=headers),
    ):
        assert response.status_code == 503
        assert response.get_json()["problem"] == "the database does not answer"
        assert "pass-word" not in response.text
    assert "Connection refused" in caplog.text
    assert "pass-word" not in caplog.text


WRONG_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "postgres://": (
        {"url": "postgres://u:pass-word@127.0.0.1/d"},
        "SQLAlchemy does not know the kind of database in SQLALCHEMY_DATABASE_URI",
    ),
    "no driver": (
        {"url": "mysql+mysqldb://u:pass-word@127.0.0.1/d"},
        "the database driver MySQLdb is not installed",
    ),
    "unknown bind": ({"IMCALLBACK_BIND_KEY": "x"}, "the database is configured wrongly"),
    "no file": (
        {"url": "sqlite:///missing.db"},
        "the database file does not exist",
    ),
}


@pytest.mark.parametrize(("settings", "problem"), WRONG_SETTINGS.values(), ids=WRONG_SETTINGS)
def test_a_wrong_database_is_503_and_not_500(
    make_app: MakeApp, tmp_path: Path, settings: dict[str, Any], problem: str
) -> None:
    """The problem is one plain sentence, also for readers."""
    app = make_app(migrate=False, IMCALLBACK_HISTORY_TOKENS=[TOKEN], **settings)
    for headers in ({}, {"Authorization": f"Bearer {TOKEN}"}):
        response = app.test_client().get(HEALTH, headers=headers)
        assert (response.status_code, response.get_json()["problem"]) == (503, problem)
        assert "pass-word" not in response.text
    assert not (tmp_path / "instance/missing.db").exists()


def execute(app: Flask, statement: str) -> None:
    with app.app_context(), get_runtime().engine().begin() as connection:
        connection.exec_driver_sql(statement)


def test_a_write_that_fails_is_503(make_app: MakeApp) -> None:
    """Questions are answered, and nothing can be stored."""
    app = make_app()
    execute(
        app,
        "CREATE TRIGGER refuse BEFORE INSERT ON imcallback_counter "
        "BEGIN SELECT raise(ABORT, 'on purpose'); END",
    )
    response = app.test_client().get(HEALTH)
    assert response.status_code == 503
    assert response.get_json()["problem"] == "the database refuses to store anything"


def test_callbacks_that_the_database_refuses_are_503(make_app: MakeApp) -> None:
    """The last callback tells more than a trial. Health ends with the trouble."""
    app = make_app(IMCALLBACK_SECRETS=[SECRET])
    client = app.test_client()
    execute(app, "ALTER TABLE imcallback_removal RENAME TO elsewhere")
    path = f"/imcallback/openim/{SECRET}/callbackAfterRemoveBlackCommand"
    assert client.post(path, json=BODY, buffered=True).status_code == 200
    response = client.get(HEALTH)
    assert response.status_code == 503
    assert response.get_json()["problem"] == "the database does not store callbacks"
    assert response.get_json()["spool"]["waiting"] == 1
    execute(app, "ALTER TABLE elsewhere RENAME TO imcallback_removal")
    wait_until(lambda: client.get(HEALTH).status_code == 200)
    assert client.get(HEALTH).get_json()["spool"] == EMPTY_SPOOL


def test_a_stranger_who_asks_often_costs_little(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """Most requests get the last answer, and the log gets one line a minute, without traceback."""
    app = make_app(URL.create("mysql+pymysql", "u", "p", "127.0.0.1", 1, "d"), migrate=False)
    client = app.test_client()
    logging.getLogger("flask_imcallback").setLevel(logging.WARNING)
    caplog.clear()
    attempts: list[object] = []
    with app.app_context():
        event.listen(
            get_runtime().process.get().engines.host(), "do_connect", lambda *_: attempts.append(_)
        )
    started = time.monotonic()
    for _ in range(1000):
        assert client.get(HEALTH).status_code == 503
    allowed = MAX_CHECKS_WITHOUT_PAUSE + CHECKS_PER_SECOND * (time.monotonic() - started)
    assert 0 < len(attempts) <= 2 * allowed  # the driver may try twice
    (record,) = caplog.records
    assert record.exc_info is None
    assert "\n" not in record.getMessage()
    assert record.getMessage().startswith(
        "The health check finds a problem. The database does not answer. Callbacks wait in the "
        "spool. Without a spool they are lost. The error: OperationalError: (2003,"
    )


def test_many_requests_get_the_last_answer(make_app: MakeApp, tmp_path: Path) -> None:
    """A few requests are always answered by a new check."""
    database = tmp_path / "test.db"
    app = make_app(URL.create("sqlite", database=str(database)))
    client = app.test_client()
    for _ in range(3 * MAX_CHECKS_WITHOUT_PAUSE):
        assert client.get(HEALTH).status_code == 200
    database.rename(tmp_path / "away.db")
    assert client.get(HEALTH).status_code == 200
    time.sleep(2 / CHECKS_PER_SECOND)
    assert client.get(HEALTH).status_code == 503


@pytest.mark.parametrize("dialect", ["postgresql", "mariadb"])
def test_a_hanging_database_does_not_block_monitors(
    dialect: str, database_servers: dict[str, servers.Server], make_app: MakeApp
) -> None:
    """Each request is answered by the deadline, and the first one after the trouble is 200."""
    server = database_servers[dialect]
    with servers.database(server) as url, faults.proxy(url.port or 0) as proxy:
        app = make_app(url.set(port=proxy.port), IMCALLBACK_DEADLINE=0.5)
        get = app.test_client().get
        assert get(HEALTH).status_code == 200
        before = threading.active_count()
        with proxy.holding():
            for _ in range(4):
                started = time.monotonic()
                response = get(HEALTH)
                assert response.status_code == 503
                assert response.get_json()["problem"] == "the database does not answer in time"
                assert time.monotonic() - started < 5
        assert get(HEALTH).status_code == 200
        wait_until(lambda: threading.active_count() <= before)


def test_a_locked_table_is_503_and_ends_with_the_lock(
    database_servers: dict[str, servers.Server], make_app: MakeApp
) -> None:
    """The question is given up, and its connection is closed."""
    with servers.database(database_servers["postgresql"]) as url:
        app = make_app(url, IMCALLBACK_DEADLINE=0.5)
        get = app.test_client().get
        with make_app(url).app_context(), get_runtime().engine().connect() as connection:
            connection.exec_driver_sql("LOCK TABLE imcallback_counter IN ACCESS EXCLUSIVE MODE")
            for _ in range(12):
                assert get(HEALTH).status_code == 503
        assert get(HEALTH).status_code == 200
