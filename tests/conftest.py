"""Databases of every kind, and apps on them."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import URL

from flask_imcallback import ImCallback, upgrade
from support import servers
from support.apps import DATABASES, MakeApp, close_connections, join


def pytest_configure() -> None:
    """Let the servers of the tests handle Ctrl-C, also if a shell runs the tests in the background.

    A shell without job control lets a background process and its children ignore the signal.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need PostgreSQL or MariaDB, so that `make check` can leave them out."""
    for item in items:
        parameters = (
            item.callspec.params.values()
            if isinstance(item, pytest.Function) and hasattr(item, "callspec")
            else ()
        )
        fixtures = getattr(item, "fixturenames", ())
        texts = {value for value in parameters if isinstance(value, str)}
        if (
            "database_servers" in fixtures
            or texts & {"postgresql", "mariadb"}
            or ("url_of" in fixtures and "sqlite" not in texts)
        ):
            item.add_marker("servers")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove all temporary files of this run, also after failures and Ctrl-C.

    `-o tmp_path_retention_policy=all` and `--basetemp` keep them.
    """
    is_kept = config.option.basetemp or config.getini("tmp_path_retention_policy") == "all"
    if not is_kept:  # a worker of pytest-xdist has the option --basetemp
        folder: Path = config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # another run may use the parent folder
            (folder.parent / "pytest-current").unlink()
            folder.parent.rmdir()


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
    join("imcallback-drain", "imcallback-health")
    for app in apps:
        close_connections(app)
