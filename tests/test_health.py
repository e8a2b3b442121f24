"""What a monitor is told."""

from __future__ import annotations

import pytest
from conftest import MakeApp
from sqlalchemy import URL

from flask_imcallback import migration
from flask_imcallback.state import get_state


def test_health_follows_the_tables(database_url: URL, make_app: MakeApp) -> None:
    """503 before the migration and after it was undone, 200 between; HEAD too."""
    app = make_app(database_url, migrate=False)
    client = app.test_client()
    assert client.get("/imcallback/health").status_code == 503
    with app.app_context():
        migration.run("upgrade", "head")
    response = client.get("/imcallback/health")
    assert (response.status_code, response.get_json()["status"]) == (200, "ok")
    assert response.headers["Cache-Control"] == "no-store"
    assert client.head("/imcallback/health").status_code == 200
    for revision in ("-1", "base"):
        with app.app_context():
            migration.run("downgrade", revision)
        response = client.get("/imcallback/health")
        assert response.status_code == 503
        assert "flask db upgrade" in response.get_json()["problem"]


def test_a_newer_release_of_the_tables_is_no_illness(make_app: MakeApp) -> None:
    """While hosts are upgraded one by one, those that are behind still serve."""
    app = make_app()
    with app.app_context(), get_state().engine().begin() as connection:
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
