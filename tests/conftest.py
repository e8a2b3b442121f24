"""Databases of every kind, and apps on them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import servers
from flask import Flask
from sqlalchemy import URL, Connection, select

from flask_imcallback import ImCallback, upgrade
from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage.ids import moment_of
from flask_imcallback.storage.tables import removal, source

DATABASES = ("sqlite", "postgresql", "mariadb")
MakeApp = Callable[..., Flask]


@pytest.fixture(scope="session")
def database_servers() -> Iterator[dict[str, servers.Server]]:
    """One private PostgreSQL and MariaDB for all tests of this process."""
    with ExitStack() as stack:
        yield {
            "postgresql": stack.enter_context(servers.postgresql()),
            "mariadb": stack.enter_context(servers.mariadb()),
        }


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[URL]:
    """An empty database of each kind."""
    if request.param == "sqlite":
        yield URL.create("sqlite", database=str(tmp_path / "test.db"))
        return
    server = request.getfixturevalue("database_servers")[request.param]
    with servers.database(server) as url:
        yield url


@pytest.fixture
def make_app(tmp_path: Path) -> Iterator[MakeApp]:
    """Make apps with settings; the tables are there, in a SQLite file unless told otherwise."""

    apps: list[Flask] = []

    def make(url: URL | None = None, *, migrate: bool = True, **arguments: Any) -> Flask:
        app = Flask("host", instance_path=str(tmp_path / "instance"))
        app.config["SECRET_KEY"] = "a secret key of the tests"
        if url is not None:
            app.config["SQLALCHEMY_DATABASE_URI"] = url
        app.config.update({name: arguments.pop(name) for name in list(arguments) if name.isupper()})
        ImCallback(app, **arguments)
        apps.append(app)
        if migrate:
            with app.app_context():
                upgrade()
        return app

    yield make
    for file in tmp_path.rglob("imcallback_spool.db"):
        file.unlink()  # so that nobody drains it any more
    join("imcallback-drain", "imcallback-health", "imcallback-counters")
    for app in apps:
        with app.app_context():
            runtime = get_runtime()
            engines = list(runtime.database().engines.values())
            if runtime.drain:
                engines.append(runtime.drain.spool.engine)
            for engine in engines:
                engine.dispose()


def stored_removals(connection: Connection) -> list[dict[str, Any]]:
    """All that is stored of each removal, with the names and in the order of a `Record`."""
    of, what = removal.c, source.c
    found = select(
        *(of.id, what.provider, what.app_id, what.command, what.relation, of.owner_id),
        *(of.target_id, (of.id - of.delivery_id).label("position"), of.delivery_id, of.client_ip),
        *(what.platform, of.request_id),
    ).join(source, what.id == of.source_id, isouter=True)
    rows = connection.execute(found.order_by(of.id)).mappings()
    return [{**row, "received_at": moment_of(row["delivery_id"])} for row in rows]


def wait_for_counters() -> None:
    """Until what was counted is saved, which happens behind the answers."""
    join("imcallback-counters")


def join(*names: str) -> None:
    """Wait until the threads of these names have ended: they may have connections."""
    for thread in threading.enumerate():
        if thread.name in names:
            thread.join(30)
            assert not thread.is_alive()
