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
from flask_imcallback.log import feed
from support import servers
from support.apps import DATABASES, MakeApp, close_connections, join
from support.torture import create_tables


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


@pytest.fixture(autouse=True)
def patient_feed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a page of the feed wait longer for its numbers, because the disk of the tests is busy."""
    monkeypatch.setattr(feed, "NUMBERING_SECONDS", 30.0)


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


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file that has all tables. A copy takes a hundredth of the time of the migrations."""
    path = tmp_path_factory.mktemp("template") / "template.db"
    create_tables(URL.create("sqlite", database=str(path)))
    return path


def sqlite_file(app: Flask, url: URL | None) -> Path | None:
    """Return the SQLite file of an app of `make_app`, or None if it has another database."""
    changed = {"SQLALCHEMY_BINDS", "IMCALLBACK_BIND_KEY", "SQLALCHEMY_ENGINE_OPTIONS"}
    if changed & app.config.keys():
        return None
    if url is None and "SQLALCHEMY_DATABASE_URI" not in app.config:
        return Path(app.instance_path, "imcallback.db")
    if isinstance(url, URL) and url.get_backend_name() == "sqlite" and not url.query:
        name = url.database or ":memory:"
        return None if name.startswith((":", "file:")) else Path(app.instance_path, name)
    return None


def copy_tables(template: Path, file: Path) -> bool:
    """Copy the tables into a file that does not exist yet. Returns False if it exists."""
    if file.exists():
        return False
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(template, file)
    file.chmod(0o600)
    return True


@pytest.fixture
def make_app(tmp_path: Path, sqlite_template: Path) -> Iterator[MakeApp]:
    """Make apps with settings; the tables are there, in a SQLite file unless told otherwise."""

    apps: list[Flask] = []

    def make(url: URL | None = None, *, migrate: bool = True, **arguments: Any) -> Flask:
        app = Flask("host", instance_path=str(tmp_path / "instance"))
        app.config["SECRET_KEY"] = "a secret key of the tests"
        app.config["IMCALLBACK_SEAL_SECONDS"] = 0  # tests say when the log is sealed
        if url is not None:
            app.config["SQLALCHEMY_DATABASE_URI"] = url
        app.config.update({name: arguments.pop(name) for name in list(arguments) if name.isupper()})
        ImCallback(app, **arguments)
        apps.append(app)
        file = sqlite_file(app, url)
        if migrate and file and not arguments and copy_tables(sqlite_template, file):
            return app
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
