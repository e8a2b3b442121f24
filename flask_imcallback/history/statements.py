# ruff: noqa: S608 (only names of columns, indexes and parameters are put into the SQL text)
"""Query plans as SQL text, and the object that runs them.

The planner of each database must use the index that the plan names, and each database has its own
syntax for an index hint. So the SQL is text. PostgreSQL has no index hints. Two forms of the
statement leave its planner no other index:

- Only this index can answer `ORDER BY` the first index column and the id. The planner must not see
  that the column is constant, so the value is an array with one element.
- Other conditions stand outside of a `LIMIT`, where they do not attract other indexes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from sqlalchemy import Connection

from ..removals import Relation
from ..storage import removal as removal_table
from .plans import PRIMARY_KEY_SCAN, IndexRange, Plan, choose_plan, list_plans
from .resolve import ResolvedQuery

REMOVAL_COLUMNS = tuple(removal_table.columns.keys())
COLUMN_LIST = ", ".join(REMOVAL_COLUMNS)
NEARBY_ROWS_PER_RESULT = 20
"""Rows of the table that are read for each wanted removal, before an index is used. Only a query
that filters by nothing but sources reads them."""
STEP_ENTRIES = (1_000, 8_000)
"""Index entries that each step of a search reads. The search ends after the last step."""
COVERING_STEP_ENTRIES = 150_000
"""Index entries that one more step reads, if the index alone can check all conditions."""
COUNT_PROBE_ENTRIES = 1000
"""Distance in index entries at which plans are compared before removals are counted."""
MAX_COUNT_ROWS = 500_000
"""Maximum number of rows that a count may return."""

INDEX_CONDITIONS = {
    str(index.name): str(condition)
    for index in removal_table.indexes
    if (condition := index.dialect_options["sqlite"]["where"]) is not None
}
"""Partial index -> its condition. A statement must repeat the condition to use the index."""
IS_GROUP = f"IN (SELECT id FROM imcallback_source WHERE relation = '{Relation.GROUP}')"
"""The condition on `source_id` that a removal is from a group. A list of ids would miss the source
that another process adds after the list was read."""

SQLITE_PARAMETER = re.compile(r":(v\d+)")
"""A named parameter. Nothing else in the SQL text looks like it."""


@dataclass(frozen=True)
class PageSpec:
    """The order and the size of a result."""

    is_descending: bool
    limit: int
    max_entries: int | None = None
    """The maximum number of entries in the ranges, or None if it is unknown."""

    @property
    def order(self) -> str:
        return "DESC" if self.is_descending else "ASC"

    def reduce_by(self, rows: Sequence[Any], max_entries: int) -> PageSpec:
        """Return the page that is still missing after `rows`."""
        return replace(self, limit=self.limit - len(rows), max_entries=max_entries)


class Statement(NamedTuple):
    """The SQL text, and the value of each parameter by its name."""

    sql: str
    values: dict[str, Any]


@dataclass(frozen=True)
class SearchResult:
    """The rows that a search found, in the order of the page. The columns are `REMOVAL_COLUMNS`."""

    rows: list[Any]
    stopped_at: int | None = None
    """The last id that was read, if the search stopped before its end and before its limit."""


class Finder:
    """A runner of resolved queries on a connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._dialect = connection.dialect.name
        self.statements: list[Statement] = []
        """The statements that were executed, for EXPLAIN in tests and benchmarks."""

    def find(self, query: ResolvedQuery, page: PageSpec) -> SearchResult:
        """Return the first rows that match.

        The search usually stops after a bounded number of entries.
        """
        plans = list_plans(query)
        if len(plans) > 1:
            plan = self._choose_plan(query, plans, page)
        else:
            (plan,) = plans
            if len(plan.ranges) > 1 and plan.is_by_source:
                # Usually the next rows of the table hold enough of these sources.
                nearby = self._run(self._sql(query).select_nearby(page))
                if len(nearby) == page.limit:
                    return SearchResult(nearby)
        if not plan.ranges:
            return SearchResult([])
        if plan.is_exact:
            return SearchResult(self._read(query, plan, page))
        return self._find_in_steps(query, plan, page)

    def find_first_delivery(self, query: ResolvedQuery) -> int | None:
        """Return the id of the first delivery that has a matching removal, or None."""
        found = self.find(query, PageSpec(is_descending=False, limit=1))
        if found.rows or found.stopped_at is None:
            return found.rows[0].delivery_id if found.rows else None
        rest = replace(query, above_id=found.stopped_at)
        plan = self._plan_of_all(rest)
        if not plan.ranges:
            return None
        first: int | None = self._run(self._sql(rest).select_first_delivery(plan))[0][0]
        return first

    def count(self, query: ResolvedQuery, width: int, group_by: str | None) -> list[Any]:
        """Return rows of a bucket number, a group and the number of matching removals.

        A bucket spans `width` microseconds. `group_by` is a column of the source table. Without it,
        every group is None. There are at most `MAX_COUNT_ROWS` + 1 rows.
        """
        plan = self._plan_of_all(query)
        if not plan.ranges:
            return []
        return self._run(self._sql(query).count(plan, width, group_by))

    def _plan_of_all(self, query: ResolvedQuery) -> Plan:
        """Return the plan that probably finds all matching removals with the least work."""
        plans = list_plans(query)
        if len(plans) == 1 and plans[0].is_by_source:
            plans.append(PRIMARY_KEY_SCAN)
        if len(plans) == 1:
            return plans[0]
        newest = PageSpec(is_descending=True, limit=COUNT_PROBE_ENTRIES)
        return self._choose_plan(query, plans, newest)

    def _sql(self, query: ResolvedQuery) -> _StatementBuilder:
        return _StatementBuilder(self._dialect, query)

    def _run(self, statement: Statement) -> list[Any]:
        self.statements.append(statement)
        sql, values = statement
        # SQLAlchemy compiles such a statement more slowly than the database runs it.
        if self._dialect != "sqlite":
            return list(self._connection.exec_driver_sql(sql, values).all())
        # SQLite compares each parameter name with all names before it. Thousands take seconds.
        ordered = tuple(values[name] for name in SQLITE_PARAMETER.findall(sql))
        sql = SQLITE_PARAMETER.sub("?", sql)
        return list(self._connection.exec_driver_sql(sql, ordered).all())

    def _choose_plan(self, query: ResolvedQuery, plans: Sequence[Plan], page: PageSpec) -> Plan:
        is_descending = page.is_descending

        def probe(offsets: Sequence[tuple[IndexRange, int]]) -> Sequence[int | None]:
            return self._read_ids(query, offsets, page)

        return choose_plan(query, plans, page.limit, probe, is_descending=is_descending)

    def _find_in_steps(self, query: ResolvedQuery, plan: Plan, page: PageSpec) -> SearchResult:
        """Read the ranges in growing steps and keep the rows that match all conditions."""
        rows: list[Any] = []
        steps = (*STEP_ENTRIES, COVERING_STEP_ENTRIES) if plan.is_covering else STEP_ENTRIES
        for entries in steps:
            end = self._find_end_of_step(query, plan, page, entries)
            missing = page.reduce_by(rows, entries)
            if end is None:
                return SearchResult(rows + self._read(query, plan, missing))
            if page.is_descending:
                step, query = replace(query, above_id=end - 1), replace(query, below_id=end)
            else:
                step, query = replace(query, below_id=end + 1), replace(query, above_id=end)
            rows += self._read(step, plan, missing)
            if len(rows) == page.limit:
                return SearchResult(rows)
        return SearchResult(rows, end)

    def _find_end_of_step(
        self, query: ResolvedQuery, plan: Plan, page: PageSpec, entries: int
    ) -> int | None:
        """Return the id up to which all ranges together have about `entries` entries.

        None means that every range ends before it.
        """
        offset = entries // len(plan.ranges)
        ends = self._read_ids(query, [(part, offset) for part in plan.ranges], page)
        nearest = max if page.is_descending else min
        return nearest((end for end in ends if end is not None), default=None)

    def _read_ids(
        self, query: ResolvedQuery, offsets: Sequence[tuple[IndexRange, int]], page: PageSpec
    ) -> Sequence[int | None]:
        """Return the id of the entry at each offset of a range, or None past its end."""
        return tuple(self._run(self._sql(query).select_ids_at(offsets, page))[0])

    def _read(self, query: ResolvedQuery, plan: Plan, page: PageSpec) -> list[Any]:
        """Return the first rows of the ranges that match all conditions."""
        # PostgreSQL checks the conditions in a covering index if only its columns are selected.
        is_merged = len(plan.ranges) > 1 or (plan.is_covering and not plan.is_exact)
        builder = self._sql(query)
        select = builder.select_ranges if is_merged else builder.select_range
        return self._run(select(plan, page))


