"""Create the tables of deliveries, removals, their sources, counters and the log."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001_tables"
down_revision = None
branch_labels = None
depends_on = None

# MySQL and MariaDB commit each step. If an upgrade stops half-way, the next one repeats all steps,
# so each step first checks whether it is needed.


def upgrade() -> None:
    _create_delivery()
    _create_source()
    _create_removal()
    _create_counter()
    _create_log()


TABLES = (
    *("door", "erasure", "seal", "act", "log", "inbox"),
    *("counter", "removal", "source", "delivery"),
)


def downgrade() -> None:
    for name in TABLES:
        table = sa.Table(f"imcallback_{name}", sa.MetaData())
        op.execute(sa.schema.DropTable(table, if_exists=True))


def _create_delivery() -> None:
    _create_table(
        "imcallback_delivery",
        sa.Column("id", _id(), autoincrement=False, nullable=False),
        sa.Column("duplicate_of", _id(), nullable=True),
        sa.Column("source_id", sa.Integer(), nullable=False),
        sa.Column("removal_count", sa.Integer(), nullable=False),
        sa.Column("status", _exact_text(16), nullable=False),
        sa.Column("error", _long_text(), nullable=False),
        sa.Column("command", _exact_text(255), nullable=False),
        sa.Column("platform", _exact_text(255), nullable=False),
        sa.Column("remote_addr", _exact_text(255), nullable=False),
        sa.Column("authenticated_by", _exact_text(64), nullable=False),
        sa.Column("client_ip", _exact_text(255), nullable=False),
        sa.Column("request_id", _exact_text(255), nullable=False),
        sa.Column("query", _long_text(), nullable=False),
        sa.Column("headers", _long_text(), nullable=False),
        sa.Column("body", _long_bytes(), nullable=False),
        sa.Column("fingerprint", _fixed_bytes(16), nullable=True),
        sa.Column("nonce", _fixed_bytes(16), nullable=True),
        sa.Column("commitment", _fixed_bytes(32), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_imcallback_delivery"),
    )
    _create_indexes(
        "imcallback_delivery",
        {
            "status": "status <> 'recorded'",
            "client_ip": "client_ip <> ''",
            "request_id": "request_id <> ''",
        },
    )
    _create_index(
        "uq_imcallback_delivery_fingerprint",
        "imcallback_delivery",
        ["fingerprint"],
        condition="fingerprint IS NOT NULL",
        unique=True,
    )


def _create_source() -> None:
    _create_table(
        "imcallback_source",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("provider", _exact_text(32), nullable=False),
        sa.Column("app_id", _exact_text(32), nullable=False),
        sa.Column("command", _exact_text(255), nullable=False),
        sa.Column("relation", _exact_text(16), nullable=False),
        sa.Column("cause", _exact_text(16), nullable=False),
        sa.Column("platform", _exact_text(255), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_imcallback_source"),
    )


def _create_removal() -> None:
    _create_table(
        "imcallback_removal",
        sa.Column("id", _id(), autoincrement=False, nullable=False),
        sa.Column("source_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("owner_id", _exact_text(255), nullable=False),
        sa.Column("target_id", _exact_text(255), nullable=False),
        sa.Column("actor_id", _exact_text(255), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_imcallback_removal"),
    )
    _create_indexes(
        "imcallback_removal",
        {"owner_id": "", "target_id": "", "actor_id": "actor_id <> ''", "source_id": ""},
    )


def _create_counter() -> None:
    _create_table(
        "imcallback_counter",
        sa.Column("provider", _exact_text(32), nullable=False),
        sa.Column("outcome", _exact_text(16), nullable=False),
        sa.Column("name", _exact_text(255), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("last_at", _utc_datetime(), nullable=False),
        sa.PrimaryKeyConstraint("provider", "outcome", "name", name="pk_imcallback_counter"),
    )


def _create_log() -> None:
    _create_table(
        "imcallback_inbox",
        sa.Column("entry_id", _id(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("entry_id", name="pk_imcallback_inbox"),
    )
    _create_table(
        "imcallback_log",
        sa.Column("position", _id(), autoincrement=False, nullable=False),
        sa.Column("entry_id", _id(), nullable=False),
        sa.PrimaryKeyConstraint("position", name="pk_imcallback_log"),
        sa.UniqueConstraint("entry_id", name="uq_imcallback_log_entry_id"),
    )
    _create_table(
        "imcallback_act",
        sa.Column("id", _id(), autoincrement=False, nullable=False),
        sa.Column("kind", _exact_text(16), nullable=False),
        sa.Column("actor", _exact_text(255), nullable=False),
        sa.Column("affected", sa.BigInteger(), nullable=False),
        sa.Column("detail", _long_text(), nullable=False),
        sa.Column("nonce", _fixed_bytes(16), nullable=True),
        sa.Column("commitment", _fixed_bytes(32), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_imcallback_act"),
    )
    _create_table(
        "imcallback_seal",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("last_position", _id(), nullable=False),
        sa.Column("entry", _long_text(), nullable=False),
        sa.Column("node", _fixed_bytes(32), nullable=False),
        sa.Column("marks", _long_bytes(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_imcallback_seal"),
        sa.UniqueConstraint("last_position", name="uq_imcallback_seal_last_position"),
    )
    _create_table(
        "imcallback_erasure",
        sa.Column("delivery_id", _id(), autoincrement=False, nullable=False),
        sa.Column("slots", _long_bytes(), nullable=False),
        sa.PrimaryKeyConstraint("delivery_id", name="pk_imcallback_erasure"),
    )
    _create_table(
        "imcallback_door",
        sa.Column("act_id", _id(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("act_id", name="pk_imcallback_door"),
    )


def _create_table(name: str, *elements: sa.schema.SchemaItem) -> None:
    """Create a table if it is missing. Alembic before 1.13.3 cannot say IF NOT EXISTS.

    Other engines of MariaDB have no transactions, or no durable ones.
    """
    engine = "InnoDB"
    table = sa.Table(name, sa.MetaData(), *elements, mysql_engine=engine, mariadb_engine=engine)
    op.execute(sa.schema.CreateTable(table, if_not_exists=True))


def _create_indexes(table: str, conditions: dict[str, str]) -> None:
    """Create the missing indexes of a column and the id, for each column in `conditions`."""
    for column, condition in conditions.items():
        _create_index(f"ix_{table}_{column}", table, [column, "id"], condition=condition)


def _create_index(
    name: str, table: str, columns: list[str], *, condition: str = "", unique: bool = False
) -> None:
    """Create an index if it is missing.

    MySQL has no CREATE INDEX IF NOT EXISTS. MariaDB ignores the condition of a partial index.
    """
    if not op.get_context().as_sql:
        existing = sa.inspect(op.get_bind()).get_indexes(table)
        if name in {index["name"] for index in existing}:
            return
    where = sa.text(condition) if condition else None
    op.create_index(name, table, columns, unique=unique, sqlite_where=where, postgresql_where=where)


def _exact_text(length: int) -> sa.types.TypeEngine[str]:
    """Return the type of a text that is compared byte by byte."""
    dialect = op.get_context().dialect
    if dialect.name in ("mysql", "mariadb"):
        is_mariadb = getattr(dialect, "is_mariadb", False)
        collation = "utf8mb4_nopad_bin" if is_mariadb else "utf8mb4_0900_bin"
        return mysql.VARCHAR(length, collation=collation)
    return sa.String(length, collation="C" if dialect.name == "postgresql" else None)


def _id() -> sa.types.TypeEngine[int]:
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _utc_datetime() -> sa.DateTime:
    return sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def _long_text() -> sa.types.TypeEngine[str]:
    return sa.Text().with_variant(mysql.LONGTEXT(charset="utf8mb4"), "mysql", "mariadb")


def _long_bytes() -> sa.types.TypeEngine[bytes]:
    return sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")


def _fixed_bytes(length: int) -> sa.types.TypeEngine[bytes]:
    return sa.LargeBinary(length).with_variant(mysql.BINARY(length), "mysql", "mariadb")
