"""Questions about the health of a database, each with a time limit."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, TypeVar

from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.exc import SQLAlchemyError

from ..errors import StorageError
from .database_errors import DeadlineError, describe
from .encodings import encoding_problem, read_encoding
from .ids import id_at
from .memory import hold_connection, shares_connection
from .migrations import is_head, read_revision
from .tables import counters, delivery
from .threads import new_lock, new_signal, start_thread
from .writer import interrupt

T = TypeVar("T")

MAX_HANGING_QUESTIONS = 8
"""Number of questions that may hang at the same time. Each of them keeps a thread."""


class _Question(Generic[T]):
    """A question that a separate thread asks the database, and its answer."""

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.answer: T | None = None
        self.error: Exception | None = None
        self.is_answered = new_signal()


class Inspector:
    """The questions of one process to its database. `context` makes an app context.

    If a question hangs, its connection is closed. So the next question can be answered when the
    database works again.
    """

    def __init__(
        self, engine: Callable[[], Engine], context: Callable[[], AbstractContextManager[object]]
    ) -> None:
        self._get_engine = engine
        self._context = context
        self._lock = new_lock()
        self._open_questions = 0

    def ask(self, function: Callable[[Connection], T], seconds: float) -> T:
        """Return the result of the function within `seconds`. Needs an app context.

        The function runs in a transaction that is rolled back. Raises `ConfigError` if there is no
        engine, and `StorageError` for an error of the database.
        """
        engine = self._get_engine()  # needs the app context of this thread
        with self._lock:
            if self._open_questions >= MAX_HANGING_QUESTIONS:
                raise DeadlineError(
                    f"{MAX_HANGING_QUESTIONS} earlier questions to the database still hang: check "
                    "the network and the server"
                )
            self._open_questions += 1
        question: _Question[T] = _Question()
        try:
            if shares_connection(engine):
                self._run(question, function)
            else:
                start_thread("imcallback-health", lambda: self._run(question, function))
        except RuntimeError as error:
            with self._lock:
                self._open_questions -= 1
            raise StorageError(f"the process cannot start a thread ({error})") from error
        if not question.is_answered.wait(seconds):
            if question.connection is not None:
                interrupt(question.connection)
            raise DeadlineError(f"the database did not answer within {seconds:g} seconds")
        if question.error is not None:
            raise question.error
        return question.answer  # type: ignore[return-value]

    def _run(self, question: _Question[T], function: Callable[[Connection], T]) -> None:
        try:
            question.answer = self._answer(question, function)
        except (SQLAlchemyError, OSError) as error:
            question.error = StorageError(
                f"cannot use the database ({describe(error)}): check the server, the URL and the "
                "permissions of the database user"
            )
            question.error.__cause__ = error
        except Exception as error:  # the caller gets it
            question.error = error
        finally:
            with self._lock:
                self._open_questions -= 1
            question.is_answered.set()

    def _answer(self, question: _Question[T], function: Callable[[Connection], T]) -> T:
        with (
            self._context(),
            hold_connection(engine := self._get_engine()),
            engine.connect() as connection,
        ):
            question.connection = connection
            try:
                return function(connection)
            finally:
                question.connection = None
                connection.rollback()


@dataclass(frozen=True, kw_only=True, slots=True)
class DatabaseState:
    """The state of a database that answers."""

    server: str
    """The name and version of the database, for example "PostgreSQL 18.4"."""
    encoding: str
    """The name that the database gives its encoding, for example "UTF8"."""
    revision: str | None
    """The revision of the tables. None if there are no tables."""
    is_at_head: bool
    """Whether the tables are at the newest migration, or at a newer one."""
    encoding_problem: str
    """The reason why account ids cannot be stored, and the remedy. Empty without a problem."""
    durability_problem: str
    """The reason why a power cut loses callbacks, and the remedy. Empty without a problem."""
    max_packet_bytes: int | None
    """The size of the largest statement that MariaDB accepts. None for other databases."""


def inspect_database(connection: Connection) -> DatabaseState:
    """Return the state of the database. Writes nothing. Raises the errors of SQLAlchemy."""
    encoding, revision = read_encoding(connection), read_revision(connection)
    return DatabaseState(
        server=_server_name(connection),
        encoding=encoding,
        revision=revision,
        is_at_head=is_head(revision),
        encoding_problem=encoding_problem(encoding),
        durability_problem=_durability_problem(connection),
        max_packet_bytes=_max_packet_bytes(connection),
    )


def check_write(connection: Connection) -> None:
    """Write into a table of this extension, and roll back. Raises the errors of SQLAlchemy."""
    if connection.in_transaction():
        connection.rollback()
    row = {"provider": "", "outcome": "check", "name": secrets.token_hex(8), "count": 0}
    with connection.begin() as transaction:
        connection.execute(counters.insert().values(**row, last_at=datetime.now(UTC)))
        transaction.rollback()


def is_delivery_stored(connection: Connection, command: str, since: datetime, mark: bytes) -> bool:
    """Return True if a delivery of this command, without removals, has the mark in its body.

    Deliveries that were received before `since` are not searched. Raises the errors of SQLAlchemy.
    """
    column = delivery.c
    bodies = select(column.body).where(column.id >= id_at(since), column.command == command)
    return any(mark in body for body in connection.scalars(bodies))


def read_clock(connection: Connection) -> datetime | None:
    """Return the time of a database server, aware. None for SQLite, which uses our clock."""
    match connection.dialect.name:
        case "postgresql":
            return connection.scalar(select(func.clock_timestamp()))
        case "mysql" | "mariadb":
            now: datetime | None = connection.scalar(select(func.utc_timestamp(6)))
            return now and now.replace(tzinfo=UTC)
    return None


def _server_name(connection: Connection) -> str:
    dialect = connection.dialect
    if dialect.name == "sqlite":
        return f"SQLite {sqlite3.sqlite_version}"
    version: str = connection.scalar(text("SELECT version()")) or ""
    if dialect.name == "postgresql":
        return " ".join(version.split()[:2])
    return f"{'MariaDB' if 'MariaDB' in version else 'MySQL'} {version.partition('-')[0]}"


def _durability_problem(connection: Connection) -> str:
    """Return the setting of the server with which a power cut loses commits, and the remedy."""
    if connection.dialect.name == "postgresql":
        if connection.scalar(text("SHOW fsync")) == "off":
            return "the setting fsync of PostgreSQL is off: set it to on"
    elif connection.dialect.name in ("mysql", "mariadb"):
        value = connection.scalar(text("SELECT @@innodb_flush_log_at_trx_commit"))
        if value != 1:
            return f"the setting innodb_flush_log_at_trx_commit is {value}: set it to 1"
    return ""


def _max_packet_bytes(connection: Connection) -> int | None:
    if connection.dialect.name not in ("mysql", "mariadb"):
        return None
    size: int | None = connection.scalar(text("SELECT @@max_allowed_packet"))
    return size
