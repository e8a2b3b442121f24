"""What many removals share becomes a table; indexes for all that the history is asked."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0004_source_and_indexes"
down_revision = "0003_delivery_nonce"
branch_labels = None
depends_on = None

REMOVAL, NEW, OLD = "imcallback_removal", "imcallback_removal_new", "imcallback_removal_old"
INDEXES = {
    "owner_id": ["owner_id", "id", "source_id"],
    "target_id": ["target_id", "id", "source_id"],
    "pair": ["owner_id", "target_id", "id"],
    "source_id": ["source_id", "id"],
    "client_ip": ["client_ip", "id", "source_id"],
    "request_id": ["request_id", "id"],
}
SHARED = "provider, app_id, command, relation, platform"
SAME = " AND ".join(f"s.{name} = r.{name}" for name in SHARED.split(", "))


def _text(length: int) -> sa.types.TypeEngine[str]:
    """Text that is equal only if its bytes are."""
    dialect = op.get_context().dialect
    if dialect.name in ("mysql", "mariadb"):
        is_mariadb = getattr(dialect, "is_mariadb", False)
        collation = "utf8mb4_nopad_bin" if is_mariadb else "utf8mb4_0900_bin"
        return mysql.VARCHAR(length, collation=collation)
    return sa.String(length, collation="C" if dialect.name == "postgresql" else None)


def _key() -> sa.types.TypeEngine[int]:
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    # MySQL and MariaDB commit each step, so that each must bear being repeated.
    op.create_table(
        "imcallback_source",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("provider", _text(32), nullable=False),
        sa.Column("app_id", _text(32), nullable=False),
        sa.Column("command", _text(255), nullable=False),
        sa.Column("relation", _text(16), nullable=False),
        sa.Column("platform", _text(255), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_imcallback_source"),
        if_not_exists=True,
    )
    if not _is_done("source_id"):
        op.execute("DELETE FROM imcallback_source")
        op.execute(
            f"INSERT INTO imcallback_source ({SHARED}) SELECT DISTINCT {SHARED} FROM {REMOVAL}"  # noqa: S608
        )
        _replace(
            [
                sa.Column("id", _key(), autoincrement=False, nullable=False),
                sa.Column("delivery_id", _key(), nullable=False),
                sa.Column("source_id", sa.Integer(), nullable=False),
                sa.Column("owner_id", _text(255), nullable=False),
                sa.Column("target_id", _text(255), nullable=False),
                sa.Column("client_ip", _text(255), nullable=False),
                sa.Column("request_id", _text(255), nullable=False),
            ],
            "SELECT r.id, r.delivery_id, s.id, r.owner_id, r.target_id, r.client_ip, r.request_id"  # noqa: S608
            f" FROM {REMOVAL} r JOIN imcallback_source s ON {SAME}",
        )
    op.drop_table(OLD, if_exists=True)
    for name, columns in INDEXES.items():
        _create_index(f"ix_{REMOVAL}_{name}", REMOVAL, columns)
    _create_index("ix_imcallback_delivery_status", "imcallback_delivery", ["status", "id"])


def downgrade() -> None:
    if op.get_context().as_sql or "ix_imcallback_delivery_status" in _names("imcallback_delivery"):
        op.drop_index("ix_imcallback_delivery_status", "imcallback_delivery")
    if not _is_done("position"):
        moment = sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
        _replace(
            [
                sa.Column("id", _key(), autoincrement=False, nullable=False),
                sa.Column("delivery_id", _key(), nullable=False),
                sa.Column("position", sa.Integer(), nullable=False),
                sa.Column("received_at", moment, nullable=False),
                sa.Column("provider", _text(32), nullable=False),
                sa.Column("app_id", _text(32), nullable=False),
                sa.Column("command", _text(255), nullable=False),
                sa.Column("relation", _text(16), nullable=False),
                sa.Column("owner_id", _text(255), nullable=False),
                sa.Column("target_id", _text(255), nullable=False),
                sa.Column("client_ip", _text(255), nullable=False),
                sa.Column("platform", _text(255), nullable=False),
                sa.Column("request_id", _text(255), nullable=False),
            ],
            "SELECT r.id, r.delivery_id, r.id - r.delivery_id, d.received_at, s.provider,"  # noqa: S608
            " s.app_id, s.command, s.relation, r.owner_id, r.target_id, r.client_ip, s.platform,"
            f" r.request_id FROM {REMOVAL} r JOIN imcallback_source s ON s.id = r.source_id"
            " JOIN imcallback_delivery d ON d.id = r.delivery_id",
        )
    op.drop_table(OLD, if_exists=True)
    for column in ("owner_id", "target_id"):
        _create_index(f"ix_{REMOVAL}_{column}_id", REMOVAL, [column, "id"])
    op.drop_table("imcallback_source", if_exists=True)


def _is_done(column: str) -> bool:
    """Whether the removals have their new columns already."""
    if op.get_context().as_sql:
        return False
    columns = sa.inspect(op.get_bind()).get_columns(REMOVAL)
    return column in [c["name"] for c in columns]


def _replace(columns: list[sa.Column[object]], rows: str) -> None:
    """Put a table with those columns and rows in the place of the removals."""
    name = op.get_context().dialect.name
    op.drop_table(NEW, if_exists=True)
    # In PostgreSQL a key is an index, whose name is unique; in SQLite it cannot be renamed.
    key = f"pk_{REMOVAL}"
    first = f"{key}_new" if name == "postgresql" else key
    op.create_table(NEW, *columns, sa.PrimaryKeyConstraint("id", name=first))
    op.execute(f"INSERT INTO {NEW} {rows}")
    if name in ("mysql", "mariadb"):
        op.execute(f"RENAME TABLE {REMOVAL} TO {OLD}, {NEW} TO {REMOVAL}")
        return
    op.drop_table(REMOVAL)
    op.rename_table(NEW, REMOVAL)
    if name == "postgresql":
        op.execute(f"ALTER INDEX {first} RENAME TO {key}")


def _create_index(name: str, table: str, columns: list[str]) -> None:
    if op.get_context().as_sql or name not in _names(table):
        op.create_index(name, table, columns)


def _names(table: str) -> set[str | None]:
    return {index["name"] for index in sa.inspect(op.get_bind()).get_indexes(table)}
