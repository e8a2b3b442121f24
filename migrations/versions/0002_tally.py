"""The table that counts accepted and refused callbacks."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0002_tally"
down_revision = "0001_delivery_and_removal"
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
    op.create_table(
        "imcallback_counter",
        sa.Column("provider", _text(32), nullable=False),
        sa.Column("outcome", _text(16), nullable=False),
        sa.Column("what", _text(255), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("last_at", moment, nullable=False),
        sa.PrimaryKeyConstraint("provider", "outcome", "what", name="pk_imcallback_counter"),
        if_not_exists=True,
    )


def downgrade() -> None:
    op.drop_table("imcallback_counter", if_exists=True)
