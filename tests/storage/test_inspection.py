"""Health checks learn the truth about the database, and never hang."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import URL, Dialect, create_engine, event, text

from flask_imcallback import StorageError
from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage.tables import counters
from support import faults, servers
from support.apps import MakeApp

SERVERS = {"sqlite": "SQLite 3.", "postgresql": "PostgreSQL ", "mysql": "MariaDB 1"}
ENCODINGS = {"sqlite": "UTF-8", "postgresql": "UTF8", "mysql": "utf8mb4"}
DURABILITY = {
    "sqlite": "",
    "postgresql": "the setting fsync of PostgreSQL is off: set it to on",
    "mysql": "the setting innodb_flush_log_at_trx_commit is 0: set it to 1",
}
"""The servers of the tests are quick and not durable."""
MAX_PACKET_BYTES = {"sqlite": None, "postgresql": None, "mysql": 16 * 1024 * 1024}
"""The default of MariaDB."""


def test_the_state_of_a_database_is_known(database_url: URL, make_app: MakeApp) -> None:
    """Server, encoding, revision and durability are known, and the check leaves no row behind."""
    app, kind = make_app(database_url, IMCALLBACK_DEADLINE=10), database_url.get_backend_name()
    with app.app_context():
        state = get_runtime().inspect_database()
        assert state.server.startswith(SERVERS[kind])
        assert (state.encoding, state.encoding_problem) == (ENCODINGS[kind], "")
        assert (state.revision, state.is_at_head) == ("0002_append_only", True)
        assert state.durability_problem == DURABILITY[kind]
        assert state.max_packet_bytes == MAX_PACKET_BYTES[kind]
        with get_runtime().engine().connect() as connection:
            assert connection.execute(counters.select()).all() == []


def test_a_database_without_tables_is_not_at_head(database_url: URL, make_app: MakeApp) -> None:
    """The check does not write before the first migration."""
    app = make_app(database_url, migrate=False, IMCALLBACK_DEADLINE=10)
    with app.app_context():
        state = get_runtime().inspect_database()
        assert (state.revision, state.is_at_head) == (None, False)


def inspect(app: Flask) -> None:
    with app.app_context():
        get_runtime().inspect_database()


def test_a_read_only_file_is_an_error(tmp_path: Path, make_app: MakeApp) -> None:
    """Reading works, but the check also writes. The message has the reason and a remedy."""
    path = tmp_path / "test.db"
    make_app(URL.create("sqlite", database=str(path)))
    url = URL.create("sqlite", database=f"file:{path}", query={"mode": "ro", "uri": "true"})
    app = make_app(url, migrate=False)
    message = (
        r"^cannot use the database \(OperationalError: attempt to write a readonly database\): "
        "check the server, the URL and the permissions of the database user$"
    )
    with pytest.raises(StorageError, match=message):
        inspect(app)


def test_a_missing_privilege_is_an_error(
    database_servers: dict[str, servers.Server], make_app: MakeApp
) -> None:
    """The user of the app may read the tables, but not write them."""
    with servers.database(database_servers["postgresql"]) as url:
        make_app(url)
        owner = create_engine(url)
        role = f"reader_{url.database}"
        with owner.begin() as connection:
            connection.execute(text(f"CREATE ROLE {role} LOGIN"))
            connection.execute(text(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"))
        try:
            app = make_app(url.set(username=role), migrate=False)
            with pytest.raises(StorageError, match="permission denied for table"):
                inspect(app)
        finally:
            with owner.begin() as connection:
                connection.execute(text(f"DROP OWNED BY {role}"))
                connection.execute(text(f"DROP ROLE {role}"))
            owner.dispose()


@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
def test_a_question_that_hangs_is_given_up(
    database: str, request: pytest.FixtureRequest, make_app: MakeApp
) -> None:
    """While the network hangs, each check fails in time. After that, the next check succeeds."""
    server = request.getfixturevalue("database_servers")[database]
    with servers.database(server) as url, faults.proxy(url.port or 0) as proxy:
        app = make_app(url.set(port=proxy.port), IMCALLBACK_DEADLINE=0.3)
        with proxy.holding():
            for _ in range(10):
                began = time.monotonic()
                with pytest.raises(StorageError):
                    inspect(app)
                assert time.monotonic() - began < 5
        with app.app_context():
            deadline = time.monotonic() + 10
            while True:
                try:
                    get_runtime().inspect_database(5)
                    break
                except StorageError:
                    assert time.monotonic() < deadline


@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
def test_one_silent_connection_does_not_spoil_the_next_questions(
    database: str, request: pytest.FixtureRequest, make_app: MakeApp
) -> None:
    """Two connections lead to a server that never answers. The third question is answered."""
    server = request.getfixturevalue("database_servers")[database]
    with servers.database(server) as url, socket.create_server(("127.0.0.1", 0)) as silent:
        app = make_app(url)
        silent_ports = [silent.getsockname()[1]] * 2
        with app.app_context():
            host = app.extensions["sqlalchemy"].engine

            @event.listens_for(host, "do_connect")
            def redirect(dialect: Dialect, _record: object, args: Any, options: Any) -> Any:
                if not silent_ports:
                    return None  # SQLAlchemy connects
                # SQLAlchemy 2.0.0 uses the same dictionary for the next connection.
                return dialect.connect(*args, **options | {"port": silent_ports.pop()})

            for _ in range(2):
                with pytest.raises(StorageError, match=r"did not answer within 0\.3 seconds"):
                    get_runtime().inspect_database(0.3)
            assert get_runtime().inspect_database(5).is_at_head
