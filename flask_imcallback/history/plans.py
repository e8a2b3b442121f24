"""Query plans: the ranges of an index that hold all removals that match a query.

Each range lists its entries in the order of ids, so a page reads only the start of each range.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from ..storage import MAX_ID
from ..storage import removal as removal_table
from .resolve import ResolvedQuery

MAX_RANGES = 200
"""Maximum number of ranges in a plan. Beyond it, the database chooses how to search."""
MAX_PARAMETERS = 25_000
"""Maximum number of parameters in a statement. SQLite accepts 32,766."""
PROBED_RANGES = 8
"""Maximum number of ranges per plan that are probed to compare plans."""
COVERING_COST_FACTOR = 0.1
"""The cost of an index entry that needs no table row, relative to an entry that needs one."""

INDEX_PREFIX = "ix_imcallback_removal_"
PAIR_INDEX = f"{INDEX_PREFIX}pair"
INDEX_COLUMNS = {
    str(index.name): tuple(index.columns.keys())
    for index in sorted(removal_table.indexes, key=lambda index: str(index.name))
}
INDEXED_COLUMNS = tuple(columns[0] for columns in INDEX_COLUMNS.values() if columns[1] == "id")
"""The columns whose values each have a range of an index, in the order of ids."""
INDEXES_WITH_SOURCE = {
    name for name, columns in INDEX_COLUMNS.items() if "source_id" in columns[1:]
}


@dataclass(frozen=True)
class IndexRange:
    """The entries of an index that begin with the same values."""

    index: str = ""
    """Empty for the primary key."""
    equal: Mapping[str, Any] = field(default_factory=dict)
    """The values of the first columns of the index."""
    id_span: tuple[int, int] = (0, MAX_ID)
    """The first and the last id of the range."""
    has_groups: bool | None = None
    """Whether only removals from groups match (True), or only all others (False)."""
    excluded_accounts: tuple[str, ...] = ()
    """Accounts whose removals as owner are already in other ranges of the plan."""


@dataclass(frozen=True)
class Plan:
    """Disjoint index ranges that together hold all removals that match a query."""

    ranges: Sequence[IndexRange]
    guaranteed: frozenset[str] = frozenset()
    """The columns whose conditions every removal in the ranges meets. `account_id` includes
    `peer_id`."""
    remaining: frozenset[str] = frozenset()
    """The columns whose conditions each removal must still be checked for."""
    has_source: bool = False
    """Whether the indexes contain the source id."""

    @property
    def is_exact(self) -> bool:
        """Whether every removal in the ranges matches."""
        return not self.remaining and all(part.has_groups is None for part in self.ranges)

    @property
    def is_covering(self) -> bool:
        """Whether the indexes alone can check all remaining conditions."""
        return self.has_source and self.remaining <= {"source_id"}

    @property
    def is_by_source(self) -> bool:
        """Whether the plan reads one range for each source."""
        return self.guaranteed == {"source_id"}


PRIMARY_KEY_SCAN = Plan([IndexRange()])

Probe = Callable[[Sequence[tuple[IndexRange, int]]], Sequence[int | None]]
"""A function that returns the id of the entry at each offset of a range, or None past its end."""


def list_plans(query: ResolvedQuery) -> list[Plan]:
    """Return the plans that can answer the query."""
    if "delivery_id" in query.columns:
        return [_plan_by_deliveries(query)]
    ranges, guaranteed = _pair_ranges(query)
    plan = _plan(query, ranges, guaranteed)
    plans = [plan] if ranges and _fits_statement(query, plan) else []
    is_pair = plans and all(part.index == PAIR_INDEX for part in ranges)
    may_be_narrower = {*INDEXED_COLUMNS} - {"owner_id", "target_id", "source_id"}
    if is_pair and may_be_narrower.isdisjoint(query.columns):
        return plans
    plans += _plans_by_column(query)
    if query.account_id:
        plans.append(_plan_by_account(query, query.account_id))
    fitting = [plan for plan in plans if _fits_statement(query, plan)]
    if not fitting or (len(fitting) < len(plans) and all(plan.is_by_source for plan in fitting)):
        return [_plan(query, [IndexRange()])]
    return fitting


def choose_plan(
    query: ResolvedQuery, plans: Sequence[Plan], limit: int, probe: Probe, *, is_descending: bool
) -> Plan:
    """Return the plan that probably reads the fewest index entries.

    In each range, the probe finds the entry after `limit` entries. If its id is near, the range is
    dense, and more entries must be read.
    """
    probes = [(plan, part) for plan in plans for part in plan.ranges[:PROBED_RANGES]]
    first, *ends = probe([(IndexRange(), 0), *((part, limit) for _, part in probes)])
    if first is None:
        return Plan([])
    last = max(query.above_id, 0) if is_descending else query.below_id
    costs = [0.0] * len(plans)
    for (plan, _), end in zip(probes, ends, strict=True):
        distance = abs(first - (last if end is None else end))
        scale = max(1, len(plan.ranges) / PROBED_RANGES)
        if plan.is_covering:
            scale *= COVERING_COST_FACTOR
        costs[plans.index(plan)] += scale / max(distance, 1)
    return plans[costs.index(min(costs))]


def _plan(
    query: ResolvedQuery, ranges: Sequence[IndexRange], guaranteed: Sequence[str] = ()
) -> Plan:
    used = {*query.columns} | ({"account_id"} if query.account_id else set())
    has_source = all(part.index in INDEXES_WITH_SOURCE for part in ranges)
    return Plan(ranges, frozenset(guaranteed), frozenset(used.difference(guaranteed)), has_source)


def _plan_by_deliveries(query: ResolvedQuery) -> Plan:
    """Return a plan with a range of the primary key for each delivery, or one range for all."""
    spans = query.delivery_spans
    plan = _plan(query, [IndexRange(id_span=span) for span in spans], ["delivery_id"])
    if _fits_statement(query, plan):
        return plan
    return _plan(query, [IndexRange(id_span=(min(spans)[0], max(spans)[1]))])


def _plans_by_column(query: ResolvedQuery) -> list[Plan]:
    """Return a plan for each index whose first column has a condition."""
    return [
        _plan(query, [_range(name, **{name: value}) for value in query.columns[name]], [name])
        for name in INDEXED_COLUMNS
        if name in query.columns
    ]


def _plan_by_account(query: ResolvedQuery, accounts: tuple[str, ...]) -> Plan:
    """Return a plan that reads the removals of each account, first as owner, then as target."""
    no_groups = False if query.may_match_groups else None
    ranges = [_range("owner_id", no_groups, owner_id=account) for account in accounts]
    ranges += [
        _range("target_id", excluded_accounts=accounts, target_id=account) for account in accounts
    ]
    return _plan(query, ranges, [] if query.peer_id else ["account_id"])


def _fits_statement(query: ResolvedQuery, plan: Plan) -> bool:
    """Return True if one statement can hold all ranges with the remaining conditions."""
    if len(plan.ranges) > MAX_RANGES:
        return False
    excluded = sum(len(part.excluded_accounts) for part in plan.ranges)
    return len(plan.ranges) * _parameter_count(query, plan) + excluded <= MAX_PARAMETERS


def _parameter_count(query: ResolvedQuery, plan: Plan) -> int:
    """Return the number of parameters in the remaining conditions of one range."""
    columns = query.columns.keys() - plan.guaranteed
    count = sum(len(query.columns[name]) for name in columns)
    if not query.has_listed_sources:
        count += sum(map(len, query.source_texts.values()))
    if query.account_id is not None and "account_id" not in plan.guaranteed:
        # The condition names the accounts and the peers for each side.
        count += 2 * len(query.account_id) + 2 * len(query.peer_id or ())
    return count


def _range(
    name: str,
    has_groups: bool | None = None,
    excluded_accounts: tuple[str, ...] = (),
    **equal: Any,
) -> IndexRange:
    index = f"{INDEX_PREFIX}{name}"
    return IndexRange(index, equal, has_groups=has_groups, excluded_accounts=excluded_accounts)


def _pair_ranges(query: ResolvedQuery) -> tuple[list[IndexRange], list[str]]:
    """Return ranges for a query that names both sides, and the conditions they guarantee."""
    owners, targets = query.columns.get("owner_id", ()), query.columns.get("target_id", ())
    accounts, peers = query.account_id or (), query.peer_id or ()
    no_groups, only_groups = (False, True) if query.may_match_groups else (None, None)

    def fits(some: tuple[str, ...], others: tuple[str, ...]) -> bool:
        return 0 < len(some) * len(others) <= MAX_RANGES

    if fits(accounts, peers):
        pairs = [pair for a, b in product(accounts, peers) for pair in ((a, b), (b, a))]
        return _ranges_of_pairs(pairs, no_groups), ["account_id", "peer_id"]
    if fits(owners, targets):
        pairs = list(product(owners, targets))
        return _ranges_of_pairs(pairs), ["owner_id", "target_id"]
    if fits(owners, accounts):
        own = [owner for owner in owners if owner in accounts]
        others = [owner for owner in owners if owner not in accounts]
        ranges = [_range("owner_id", no_groups, owner_id=owner) for owner in own]
        if query.may_match_groups:
            # A group may have the id of an account. Then the account must be the target.
            ranges += _ranges_of_pairs(list(product(own, accounts)), only_groups)
        ranges += _ranges_of_pairs(list(product(others, accounts)))
        return ranges, ["owner_id", "account_id"]
    if fits(accounts, targets):
        ranges = [_range("target_id", target_id=target) for target in targets if target in accounts]
        others = [target for target in targets if target not in accounts]
        ranges += _ranges_of_pairs(list(product(accounts, others)), no_groups)
        return ranges, ["target_id", "account_id"]
    return [], []


def _ranges_of_pairs(
    pairs: Sequence[tuple[str, str]], has_groups: bool | None = None
) -> list[IndexRange]:
    return [
        _range("pair", has_groups, owner_id=owner, target_id=target)
        for owner, target in dict.fromkeys(pairs)
    ]
