"""Query plans: the index ranges that hold all removals that match a query.

Each range lists its entries in the order of ids, so a page reads only the start of each range. A
plan may hold removals that do not match: the statement that reads the rows checks all conditions
that the plan does not answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .resolve import ResolvedQuery

MAX_RANGES = 200
"""Maximum number of ranges in a plan. A query with more values of a filter uses another plan."""
PROBED_RANGES = 8
"""Maximum number of ranges per plan that are probed to compare plans."""
SCAN_COST = 0.2
"""The cost of an entry of the primary key. The row of any other entry must be looked up."""
DELIVERY_COLUMNS = ("client_ip", "request_id", "delivery_id")
"""The filters that a delivery answers. The ids of its removals follow from its own id."""
INDEXED_COLUMNS = ("owner_id", "target_id", "actor_id", "source_id", "client_ip", "request_id")
"""The columns that have an index. Each index lists the ids of one value in order."""
PARTIAL_INDEX_COLUMNS = ("actor_id", "client_ip", "request_id")
"""The columns whose index has no entry for the empty text."""


@dataclass(frozen=True)
class IndexRange:
    """The index entries of one value, in the order of ids."""

    column: str = ""
    """The name of the first column of the index. Empty for the primary key of the removals."""
    value: Any = None
    """The value of the column. All delivery ids together for `delivery_id`."""


@dataclass(frozen=True)
class Plan:
    """Index ranges of one table that together hold all removals that match a query."""

    ranges: tuple[IndexRange, ...]
    answers: str = ""
    """The filter that every removal in the ranges meets. Empty if there is none."""

    @property
    def is_by_delivery(self) -> bool:
        """Whether the ranges list deliveries, and not removals."""
        return self.ranges[0].column in DELIVERY_COLUMNS


SCAN = Plan((IndexRange(),))
"""The plan that reads the removals in the order of their primary key."""

Probe = Callable[[Sequence[IndexRange]], Sequence[int | None]]
"""A function that returns the id of an entry in each range, or None past its end.

The entry is always the same number of entries away from the start of the page.
"""


def list_plans(query: ResolvedQuery) -> list[Plan]:
    """Return the plans that can answer the query."""
    if "delivery_id" in query.columns:
        return [Plan((IndexRange("delivery_id", query.columns["delivery_id"]),), "delivery_id")]
    plans = [
        Plan(tuple(IndexRange(name, value) for value in query.columns[name]), name)
        for name in INDEXED_COLUMNS
        if name in query.columns
        and not (name in PARTIAL_INDEX_COLUMNS and "" in query.columns[name])
    ]
    # Of two accounts, each may have fewer removals.
    plans += [
        _plan_of_accounts(query, query.columns[name])
        for name in ("account_id", "peer_id")
        if name in query.columns
    ]
    if len(query.columns.get("source_id", ())) > 1:
        plans.append(SCAN)  # frequent sources are found sooner without an index
    return [plan for plan in plans if len(plan.ranges) <= MAX_RANGES] or [SCAN]


def _plan_of_accounts(query: ResolvedQuery, accounts: Sequence[str]) -> Plan:
    """Return the plan that reads the removals of accounts on both sides."""
    ranges = (
        IndexRange(side, account) for account in accounts for side in ("owner_id", "target_id")
    )
    # A group may have the id of an account. The index does not tell.
    is_answer = "peer_id" not in query.columns and not query.may_match_groups
    return Plan(tuple(ranges), "account_id" if is_answer else "")


def choose_plan(plans: Sequence[Plan], first_id: int, last_id: int, probe: Probe) -> Plan:
    """Return the plan that probably reads the fewest index entries.

    If the probed entry of a range is near the first id, the range has many entries. A range without
    that entry ends before the last id.
    """
    probed = [plan.ranges[:PROBED_RANGES] for plan in plans]
    ends = iter(probe([part for parts in probed for part in parts]))
    costs = [
        sum(_density(next(ends), first_id, last_id) for _ in parts)
        * (SCAN_COST if plan == SCAN else len(plan.ranges) / len(parts))
        for plan, parts in zip(plans, probed, strict=True)
    ]
    return plans[costs.index(min(costs))]


def _density(end: int | None, first_id: int, last_id: int) -> float:
    return 1 / max(abs(first_id - (last_id if end is None else end)), 1)
