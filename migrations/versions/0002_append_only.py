"""Add the triggers that make the tables append-only."""

import logging

import sqlalchemy as sa
from alembic import op

revision = "0002_append_only"
down_revision = "0001_tables"
branch_labels = None
depends_on = None

PROTECTED = {
    "delivery": ("id", "fingerprint"),
    "removal": ("id",),
    "source": ("id",),
    "log": ("position", "entry_id"),
    "act": ("id",),
    "seal": ("number", "last_position"),
    "erasure": ("delivery_id",),
}
"""Table -> its unique columns."""

DOOR_IS_SHUT = "NOT EXISTS (SELECT 1 FROM imcallback_door)"
ACT_IS_MISSING = "NOT EXISTS (SELECT 1 FROM imcallback_act WHERE id = NEW.act_id)"
DOOR_NEEDS_ACT = "imcallback_door needs the id of an act"

SEARCH_OUR_SCHEMA_FIRST = (
    "SELECT set_config('search_path', quote_ident(nspname) || ', pg_temp', true) FROM pg_class "
    "JOIN pg_namespace ON pg_namespace.oid = relnamespace "
    "WHERE pg_class.oid = to_regclass('imcallback_door')"
)
"""By default PostgreSQL looks into temporary tables first, and then into the schema of the user. So
anybody could make a door of his own."""

FORBIDDEN = (1142, 1227, 1419)
"""Errors of MariaDB: the user has no right TRIGGER, or no right SUPER while there is a binary log.
"""


def upgrade() -> None:
    _run(create_statements(op.get_context().dialect.name))


def downgrade() -> None:
    _run(drop_statements(op.get_context().dialect.name))


def trigger_names(dialect: str) -> dict[str, str]:
    """Return the name of each trigger, and its table."""
    suffixes = {"sqlite": ("no_update", "no_delete", "no_replace"), "postgresql": ("append_only",)}
    names = {
        f"imcallback_{table}_{suffix}": f"imcallback_{table}"
        for table in PROTECTED
        for suffix in suffixes.get(dialect, ("no_update", "no_delete"))
    }
    return names | {"imcallback_door_needs_act": "imcallback_door"}


def create_statements(dialect: str) -> list[str]:
    """Return the statements that create the triggers, also if some of them exist."""
    create = {"sqlite": _create_sqlite, "postgresql": _create_postgresql}.get(
        dialect, _create_mysql
    )
    return [*_drop_triggers(dialect), *create()]


def drop_statements(dialect: str) -> list[str]:
    """Return the statements that drop the triggers that exist."""
    drops = _drop_triggers(dialect)
    if dialect == "postgresql":
        # A partition that was a table before has a trigger of its own.
        drops += [
            "DROP FUNCTION IF EXISTS imcallback_append_only() CASCADE",
            "DROP FUNCTION IF EXISTS imcallback_door_needs_act() CASCADE",
        ]
    return drops


def _drop_triggers(dialect: str) -> list[str]:
    on = " ON {}" if dialect == "postgresql" else ""
    return [
        f"DROP TRIGGER IF EXISTS {name}{on.format(table)}"
        for name, table in trigger_names(dialect).items()
    ]


def _create_sqlite() -> list[str]:
    statements = []
    for name, columns in PROTECTED.items():
        table = f"imcallback_{name}"
        refuse = f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        statements += [
            f"CREATE TRIGGER {table}_no_{event.lower()} BEFORE {event} ON {table} "
            f"WHEN {DOOR_IS_SHUT} {refuse}"
            for event in ("UPDATE", "DELETE")
        ]
        # REPLACE deletes rows, but fires no trigger for them.
        taken = " OR ".join(
            f"EXISTS (SELECT 1 FROM {table} WHERE {column} = NEW.{column})"  # noqa: S608
            for column in columns
        )
        statements.append(
            f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} WHEN {taken} {refuse}"
        )
    return [
        *statements,
        "CREATE TRIGGER imcallback_door_needs_act BEFORE INSERT ON imcallback_door "
        f"WHEN {ACT_IS_MISSING} BEGIN SELECT RAISE(ABORT, '{DOOR_NEEDS_ACT}'); END",
    ]


def _create_postgresql() -> list[str]:
    function = (
        "CREATE OR REPLACE FUNCTION {}() RETURNS trigger LANGUAGE plpgsql "
        "SET search_path FROM CURRENT AS "
        "$$ BEGIN IF {} THEN {} END IF; RAISE EXCEPTION USING MESSAGE = {}, "
        "ERRCODE = 'insufficient_privilege'; END $$"
    )
    triggers = [
        f"CREATE TRIGGER imcallback_{name}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE "
        f"ON imcallback_{name} FOR EACH STATEMENT EXECUTE FUNCTION imcallback_append_only()"
        for name in PROTECTED
    ]
    return [
        SEARCH_OUR_SCHEMA_FIRST,
        function.format(
            "imcallback_append_only",
            "TG_OP <> 'TRUNCATE' AND EXISTS (SELECT 1 FROM imcallback_door)",
            "RETURN NULL;",
            "TG_TABLE_NAME || ' is append-only'",
        ),
        function.format(
            "imcallback_door_needs_act",
            "EXISTS (SELECT 1 FROM imcallback_act WHERE id = NEW.act_id)",
            "RETURN NEW;",
            f"'{DOOR_NEEDS_ACT}'",
        ),
        *triggers,
        "CREATE TRIGGER imcallback_door_needs_act BEFORE INSERT ON imcallback_door "
        "FOR EACH ROW EXECUTE FUNCTION imcallback_door_needs_act()",
    ]


def _create_mysql() -> list[str]:
    trigger = (
        "CREATE TRIGGER {} BEFORE {} ON {} FOR EACH ROW IF {} THEN "
        "SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = '{}'; END IF"
    )
    statements = [
        trigger.format(
            f"imcallback_{name}_no_{event.lower()}",
            event,
            f"imcallback_{name}",
            DOOR_IS_SHUT,
            f"imcallback_{name} is append-only",
        )
        for name in PROTECTED
        for event in ("UPDATE", "DELETE")
    ]
    door = ("imcallback_door_needs_act", "INSERT", "imcallback_door", ACT_IS_MISSING)
    return [*statements, trigger.format(*door, DOOR_NEEDS_ACT)]


def _run(statements: list[str]) -> None:
    """Run the statements. A database user who may not create triggers gets a warning."""
    try:
        for statement in statements:
            op.execute(statement)
    except sa.exc.DBAPIError as error:
        arguments = getattr(error.orig, "args", None) or (0,)
        if arguments[0] not in FORBIDDEN:
            raise
        logging.getLogger("flask_imcallback").warning(
            "The tables are not append-only yet, because this database user may not change "
            "triggers (%s). Run `flask imcallback protect` as a user who may",
            error.orig,
        )
