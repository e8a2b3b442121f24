"""Database errors, classified by the next step of the transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto

from sqlalchemy.exc import (
    DBAPIError,
    IntegrityError,
    OperationalError,
    ProgrammingError,
    SQLAlchemyError,
)

from ..errors import ImCallbackError, StorageError


class Fault(Enum):
    """A kind of database error, by the next step of the transaction."""

    DUPLICATE_KEY = auto()
    """A key is taken. The same transaction would fail again, unless its keys change."""
    RETRY = auto()
    """Another transaction won. The same transaction may succeed immediately."""
    DISCONNECTED = auto()
    """The connection or its server is lost. The same transaction may succeed on another connection.
    After a loss during the commit, the transaction may have been committed or not."""
    FATAL = auto()
    """The database refuses the transaction. The same transaction would fail again."""


RETRY_STATES = {"40001", "40P01"}
"""PostgreSQL: serialization failure, deadlock."""

DISCONNECTED_STATES = {"57P01", "57P02", "57P03", "57P05", "25006"}
"""PostgreSQL: the server shuts down or starts up, the session was idle for too long, or the server
is a read-only standby. `classify` adds class 08."""

MYSQL_RETRY_NUMBERS = {1213}
"""Deadlock. A Galera cluster also reports a conflict with another node like this, at COMMIT."""

MYSQL_DISCONNECTED_NUMBERS = {1047, 1053, 1180, 1290, 1792, 1836, 1927, 2003, 2006, 2013, 2055}
"""1047 and 1180: a Galera node without a majority. 1053: shutdown. 1290 and 1836: a read-only
server. 1792: a session that began while the server was read-only. 1927: the connection was killed.
2003: no connection. 2006, 2013 and 2055: the connection is lost.
"""


ENTRY_STATE_CLASSES = {"22", "23", "54", "P0"}
"""PostgreSQL: wrong data, a constraint, a limit of the server, an error that a trigger raises."""

MYSQL_ENTRY_NUMBERS = {1153, 1644}
"""Operational errors that concern one entry. 1153: max_allowed_packet is too small. 1644: a trigger
refuses the row."""

MYSQL_READ_ONLY_NUMBERS = {1290, 1792, 1836}
"""1290 and 1836: a read-only server. 1792: a transaction that may only read."""


class DeadlineError(StorageError):
    """A database or spool that did not answer in time."""


class FileReplacedError(Exception):
    """A SQLite database whose file was deleted or replaced while a connection writes to it."""


def classify(error: BaseException | None) -> Fault:
    """Return the kind of the error that ended a transaction."""
    if isinstance(error, IntegrityError):
        return Fault.DUPLICATE_KEY
    if isinstance(error, FileReplacedError):
        return Fault.DISCONNECTED
    if not isinstance(error, DBAPIError):
        return Fault.FATAL
    state, number = _codes(error.orig)
    if state in RETRY_STATES or number in MYSQL_RETRY_NUMBERS:
        return Fault.RETRY
    # libpq's own errors, for example a refused connection, have no SQLSTATE.
    is_from_libpq = state is None and isinstance(error, OperationalError)
    is_disconnected = (
        state in DISCONNECTED_STATES
        or (state or "").startswith("08")
        or number in MYSQL_DISCONNECTED_NUMBERS
        # SQLite opens a file that it may not write for reading only. Meanwhile it may be writable.
        or sqlite_code(error.orig) == sqlite3.SQLITE_READONLY
        or is_from_libpq
        or error.connection_invalidated
    )
    return Fault.DISCONNECTED if is_disconnected else Fault.FATAL


def concerns_entry(error: BaseException | None) -> bool:
    """Return True if the database refuses this one entry, and probably accepts others.

    Other errors concern the whole database: it is unavailable, locked or full, or has other tables.
    """
    if isinstance(error, ImCallbackError | OSError):
        return False
    if not isinstance(error, DBAPIError):
        return not isinstance(error, SQLAlchemyError)
    if classify(error) in (Fault.DISCONNECTED, Fault.RETRY):
        return False
    state, number = _codes(error.orig)
    if (state or "")[:2] in ENTRY_STATE_CLASSES or number in MYSQL_ENTRY_NUMBERS:
        return True
    return not isinstance(error, OperationalError | ProgrammingError)


def is_read_only(error: BaseException | None) -> bool:
    """Return True if the database can only be read, whatever the rights of its user are."""
    if not isinstance(error, DBAPIError):
        return False
    state, number = _codes(error.orig)
    return (
        state == "25006"
        or number in MYSQL_READ_ONLY_NUMBERS
        or sqlite_code(error.orig) == sqlite3.SQLITE_READONLY
    )


def describe(error: BaseException | None) -> str:
    """Return the message of the database in one line, without the statement and parameters."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
    return f"{type(cause).__name__}: {' '.join(str(cause).split())}"


CHECK_DATABASE = "check that the database answers, and run `flask db upgrade` if a table is missing"


@contextmanager
def storage_errors(task: str, remedy: str = CHECK_DATABASE) -> Iterator[None]:
    """Raise `StorageError` for an error of the database: it cannot do the task."""
    try:
        yield
    except SQLAlchemyError as error:
        raise StorageError(f"cannot {task} ({describe(error)}): {remedy}") from error


def sqlite_code(error: BaseException | None) -> int:
    """Return the primary result code of SQLite, or 0 for other drivers."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


def _codes(error: BaseException | None) -> tuple[str | None, int]:
    """Return the SQLSTATE and the MySQL error number.

    The SQLSTATE is None if a PostgreSQL driver gives none, and empty for other drivers. The number
    is 0 if there is none.
    """
    state = getattr(error, "sqlstate", getattr(error, "pgcode", ""))
    number = getattr(error, "errno", None) or (error.args[0] if error and error.args else 0)
    return state, number if isinstance(number, int) else 0
