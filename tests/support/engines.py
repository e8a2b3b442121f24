"""Engines as hosts create them, each in a way that once lost callbacks."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from flask import g
from psycopg.rows import namedtuple_row
from sqlalchemy import URL, AssertionPool, Connection, Engine, NullPool, create_engine, event


def autocommit(url: URL) -> Engine:
    """Each statement is a transaction of its own."""
    return create_engine(url, isolation_level="AUTOCOMMIT")


def autocommit_option(url: URL) -> Engine:
    """Autocommit as an option of the engine."""
    return create_engine(url, execution_options={"isolation_level": "AUTOCOMMIT"})


def serializable(url: URL) -> Engine:
    return create_engine(url, isolation_level="SERIALIZABLE")


def ping(url: URL) -> Engine:
    """SQLAlchemy's old recipe for stale connections leaves each connection in a transaction."""
    engine = create_engine(url)

    @event.listens_for(engine, "engine_connect")
    def check(connection: Connection) -> None:
        connection.exec_driver_sql("SELECT 1")

    return engine


def open_transaction(url: URL) -> Engine:
    """A listener leaves each new connection of the driver in a transaction."""
    engine = create_engine(url)

    @event.listens_for(engine, "connect")
    def select(driver: Any, _: object) -> None:
        cursor = driver.cursor()
        cursor.execute("BEGIN" if engine.dialect.name == "sqlite" else "SELECT 1")
        cursor.close()

    return engine


def begin(url: URL) -> Engine:
    """SQLAlchemy's recipe that takes the transactions of SQLite from the driver."""
    engine = create_engine(url)

    @event.listens_for(engine, "connect")
    def disable(driver: Any, _: object) -> None:
        driver.isolation_level = None

    @event.listens_for(engine, "begin")
    def emit_begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    return engine


def not_durable(url: URL) -> Engine:
    """Fast and unsafe settings of SQLite."""
    engine = create_engine(url)

    @event.listens_for(engine, "connect")
    def relax(driver: Any, _: object) -> None:
        driver.execute("PRAGMA journal_mode=MEMORY")
        driver.execute("PRAGMA synchronous=OFF")

    return engine


def tenant(url: URL) -> Engine:
    """A listener needs the request for which a connection is taken from the pool, or returned."""
    engine = create_engine(url)

    @event.listens_for(engine, "checkout")
    def set_tenant(_driver: object, _record: object, _proxy: object) -> None:
        assert g.tenant

    @event.listens_for(engine, "checkin")
    def remove_tenant(_driver: object, _record: object) -> None:
        assert g.tenant

    return engine


def named_parameters(url: URL) -> Engine:
    """Statements of the host app have named parameters."""
    return create_engine(url, paramstyle="named" if url.drivername == "sqlite" else "pyformat")


def named_rows(url: URL) -> Engine:
    """The driver returns rows that have a name for each column."""
    return create_engine(url, connect_args={"row_factory": namedtuple_row})


def one_connection(url: URL) -> Engine:
    """A pool with a single connection."""
    return create_engine(url, pool_size=1, max_overflow=0, pool_timeout=0.5)


def no_pool(url: URL) -> Engine:
    return create_engine(url, poolclass=NullPool)


def debug_pool(url: URL) -> Engine:
    """A pool that allows one connection at a time, for debugging."""
    return create_engine(url, poolclass=AssertionPool)


HOSTS: dict[str, tuple[Callable[[URL], Engine], tuple[str, ...]]] = {
    "autocommit": (autocommit, ("sqlite", "postgresql", "mariadb")),
    "autocommit_option": (autocommit_option, ("sqlite", "postgresql", "mariadb")),
    "serializable": (serializable, ("sqlite", "postgresql", "mariadb")),
    "ping": (ping, ("sqlite", "postgresql", "mariadb")),
    "open_transaction": (open_transaction, ("sqlite", "postgresql", "mariadb")),
    "begin": (begin, ("sqlite",)),
    "not_durable": (not_durable, ("sqlite",)),
    "tenant": (tenant, ("sqlite", "postgresql", "mariadb")),
    "named_parameters": (named_parameters, ("sqlite", "postgresql", "mariadb")),
    "named_rows": (named_rows, ("postgresql",)),
    "one_connection": (one_connection, ("sqlite", "postgresql", "mariadb")),
    "no_pool": (no_pool, ("sqlite", "postgresql", "mariadb")),
    "debug_pool": (debug_pool, ("sqlite", "postgresql", "mariadb")),
}
"""The functions that create an engine, and the databases that they are for, by name."""

CASES = [(name, database) for name, (_, databases) in HOSTS.items() for database in databases]

MODULES = {
    "postgresql+psycopg": "psycopg",
    "postgresql+psycopg2": "psycopg2",
    "postgresql+pg8000": "pg8000",
    "mysql+pymysql": "pymysql",
    "mariadb+pymysql": "pymysql",
    "mysql+mysqldb": "MySQLdb",
    "mariadb+mariadbconnector": "mariadb",
    "mysql+mysqlconnector": "mysql",
}
"""The drivers and their modules. The extra `test` does not install the last three, which are large
or need a C compiler. If you install them, they are tested too."""

DRIVERS = {
    "postgresql": [name for name in MODULES if "postgresql" in name],
    "mariadb": [
        name for name, module in MODULES.items() if "postgresql" not in name and find_spec(module)
    ],
}

HAS_LITE = int(version("flask").partition(".")[0]) >= 3
"""Whether Flask-SQLAlchemy-Lite works. It needs Flask 3.0."""
