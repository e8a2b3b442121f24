# ruff: noqa: S608 (what is put together here are names of columns and of parameters)
"""Search plans as SQL text, and the object that runs them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection

from .plans import COLUMNS, KEY, Range, Search, Way, _Binds, _conditions, ways

FEW = 8
"""Ranges of a way that are looked at to choose between it and another."""

DENSE = 20
"""Removals that are read for each that is found, before an index of few of them is quicker."""

STEPS, STEP_IN_INDEX = (1_000, 8_000), 150_000
"""Entries that are read, one step after the other, for those that meet the other conditions: so
many at last, if the index itself tells whether they do. The rest is for the next page."""

NAMED = re.compile(r":(v\d+)")
"""A parameter of SQLite; nothing else in a statement looks so."""


@dataclass(frozen=True)
class Found:
    """Rows of `COLUMNS`, in order."""

    rows: list[Any]
    end: int | None = None
    """The id up to which the search came, if it did not come to its end nor to its limit."""


class Finder:
    """Runs searches on a connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._dialect = connection.dialect.name
        self._mark = ":{}" if self._dialect == "sqlite" else "%({})s"
        self.statements: list[tuple[str, dict[str, Any]]] = []
        """Those that were run, for whoever wants to explain them."""

    def find(self, search: Search, *, is_desc: bool, limit: int) -> Found:
        """The first rows of a search, as far as they are found by reading a bounded part of it."""
        possible = ways(search)
        if not possible:
            return Found(self._rows(self._one(search, KEY, is_desc, limit, None)))
        if len(possible) > 1:
            way = self._narrowest(search, possible, is_desc, limit)
        else:
            (way,) = possible
            if len(way.ranges) > 1 and way.met == {"source_id"}:
                # Most often there are enough of them among the next of all removals.
                near = self._near(search, is_desc, limit)
                if len(near) == limit:
                    return Found(near)
        if not way.ranges:
            return Found([])
        if not way.unmet:
            return Found(self._read(search, way, is_desc, limit, None))
        return self._find_stepwise(search, way, is_desc, limit)

    def first(self, search: Search) -> Any | None:
        """The row with the lowest id."""
        while True:
            found = self.find(search, is_desc=False, limit=1)
            if found.rows or found.end is None:
                return found.rows[0] if found.rows else None
            search = replace(search, low=found.end)

    def count(self, search: Search, width: int, *, by_source: bool) -> list[Any]:
        """Rows of a bucket's number, a source id and how many there are.

        Buckets are so many microseconds wide. Without `by_source`, the source id is 0.
        """
        possible = ways(search)
        only_sources = [way.met for way in possible] == [{"source_id"}]
        if only_sources:
            possible.append(KEY)
        way = possible[0] if possible else KEY
        if len(possible) > 1:
            way = self._narrowest(search, possible, True, 1000)
        if not way.ranges:
            return []
        binds = _Binds(self._mark)
        divided = "delivery_id DIV" if self._dialect in ("mysql", "mariadb") else "delivery_id /"
        bucket = f"{divided} {int(width)}"
        what = f"{bucket} AS bucket{', source_id' if by_source else ''}"
        parts = []
        for one in way.ranges:
            where = _conditions(binds, search, way.met)
            if one.no_owner:
                where.append(f"owner_id NOT IN {binds.several(one.no_owner)}")
            parts.append(f"SELECT {what} {self._entries(binds, search, one, None, where)}")
        union = " UNION ALL ".join(parts)
        source, by = ("source_id", "bucket, source_id") if by_source else ("0", "bucket")
        sql = f"SELECT bucket, {source}, COUNT(*) FROM ({union}) AS found GROUP BY {by}"
        return self._rows((sql, binds.values))

    def _rows(self, statement: tuple[str, dict[str, Any]]) -> list[Any]:
        self.statements.append(statement)
        sql, values = statement
        # To have SQLAlchemy compile it takes longer than to run it.
        if self._dialect != "sqlite":
            return list(self._connection.exec_driver_sql(sql, values).all())
        # It compares each name with all before it: thousands of them would take seconds.
        given = tuple(values[name] for name in NAMED.findall(sql))
        return list(self._connection.exec_driver_sql(NAMED.sub("?", sql), given).all())

    def _narrowest(self, search: Search, possible: list[Way], is_desc: bool, limit: int) -> Way:
        """That by which the fewest entries must be read, as far as one can see from here.

        The entry that is `limit` further on, in each range, tells how close they lie.
        """
        asked = [(way, one) for way in possible for one in way.ranges[:FEW]]
        places = [(Range(), 0), *((one, limit) for _, one in asked)]
        first, *found = self._ids_at(search, is_desc, places)
        if first is None:
            return Way((), frozenset())
        whole = abs(first - (max(search.low, 0) if is_desc else search.high))
        cost = dict.fromkeys(range(len(possible)), 0.0)
        for (way, _), last in zip(asked, found, strict=True):
            distance = whole if last is None else abs(first - last)
            scale = max(1, len(way.ranges) / FEW) * (0.1 if way.is_told_by_index else 1)
            cost[possible.index(way)] += scale / max(distance, 1)
        return possible[min(cost, key=lambda number: cost[number])]

    def _find_stepwise(self, search: Search, way: Way, is_desc: bool, limit: int) -> Found:
        """Those of the ranges that meet the other conditions, however few they are."""
        rows: list[Any] = []
        for step in (*STEPS, STEP_IN_INDEX) if way.is_told_by_index else STEPS:
            end = self._end(search, way, is_desc, step // len(way.ranges))
            if end is None:
                return Found(rows + self._read(search, way, is_desc, limit - len(rows), step))
            near = replace(search, low=end - 1) if is_desc else replace(search, high=end + 1)
            rows += self._read(near, way, is_desc, limit - len(rows), step)
            if len(rows) == limit:
                return Found(rows)
            search = replace(search, high=end) if is_desc else replace(search, low=end)
        return Found(rows, end)

    def _end(self, search: Search, way: Way, is_desc: bool, step: int) -> int | None:
        """The next id that is so many entries on in one of the ranges; None if all are shorter."""
        ends = self._ids_at(search, is_desc, [(one, step) for one in way.ranges])
        nearest = max if is_desc else min
        return nearest((end for end in ends if end is not None), default=None)

    def _ids_at(
        self, search: Search, is_desc: bool, places: Sequence[tuple[Range, int]]
    ) -> Sequence[int | None]:
        """The ids that are so many entries on in each range; None where it is shorter."""
        binds = _Binds(self._mark)
        probes = [
            f"(SELECT id {self._entries(binds, search, one, is_desc)} LIMIT 1 OFFSET {offset})"
            for one, offset in places
        ]
        return tuple(self._rows((f"SELECT {', '.join(probes)}", binds.values))[0])

    def _read(
        self, search: Search, way: Way, is_desc: bool, limit: int, step: int | None
    ) -> list[Any]:
        """The first rows; there are no more than `step` entries, if that is given."""
        # What only the index is asked about, PostgreSQL answers from it if nothing else is wanted.
        is_plain = len(way.ranges) == 1 and not (way.unmet and way.is_told_by_index)
        make = self._one if is_plain else self._several
        return self._rows(make(search, way, is_desc, limit, step))

    def _near(self, search: Search, is_desc: bool, limit: int) -> list[Any]:
        binds = _Binds(self._mark)
        order = "DESC" if is_desc else "ASC"
        entries = self._entries(binds, search, Range(), is_desc)
        names = ", ".join(COLUMNS)
        conditions = " AND ".join(_conditions(binds, search, frozenset()))
        sql = (
            f"SELECT {names} FROM (SELECT {names} {entries} LIMIT {limit * DENSE}) AS near"
            f" WHERE {conditions} ORDER BY id {order} LIMIT {limit}"
        )
        return self._rows((sql, binds.values))

    def _one(
        self, search: Search, way: Way, is_desc: bool, limit: int, step: int | None
    ) -> tuple[str, dict[str, Any]]:
        binds, names = _Binds(self._mark), ", ".join(COLUMNS)
        part = self._from(binds, search, way, way.ranges[0], is_desc, step=step, names=names)
        return f"SELECT {names} {part} LIMIT {limit}", binds.values

    def _several(
        self, search: Search, way: Way, is_desc: bool, limit: int, step: int | None
    ) -> tuple[str, dict[str, Any]]:
        """Each range has its own limit; rows are read only of the ids that are in the page."""
        binds = _Binds(self._mark)
        order = "DESC" if is_desc else "ASC"
        asked = dict.fromkeys(["id", *sorted(way.unmet - {"account_id"})])
        if "account_id" in way.unmet:
            asked |= dict.fromkeys(["owner_id", "target_id"])
        parts = (
            self._from(binds, search, way, one, is_desc, step=step, names=", ".join(asked))
            for one in way.ranges
        )
        # Whoever removes himself is on both sides.
        union = " UNION " if any(one.no_owner for one in way.ranges) else " UNION ALL "
        ids = union.join(
            f"SELECT id FROM (SELECT id {part} LIMIT {limit}) AS r{number}"
            for number, part in enumerate(parts)
        )
        names = ", ".join(f"removal.{name}" for name in COLUMNS)
        sql = (
            f"SELECT {names} FROM (SELECT id FROM ({ids}) AS ids ORDER BY id {order}"
            f" LIMIT {limit}) AS page JOIN imcallback_removal AS removal ON removal.id = page.id"
            f" ORDER BY removal.id {order}"
        )
        return sql, binds.values

    def _from(
        self,
        binds: _Binds,
        search: Search,
        way: Way,
        one: Range,
        is_desc: bool,
        *,
        step: int | None,
        names: str,
    ) -> str:
        """FROM, WHERE and ORDER BY of what is in a range and meets the other conditions."""
        conditions = _conditions(binds, search, way.met)
        if not conditions or step is None or self._dialect != "postgresql":
            return self._entries(binds, search, one, is_desc, conditions)
        entries = self._entries(binds, search, one, is_desc)
        order = "DESC" if is_desc else "ASC"
        return (
            f"FROM (SELECT {names} {entries} LIMIT {step + 1}) AS entries"
            f" WHERE {' AND '.join(conditions)} ORDER BY id {order}"
        )

    def _entries(
        self,
        binds: _Binds,
        search: Search,
        one: Range,
        is_desc: bool | None,
        conditions: Sequence[str] = (),
    ) -> str:
        """FROM, WHERE and ORDER BY of a range; in no order if `is_desc` is None."""
        where = [f"{name} = {binds(value)}" for name, value in one.equal.items()]
        by, hint, order = ["id"], "", "DESC" if is_desc else "ASC"
        if one.index and self._dialect == "sqlite":
            hint = f" INDEXED BY {one.index}"
        elif one.index and self._dialect in ("mysql", "mariadb"):
            hint = f" FORCE INDEX ({one.index})"
        elif one.index and is_desc is not None:
            first, value = next(iter(one.equal.items()))
            where[0] = f"{first} = ANY (ARRAY[{binds(value)}])"
            by = [first, "id"]
        where.append(f"id > {binds(max(search.low, one.span[0] - 1))}")
        where.append(f"id < {binds(min(search.high, one.span[1] + 1))}")
        where += conditions
        sorted_by = "" if is_desc is None else f" ORDER BY {', '.join(f'{n} {order}' for n in by)}"
        return f"FROM imcallback_removal{hint} WHERE {' AND '.join(where)}{sorted_by}"
