"""What a monitor is told."""

from __future__ import annotations

import threading
import time

import pytest
from sqlalchemy import URL

from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage import migrations as migration
from support import faults, servers
from support.apps import MakeApp


def test_health_follows_the_tables(database_url: URL, make_app: MakeApp) -> None:
    """503 before the migration and after it was undone, 200 between; HEAD too."""
    app = make_app(database_url, migrate=False)
    client = app.test_client()
    assert client.get("/imcallback/health").status_code == 503
    with app.app_context():
        migration.run_alembic(get_runtime().engine(), "upgrade", "head")
    response = client.get("/imcallback/health")
    assert (response.status_code, response.get_json()["status"]) == (200, "ok")
    assert response.headers["Cache-Control"] == "no-store"
    assert client.head("/imcallback/health").status_code == 200
    for revision in ("-1", "base"):
        with app.app_context():
            migration.run_alembic(get_runtime().engine(), "downgrade", revision)
        response = client.get("/imcallback/health")
        assert response.status_code == 503
        assert "flask db upgrade" in response.get_json()["problem"]


def test_a_newer_release_of_the_tables_is_no_illness(make_app: MakeApp) -> None:
    """While hosts are upgraded one by one, those that are behind still serve."""
    app = make_app()
    with app.app_context(), get_runtime().engine().begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version_imcallback SET version_num = '9999_new'")
    assert app.test_client().get("/imcallback/health").status_code == 200


def test_a_database_that_is_away_is_told_without_secrets(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """The cause is in the log, the password is nowhere."""
    url = URL.create("postgresql+psycopg", "user", "pass-word", "127.0.0.1", 1, "database")
    app = make_app(url, migrate=False)
    response = app.test_client().get("/imcallback/health")
    assert response.status_code == 503
    assert response.get_json()["problem"] == "the database does not answer"
    assert "connection" in caplog.text
    assert "pass-word" not in caplog.text + response.text


def test_a_database_that_hangs_keeps_no_monitor_waiting(
    database_servers: dict[str, servers.Server], make_app: MakeApp
) -> None:
    """However many ask, each is told by the deadline, and only one question is under way."""
    server = database_servers["postgresql"]
    with servers.database(server) as url, faults.proxy(url.port or 0) as proxy:
        app = make_app(url.set(port=proxy.port), IMCALLBACK_DEADLINE=0.5)
        ask = app.test_client().get
        assert ask("/imcallback/health").status_code == 200
        with proxy.holding():
            before = threading.active_count()
            for _ in range(4):
                began = time.monotonic()
                assert ask("/imcallback/health").status_code == 503
                assert time.monotonic() - began < 1.5
            assert threading.active_count() == before + 1
        end = time.monotonic() + 30
        while ask("/imcallback/health").status_code != 200:
            assert time.monotonic() < end
