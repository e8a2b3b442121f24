"""The migrations run on the database of every host, and an error names what refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import URL, Engine, NullPool, create_engine, inspect, text

from flask_imcallback import ImCallback, StorageError, upgrade
from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage import current_revision, is_at_head, run_alembic
from support import engines, servers
from support.apps import close_connections
from support.hosts import HEAD, OUR_TABLES

VERSION_TABLE = "alembic_version_imcallback"


@pytest.fixture
def url_of(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], URL]]:
    """Return a function that returns the URL of an empty database of a kind."""
    with ExitStack() as stack:

        def url(kind: str) -> URL:
            if kind == "sqlite":
                return URL.create("sqlite", database=str(tmp_path / "test.db"))
            database_servers = request.getfixturevalue("database_servers")
            return stack.enter_context(servers.database(database_servers[kind]))

        yield url


@contextmanager
def app_on(engine: Engine, folder: Path) -> Iterator[Flask]:
    """Give the context of an app on an engine of the host, and close its connections."""
    app = Flask("host", instance_path=str(folder))
    app.config["IMCALLBACK_SPOOL"] = None
    ImCallback(app, engine=engine)
    with app.app_context():
        yield app
    close_connections(app)


def execute(url: URL, *statements: str) -> None:
    """Run statements, each in a transaction of its own, as the administrator of the database."""
    engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def tables(url: URL, schema: str | None = None) -> set[str]:
    return set(inspect(create_engine(url, poolclass=NullPool)).get_table_names(schema))


@pytest.mark.parametrize(("name", "database"), engines.CASES)
def test_an_engine_with_the_options_of_a_host_is_migrated(
    name: str, database: str, url_of: Callable[[str], URL], tmp_path: Path
) -> None:
    """Upgrade, check, downgrade and upgrade again work with each engine of a host."""
    url = url_of(database)
    with app_on(engines.HOSTS[name][0](url), tmp_path):
        for _ in range(2):
            upgrade()
            engine = get_runtime().engine()
            assert tables(url) == OUR_TABLES
            assert is_at_head(engine)
            run_alembic(engine, "check")
            run_alembic(engine, "downgrade", "base")
            assert tables(url) == {VERSION_TABLE}
            assert current_revision(engine) is None


@pytest.mark.parametrize("name", ["autocommit", "ping", "one_connection", "no_pool"])
@pytest.mark.parametrize("database", ["sqlite", "postgresql", "mariadb"])
def test_an_upgrade_that_fails_half_way(
    name: str, database: str, url_of: Callable[[str], URL], tmp_path: Path
) -> None:
    """A table of that name stops the upgrade. Without the table, the next upgrade completes it."""
    url = url_of(database)
    execute(url, "CREATE TABLE imcallback_removal (id INTEGER)")
    with app_on(engines.HOSTS[name][0](url), tmp_path):
        with pytest.raises(StorageError, match="owner_id"):
            upgrade()
        if database != "mariadb":  # commits each step
            assert tables(url) == {"imcallback_removal"}
        execute(url, "DROP TABLE imcallback_removal")
        upgrade()
        assert tables(url) == OUR_TABLES
        run_alembic(get_runtime().engine(), "check")


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_each_tenant_has_a_schema(
    driver: str, url_of: Callable[[str], URL], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two hosts in one PostgreSQL database have tables of their own by their `search_path`."""
    url = url_of("postgresql")
    execute(url, "CREATE SCHEMA one", "CREATE SCHEMA two")
    for schema in ("one", "two"):
        option = {"options": f"-csearch_path={schema}"}
        engine = create_engine(url.set(drivername=f"postgresql+{driver}"), connect_args=option)
        with app_on(engine, tmp_path):
            assert current_revision(get_runtime().engine()) is None
            upgrade()
            assert current_revision(get_runtime().engine()) == HEAD
            run_alembic(get_runtime().engine(), "check")
            run_alembic(get_runtime().engine(), "current")
        assert capsys.readouterr().out.endswith(f"{HEAD} (head)\n")
        assert tables(url, schema) == OUR_TABLES
    assert tables(url) == set()


def test_the_lock_on_postgresql_ends_with_the_transaction(
    url_of: Callable[[str], URL], tmp_path: Path
) -> None:
    """A session that lives on, for example behind PgBouncer, keeps no lock."""
    url = url_of("postgresql")
    host = create_engine(url)
    with app_on(host, tmp_path):
        upgrade()
        with create_engine(url, poolclass=NullPool).connect() as connection:
            locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
            assert connection.scalar(text(locks)) == 0


def read_only_file(url: URL) -> URL:
    Path(url.database or "").touch()
    return url.set(database=f"file:{url.database}", query={"mode": "ro", "uri": "true"})


def missing_folder(url: URL) -> URL:
    return url.set(database=f"{url.database}/missing/test.db")


def not_a_database(url: URL) -> URL:
    Path(url.database or "").write_text("this is no database file. " * 100, "utf-8")
    return url


def missing_database(url: URL) -> URL:
    return url.set(database="nowhere")


def wrong_port(url: URL) -> URL:
    return url.set(port=1)


def postgresql_user_without_permission(url: URL) -> URL:
    execute(url, "DROP ROLE IF EXISTS stranger", "CREATE ROLE stranger LOGIN PASSWORD 'pass-word'")
    execute(url, "REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    return url.set(username="stranger", password="pass-word")


def mariadb_user_without_permission(url: URL) -> URL:
    execute(url, "CREATE OR REPLACE USER stranger IDENTIFIED BY 'pass-word'")
    execute(url, f"GRANT SELECT ON {url.database}.* TO stranger")
    return url.set(username="stranger", password="pass-word")


def wrong_password(url: URL) -> URL:
    return mariadb_user_without_permission(url).set(password="wrong-pass-word")


REFUSALS: list[tuple[str, Callable[[URL], URL], str]] = [
    ("sqlite", read_only_file, "attempt to write a readonly database"),
    ("sqlite", missing_folder, "unable to open database file"),
    ("sqlite", not_a_database, "file is not a database"),
    ("postgresql", missing_database, 'database "nowhere" does not exist'),
    ("postgresql", wrong_port, "connection failed: .*refused"),
    ("postgresql", postgresql_user_without_permission, "permission denied for schema public"),
    ("mariadb", missing_database, "Unknown database 'nowhere'"),
    ("mariadb", wrong_port, "Can't connect to MySQL server"),
    ("mariadb", mariadb_user_without_permission, "CREATE command denied to user 'stranger'"),
    ("mariadb", wrong_password, "Access denied for user 'stranger'"),
]


@pytest.mark.parametrize(
    ("database", "spoil", "reason"),
    REFUSALS,
    ids=[f"{database}-{spoil.__name__}" for database, spoil, _ in REFUSALS],
)
def test_the_error_names_what_refused(
    database: str,
    spoil: Callable[[URL], URL],
    reason: str,
    url_of: Callable[[str], URL],
    tmp_path: Path,
) -> None:
    """The message has the reason of the database and a remedy, and never the password."""
    options: dict[str, Any] = {"poolclass": NullPool}
    with app_on(create_engine(spoil(url_of(database)), **options), tmp_path):
        remedy = "check the server, the URL of the database and the permissions of the database us"
        with pytest.raises(
            StorageError, match=f"(?s)^cannot access the database .*{reason}.*{remedy}"
        ) as caught:
            upgrade()
        assert "pass-word" not in str(caught.value)
