"""The column by which a delivery is told from another that took its id."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0003_delivery_nonce"
down_revision = "0002_tally"
branch_labels = None
depends_on = None


def upgrade() -> None:
    nonce = sa.LargeBinary(16).with_variant(mysql.BINARY(16), "mysql", "mariadb")
    # MySQL and MariaDB commit each step, so that each must bear being repeated.
    if op.get_context().as_sql or "nonce" not in _columns():
        op.add_column("imcallback_delivery", sa.Column("nonce", nonce, nullable=True))


def downgrade() -> None:
    if op.get_context().as_sql or "nonce" in _columns():
        op.drop_column("imcallback_delivery", "nonce")


def _columns() -> set[str]:
    inspector = sa.inspect(op.get_bind())
    return {column["name"] for column in inspector.get_columns("imcallback_delivery")}
