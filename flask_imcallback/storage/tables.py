"""The tables. They have their own MetaData, so `create_all` of the host app does not create them.

Ids are times: see `ids`. No foreign key joins the tables. One transaction writes a delivery and its
removals, no code deletes from one table alone, and each removal would cost a look-up.
"""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    TextClause,
    UniqueConstraint,
    case,
    text,
)

from ..storable_text import MAX_TEXT_LENGTH
from .column_types import Bytes, Digest, ExactText, Fingerprint, Id, LongText, Nonce, UtcDateTime

metadata = MetaData()


class SourceKey(NamedTuple):
    """The values of a row in the source table, in the order of its columns."""

    provider: str
    app_id: str
    command: str
    relation: str
    cause: str
    platform: str


IS_NOT_RECORDED = text("status <> 'recorded'")
HAS_CLIENT_IP = text("client_ip <> ''")
HAS_REQUEST_ID = text("request_id <> ''")
HAS_FINGERPRINT = text("fingerprint IS NOT NULL")
HAS_ACTOR = text("actor_id <> ''")
"""The conditions of partial indexes. A query must repeat the condition to use the index.

MariaDB has no partial indexes, and indexes all rows.
"""


def _partial_index(name: str, column: str, condition: TextClause) -> Index:
    """Return an index of a column and the id, only for the rows that meet the condition."""
    return Index(name, column, "id", sqlite_where=condition, postgresql_where=condition)


