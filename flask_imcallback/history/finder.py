"""The finder: it chooses a plan, and runs its statements on a connection.

A page reads a bounded number of index entries and rows, whatever the query is. If it is still not
full, the page is short, and the next page goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple

from sqlalchemy import Connection

from ..storage import MAX_ID
from .plans import DELIVERY_COLUMNS, SCAN, IndexRange, Plan, choose_plan, list_plans
from .resolve import ResolvedQuery
from .statements import PageSpec, Statement, StatementBuilder

STEP_ENTRIES = (0, 1_000, 5_000)
"""Index entries that each step of a search reads, but at least as many as the page has removals.

The search ends after the last step.
"""
MAX_MERGED_ENTRIES = 20_000
"""Maximum number of index entries that a step reads in all ranges together."""
COUNT_PROBE_ENTRIES = 1000
"""Distance in index entries at which plans are compared before removals are counted."""


@dataclass(frozen=True)
class SearchResult:
    """The rows that a search found, in the order of the page. `ROW_COLUMNS` are its columns."""

    rows: list[Any]
    stopped_at: int | None = None
    """The last id that was read, if the search stopped before its end and before its limit."""


class Candidates(NamedTuple):
    """The ids of the next removals in the ranges of a plan, in the order of the page."""

    ids: list[int]
    end: int | None
    """The last id that was read. None if the ranges end."""


class Finder:
    """A runner of resolved queries on a connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.statements: list[Statement] = []
        """The statements that were executed, for EXPLAIN in tests and benchmarks."""
        self._first_deliveries: dict[int, int] = {}

    def find(self, query: ResolvedQuery, page: PageSpec) -> SearchResult:
        """Return the first rows that match. The search stops after a bounded number of entries."""
        if query.is_empty:
            return SearchResult([])
        plan = self._choose_plan(query, page, list_plans(query))
        if plan == SCAN and not (query.columns or query.sources):
            return SearchResult(self._run(self._sql(query).select_next_rows(page)))
        rows: list[Any] = []
        end: int | None = None
        for entries in STEP_ENTRIES:
            missing = replace(page, limit=page.limit - len(rows))
            found = self._step(query, plan, missing, max(page.limit, entries))
            rows += found.rows
            end = found.stopped_at
            if end is None or len(rows) == page.limit:
                return SearchResult(rows)
            query = query.beyond(end, is_descending=page.is_descending)
        return SearchResult(rows, end)

    def find_first_delivery(self, query: ResolvedQuery) -> int | None:
        """Return the id of the first delivery that has a matching removal, or None."""
        found = self.find(query, PageSpec(is_descending=False, limit=1))
        if found.rows or found.stopped_at is None:
            return found.rows[0].delivery_id if found.rows else None
        rest = replace(query, above_id=found.stopped_at)
        first: int | None = self._run(
            self._sql(rest).select_first_delivery(self._plan_of_all(rest))
        )[0][0]
        return first

    def count(self, query: ResolvedQuery, width: int, group_by: str | None) -> list[Any]:
        """Return rows of a bucket number, a group and the number of matching removals.

        A bucket spans `width` microseconds. `group_by` is a column of the source table. Without it,
        every group is None. There are at most `MAX_COUNT_ROWS` + 1 rows.
        """
        if query.is_empty:
            return []
        return self._run(self._sql(query).count(self._plan_of_all(query), width, group_by))

    def _step(self, query: ResolvedQuery, plan: Plan, page: PageSpec, entries: int) -> SearchResult:
        """Read some entries of the plan, and return the rows that match the query."""
        ids, end = self._read_candidates(query, plan, page, entries)
        rows = self._run(self._sql(query).select_rows(plan, ids, page)) if ids else []
        return SearchResult(rows, end)

    def _read_candidates(
        self, query: ResolvedQuery, plan: Plan, page: PageSpec, entries: int
    ) -> Candidates:
        """Return the ids of the next removals in all ranges together, about `entries`."""
        limit = min(entries, MAX_MERGED_ENTRIES // len(plan.ranges))
        parts: list[list[tuple[int, int]]] = [[] for _ in plan.ranges]
        for number, first, size in self._run(self._sql(query).select_entries(plan, page, limit)):
            parts[number].append((first, size))
        last, nearest = (min, max) if page.is_descending else (max, min)
        # Beyond the nearest end of a range that was cut off, other entries would be missing.
        ends = [last(part)[0] for part in parts if len(part) == limit]
        end = nearest(ends, default=None)
        ids: list[int] = []
        for first, size in sorted({*chain(*parts)}, reverse=page.is_descending):
            if end is not None and nearest(first, end) == end != first:
                break
            removals = range(max(first, query.above_id + 1), min(first + size, query.below_id))
            ids += (removals[::-1] if page.is_descending else removals)[: entries + 1]
            if len(ids) > entries:
                return Candidates(ids[:entries], ids[entries - 1])
            if first == end and not page.is_descending:
                end = max(first, first + size - 1)
                break
        return Candidates(ids, end)

    def _choose_plan(self, query: ResolvedQuery, page: PageSpec, plans: Sequence[Plan]) -> Plan:
        if len(plans) == 1 or plans[0] == SCAN:
            return plans[0]

        def probe(ranges: Sequence[IndexRange]) -> Sequence[int | None]:
            return self._read_ids(query, [(part, page.limit) for part in ranges], page)

        (first_id,) = self._read_ids(query, [(IndexRange(), 0)], page)
        last_id = max(query.above_id, 0) if page.is_descending else query.below_id
        return choose_plan(plans, last_id if first_id is None else first_id, last_id, probe)

    def _plan_of_all(self, query: ResolvedQuery) -> Plan:
        """Return the plan that probably finds all matching removals with the least work."""
        newest = PageSpec(is_descending=True, limit=COUNT_PROBE_ENTRIES)
        plans = list_plans(query)
        can_scan = plans[0].answers != "delivery_id" and SCAN not in plans
        return self._choose_plan(query, newest, [*plans, SCAN] if can_scan else plans)

    def _read_ids(
        self, query: ResolvedQuery, offsets: Sequence[tuple[IndexRange, int]], page: PageSpec
    ) -> Sequence[int | None]:
        """Return the id of the entry at each offset of a range, or None past its end."""
        return tuple(self._run(self._sql(query).select_ids_at(offsets, page))[0])

    def _sql(self, query: ResolvedQuery) -> StatementBuilder:
        return StatementBuilder(self._connection.dialect, query, self._read_first_delivery(query))

    def _read_first_delivery(self, query: ResolvedQuery) -> int:
        """Return the id of the first delivery that may have removals above `above_id`.

        It may be smaller, because a page can end in the middle of a delivery. The planner of
        PostgreSQL needs the number: with a subquery it believes that a wide range is narrow.
        """
        if query.above_id < 0 or query.columns.keys().isdisjoint(DELIVERY_COLUMNS):
            return 0
        if query.above_id not in self._first_deliveries:
            statement = StatementBuilder(self._connection.dialect, query).select_next_delivery()
            rows = self._run(statement)
            self._first_deliveries[query.above_id] = rows[0][0] if rows else MAX_ID
        return self._first_deliveries[query.above_id]

    def _run(self, statement: Statement) -> list[Any]:
        self.statements.append(statement)
        # SQLAlchemy compiles such a statement more slowly than the database runs it.
        return list(self._connection.exec_driver_sql(*statement).all())
