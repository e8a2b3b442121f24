"""What an error of a database means for the transaction that met it."""

from __future__ import annotations

from enum import Enum

from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError


class Fault(Enum):
    """What can be done about it."""

    TAKEN = "a key is taken"
    """The same transaction would fail again: its keys must change."""
    CONFLICT = "another transaction won"
    """The same transaction may succeed at once."""
    LOST = "the connection or its server is lost"
    """The same transaction may succeed on another connection. Whether it was committed is unknown
    if the connection was lost during the commit."""
    OTHER = "the database refuses"
    """The same transaction would fail again."""


CONFLICTS = {"40001", "40P01"}
"""Of PostgreSQL: a failed serialization, a deadlock."""
LOST = {"57P01", "57P02", "57P03", "25006"}
"""Of PostgreSQL, beside class 08: a server that goes down or comes up, one that is a standby."""
MYSQL_CONFLICTS = {1213}
"""A deadlock; on a Galera cluster also a transaction of another node, at COMMIT."""
MYSQL_LOST = {1047, 1053, 1180, 1290, 1927, 2003, 2006, 2013, 2055}
"""A Galera node without a majority (1047, 1180), a shutdown (1053), a standby (1290), a connection
that was killed (1927), cannot be made (2003) or is lost."""


class FileReplacedError(Exception):
    """The file of the SQLite database is not the one that the connection writes to."""


def fault_of(error: BaseException | None) -> Fault:
    """Which of the kinds an error is that a transaction ended with."""
    if isinstance(error, IntegrityError):
        return Fault.TAKEN
    if isinstance(error, FileReplacedError):
        return Fault.LOST
    if not isinstance(error, DBAPIError):
        return Fault.OTHER
    state, code = _code(error.orig)
    # libpq's own errors, such as a refused connection, have no SQLSTATE.
    by_libpq = state is None and isinstance(error, OperationalError)
    if state in CONFLICTS or code in MYSQL_CONFLICTS:
        return Fault.CONFLICT
    is_lost = state in LOST or (state or "")[:2] == "08" or code in MYSQL_LOST
    return Fault.LOST if is_lost or by_libpq or error.connection_invalidated else Fault.OTHER


def reason_of(error: BaseException | None) -> str:
    """What the database said, without the statement and its parameters."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
    return f"{type(cause).__name__}: {cause}"


def _code(error: BaseException | None) -> tuple[str | None, int]:
    """The SQLSTATE, None if a driver of PostgreSQL has none; and the number of MySQL's errors."""
    state = getattr(error, "sqlstate", getattr(error, "pgcode", ""))
    number = getattr(error, "errno", None) or (error.args[0] if error and error.args else 0)
    return state, number if isinstance(number, int) else 0