# PostgreSQL aligns numbers, so they stand before the texts.
delivery = Table(
    "imcallback_delivery",
    metadata,
    # The time of the arrival: see `ids`.
    Column("id", Id, autoincrement=False),
    Column("duplicate_of", Id),
    # The source of its first removal. Without removals, a source that has only provider and app.
    Column("source_id", Integer, nullable=False),
    # The ids of its removals are `id`, `id` + 1 and so on.
    Column("removal_count", Integer, nullable=False),
    Column("status", ExactText(16), nullable=False),
    Column("error", LongText, nullable=False),
    # Empty if the delivery has removals, because their source has both. A sender may invent a
    # command in each packet without removals, and the source table must stay small.
    Column("command", ExactText(MAX_TEXT_LENGTH), nullable=False),
    Column("platform", ExactText(MAX_TEXT_LENGTH), nullable=False),
    Column("remote_addr", ExactText(MAX_TEXT_LENGTH), nullable=False),
    Column("authenticated_by", ExactText(64), nullable=False),
    Column("client_ip", ExactText(MAX_TEXT_LENGTH), nullable=False),
    Column("request_id", ExactText(MAX_TEXT_LENGTH), nullable=False),
    Column("query", LongText, nullable=False),
    Column("headers", LongText, nullable=False),
    Column("body", Bytes, nullable=False),
    # NULL for a delivery that cannot be a repetition, and for each repetition.
    Column("fingerprint", Fingerprint),
    # Random. A retry recognizes by it the row that its own earlier attempt stored. The log makes
    # the salts of its commitments from it. After a strip, the seed of the salts. See `erasure`.
    Column("nonce", Nonce),
    # The commitment to the packet, once the packet has been stripped or erased.
    Column("commitment", Digest),
    PrimaryKeyConstraint("id", name="pk_imcallback_delivery"),
    # Many processes and database nodes record a repeated callback only once.
    Index(
        "uq_imcallback_delivery_fingerprint",
        "fingerprint",
        unique=True,
        sqlite_where=HAS_FINGERPRINT,
        postgresql_where=HAS_FINGERPRINT,
    ),
    # Finds duplicate, ignored and unreadable deliveries, which are rare.
    _partial_index("ix_imcallback_delivery_status", "status", IS_NOT_RECORDED),
    # Find the removals of an IP address and of a request, by the ids of their deliveries.
    _partial_index("ix_imcallback_delivery_client_ip", "client_ip", HAS_CLIENT_IP),
    _partial_index("ix_imcallback_delivery_request_id", "request_id", HAS_REQUEST_ID),
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

_HAS_REMOVALS = delivery.c.removal_count > 0
SHARED_COLUMNS: dict[str, ColumnElement[str]] = {
    "provider": source.c.provider,
    "app_id": source.c.app_id,
    "command": case((_HAS_REMOVALS, source.c.command), else_=delivery.c.command),
    "platform": case((_HAS_REMOVALS, source.c.platform), else_=delivery.c.platform),
}
"""The values of a delivery that its source holds, in `DELIVERIES_WITH_SOURCES`."""

DELIVERIES_WITH_SOURCES = delivery.join(source, source.c.id == delivery.c.source_id, isouter=True)

removal = Table(
    "imcallback_removal",
    metadata,
    # The id of its delivery plus the position in it. SQLite stores the position 0 in no bytes.
    Column("id", Id, autoincrement=False),
    Column("source_id", Integer, nullable=False),
    Column("position", Integer, nullable=False),
    Column("owner_id", ExactText(MAX_TEXT_LENGTH), nullable=False),
    Column("target_id", ExactText(MAX_TEXT_LENGTH), nullable=False),
    Column("actor_id", ExactText(MAX_TEXT_LENGTH), nullable=False),
    PrimaryKeyConstraint("id", name="pk_imcallback_removal"),
    # Each index is in the order of the pages, so a query reads only the start of a range.
    Index("ix_imcallback_removal_owner_id", "owner_id", "id"),
    Index("ix_imcallback_removal_target_id", "target_id", "id"),
    # Most removals have no actor.
    _partial_index("ix_imcallback_removal_actor_id", "actor_id", HAS_ACTOR),
    # Serves every combination of the values in the source table.
    Index("ix_imcallback_removal_source_id", "source_id", "id"),
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

inbox = Table(
    "imcallback_inbox",
    metadata,
    Column("entry_id", Id, autoincrement=False),
    PrimaryKeyConstraint("entry_id", name="pk_imcallback_inbox"),
)
"""The entries that have no log position yet. A transaction that stores an entry adds its id.

The id of an entry is the id of a delivery, or the negative id of an act.
"""

log = Table(
    "imcallback_log",
    metadata,
    Column("position", Id, autoincrement=False),
    Column("entry_id", Id, nullable=False),
    PrimaryKeyConstraint("position", name="pk_imcallback_log"),
    UniqueConstraint("entry_id", name="uq_imcallback_log_entry_id"),
)
"""The numbered log. Positions are 1, 2, 3 and so on, without gaps."""

act = Table(
    "imcallback_act",
    metadata,
    Column("id", Id, autoincrement=False),
    Column("kind", ExactText(16), nullable=False),
    # Who did it, for example a user of the command line or the hash of a token.
    Column("actor", ExactText(MAX_TEXT_LENGTH), nullable=False),
    # The number of removals or deliveries that the act showed or changed.
    Column("affected", BigInteger, nullable=False),
    Column("detail", LongText, nullable=False),
    Column("nonce", Nonce),
    # The commitment to `detail`, once an erasure has taken it away.
    Column("commitment", Digest),
    PrimaryKeyConstraint("id", name="pk_imcallback_act"),
)
"""What people did with the history: exports, evidence files, erasures and reads."""

seal = Table(
    "imcallback_seal",
    metadata,
    Column("number", Integer, autoincrement=False),
    Column("last_position", Id, nullable=False),
    # The leaf of the log of seals: a JSON text.
    Column("entry", LongText, nullable=False),
    # The hash of the largest complete subtree that ends with this seal.
    Column("node", Digest, nullable=False),
    # Two bytes of the hash of each entry. They name the row that was changed. Empty: pruned.
    Column("marks", Bytes, nullable=False),
    PrimaryKeyConstraint("number", name="pk_imcallback_seal"),
    # Finds the seal of a log position.
    UniqueConstraint("last_position", name="uq_imcallback_seal_last_position"),
)
"""Merkle roots of ranges of the log. Each range begins after the range of the seal before."""

erasure = Table(
    "imcallback_erasure",
    metadata,
    Column("delivery_id", Id, autoincrement=False),
    Column("slots", Bytes, nullable=False),
    PrimaryKeyConstraint("delivery_id", name="pk_imcallback_erasure"),
)
"""What is left of the salts of a delivery after an erasure. Its nonce, which would give all salts
back, is NULL then. Each account has a slot: its salt, or the commitment to it if it was erased.
"""

door = Table(
    "imcallback_door",
    metadata,
    Column("act_id", Id, autoincrement=False),
    PrimaryKeyConstraint("act_id", name="pk_imcallback_door"),
)
"""A row opens the other tables for changes, inside the transaction that inserts and deletes it."""
