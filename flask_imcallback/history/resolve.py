"""The resolution of a checked query: times become ids, and shared values become source ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, func, select

from ..storage import MAX_ID, MAX_REMOVALS, id_at
from ..storage import delivery as delivery_table
from ..storage import removal as removal_table
from ..storage import source as source_table
from .filters import GROUPS
from .queries import HistoryQuery

MAX_LISTED_SOURCES = 1000
"""Maximum number of sources in the conditions of a statement. An IM server chooses the platforms,
so there may be more sources than a statement can have parameters."""


@dataclass(frozen=True, kw_only=True)
class ResolvedQuery:
    """The conditions of a query on the columns of the removal table.

    Alternatives are distinct. None means that the condition is not used.
    """

    owner_id: tuple[str, ...] | None = None
    target_id: tuple[str, ...] | None = None
    account_id: tuple[str, ...] | None = None
    peer_id: tuple[str, ...] | None = None
    client_ip: tuple[str, ...] | None = None
    request_id: tuple[str, ...] | None = None
    source_id: tuple[int, ...] | None = None
    """At most `MAX_LISTED_SOURCES` + 1 sources. With one more, `source_texts` must be checked."""
    source_texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The alternatives of each column of the source table that has a condition."""
    delivery_id: tuple[int, ...] | None = None
    delivery_spans: tuple[tuple[int, int], ...] = ()
    """The first and the last removal id of each delivery in `delivery_id`."""
    above_id: int = -1
    """Only removals with a larger id match."""
    below_id: int = MAX_ID
    """Only removals with a smaller id match."""

    @property
    def has_listed_sources(self) -> bool:
        """Whether `source_id` lists all sources that match."""
        return self.source_id is None or len(self.source_id) <= MAX_LISTED_SOURCES


NO_MATCH = ResolvedQuery(delivery_id=())
"""The query that no removal matches."""


def resolve(connection: Connection, query: HistoryQuery) -> ResolvedQuery:
    """Return the query with ids, or `NO_MATCH` if no removal can match it."""
    conditions: dict[str, Any] = {
        name: tuple(dict.fromkeys(values)) for name, values in query.texts.items()
    }
    if not all(conditions.values()):
        return NO_MATCH
    sources = {name: conditions.pop(name) for name in GROUPS if name in conditions}
    if sources:
        conditions["source_id"] = _source_ids(connection, sources)
        conditions["source_texts"] = sources
    if query.delivery_id is not None:
        spans = _delivery_spans(connection, query.delivery_id)
        conditions["delivery_id"] = tuple(first for first, _ in spans)
        conditions["delivery_spans"] = spans
    if not all(conditions.values()):
        return NO_MATCH
    if query.since is not None:
        conditions["above_id"] = first_id_at(connection, query.since) - 1
    if query.until is not None:
        conditions["below_id"] = first_id_at(connection, query.until)
    return ResolvedQuery(**conditions)


def first_id_at(connection: Connection, moment: datetime) -> int:
    """Return the smallest removal id that was received at `moment` or later.

    A large delivery that was received earlier may have ids beyond `id_at(moment)`. They are
    skipped.
    """
    first, column = id_at(moment), removal_table.c
    owner = select(column.delivery_id).where(column.id >= first).order_by(column.id).limit(1)
    delivery_id = connection.scalar(owner)
    if delivery_id is None or delivery_id >= first:
        return first
    is_earlier = (
        column.id.between(first, delivery_id + MAX_REMOVALS),
        column.delivery_id == delivery_id,
    )
    return 1 + (connection.scalar(select(func.max(column.id)).where(*is_earlier)) or first)


def _source_ids(connection: Connection, values: dict[str, tuple[str, ...]]) -> tuple[int, ...]:
    """Return the ids of the matching sources, but not more than a statement can list."""
    conditions = [source_table.c[name].in_(texts) for name, texts in values.items()]
    ids = select(source_table.c.id).where(*conditions).limit(MAX_LISTED_SOURCES + 1)
    return tuple(connection.scalars(ids))


def _delivery_spans(
    connection: Connection, delivery_ids: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    """Return the first and the last removal id of each delivery that has removals."""
    column = delivery_table.c
    rows = connection.execute(
        select(column.id, column.removal_count).where(column.id.in_(delivery_ids))
    )
    return tuple((first, first + count - 1) for first, count in rows if count)
