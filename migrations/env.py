"""Runs the migrations on an engine: that of the caller, else of the current app, else `-x url=`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from alembic import context
from alembic.util import CommandError
from flask import current_app
from sqlalchemy import Connection, Engine, create_engine, event, text

from flask_imcallback.runtime import EXTENSION
from flask_imcallback.storage.migrations import VERSION_TABLE
from flask_imcallback.storage.tables import metadata

LOCK = 7_236_149_502_217_338_112
"""Any number, the same for all: two upgrades at once must not create a table twice."""
LOCK_SECONDS = 300


def _engine() -> Engine:
    if engine := context.config.attributes.get("engine"):
        return engine  # type: ignore[no-any-return]
    if current_app and EXTENSION in current_app.extensions:
        return current_app.extensions[EXTENSION].engine()  # type: ignore[no-any-return]
    if url := context.get_x_argument(as_dictionary=True).get("url"):
        return create_engine(url)
    raise CommandError("no database is named: use flask imcallback, or alembic -x url=…")


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


def _on_sqlite(connection: Connection) -> None:
    """In one transaction, which also keeps others out; the driver would commit before DDL."""
    driver: Any = connection.connection.driver_connection
    level, driver.isolation_level = driver.isolation_level, None
    begin = event.listens_for(connection, "begin")

    @begin
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    try:
        _migrate(connection, transactional_ddl=True, transaction_per_migration=False)
        connection.commit()
    finally:
        connection.rollback()
        event.remove(connection, "begin", _begin)
        driver.isolation_level = level


@contextmanager
def _locked(connection: Connection) -> Iterator[None]:
    if connection.dialect.name == "postgresql":
        take, release = f"SELECT pg_advisory_lock({LOCK})", f"SELECT pg_advisory_unlock({LOCK})"
    elif connection.dialect.name in ("mysql", "mariadb"):
        name = "CONCAT('imcallback.', MD5(DATABASE()))"  # 64 characters at the most
        take, release = f"SELECT GET_LOCK({name}, {LOCK_SECONDS})", f"SELECT RELEASE_LOCK({name})"
    else:
        take = release = "SELECT 1"
    if connection.scalar(text(take)) == 0:
        raise CommandError(f"another migration has been running for {LOCK_SECONDS} seconds")
    connection.commit()  # Alembic commits nothing inside a transaction that it did not begin
    try:
        yield
    finally:
        connection.rollback()
        connection.execute(text(release))
        connection.commit()


def _dialect_name(engine: Engine) -> str:
    """Of an address that begins with mysql, only the server can tell that it is MariaDB."""
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
    with engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            _on_sqlite(connection)
        else:
            with _locked(connection):
                _migrate(connection, transaction_per_migration=True)


_run()