@dataclass
class _StatementBuilder:
    """A builder of one statement. It collects the values that the statement binds."""

    dialect: str
    query: ResolvedQuery
    values: dict[str, Any] = field(default_factory=dict)

    def select_range(self, plan: Plan, page: PageSpec) -> Statement:
        """Return the statement that reads the only range of a plan."""
        entries = self._matching_entries(plan, plan.ranges[0], page, REMOVAL_COLUMNS)
        return self._statement(f"SELECT {COLUMN_LIST} {entries} LIMIT {page.limit}")

    def select_ranges(self, plan: Plan, page: PageSpec) -> Statement:
        """Return the statement that merges the ranges of a plan.

        Each range has its own limit. Rows are read only for the ids in the page.
        """
        columns = dict.fromkeys(["id", "source_id", *sorted(plan.remaining - {"account_id"})])
        if "account_id" in plan.remaining:
            columns |= dict.fromkeys(["owner_id", "target_id"])
        ranges = (self._matching_entries(plan, part, page, columns) for part in plan.ranges)
        # An account that removes itself is on both sides.
        is_on_both_sides = any(part.excluded_accounts for part in plan.ranges)
        ids = (" UNION " if is_on_both_sides else " UNION ALL ").join(
            f"SELECT id FROM (SELECT id {entries} LIMIT {page.limit}) AS r{number}"
            for number, entries in enumerate(ranges)
        )
        names = ", ".join(f"removal.{name}" for name in REMOVAL_COLUMNS)
        return self._statement(
            f"SELECT {names} FROM (SELECT id FROM ({ids}) AS ids ORDER BY id {page.order}"
            f" LIMIT {page.limit}) AS page JOIN imcallback_removal AS removal"
            f" ON removal.id = page.id ORDER BY removal.id {page.order}"
        )

    def select_nearby(self, page: PageSpec) -> Statement:
        """Return the statement that looks for matching rows among the next rows of the table."""
        entries = self._entries(IndexRange(), page)
        conditions = " AND ".join(self._conditions(frozenset()))
        rows = page.limit * NEARBY_ROWS_PER_RESULT
        return self._statement(
            f"SELECT {COLUMN_LIST} FROM (SELECT {COLUMN_LIST} {entries} LIMIT {rows}) AS near"
            f" WHERE {conditions} ORDER BY id {page.order} LIMIT {page.limit}"
        )

    def select_ids_at(self, offsets: Sequence[tuple[IndexRange, int]], page: PageSpec) -> Statement:
        """Return the statement that reads the id of the entry at each offset of a range."""
        probes = [
            f"(SELECT id {self._entries(part, page)} LIMIT 1 OFFSET {offset})"
            for part, offset in offsets
        ]
        return self._statement(f"SELECT {', '.join(probes)}")

    def count(self, plan: Plan, width: int, group_by: str | None) -> Statement:
        """Return the statement that counts removals by bucket number and group."""
        quotient = "delivery_id DIV" if self._is_mysql else "delivery_id /"
        bucket = f"{quotient} {int(width)} AS bucket"
        if group_by is None:
            found = self._all_entries(plan, bucket)
            sql = f"SELECT bucket, NULL, COUNT(*) FROM ({found}) AS found GROUP BY bucket"
        else:
            found = self._all_entries(plan, f"{bucket}, source_id")
            by_source = (
                f"SELECT bucket, source_id, COUNT(*) AS number FROM ({found}) AS found"
                " GROUP BY bucket, source_id"
            )
            keys = f"counts.bucket, sources.{group_by}"
            sql = (
                f"SELECT {keys}, SUM(counts.number) FROM ({by_source}) AS counts"
                f" JOIN imcallback_source AS sources ON sources.id = counts.source_id"
                f" GROUP BY {keys}"
            )
        return self._statement(f"{sql} LIMIT {MAX_COUNT_ROWS + 1}")

    def select_first_delivery(self, plan: Plan) -> Statement:
        """Return the statement that reads all ranges for the smallest delivery id."""
        found = self._all_entries(plan, "delivery_id")
        return self._statement(f"SELECT MIN(delivery_id) FROM ({found}) AS found")

    def _all_entries(self, plan: Plan, columns: str) -> str:
        """Return the SELECT of all entries that meet the conditions, each once."""
        selects = []
        for part in plan.ranges:
            conditions = self._remaining_conditions(plan, part)
            if part.excluded_accounts:
                conditions.append(f"NOT ({self._is_owner(part.excluded_accounts)})")
            selects.append(f"SELECT {columns} {self._entries(part, None, conditions)}")
        return " UNION ALL ".join(selects)

    def _statement(self, sql: str) -> Statement:
        return Statement(sql, self.values)

    @property
    def _is_mysql(self) -> bool:
        return self.dialect in ("mysql", "mariadb")

    def _bind(self, value: Any) -> str:
        """Add a parameter, and return its placeholder."""
        name = f"v{len(self.values)}"
        self.values[name] = value
        return f":{name}" if self.dialect == "sqlite" else f"%({name})s"

    def _bind_all(self, values: Iterable[Any]) -> str:
        return f"({', '.join([self._bind(value) for value in values]) or 'NULL'})"

    def _remaining_conditions(self, plan: Plan, part: IndexRange) -> list[str]:
        """Return the SQL conditions that the removals in a range must still meet."""
        conditions = self._conditions(plan.guaranteed)
        if part.has_groups is not None:
            conditions.append(f"source_id {'' if part.has_groups else 'NOT '}{IS_GROUP}")
        return conditions

    def _conditions(self, guaranteed: frozenset[str]) -> list[str]:
        """Return the SQL conditions of the query that the ranges do not guarantee."""
        conditions = []
        for name, values in self.query.columns.items():
            if name in guaranteed:
                continue
            if name == "source_id" and not self.query.has_listed_sources:
                conditions.append(f"source_id IN ({self._select_sources()})")
            else:
                conditions.append(f"{name} IN {self._bind_all(values)}")
        accounts, peers = self.query.account_id, self.query.peer_id
        if accounts is not None and "account_id" not in guaranteed:
            is_owner, is_target = self._is_owner(accounts), self._is_target(accounts)
            if peers is not None:
                is_owner = f"{is_owner} AND {self._is_target(peers)}"
                is_target = f"{is_target} AND {self._is_owner(peers)}"
            conditions.append(f"({is_owner} OR {is_target})")
        return conditions

    def _select_sources(self) -> str:
        """Return the SELECT of the ids of all matching sources."""
        texts = self.query.source_texts
        conditions = [f"{name} IN {self._bind_all(values)}" for name, values in texts.items()]
        return f"SELECT id FROM imcallback_source WHERE {' AND '.join(conditions)}"

    def _is_owner(self, accounts: tuple[str, ...]) -> str:
        """Return the condition that one of the accounts is the owner. A group is no account."""
        condition = f"owner_id IN {self._bind_all(accounts)}"
        if self.query.may_match_groups:
            condition += f" AND source_id NOT {IS_GROUP}"
        return condition

    def _is_target(self, accounts: tuple[str, ...]) -> str:
        return f"target_id IN {self._bind_all(accounts)}"

    def _matching_entries(
        self, plan: Plan, part: IndexRange, page: PageSpec, columns: Iterable[str]
    ) -> str:
        """Return FROM, WHERE and ORDER BY of the entries that meet the remaining conditions."""
        conditions = self._remaining_conditions(plan, part)
        if not conditions or page.max_entries is None or self.dialect != "postgresql":
            return self._entries(part, page, conditions)
        return (
            f"FROM (SELECT {', '.join(columns)} {self._entries(part, page)}"
            f" LIMIT {page.max_entries + 1}) AS entries"
            f" WHERE {' AND '.join(conditions)} ORDER BY id {page.order}"
        )

    def _entries(
        self, part: IndexRange, page: PageSpec | None, conditions: Sequence[str] = ()
    ) -> str:
        """Return FROM, WHERE and ORDER BY of a range. Without a page, there is no ORDER BY."""
        hint, sort_columns = self._index_hint(part), ["id"]
        if page is not None and part.index and not hint:
            # The database has no index hints: see the top of this module.
            sort_columns = [next(iter(part.equal)), "id"]
        where = []
        for name, value in part.equal.items():
            mark = self._bind(value)
            is_hidden = name == sort_columns[0]
            where.append(f"{name} = ANY (ARRAY[{mark}])" if is_hidden else f"{name} = {mark}")
        where.append(f"id > {self._bind(max(self.query.above_id, part.id_span[0] - 1))}")
        where.append(f"id < {self._bind(min(self.query.below_id, part.id_span[1] + 1))}")
        if part.index in INDEX_CONDITIONS:
            where.append(INDEX_CONDITIONS[part.index])
        where += conditions
        text = f"FROM imcallback_removal{hint} WHERE {' AND '.join(where)}"
        if page is None:
            return text
        return f"{text} ORDER BY {', '.join(f'{name} {page.order}' for name in sort_columns)}"

    def _index_hint(self, part: IndexRange) -> str:
        if part.index and self.dialect == "sqlite":
            return f" INDEXED BY {part.index}"
        if part.index and self._is_mysql:
            return f" FORCE INDEX ({part.index})"
        return ""
