"""The tables, on a MetaData of our own, so that a host's `create_all` does not reach them.

Ids are times: a delivery's id is the microsecond at which it was received, counted from 1970 and
moved up until it is free, and its removals have the ids that follow, so that removal `n` has the
id of its delivery plus `n`. That orders the history by time and pages it by one number, makes
`since` and `until` a range of the primary key, and needs no index on a time and no question to the
database before a row is written. Such ids stay below 2^53 until the year 2255.

No foreign key joins the tables: one transaction writes both, nothing deletes from one alone, and
the check would cost a look-up for each removal.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    UniqueConstraint,
)

from .column_types import Bytes, ExactText, Fingerprint, Id, LongText, Nonce, UtcDateTime

metadata = MetaData()


delivery = Table(
    "imcallback_delivery",
    metadata,
    Column("id", Id, autoincrement=False),
    Column("received_at", UtcDateTime, nullable=False),
    Column("provider", ExactText(32), nullable=False),
    Column("app_id", ExactText(32), nullable=False),
    Column("command", ExactText(255), nullable=False),
    Column("status", ExactText(16), nullable=False),
    Column("duplicate_of", Id),
    Column("error", LongText, nullable=False),
    Column("removal_count", Integer, nullable=False),
    Column("remote_addr", ExactText(255), nullable=False),
    Column("authenticated_by", ExactText(64), nullable=False),
    Column("client_ip", ExactText(255), nullable=False),
    Column("platform", ExactText(255), nullable=False),
    Column("request_id", ExactText(255), nullable=False),
    Column("query", LongText, nullable=False),
    Column("headers", LongText, nullable=False),
    Column("body", Bytes, nullable=False),
    Column("fingerprint", Fingerprint),
    # Made at random before the first try to store: who finds an id taken learns whether by itself.
    Column("nonce", Nonce),
    PrimaryKeyConstraint("id", name="pk_imcallback_delivery"),
    # A callback that the provider repeats is kept once, under any number of workers and nodes;
    # a delivery that cannot be a repetition, or is one, has no fingerprint.
    UniqueConstraint("fingerprint", name="uq_imcallback_delivery_fingerprint"),
    # Those that are not recorded are few.
    Index("ix_imcallback_delivery_status", "status", "id"),
)

# What many removals share, a few dozen rows; the same may be there twice.
source = Table(
    "imcallback_source",
    metadata,
    Column("id", Integer, autoincrement=True),
    Column("provider", ExactText(32), nullable=False),
    Column("app_id", ExactText(32), nullable=False),
    Column("command", ExactText(255), nullable=False),
    Column("relation", ExactText(16), nullable=False),
    Column("platform", ExactText(255), nullable=False),
    PrimaryKeyConstraint("id", name="pk_imcallback_source"),
)

removal = Table(
    "imcallback_removal",
    metadata,
    Column("id", Id, autoincrement=False),
    Column("delivery_id", Id, nullable=False),
    Column("source_id", Integer, nullable=False),
    Column("owner_id", ExactText(255), nullable=False),
    Column("target_id", ExactText(255), nullable=False),
    Column("client_ip", ExactText(255), nullable=False),
    Column("request_id", ExactText(255), nullable=False),
    PrimaryKeyConstraint("id", name="pk_imcallback_removal"),
    # Each is in the order of the pages, so that whatever is asked for is a range of one, or a few.
    # Where the source is in it, removals of another are passed over without reading them.
    Index("ix_imcallback_removal_owner_id", "owner_id", "id", "source_id"),
    Index("ix_imcallback_removal_target_id", "target_id", "id", "source_id"),
    # Those between two accounts, of which each may have many.
    Index("ix_imcallback_removal_pair", "owner_id", "target_id", "id"),
    # All combinations of provider, app_id, command, relation and platform.
    Index("ix_imcallback_removal_source_id", "source_id", "id"),
    Index("ix_imcallback_removal_client_ip", "client_ip", "id", "source_id"),
    Index("ix_imcallback_removal_request_id", "request_id", "id"),
)

counters = Table(
    "imcallback_counter",
    metadata,
    Column("provider", ExactText(32), nullable=False),
    Column("outcome", ExactText(16), nullable=False),
    Column("what", ExactText(255), nullable=False),
    Column("count", BigInteger, nullable=False),
    Column("last_at", UtcDateTime, nullable=False),
    PrimaryKeyConstraint("provider", "outcome", "what", name="pk_imcallback_counter"),
)
