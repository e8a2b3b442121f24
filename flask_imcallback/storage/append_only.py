"""The triggers that make the tables append-only, and the door through them.

A migration has their statements. A row in the table of the door lets its own transaction change the
other tables. No other transaction sees this row.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import Connection, Engine, select, text
from sqlalchemy.exc import DBAPIError

from ..errors import StorageError
from .database_errors import describe
from .migrations import make_config
from .tables import door as door_table

REVISION = "0002_append_only"

TRIGGERS = {
    "sqlite": "SELECT name, tbl_name FROM sqlite_master WHERE type = 'trigger'",
    "postgresql": "SELECT tgname, relname FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid "
    "WHERE tgenabled IN ('O', 'A') AND pg_table_is_visible(pg_class.oid)",
}
"""Dialect -> the query for the triggers that are switched on: their names and their tables."""

MYSQL_TRIGGERS = (
    "SELECT trigger_name, event_object_table FROM information_schema.triggers "
    "WHERE trigger_schema = DATABASE()"
)


MYSQL_TRIGGER_RIGHTS = " UNION ".join(
    f"SELECT 1 FROM information_schema.{scope}_privileges WHERE privilege_type = 'TRIGGER'"  # noqa: S608
    for scope in ("user", "schema", "table")
)
"""The query for the rights without which a user of MariaDB sees no triggers."""


@dataclass(frozen=True)
class Protection:
    """The state of the triggers and of the door."""

    is_visible: bool
    """Whether the database user may see triggers. If not, none is reported as missing."""
    missing: tuple[str, ...]
    """The names of the triggers that are missing, switched off, or at another table."""
    open_by: tuple[int, ...]
    """The ids of acts in the door. Outside of a transaction, there must be none."""


def read_protection(connection: Connection) -> Protection:
    """Return the state of the triggers and of the door. Raises the errors of SQLAlchemy."""
    dialect = connection.dialect.name
    query = TRIGGERS.get(dialect, MYSQL_TRIGGERS)
    present = {(name, table) for name, table in connection.execute(text(query))}
    expected = revision().trigger_names(dialect).items()
    may_hide = dialect in ("mysql", "mariadb") and not present
    is_visible = not may_hide or connection.scalar(text(MYSQL_TRIGGER_RIGHTS)) is not None
    return Protection(
        is_visible=is_visible,
        missing=tuple(
            name for name, table in expected if is_visible and (name, table) not in present
        ),
        open_by=tuple(connection.scalars(select(door_table.c.act_id))),
    )


def protect(engine: Engine) -> None:
    """Create the triggers again, and shut the door. Raises `StorageError`."""
    try:
        with engine.begin() as connection:
            for statement in revision().create_statements(engine.dialect.name):
                connection.exec_driver_sql(statement)
            connection.execute(door_table.delete())
    except DBAPIError as error:
        raise StorageError(
            f"cannot create the triggers ({describe(error)}): run this command as the owner of the "
            "tables. A user of MariaDB needs the right TRIGGER. If the server has a binary log, "
            "the user also needs SUPER, or a database administrator runs SET GLOBAL "
            "log_bin_trust_function_creators = 1 before"
        ) from error


@contextmanager
def open_door(connection: Connection, act_id: int) -> Iterator[None]:
    """Let the transaction of the caller change rows, for an act that is stored.

    Raises the errors of SQLAlchemy.
    """
    connection.execute(door_table.insert().values(act_id=act_id))
    yield
    connection.execute(door_table.delete().where(door_table.c.act_id == act_id))


@cache
def revision() -> Any:
    """Return the module of the migration. Importing Alembic takes a tenth of a second."""
    from alembic.script import ScriptDirectory

    script = ScriptDirectory.from_config(make_config()).get_revision(REVISION)
    return script and script.module
