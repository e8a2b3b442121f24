"""The statements of the PostgreSQL guide do what the guide says."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from flask import Flask
from psycopg import Error

from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage import migrations as migration
from flask_imcallback.storage import read_protection
from support import ROOT, servers
from support.apps import MakeApp, rows
from support.deliveries import DELIVERY, record
from support.log import run

GUIDE = (ROOT / "docs" / "postgresql.md").read_text("utf-8")
PARTITION, DROP = re.findall(r"```sql\n(.+?)```", GUIDE, re.DOTALL)


def execute(app: Flask, sql: str) -> None:
    """Run SQL with transaction control of its own, like psql."""
    with app.app_context(), get_runtime().engine().connect() as connection:
        driver: Any = connection.connection.driver_connection
        driver.autocommit = True
        try:
            driver.execute(sql)
        finally:
            driver.autocommit = False


def count(app: Flask, table: str) -> int:
    """Return the number of rows of a table."""
    with app.app_context(), get_runtime().engine().connect() as connection:
        number = connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one()
        return int(number)


def test_removals_can_be_partitioned(
    database_servers: dict[str, servers.Server], make_app: MakeApp
) -> None:
    """Old removals stay, new removals go to their partition, and an empty one can be dropped."""
    moments = [
        datetime(year, month, 1, 12, tzinfo=UTC)
        for year, month in ((2026, 12), (2027, 1), (2028, 1))
    ]
    with servers.database(database_servers["postgresql"]) as url:
        app = make_app(url)
        record(app, replace(DELIVERY, received_at=moments[0], body=b"before"))
        execute(app, PARTITION)
        for moment in moments:
            record(app, replace(DELIVERY, received_at=moment, body=str(moment).encode()))
        assert record(app, replace(DELIVERY, received_at=moments[2], body=b"before")) == []
        parts = [f"imcallback_removal_{name}" for name in ("first", "2027_01", "later")]
        assert [count(app, part) for part in parts] == [4, 2, 2]
        with app.app_context():
            migration.run_alembic(get_runtime().engine(), "check")
            removals = get_runtime().history.find(owner_id="alice", order="asc").data
        received = [removal.received_at.replace(microsecond=0) for removal in removals]
        assert received == [moments[0], *moments]
        assert run(app, "protect").exit_code == 0
        with app.app_context(), get_runtime().engine().connect() as connection:
            assert read_protection(connection).missing == ()
        with pytest.raises(Error, match="append-only"):
            execute(app, "DELETE FROM imcallback_removal")
        execute(app, "DELETE FROM imcallback_removal_2027_01")
        execute(app, DROP)
        assert len(rows(app)[1]) == 6


@pytest.mark.parametrize("options", re.findall(r"ENGINE_OPTIONS='(\{.+\})'", GUIDE))
def test_engine_options_reach_the_driver(
    options: str,
    database_servers: dict[str, servers.Server],
    make_app: MakeApp,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """psycopg gets the options that the guide sets in the environment."""
    monkeypatch.setenv("FLASK_SQLALCHEMY_ENGINE_OPTIONS", options)
    environment = Flask("environment")
    environment.config.from_prefixed_env()
    engine_options = environment.config["SQLALCHEMY_ENGINE_OPTIONS"]
    with servers.database(database_servers["postgresql"]) as url:
        app = make_app(url, SQLALCHEMY_ENGINE_OPTIONS=engine_options)
        assert len(record(app, DELIVERY)) == 2
        with app.app_context(), get_runtime().engine().connect() as connection:
            driver: Any = connection.connection.driver_connection
            expected = engine_options["connect_args"].get("prepare_threshold", 5)
            assert driver.prepare_threshold == expected
