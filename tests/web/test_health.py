"""The health check that monitors and load balancers call."""

from __future__ import annotations

import threading
import time

import pytest
from sqlalchemy import URL

from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage import run_alembic
from support import faults, servers
from support.apps import MakeApp


def test_health_follows_the_tables(database_url: URL, make_app: MakeApp) -> None:
    """The answer is 200 only while the tables are at the newest migration."""
    app = make_app(database_url, migrate=False)
    client = app.test_client()
    assert client.get("/imcallback/health").status_code == 503
    with app.app_context():
        run_alembic(get_runtime().engine(), "upgrade", "head")
    response = client.get("/imcallback/health")
    assert (response.status_code, response.get_json()["status"]) == (200, "ok")
    assert response.headers["Cache-Control"] == "no-store"
    assert client.head("/imcallback/health").status_code == 200
    for revision in ("-1", "base"):
        with app.app_context():
            run_alembic(get_runtime().engine(), "downgrade", revision)
        response = client.get("/imcallback/health")
        assert response.status_code == 503
        assert response.get_json()["problem"] == "the tables need flask db upgrade"


def test_newer_tables_are_healthy(make_app: MakeApp) -> None:
    """During an upgrade, hosts with the older release still work."""
    app = make_app()
    with app.app_context(), get_runtime().engine().begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version_imcallback SET version_num = '9999_new'")
    assert app.test_client().get("/imcallback/health").status_code == 200


def test_an_unavailable_database_is_reported_without_secrets(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has the cause. Neither the log nor the answer has the password."""
    url = URL.create("postgresql+psycopg", "user", "pass-word", "127.0.0.1", 1, "database")
    app = make_app(url, migrate=False)
    response = app.test_client().get("/imcallback/health")
    assert response.status_code == 503
    assert response.get_json()["problem"] == "the database does not answer"
    assert "connection" in caplog.text
    assert "pass-word" not in caplog.text + response.text


def test_a_hanging_database_does_not_block_monitors(
    database_servers: dict[str, servers.Server], make_app: MakeApp
) -> None:
    """Every request is answered by the deadline, and only one thread waits for the database."""
    server = database_servers["postgresql"]
    with servers.database(server) as url, faults.proxy(url.port or 0) as proxy:
        app = make_app(url.set(port=proxy.port), IMCALLBACK_DEADLINE=0.5)
        get = app.test_client().get
        assert get("/imcallback/health").status_code == 200
        with proxy.holding():
            before = threading.active_count()
            for _ in range(4):
                started = time.monotonic()
                assert get("/imcallback/health").status_code == 503
                assert time.monotonic() - started < 1.5
            assert threading.active_count() == before + 1
        deadline = time.monotonic() + 30
        while get("/imcallback/health").status_code != 200:
            assert time.monotonic() < deadline
