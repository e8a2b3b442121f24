"""The resolution of a checked query: times become ids, and shared values become source ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, select

from ..removals import Relation
from ..storage import MAX_ID, MAX_REMOVALS, id_at
from ..storage import delivery as delivery_table
from ..storage import removal as removal_table
from ..storage import source as source_table
from .filters import GROUPS
from .queries import HistoryQuery

MAX_LISTED_SOURCES = 200
"""Maximum number of sources whose ids are listed. An IM server chooses the platforms, so there may
be many sources."""


@dataclass(frozen=True, kw_only=True)
class ResolvedQuery:
    """The conditions of a query. Alternatives are distinct."""

    columns: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Filter -> its alternatives, for the filters that are columns, `account_id` and `peer_id`.

    `source_id` is there if a filter of sources is used, and at most `MAX_LISTED_SOURCES` match.
    """
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Column of the source table -> its alternatives."""
    above_id: int = -1
    """Only removals with a larger id match."""
    below_id: int = MAX_ID
    """Only removals with a smaller id match."""

    @property
    def may_match_groups(self) -> bool:
        """Whether removals from groups can match."""
        relations = self.sources.get("relation")
        return relations is None or Relation.GROUP in relations

    @property
    def is_empty(self) -> bool:
        """Whether no removal can match."""
        return not all(self.columns.values())

    def beyond(self, last_id: int, *, is_descending: bool) -> ResolvedQuery:
        """Return the query for the removals that follow an id in the order of the page."""
        if is_descending:
            return replace(self, below_id=min(self.below_id, last_id))
        return replace(self, above_id=max(self.above_id, last_id))


NO_MATCH = ResolvedQuery(columns={"delivery_id": ()})
"""The query that no removal matches."""


def resolve(connection: Connection, query: HistoryQuery) -> ResolvedQuery:
    """Return the query with ids, or `NO_MATCH` if no removal can match it."""
    texts = {name: tuple(dict.fromkeys(values)) for name, values in query.texts.items()}
    if all(texts.values()):
        texts = _resolve_groups(texts)
    if not all(texts.values()):
        return NO_MATCH
    sources = {name: texts.pop(name) for name in GROUPS if name in texts}
    columns: dict[str, tuple[Any, ...]] = {**texts}
    if query.delivery_id is not None:
        columns["delivery_id"] = tuple(dict.fromkeys(query.delivery_id))
    if sources:
        ids = _source_ids(connection, sources)
        if len(ids) <= MAX_LISTED_SOURCES:
            columns["source_id"] = ids
    resolved = ResolvedQuery(columns=columns, sources=sources)
    if resolved.is_empty:
        return NO_MATCH
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
    next_removal = select(column.id - column.position).where(column.id >= first)
    delivery_id: int | None = connection.scalar(next_removal.order_by(column.id).limit(1))
    if delivery_id is None or delivery_id >= first:
        return first
    count = select(delivery_table.c.removal_count).where(delivery_table.c.id == delivery_id)
    return delivery_id + (connection.scalar(count) or MAX_REMOVALS)


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
