"""The resolution of a checked query: times become ids, and shared values become source ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, func, select

from ..removals import Relation
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
    """The conditions of a query on the rows of the removal table.

    Alternatives are distinct. None means that the condition is not used.
    """

    columns: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """The alternatives of each column that has a condition. `source_id` has at most
    `MAX_LISTED_SOURCES` + 1 of them. With one more, `source_texts` must be checked."""
    account_id: tuple[str, ...] | None = None
    peer_id: tuple[str, ...] | None = None
    source_texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The alternatives of each column of the source table that has a condition."""
    delivery_spans: tuple[tuple[int, int], ...] = ()
    """The first and the last removal id of each delivery in the column `delivery_id`."""
    above_id: int = -1
    """Only removals with a larger id match."""
    below_id: int = MAX_ID
    """Only removals with a smaller id match."""

    @property
    def has_listed_sources(self) -> bool:
        """Whether `source_id` lists all sources that match."""
        return len(self.columns.get("source_id", ())) <= MAX_LISTED_SOURCES

    @property
    def may_match_groups(self) -> bool:
        """Whether removals from groups can match."""
        relations = self.source_texts.get("relation")
        return relations is None or Relation.GROUP in relations


NO_MATCH = ResolvedQuery(columns={"delivery_id": ()})
"""The query that no removal matches."""


def resolve(connection: Connection, query: HistoryQuery) -> ResolvedQuery:
    """Return the query with ids, or `NO_MATCH` if no removal can match it."""
    texts = {name: tuple(dict.fromkeys(values)) for name, values in query.texts.items()}
    if not all(texts.values()):
        return NO_MATCH
    texts = _resolve_groups(texts)
    if not all(texts.values()):
        return NO_MATCH
    accounts, peers = texts.pop("account_id", None), texts.pop("peer_id", None)
    sources = {name: texts.pop(name) for name in GROUPS if name in texts}
    columns: dict[str, tuple[Any, ...]] = {**texts}
    spans: tuple[tuple[int, int], ...] = ()
    if sources:
        columns["source_id"] = _source_ids(connection, sources)
    if query.delivery_id is not None:
        spans = _delivery_spans(connection, query.delivery_id)
        columns["delivery_id"] = tuple(first for first, _ in spans)
    if not all(columns.values()):
        return NO_MATCH
    resolved = ResolvedQuery(
        columns=columns,
        account_id=accounts,
        peer_id=peers,
        source_texts=sources,
        delivery_spans=spans,
    )
    if query.since is not None:
        resolved = replace(resolved, above_id=first_id_at(connection, query.since) - 1)
    if query.until is not None:
        resolved = replace(resolved, below_id=first_id_at(connection, query.until))
    return resolved


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


Texts = dict[str, tuple[str, ...]]
"""The alternatives of each text filter."""


def _resolve_groups(texts: Texts) -> Texts:
    """Replace `group_id` by its meaning, and `account_id` if only removals from groups match.

    The owner of a removal from a group is the group, so only the target is an account.
    """
    if "group_id" in texts:
        group_ids = texts.pop("group_id")
        texts = _restrict(texts, "owner_id", group_ids)
        texts = _restrict(texts, "relation", (Relation.GROUP,))
    if "account_id" in texts and texts.get("relation") == (Relation.GROUP,):
        accounts = texts.pop("account_id")
        texts = _restrict(texts, "target_id", () if "peer_id" in texts else accounts)
    return texts


def _restrict(texts: Texts, name: str, values: tuple[str, ...]) -> Texts:
    """Return the filters with no other alternatives of one filter than `values`."""
    allowed = set(values)
    return texts | {name: tuple(text for text in texts.get(name, values) if text in allowed)}


def _source_ids(connection: Connection, values: Texts) -> tuple[int, ...]:
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
