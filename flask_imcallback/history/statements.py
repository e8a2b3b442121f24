# ruff: noqa: S608 (only names of columns, indexes and parameters are put into the SQL text)
"""Query plans as SQL text.

The planner of each database must use the index that the plan names, and each database has its own
syntax for an index hint. So the SQL is text. PostgreSQL has no index hints. Only one index can
answer `ORDER BY` its first column and the id. The planner of PostgreSQL must not see that the
column is constant, so the value is an array with one element.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from sqlalchemy import Dialect, Index
from sqlalchemy.engine.default import DefaultDialect

from ..removals import Relation
from ..storage import delivery as delivery_table
from ..storage import removal as removal_table
from .plans import DELIVERY_COLUMNS, IndexRange, Plan
from .resolve import ResolvedQuery

MAX_COUNT_ROWS = 500_000
"""Maximum number of rows that a count may return."""

INDEXES: Mapping[str, Index] = {
    next(iter(index.columns)).name: index
    for index in sorted(delivery_table.indexes | removal_table.indexes, key=str)
}
"""First column -> its index."""
ROW_COLUMNS = (
    "removal.id, removal.id - removal.position AS delivery_id, removal.source_id, "
    "removal.owner_id, removal.target_id, removal.actor_id, "
    "COALESCE(delivery.client_ip, '') AS client_ip, "
    "COALESCE(delivery.request_id, '') AS request_id"
)
"""Each column of each statement has its own name, because a row of the host app may be a
namedtuple."""
JOINED_DELIVERY = (
    "LEFT JOIN imcallback_delivery AS delivery ON delivery.id = removal.id - removal.position"
)
IS_GROUP = f"IN (SELECT id FROM imcallback_source WHERE relation = '{Relation.GROUP}')"
"""The condition on `source_id` that a removal is from a group. A list of ids would miss the source
that another process adds after the list was read."""

PARAMETER = re.compile(r":(v\d+)")
"""A named parameter. Nothing else in the SQL text looks like it."""


@dataclass(frozen=True)
class PageSpec:
    """The order and the size of a result."""

    is_descending: bool
    limit: int

    @property
    def order(self) -> str:
        return "DESC" if self.is_descending else "ASC"


class Statement(NamedTuple):
    """The SQL text with the placeholders of the driver, and its parameters."""

    sql: str
    values: tuple[Any, ...]


@dataclass
class StatementBuilder:
    """A builder of one statement. It collects the values that the statement binds."""

    dialect: Dialect
    query: ResolvedQuery
    first_delivery_id: int = 0
    """The id of the first delivery that may have removals above `query.above_id`."""
    values: dict[str, Any] = field(default_factory=dict)

    def select_entries(self, plan: Plan, page: PageSpec, limit: int) -> Statement:
        """Return the statement that reads the first entries of each range.

        Its rows are the number of the range, an id and, for deliveries, the number of removals.
        """
        size = "removal_count" if plan.is_by_delivery else "1"
        return self._statement(
            " UNION ALL ".join(
                f"SELECT {number} AS part, id, size FROM (SELECT id, {size} AS size"
                f" {self._entries(part, page)} LIMIT {limit}) AS range{number}"
                for number, part in enumerate(plan.ranges)
            )
        )

    def select_ids_at(self, offsets: Sequence[tuple[IndexRange, int]], page: PageSpec) -> Statement:
        """Return the statement that reads the id of the entry at each offset of a range."""
        probes = [
            f"(SELECT id {self._entries(part, page)} LIMIT 1 OFFSET {offset}) AS id{number}"
            for number, (part, offset) in enumerate(offsets)
        ]
        return self._statement(f"SELECT {', '.join(probes)}")

    def select_next_delivery(self) -> Statement:
        """Return the statement that reads the delivery id of the first removal of a query."""
        first = f"WHERE id > {self._bind(self.query.above_id)} ORDER BY id LIMIT 1"
        return self._statement(
            f"SELECT id - position AS delivery_id FROM imcallback_removal {first}"
        )

    def select_next_rows(self, page: PageSpec) -> Statement:
        """Return the statement that reads the next removals, whatever they are."""
        entries = self._entries(IndexRange(), page)
        return self._select_rows(f"{entries} LIMIT {page.limit}", [], page)

    def select_rows(self, plan: Plan, ids: Sequence[int], page: PageSpec) -> Statement:
        """Return the statement that reads the removals with these ids that match the query."""
        entries = f"FROM imcallback_removal WHERE {self._has_id(ids)} LIMIT {len(ids)}"
        return self._select_rows(entries, self._conditions(plan), page)

    def count(self, plan: Plan, width: int, group_by: str | None) -> Statement:
        """Return the statement that counts removals by bucket number and group."""
        quotient = "DIV" if self._is_mysql else "/"
        bucket = f"(removal.id - removal.position) {quotient} {int(width)} AS bucket"
        if group_by is None:
            matches = self._matches(plan, bucket)
            columns = "bucket, NULL AS group_key, COUNT(*) AS number"
            sql = f"SELECT {columns} FROM ({matches}) AS matches GROUP BY bucket"
        else:
            by_source = (
                "SELECT bucket, source_id, COUNT(*) AS number FROM "
                f"({self._matches(plan, f'{bucket}, removal.source_id')}) AS matches"
                " GROUP BY bucket, source_id"
            )
            keys = f"counts.bucket, sources.{group_by}"
            sql = (
                f"SELECT {keys}, SUM(counts.number) AS number FROM ({by_source}) AS counts"
                f" JOIN imcallback_source AS sources ON sources.id = counts.source_id"
                f" GROUP BY {keys}"
            )
        return self._statement(f"{sql} LIMIT {MAX_COUNT_ROWS + 1}")

    def select_first_delivery(self, plan: Plan) -> Statement:
        """Return the statement that reads all matches for the smallest delivery id."""
        return self._statement(
            self._matches(plan, "MIN(removal.id - removal.position) AS first_id")
        )

    def _select_rows(self, entries: str, conditions: Sequence[str], page: PageSpec) -> Statement:
        """Return the SELECT of the rows of some entries.

        The conditions stand outside of the LIMIT of the entries. There they lead to no other index.
        """
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        return self._statement(
            f"SELECT {ROW_COLUMNS} FROM (SELECT * {entries}) AS removal {JOINED_DELIVERY}{where}"
            f" ORDER BY removal.id {page.order} LIMIT {page.limit}"
        )

    def _matches(self, plan: Plan, columns: str) -> str:
        """Return the SELECT of all removals that match, each once."""
        conditions = self._conditions(plan)
        needs_delivery = {*self.query.columns} & {*DELIVERY_COLUMNS} - {plan.answers}
        join = JOINED_DELIVERY if needs_delivery else ""
        if plan.is_by_delivery:
            entries = " UNION ALL ".join(
                f"SELECT id, removal_count {self._entries(part)}" for part in plan.ranges
            )
            # The range of ids is narrow. Each planner believes that it is wide.
            joined = {"sqlite": "CROSS JOIN", "postgresql": "JOIN"}.get(
                self.dialect.name, "STRAIGHT_JOIN"
            )
            source = (
                f"({entries}) AS entries {joined} imcallback_removal AS removal"
                f"{self._index_hint(IndexRange())} ON removal.id >= entries.id"
                " AND removal.id < entries.id + entries.removal_count"
            )
            # The sum hides from SQLite that this is a range of the primary key, too.
            conditions += self._id_bounds("removal.id + 0")
        elif len(plan.ranges) == 1:
            (part,) = plan.ranges
            source = f"imcallback_removal AS removal{self._index_hint(part)}"
            conditions += self._range_conditions(part, "removal.")
        else:
            # An account that removes itself is in two ranges.
            entries = " UNION ".join(f"SELECT id {self._entries(part)}" for part in plan.ranges)
            source = (
                f"({entries}) AS entries JOIN imcallback_removal AS removal"
                f"{self._index_hint(IndexRange())} ON removal.id = entries.id"
            )
        return f"SELECT {columns} FROM {source} {join} WHERE {' AND '.join(conditions)}"

    def _conditions(self, plan: Plan) -> list[str]:
        """Return the SQL conditions of the query that the plan does not answer."""
        conditions = []
        for name, values in self.query.columns.items():
            if name in (plan.answers, "source_id", "account_id", "peer_id"):
                continue
            # COALESCE keeps the planner from starting with all deliveries of an IP address.
            is_of_delivery = name in DELIVERY_COLUMNS
            column = f"COALESCE(delivery.{name}, '')" if is_of_delivery else f"removal.{name}"
            conditions.append(f"{column} IN {self._bind_all(values)}")
        if self.query.sources and plan.answers != "source_id":
            texts = self.query.sources.items()
            where = " AND ".join(f"{name} IN {self._bind_all(values)}" for name, values in texts)
            conditions.append(
                f"removal.source_id IN (SELECT id FROM imcallback_source WHERE {where})"
            )
        if "account_id" in self.query.columns and plan.answers != "account_id":
            conditions.append(self._is_of_account())
        return conditions

    def _is_of_account(self) -> str:
        """Return the condition that the accounts and their peers are the two sides."""
        accounts, peers = self.query.columns["account_id"], self.query.columns.get("peer_id")
        is_owner, is_target = self._is_owner(accounts), self._is_target(accounts)
        if peers is not None:
            is_owner = f"{is_owner} AND {self._is_target(peers)}"
            is_target = f"{is_target} AND {self._is_owner(peers)}"
        return f"({is_owner} OR {is_target})"

    def _is_owner(self, accounts: Iterable[str]) -> str:
        """Return the condition that one of the accounts is the owner. A group is no account."""
        condition = f"removal.owner_id IN {self._bind_all(accounts)}"
        if self.query.may_match_groups:
            condition += f" AND removal.source_id NOT {IS_GROUP}"
        return condition

    def _is_target(self, accounts: Iterable[str]) -> str:
        return f"removal.target_id IN {self._bind_all(accounts)}"

    def _entries(self, part: IndexRange, page: PageSpec | None = None) -> str:
        """Return FROM, WHERE and ORDER BY of a range. Without a page, there is no ORDER BY."""
        table = "delivery" if part.column in DELIVERY_COLUMNS else "removal"
        is_hinted = bool(self._index_hint(part)) or part.column not in INDEXES
        must_sort = page is not None and not is_hinted
        where = " AND ".join(self._range_conditions(part, "", is_hidden=must_sort))
        text = f"FROM imcallback_{table}{self._index_hint(part)} WHERE {where}"
        if page is None:
            return text
        columns = [part.column, "id"] if must_sort else ["id"]
        return f"{text} ORDER BY {', '.join(f'{name} {page.order}' for name in columns)}"

    def _range_conditions(
        self, part: IndexRange, prefix: str, *, is_hidden: bool = False
    ) -> list[str]:
        """Return the conditions of a range. `is_hidden` hides from PostgreSQL what is constant."""
        if part.column not in DELIVERY_COLUMNS:
            conditions = self._id_bounds(f"{prefix}id")
        else:
            conditions = [
                f"id >= {self._bind(self.first_delivery_id)}",
                f"id < {self._bind(self.query.below_id)}",
            ]
        if part.column == "delivery_id":
            return [f"id IN {self._bind_all(part.value)}", *conditions]
        if not part.column:
            return conditions
        value = self._bind(part.value)
        where = INDEXES[part.column].dialect_options["sqlite"]["where"]
        return [
            f"{prefix}{part.column} = {f'ANY (ARRAY[{value}])' if is_hidden else value}",
            *conditions,
            *([] if where is None else [f"{prefix}{where}"]),
        ]

    def _id_bounds(self, name: str) -> list[str]:
        return [
            f"{name} > {self._bind(self.query.above_id)}",
            f"{name} < {self._bind(self.query.below_id)}",
        ]

    def _has_id(self, ids: Sequence[int]) -> str:
        """Return the condition that a removal has one of the ids, all in one parameter."""
        if self.dialect.name == "sqlite":
            return f"id IN (SELECT value FROM json_each({self._bind(json.dumps(ids))}))"
        if self.dialect.name == "postgresql":
            return f"id = ANY ({self._bind(list(ids))})"
        return f"id IN ({', '.join(map(str, ids))})"

    def _index_hint(self, part: IndexRange) -> str:
        if self.dialect.name == "postgresql" or part.column == "delivery_id":
            return ""
        if not part.column:
            return " FORCE INDEX (PRIMARY)" if self._is_mysql else " NOT INDEXED"
        name = INDEXES[part.column].name
        return f" FORCE INDEX ({name})" if self._is_mysql else f" INDEXED BY {name}"

    @property
    def _is_mysql(self) -> bool:
        return self.dialect.name in ("mysql", "mariadb")

    def _bind(self, value: Any) -> str:
        """Add a parameter, and return its name in the SQL text."""
        name = f"v{len(self.values)}"
        self.values[name] = value
        return f":{name}"

    def _bind_all(self, values: Iterable[Any]) -> str:
        return f"({', '.join([self._bind(value) for value in values])})"

    def _statement(self, sql: str) -> Statement:
        """Replace the names of the parameters by the placeholders of the driver.

        pg8000 has no names. SQLite compares each name with all names before it, which takes seconds
        for thousands of names.
        """
        # The host app may choose another style for statements that SQLAlchemy compiles.
        style = cast(DefaultDialect, self.dialect).default_paramstyle
        parts = PARAMETER.split(sql)
        values = tuple([self.values[name] for name in parts[1::2]])
        return Statement(("?" if style == "qmark" else "%s").join(parts[::2]), values)
