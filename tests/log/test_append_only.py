"""The tables are append-only on every database, and one door leads through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, select, text
from sqlalchemy.exc import DBAPIError

from flask_imcallback.log import ActKind
from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage import classify, open_door, read_protection, run_alembic
from flask_imcallback.storage.database_errors import Fault
from flask_imcallback.storage.tables import (
    act,
    delivery,
    door,
    erasure,
    log,
    metadata,
    removal,
    seal,
)
from support import servers
from support.apps import DATABASES, MakeApp
from support.deliveries import DELIVERY, record
from support.doctor import diagnose, has_finding
from support.log import number
from support.log import seal as seal_log

TABLES = ("delivery", "removal", "source", "log", "act", "seal", "erasure")
MARIADB = ("mysql", "mariadb")


@pytest.fixture
def app(make_app: MakeApp, database_url: URL) -> Flask:
    """An app with a row in every protected table."""
    app = make_app(database_url)
    record(app, DELIVERY)
    with app.app_context():
        runtime = get_runtime()
        runtime.store_act(ActKind.EXPORT, "app", 0, {})
        seal_log()
        with runtime.writing_engine().begin() as connection:
            connection.execute(erasure.insert().values(delivery_id=1, slots=b"c"))
    return app


@pytest.fixture
def engine(app: Flask) -> Iterator[Engine]:
    with app.app_context():
        yield get_runtime().writing_engine()


def content(engine: Engine) -> list[list[Any]]:
    with engine.connect() as connection:
        return [
            [
                tuple(row)
                for row in connection.execute(select(metadata.tables[f"imcallback_{name}"]))
            ]
            for name in TABLES
        ]


def refused(engine: Engine, table: str, *statements: str) -> None:
    """Check that the database refuses each statement by its trigger, and changes nothing."""
    before = content(engine)
    for statement in statements:
        message = f"imcallback_{table} is append-only"
        with pytest.raises(DBAPIError, match=message) as caught, engine.begin() as connection:
            connection.execute(text(statement))
        assert classify(caught.value) in (Fault.FATAL, Fault.DUPLICATE_KEY)
    assert content(engine) == before


@pytest.mark.parametrize("table", TABLES)
def test_rows_can_neither_be_changed_nor_deleted(engine: Engine, table: str) -> None:
    """UPDATE, DELETE and each statement that hides one of them are refused."""
    columns = [column.name for column in metadata.tables[f"imcallback_{table}"].columns]
    names, key, name = ", ".join(columns), columns[0], f"imcallback_{table}"
    refused(
        engine,
        table,
        f"UPDATE {name} SET {key} = {key} + 1",
        f"UPDATE {name} SET {columns[-1]} = {columns[-1]}",
        f"DELETE FROM {name}",
    )
    same = f"SELECT {names} FROM {name} WHERE true"
    if engine.dialect.name in MARIADB:
        upsert = f"INSERT INTO {name} {same} ON DUPLICATE KEY UPDATE {key} = VALUES({key}) + 1"
        refused(engine, table, upsert, f"REPLACE INTO {name} {same}")
    elif engine.dialect.name == "postgresql":
        upsert = f"INSERT INTO {name} {same} ON CONFLICT ({key}) DO UPDATE SET {key} = 5"
        merge = (
            f"MERGE INTO {name} AS t USING (SELECT 1) AS s ON true "
            f"WHEN MATCHED THEN UPDATE SET {key} = t.{key} + 1"
        )
        refused(
            engine, table, upsert, merge, merge.replace(f"UPDATE SET {key} = t.{key} + 1", "DELETE")
        )
        refused(engine, table, f"TRUNCATE {name}", f"TRUNCATE {name} CASCADE")
    else:
        upsert = f"INSERT INTO {name} {same} ON CONFLICT ({key}) DO UPDATE SET {key} = 5"
        refused(engine, table, upsert, f"REPLACE INTO {name} {same}")
        refused(engine, table, f"UPDATE OR REPLACE {name} SET {key} = {key}")


@pytest.mark.parametrize("database_url", ["sqlite", "mariadb"], indirect=True)
def test_replace_finds_no_row_by_its_fingerprint_either(engine: Engine) -> None:
    """REPLACE would delete the delivery with the same fingerprint. PostgreSQL has no REPLACE."""
    names = [column.name for column in delivery.columns if column.name != "id"]
    for first in ("id + 1000", "NULL") if engine.dialect.name == "sqlite" else ("id + 1000",):
        refused(
            engine,
            "delivery",
            f"REPLACE INTO imcallback_delivery (id, {', '.join(names)}) "
            f"SELECT {first}, {', '.join(names)} FROM imcallback_delivery",
        )


def test_the_door_opens_for_its_own_transaction(engine: Engine, app: Flask) -> None:
    """Another transaction sees no open door, and the next one finds it shut."""
    with engine.connect() as connection:
        act_id = connection.scalar(select(act.c.id))
        assert act_id
    with engine.begin() as connection, open_door(connection, act_id):
        if engine.dialect.name != "sqlite":  # which has one writer at a time
            # MariaDB waits until it knows whether the door stays open.
            message = "append-only|Lock wait timeout"
            with pytest.raises(DBAPIError, match=message), engine.begin() as other:
                execute_soon(other, "DELETE FROM imcallback_source")
        for table in (removal, erasure, seal, log):
            assert connection.execute(table.delete()).rowcount > 0
        assert connection.execute(delivery.update().values(body=b"")).rowcount == 1
    with engine.connect() as connection:
        assert connection.execute(select(removal)).all() == []
        assert read_protection(connection).open_by == ()
    refused(engine, "delivery", "DELETE FROM imcallback_delivery")


def execute_soon(connection: Connection, statement: str) -> None:
    """Execute a statement that does not wait for other transactions."""
    if connection.dialect.name in MARIADB:
        connection.execute(text("SET innodb_lock_wait_timeout = 1"))
    connection.execute(text(statement))


def test_a_failed_transaction_leaves_the_door_shut(engine: Engine) -> None:
    """A rollback takes the row of the door away with all changes."""
    before = content(engine)
    with engine.connect() as connection:
        act_id = connection.scalar(select(act.c.id))
        assert act_id
    with (  # noqa: PT012
        pytest.raises(ZeroDivisionError),
        engine.begin() as connection,
        open_door(connection, act_id),
    ):
        connection.execute(removal.delete())
        raise ZeroDivisionError
    assert content(engine) == before
    refused(engine, "removal", "DELETE FROM imcallback_removal")


def test_the_door_needs_an_act(engine: Engine) -> None:
    """Without an act in the log, nobody opens the door."""
    message = "imcallback_door needs the id of an act"
    with pytest.raises(DBAPIError, match=message), engine.begin() as connection:
        connection.execute(door.insert().values(act_id=1))


def test_doctor_finds_a_door_that_was_left_open(engine: Engine, app: Flask) -> None:
    """A committed row in the door opens the tables for everybody, until `protect` deletes it."""
    with engine.begin() as connection:
        act_id = connection.scalar(select(act.c.id))
        connection.execute(door.insert().values(act_id=act_id))
    with engine.begin() as connection:
        connection.execute(removal.delete())
    assert has_finding(
        diagnose(app),
        "WARNING",
        "Stored rows can be changed, because the door was left open",
        f"The table imcallback_door has the acts {act_id}. Only a transaction that prunes, strips "
        "or erases puts a row there, and deletes it again.",
        "Find out who inserted the rows, and run flask imcallback protect.",
    )
    run_protect(app)
    refused(engine, "delivery", "DELETE FROM imcallback_delivery")


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_temporary_table_is_no_door(engine: Engine) -> None:
    """PostgreSQL finds a temporary table before the real one, but not in our triggers."""
    with engine.connect() as connection:
        connection.execute(text("CREATE TEMP TABLE imcallback_door (act_id bigint)"))
        connection.execute(text("INSERT INTO imcallback_door VALUES (1)"))
        connection.commit()
        with pytest.raises(DBAPIError, match="imcallback_removal is append-only"):
            connection.execute(text("UPDATE imcallback_removal SET owner_id = 'mallory'"))
        connection.rollback()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_doctor_finds_a_trigger_at_another_table(engine: Engine, app: Flask) -> None:
    """A trigger with the expected name protects only its own table."""
    name = "imcallback_removal_no_update"
    with engine.begin() as connection:
        connection.execute(text(f"DROP TRIGGER {name}"))
        connection.execute(
            text(f"CREATE TRIGGER {name} BEFORE UPDATE ON imcallback_counter BEGIN SELECT 1; END")
        )
        assert read_protection(connection).missing == (name,)


def run_protect(app: Flask) -> None:
    result = app.test_cli_runner().invoke(args=["imcallback", "protect"])
    assert (result.exit_code, result.output) == (0, "The tables are append-only\n")


def drop_trigger(engine: Engine) -> None:
    on = " ON imcallback_removal" if engine.dialect.name == "postgresql" else ""
    suffix = "append_only" if on else "no_delete"
    with engine.begin() as connection:
        connection.execute(text(f"DROP TRIGGER imcallback_removal_{suffix}{on}"))


def disable_trigger(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE imcallback_removal DISABLE TRIGGER ALL"))


@pytest.mark.parametrize(
    ("remove", "database_url"),
    [*[(drop_trigger, database) for database in DATABASES], (disable_trigger, "postgresql")],
    indirect=["database_url"],
)
def test_doctor_finds_missing_triggers(
    engine: Engine, app: Flask, remove: Callable[[Engine], None]
) -> None:
    """The finding names the triggers, and `protect` creates them again."""
    remove(engine)
    name = "append_only" if engine.dialect.name == "postgresql" else "no_delete"
    assert has_finding(
        diagnose(app),
        "WARNING",
        "Stored rows can be changed, because triggers are missing",
        f"Missing or switched off: imcallback_removal_{name}.",
        "Run flask imcallback protect as a database user who may create triggers.",
    )
    run_protect(app)
    run_protect(app)
    assert "Stored rows" not in diagnose(app).output
    refused(engine, "removal", "DELETE FROM imcallback_removal")


def test_a_downgrade_drops_the_triggers_and_an_upgrade_creates_them(engine: Engine) -> None:
    """A downgrade of this revision alone keeps all rows."""
    before = content(engine)
    run_alembic(engine, "downgrade", "0001_tables")
    assert content(engine) == before
    with engine.begin() as connection:
        assert len(read_protection(connection).missing) > 7
        connection.execute(removal.delete())
    run_alembic(engine, "upgrade", "head")
    with engine.connect() as connection:
        assert read_protection(connection).missing == ()
    refused(engine, "delivery", "DELETE FROM imcallback_delivery")
    run_alembic(engine, "downgrade", "base")
    run_alembic(engine, "upgrade", "head")


def ask(url: URL, *statements: str) -> None:
    engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))


RIGHTS = {1419: "ALL", 1142: "SELECT, INSERT, UPDATE, CREATE, INDEX, ALTER"}
"""Error of MariaDB -> the rights of a user who gets it. Only a binary log leads to 1419."""


@pytest.fixture(params=RIGHTS)
def forbidding(
    request: pytest.FixtureRequest, database_servers: dict[str, servers.Server]
) -> Iterator[tuple[int, URL]]:
    """An error of MariaDB, and a database with a user `app` who gets it."""
    with ExitStack() as stack:
        server: servers.HasUrl = database_servers["mariadb"]
        if request.param == 1419:
            folder = stack.enter_context(servers.private_folder())
            node = servers.mariadb_node(folder, "--log-bin", "--server-id=1")
            _, server = stack.enter_context(servers.running(node))
        url = stack.enter_context(servers.database(server))
        ask(
            url,
            "CREATE USER app@'%' IDENTIFIED BY 'pass-word'",
            f"GRANT {RIGHTS[request.param]} ON {url.database}.* TO app@'%'",
        )
        stack.callback(ask, url, "DROP USER app@'%'")
        yield request.param, url


@pytest.mark.slow
def test_a_user_who_may_not_create_triggers_gets_a_warning(
    make_app: MakeApp, forbidding: tuple[int, URL], caplog: pytest.LogCaptureFixture
) -> None:
    """The migration goes on, doctor says what is missing, and an administrator completes it."""
    error_number, url = forbidding
    app = make_app(url.set(username="app", password="pass-word"))
    assert f"may not change triggers (({error_number}, " in caplog.text
    assert "Run `flask imcallback protect` as a user who may" in caplog.text
    record(app, DELIVERY)
    finding = "because triggers are missing" if error_number == 1419 else "were not checked"
    assert finding in diagnose(app).output
    result = app.test_cli_runner().invoke(args=["imcallback", "protect"])
    assert result.exit_code == 1
    assert "SET GLOBAL log_bin_trust_function_creators = 1" in result.output
    run_protect(make_app(url, migrate=False))
    assert "because triggers are missing" not in diagnose(app).output
    record(app, DELIVERY)
    with app.app_context():
        number()
        engine = get_runtime().writing_engine()
        refused(engine, "delivery", "UPDATE imcallback_delivery SET error = 'x'")
