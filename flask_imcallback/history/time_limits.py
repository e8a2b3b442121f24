"""A time limit for statements that may read much of the history."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

SQLITE_STEPS = 100_000
"""Instructions of SQLite between two readings of the clock."""
POSTGRESQL_CANCELED = "57014"
MYSQL_TIMED_OUT = (1969, 3024)
"""The error numbers of MariaDB and of MySQL."""


@contextmanager
def time_limit(connection: Connection, seconds: int, timeout: Exception) -> Iterator[None]:
    """Let the database stop each statement after `seconds`. Then `timeout` is raised."""
    limit = {
        "sqlite": _limit_sqlite,
        "postgresql": _limit_postgresql,
        "mysql": _limit_mysql,
        "mariadb": _limit_mysql,
    }[connection.dialect.name]
    try:
        with limit(connection, seconds):
            yield
    except DBAPIError as error:
        if _is_timeout(error.orig):
            raise timeout from error
        raise


@contextmanager
def _limit_sqlite(connection: Connection, seconds: int) -> Iterator[None]:
    driver: Any = connection.connection.driver_connection
    end = time.monotonic() + seconds
    driver.set_progress_handler(lambda: time.monotonic() > end, SQLITE_STEPS)
    try:
        yield
    finally:
        driver.set_progress_handler(None, 0)


@contextmanager
def _limit_postgresql(connection: Connection, seconds: int) -> Iterator[None]:
    # The limit ends with the transaction.
    connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{int(seconds)}s'")
    yield


@contextmanager
def _limit_mysql(connection: Connection, seconds: int) -> Iterator[None]:
    is_mariadb = getattr(connection.dialect, "is_mariadb", False)
    name = "max_statement_time" if is_mariadb else "max_execution_time"
    limit = int(seconds) if is_mariadb else int(seconds) * 1000
    connection.exec_driver_sql(f"SET SESSION {name} = {limit}")
    try:
        yield
    finally:
        connection.exec_driver_sql(f"SET SESSION {name} = DEFAULT")


def _is_timeout(error: Any) -> bool:
    number = error.args[0] if error.args else None
    return (
        getattr(error, "sqlstate", getattr(error, "pgcode", None)) == POSTGRESQL_CANCELED
        or number in MYSQL_TIMED_OUT
        or number == "interrupted"
    )
