"""Run the migrations on the caller's engine, or on the current app's, or on `-x url=`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from alembic import context
from alembic.util import CommandError
from flask import current_app
from sqlalchemy import Connection, Engine, create_engine, text

from flask_imcallback.runtime import EXTENSION
from flask_imcallback.storage.engines import WRITES
from flask_imcallback.storage.migrations import VERSION_TABLE
from flask_imcallback.storage.tables import metadata

ADVISORY_LOCK_KEY = 7_236_149_502_217_338_112
"""An arbitrary number. All processes use it, so that only one of them upgrades at a time."""

LOCK_TIMEOUT_SECONDS = 300


def _engine() -> Engine:
    if engine := context.config.attributes.get("engine"):
        return engine  # type: ignore[no-any-return]
    if current_app and EXTENSION in current_app.extensions:
        return current_app.extensions[EXTENSION].engine()  # type: ignore[no-any-return]
    if url := context.get_x_argument(as_dictionary=True).get("url"):
        return create_engine(url)
    raise CommandError(
        "no database is given: use `flask imcallback upgrade`, or pass a database URL as in "
        "`alembic -x url=sqlite:///new.db`"
    )


def _include_name(name: str | None, kind: str, parents: Any) -> bool:
    return kind != "table" or name in metadata.tables


OPTIONS: dict[str, Any] = {
    "target_metadata": metadata,
    "version_table": VERSION_TABLE,
    "render_as_batch": True,
    "compare_type": True,
    "include_name": _include_name,
}


def _migrate(connection: Connection, **options: Any) -> None:
    context.configure(connection=connection, **OPTIONS, **options)
    with context.begin_transaction():
        context.run_migrations()


def _migrate_postgresql(connection: Connection) -> None:
    """Migrate in one transaction, with a lock that keeps other processes out."""
    with connection.begin():
        # This lock ends with the transaction, so it also works behind PgBouncer.
        connection.execute(text(f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK_KEY})"))
        _migrate(connection, transactional_ddl=True)


def _migrate_sqlite(connection: Connection) -> None:
    """Migrate in one transaction that begins with the write lock.

    Left alone, the sqlite3 driver begins no transaction and commits before each DDL statement.
    """
    driver: Any = connection.connection.driver_connection
    level, driver.isolation_level = driver.isolation_level, None
    # Other processes may migrate the same file. By default, SQLite waits only five seconds.
    driver.execute(f"PRAGMA busy_timeout = {LOCK_TIMEOUT_SECONDS * 1000}")
    try:
        with connection.begin():
            if not driver.in_transaction:  # the engine may have begun it
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            _migrate(connection, transactional_ddl=True)
    finally:
        driver.isolation_level = level


@contextmanager
def _mysql_lock(connection: Connection) -> Iterator[None]:
    """Keep other processes from migrating the same database. Each DDL statement commits."""
    name = "CONCAT('imcallback.', MD5(DATABASE()))"  # names have at most 64 characters
    if connection.scalar(text(f"SELECT GET_LOCK({name}, {LOCK_TIMEOUT_SECONDS})")) == 0:
        raise CommandError(
            f"another process has been migrating this database for {LOCK_TIMEOUT_SECONDS} "
            "seconds: wait until it ends, or stop it, and try again"
        )
    connection.commit()  # Alembic does not commit a transaction that it did not begin
    try:
        yield
    finally:
        connection.rollback()
        connection.execute(text(f"SELECT RELEASE_LOCK({name})"))
        connection.commit()


def _dialect_name(engine: Engine) -> str:
    """Return the name of the dialect. A server tells whether a `mysql` URL leads to MariaDB."""
    if engine.dialect.name == "mysql":
        with engine.connect() as connection:
            return "mariadb" if getattr(connection.dialect, "is_mariadb", False) else "mysql"
    return engine.dialect.name


def _run() -> None:
    engine = _engine()
    if context.is_offline_mode():
        context.configure(dialect_name=_dialect_name(engine), literal_binds=True, **OPTIONS)
        with context.begin_transaction():
            context.run_migrations()
        return
    with engine.connect().execution_options(**{WRITES: True}) as connection:
        if connection.dialect.name == "sqlite":
            _migrate_sqlite(connection)
        elif connection.dialect.name == "postgresql":
            _migrate_postgresql(connection)
        else:
            with _mysql_lock(connection):
                _migrate(connection, transaction_per_migration=True)


_run()
