"""The tables of deliveries and removals."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001_delivery_and_removal"
down_revision = None
branch_labels = None
depends_on = None


def _text(length: int) -> sa.types.TypeEngine[str]:
    """Text that is equal only if its bytes are."""
    dialect = op.get_context().dialect
    if dialect.name in ("mysql", "mariadb"):
        is_mariadb = getattr(dialect, "is_mariadb", False)
        collation = "utf8mb4_nopad_bin" if is_mariadb else "utf8mb4_0900_bin"
        return mysql.VARCHAR(length, collation=collation)
    return sa.String(length, collation="C" if dialect.name == "postgresql" else None)


def upgrade() -> None:
    moment = sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
    key = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    long_text = sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
    long_bytes = sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")
    digest = sa.LargeBinary(32).with_variant(mysql.BINARY(32), "mysql", "mariadb")
    # MySQL and MariaDB commit each step, so that each must bear being repeated.
    op.create_table(
        "imcallback_delivery",
        sa.Column("id", key, autoincrement=False, nullable=False),
        sa.Column("received_at", moment, nullable=False),
        sa.Column("provider", _text(32), nullable=False),
        sa.Column("app_id", _text(32), nullable=False),
        sa.Column("command", _text(255), nullable=False),
        sa.Column("status", _text(16), nullable=False),
        sa.Column("duplicate_of", key, nullable=True),
        sa.Column("error", long_text, nullable=False),
        sa.Column("removal_count", sa.Integer(), nullable=False),
        sa.Column("remote_addr", _text(255), nullable=False),
        sa.Column("authenticated_by", _text(64), nullable=False),
        sa.Column("client_ip", _text(255), nullable=False),
        sa.Column("platform", _text(255), nullable=False),
        sa.Column("request_id", _text(255), nullable=False),
        sa.Column("query", long_text, nullable=False),
        sa.Column("headers", long_text, nullable=False),
        sa.Column("body", long_bytes, nullable=False),
        sa.Column("fingerprint", digest, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_imcallback_delivery"),
        sa.UniqueConstraint("fingerprint", name="uq_imcallback_delivery_fingerprint"),
        if_not_exists=True,
    )
    op.create_table(
        "imcallback_removal",
        sa.Column("id", key, autoincrement=False, nullable=False),
        sa.Column("delivery_id", key, nullable=False),
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
        sa.PrimaryKeyConstraint("id", name="pk_imcallback_removal"),
        if_not_exists=True,
    )
    for column in ("owner_id", "target_id"):
        name = f"ix_imcallback_removal_{column}_id"
        if op.get_context().as_sql or name not in _indexes():
            op.create_index(name, "imcallback_removal", [column, "id"])


def _indexes() -> set[str | None]:
    inspector = sa.inspect(op.get_bind())
    return {index["name"] for index in inspector.get_indexes("imcallback_removal")}


def downgrade() -> None:
    op.drop_table("imcallback_removal", if_exists=True)
    op.drop_table("imcallback_delivery", if_exists=True)
