"""Query plans: the ranges of an index that hold all removals that match a query.

Each range lists its entries in the order of ids, so a page reads only the start of each range.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from ..storage import MAX_ID
from .resolve import ResolvedQuery

CONDITIONS = (
    "delivery_id",
    "source_id",
    "owner_id",
    "target_id",
    "client_ip",
    "request_id",
    "account_id",
)
"""The conditions of a resolved query. `account_id` includes `peer_id`."""
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
INDEXES_WITH_SOURCE = {f"{INDEX_PREFIX}{name}" for name in ("owner_id", "target_id", "client_ip")}


@dataclass(frozen=True)
class IndexRange:
    """The entries of an index that begin with the same values."""

    index: str = ""
    """Empty for the primary key."""
    equal: Mapping[str, Any] = field(default_factory=dict)
    """The values of the first columns of the index."""
    id_span: tuple[int, int] = (0, MAX_ID)
    """The first and the last id of the range."""
    excluded_owners: tuple[str, ...] = ()
    """Owners whose removals are already in other ranges of the plan."""


@dataclass(frozen=True)
class Plan:
    """Disjoint index ranges that together hold all removals that match a query."""

    ranges: Sequence[IndexRange]
    guaranteed: frozenset[str] = frozenset()
    """The conditions that every removal in the ranges meets."""
    remaining: frozenset[str] = frozenset()
    """The conditions that each removal must still be checked for."""
    has_source: bool = False
    """Whether the indexes contain the source id."""

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
    if query.delivery_id is not None:
        return [_plan_by_deliveries(query)]
    ranges, guaranteed = _pair_ranges(query)
    plan = _plan(query, ranges, guaranteed)
    plans = [plan] if ranges and _fits_statement(query, plan) else []
    is_pair = plans and all(part.index == PAIR_INDEX for part in ranges)
    if is_pair and query.request_id is None and query.client_ip is None:
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
    used = {name for name in CONDITIONS if getattr(query, name) is not None}
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
    names = ("request_id", "client_ip", "owner_id", "target_id", "source_id")
    return [
        _plan(query, [_range(name, **{name: value}) for value in values], [name])
        for name in names
        if (values := getattr(query, name))
    ]


def _plan_by_account(query: ResolvedQuery, accounts: tuple[str, ...]) -> Plan:
    """Return a plan that reads the removals of each account, first as owner, then as target."""
    ranges = [_range("owner_id", owner_id=account) for account in accounts]
    ranges += [_range("target_id", accounts, target_id=account) for account in accounts]
    return _plan(query, ranges, [] if query.peer_id else ["account_id"])


def _fits_statement(query: ResolvedQuery, plan: Plan) -> bool:
    """Return True if one statement can hold all ranges with the remaining conditions."""
    if len(plan.ranges) > MAX_RANGES:
        return False
    excluded = sum(len(part.excluded_owners) for part in plan.ranges)
    return len(plan.ranges) * _parameter_count(query, plan) + excluded <= MAX_PARAMETERS


def _parameter_count(query: ResolvedQuery, plan: Plan) -> int:
    """Return the number of parameters in the remaining conditions of one range."""
    names = [name for name in CONDITIONS if name not in plan.guaranteed]
    count = sum(len(getattr(query, name) or ()) for name in names)
    if not query.has_listed_sources:
        count += sum(map(len, query.source_texts.values()))
    if query.account_id is not None and "account_id" in names:
        # The account is on one side, and the peer is on the other side.
        count += len(query.account_id) + 2 * len(query.peer_id or ())
    return count


def _range(name: str, excluded_owners: tuple[str, ...] = (), **equal: Any) -> IndexRange:
    return IndexRange(f"{INDEX_PREFIX}{name}", equal, excluded_owners=excluded_owners)


def _pair_ranges(query: ResolvedQuery) -> tuple[list[IndexRange], list[str]]:
    """Return ranges for a query that names both sides, and the conditions they guarantee."""
    owners, targets, accounts = query.owner_id, query.target_id, query.account_id
    sides = [side for side in (accounts, query.peer_id, owners, targets) if side][:2]
    if len(sides) < 2 or len(sides[0]) * len(sides[1]) > MAX_RANGES:
        return [], []
    one_sided: list[IndexRange] = []
    if accounts and query.peer_id:
        pairs = [pair for a, b in product(accounts, query.peer_id) for pair in ((a, b), (b, a))]
        guaranteed = ["account_id", "peer_id"]
    elif owners and targets:
        pairs, guaranteed = list(product(owners, targets)), ["owner_id", "target_id"]
    elif owners and accounts:
        one_sided = [_range("owner_id", owner_id=owner) for owner in owners if owner in accounts]
        pairs = [(owner, a) for owner in owners if owner not in accounts for a in accounts]
        guaranteed = ["owner_id", "account_id"]
    else:
        targets, accounts = targets or (), accounts or ()
        one_sided = [_range("target_id", target_id=t) for t in targets if t in accounts]
        pairs = [(a, target) for target in targets if target not in accounts for a in accounts]
        guaranteed = ["target_id", "account_id"]
    pair_ranges = [_range("pair", owner_id=o, target_id=t) for o, t in dict.fromkeys(pairs)]
    return one_sided + pair_ranges, guaranteed
