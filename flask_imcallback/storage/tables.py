"""The tables. They have their own MetaData, so `create_all` of the host app does not create them.

Ids are times: see `ids`. No foreign key joins the tables. One transaction writes a delivery and its
removals, no code deletes from one table alone, and each removal would cost a look-up.
"""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    UniqueConstraint,
    text,
)

from ..storable_text import MAX_TEXT_LENGTH
from .column_types import Bytes, ExactText, Fingerprint, Id, LongText, Nonce, UtcDateTime

metadata = MetaData()


class SourceKey(NamedTuple):
    """The values of a row in the source table, in the order of its columns."""

    provider: str
    app_id: str
    command: str
    relation: str
    cause: str
    platform: str


delivery = Table(
    "imcallback_delivery",
    metadata,
    Column("id", Id, autoincrement=False),
    Column("received_at", UtcDateTime, nullable=False),
    Column("provider", ExactText(32), nullable=False),
    Column("app_id", ExactText(32), nullable=False),
    Column("command", ExactText(MAX_TEXT_LENGTH), nullable=False),
    Column("status", ExactText(16), nullable=False),
    Column("duplicate_of", Id),
    Column("error", LongText, nullable=False),
    Column("removal_count", Integer, nullable=False),
    Column("remote_addr", ExactText(MAX_TEXT_LENGTH), nullable=False),
    Column("authenticated_by", ExactText(64), nullable=False),
    Column("client_ip", ExactText(MAX_TEXT_LENGTH), nullable=False),
    Column("platform", ExactText(MAX_TEXT_LENGTH), nullable=False),
    Column("request_id", ExactText(MAX_TEXT_LENGTH), nullable=False),
    Column("query", LongText, nullable=False),
    Column("headers", LongText, nullable=False),
    Column("body", Bytes, nullable=False),
    # NULL for a delivery that cannot be a repetition, and for each repetition.
    Column("fingerprint", Fingerprint),
    # Random. A retry recognizes by it the row that its own earlier attempt stored.
    Column("nonce", Nonce),
    PrimaryKeyConstraint("id", name="pk_imcallback_delivery"),
    # Many processes and database nodes record a repeated callback only once.
    UniqueConstraint("fingerprint", name="uq_imcallback_delivery_fingerprint"),
    # Finds duplicate, ignored and unreadable deliveries, which are rare.
    Index("ix_imcallback_delivery_status", "status", "id"),
)

# The values that many removals share. The table has a few dozen rows. Two rows may have the same
# values, because two processes may add them at the same time.
source = Table(
    "imcallback_source",
    metadata,
    Column("id", Integer, autoincrement=True),
    Column("provider", ExactText(32), nullable=False),
    Column("app_id", ExactText(32), nullable=False),
    Column("command", ExactText(MAX_TEXT_LENGTH), nullable=False),
    Column("relation", ExactText(16), nullable=False),
    Column("cause", ExactText(16), nullable=False),
    Column("platform", ExactText(MAX_TEXT_LENGTH), nullable=False),
    PrimaryKeyConstraint("id", name="pk_imcallback_source"),
)

HAS_ACTOR = text("actor_id <> ''")
"""The condition of the partial index of actors. A query must repeat it to use the index."""

removal = Table(
    "imcallback_removal",
    metadata,
    Column("id", Id, autoincrement=False),
    Column("delivery_id", Id, nullable=False),
    Column("source_id", Integer, nullable=False),
    Column("owner_id", ExactText(MAX_TEXT_LENGTH), nullable=False),
    Column("target_id", ExactText(MAX_TEXT_LENGTH), nullable=False),
    Column("actor_id", ExactText(MAX_TEXT_LENGTH), nullable=False),
    Column("client_ip", ExactText(MAX_TEXT_LENGTH), nullable=False),
    Column("request_id", ExactText(MAX_TEXT_LENGTH), nullable=False),
    PrimaryKeyConstraint("id", name="pk_imcallback_removal"),
    # Each index is in the order of the pages, so a query reads only a few ranges of an index.
    # An index with source_id skips removals of other sources without reading their rows.
    Index("ix_imcallback_removal_owner_id", "owner_id", "id", "source_id"),
    Index("ix_imcallback_removal_target_id", "target_id", "id", "source_id"),
    # Most removals have no actor. MariaDB has no partial indexes, and indexes all removals.
    Index(
        "ix_imcallback_removal_actor_id",
        "actor_id",
        "id",
        "source_id",
        sqlite_where=HAS_ACTOR,
        postgresql_where=HAS_ACTOR,
    ),
    # Finds the removals between two accounts that each have many removals.
    Index("ix_imcallback_removal_pair", "owner_id", "target_id", "id"),
    # Serves every combination of the values in the source table.
    Index("ix_imcallback_removal_source_id", "source_id", "id"),
    Index("ix_imcallback_removal_client_ip", "client_ip", "id", "source_id"),
    Index("ix_imcallback_removal_request_id", "request_id", "id"),
)

counters = Table(
    "imcallback_counter",
    metadata,
    Column("provider", ExactText(32), nullable=False),
    Column("outcome", ExactText(16), nullable=False),
    # The command of accepted callbacks, or the reason of refused callbacks.
    Column("name", ExactText(MAX_TEXT_LENGTH), nullable=False),
    Column("count", BigInteger, nullable=False),
    Column("last_at", UtcDateTime, nullable=False),
    PrimaryKeyConstraint("provider", "outcome", "name", name="pk_imcallback_counter"),
)
