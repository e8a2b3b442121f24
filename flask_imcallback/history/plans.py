# ruff: noqa: S608 (what is put together here are names of columns and of parameters)
"""A search among the removals, as ranges of the indexes, each in the order of ids.

SQL as text: what a planner makes of it decides between a millisecond and a minute, and each
database has its own words to say which index is meant. PostgreSQL has none. There, the order by the
first column of an index and the id can only be that of the index, as long as the planner does not
see that the first is always the same, which is why it is given as an array of one; and other
conditions stand outside of a LIMIT, where they do not lead it to other indexes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from sqlalchemy import Connection

from ..storage.tables import MAX_ID

COLUMNS = ("id", "delivery_id", "source_id", "owner_id", "target_id", "client_ip", "request_id")
MAX_RANGES = 200
"""Of more than these together, the database itself chooses how to find them."""
MAX_VALUES = 25_000
"""Parameters of a statement, of which SQLite takes 32,766."""
FEW = 8
"""Ranges of a way that are looked at to choose between it and another."""
DENSE = 20
"""Removals that are read for each that is found, before an index of few of them is quicker."""
STEPS, STEP_IN_INDEX = (1_000, 8_000), 150_000
"""Entries that are read, one step after the other, for those that meet the other conditions: so
many at last, if the index itself tells whether they do. The rest is for the next page."""

NAMED = re.compile(r":(v\d+)")
"""A parameter of SQLite; nothing else in a statement looks so."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """What removals must meet; each of the alternatives is given once."""

    owner_id: tuple[str, ...] | None = None
    target_id: tuple[str, ...] | None = None
    account_id: tuple[str, ...] | None = None
    peer_id: tuple[str, ...] | None = None
    client_ip: tuple[str, ...] | None = None
    request_id: tuple[str, ...] | None = None
    source_id: tuple[int, ...] | None = None
    delivery_id: tuple[int, ...] | None = None
    spans: tuple[tuple[int, int], ...] = ()
    """First and last ids of the removals of each of those deliveries."""
    low: int = -1
    """An id below all that are searched."""
    high: int = MAX_ID
    """An id above them."""


@dataclass(frozen=True)
class Range:
    """Entries of an index that begin with the same values; of the key, where there are none."""

    index: str = ""
    equal: Mapping[str, Any] = field(default_factory=dict)
    span: tuple[int, int] = (0, MAX_ID)
    no_owner: tuple[str, ...] = ()
    """Owners whose removals are in other ranges, too."""


@dataclass(frozen=True)
class Way:
    """Disjoint ranges in which all of a search is, and the conditions that they meet."""

    ranges: Sequence[Range]
    met: frozenset[str]
    unmet: frozenset[str] = frozenset()
    """The other conditions of the search."""
    has_source: bool = False
    """Whether the indexes tell the source."""

    @property
    def is_told_by_index(self) -> bool:
        return self.has_source and self.unmet <= {"source_id"}


@dataclass(frozen=True)
class Found:
    """Rows of `COLUMNS`, in order."""

    rows: list[Any]
    end: int | None = None
    """The id up to which the search came, if it did not come to its end nor to its limit."""


KEY = Way((Range(),), frozenset())


def ways(search: Search) -> list[Way]:
    """Those that are narrower than the whole table; the first is best where it is the only one."""
    if search.delivery_id is not None:
        spans = search.spans
        way = _way(search, [Range(span=span) for span in spans], "delivery_id")
        if _fits(search, way):
            return [way]
        return [Way([Range(span=(min(spans)[0], max(spans)[1]))], frozenset())]
    pairs, met = _pairs(search)
    way = _way(search, pairs, *met)
    found = [way] if pairs and _fits(search, way) else []
    if found and all(one.index == PAIR for one in pairs):
        return found
    for name in ("request_id", "client_ip", "owner_id", "target_id", "source_id"):
        if values := getattr(search, name):
            found.append(_way(search, [_range(name, **{name: value}) for value in values], name))
    if accounts := search.account_id:
        ranges = [_range("owner_id", owner_id=account) for account in accounts]
        ranges += [_range("target_id", no_owner=accounts, target_id=a) for a in accounts]
        found.append(_way(search, ranges, *["account_id"] * (not search.peer_id)))
    fitting = [way for way in found if _fits(search, way)]
    if len(fitting) < len(found) and all(way.met == {"source_id"} for way in fitting):
        return []
    return fitting


def _way(search: Search, ranges: list[Range], *met: str) -> Way:
    asked = {name for name in (*COLUMNS[1:], "account_id") if getattr(search, name) is not None}
    has_source = all(one.index in WITH_SOURCE for one in ranges)
    return Way(ranges, frozenset(met), frozenset(asked - {*met}), has_source)


def _fits(search: Search, way: Way) -> bool:
    """Whether a statement can have all ranges, each with the conditions that are not met."""
    if len(way.ranges) > MAX_RANGES:
        return False
    binds = _Binds()
    _conditions(binds, search, way.met)
    of_owners = sum(len(one.no_owner) for one in way.ranges)
    return len(way.ranges) * len(binds.values) + of_owners <= MAX_VALUES


PREFIX = "ix_imcallback_removal_"
PAIR = f"{PREFIX}pair"
WITH_SOURCE = {f"{PREFIX}{name}" for name in ("owner_id", "target_id", "client_ip")}


def _range(name: str, no_owner: tuple[str, ...] = (), **equal: Any) -> Range:
    return Range(f"{PREFIX}{name}", equal, no_owner=no_owner)


def _pairs(search: Search) -> tuple[list[Range], list[str]]:
    """Ranges for a search that names both sides, and the conditions that they meet."""
    owners, targets, accounts = search.owner_id, search.target_id, search.account_id
    sides = [side for side in (accounts, search.peer_id, owners, targets) if side][:2]
    if len(sides) < 2 or len(sides[0]) * len(sides[1]) > MAX_RANGES:
        return [], []
    whole: list[Range] = []
    if accounts and search.peer_id:
        pairs = [pair for a, b in product(accounts, search.peer_id) for pair in ((a, b), (b, a))]
        met = ["account_id", "peer_id"]
    elif owners and targets:
        pairs, met = list(product(owners, targets)), ["owner_id", "target_id"]
    elif owners and accounts:
        whole = [_range("owner_id", owner_id=owner) for owner in owners if owner in accounts]
        pairs = [(owner, a) for owner in owners if owner not in accounts for a in accounts]
        met = ["owner_id", "account_id"]
    else:
        targets, accounts = targets or (), accounts or ()
        whole = [_range("target_id", target_id=target) for target in targets if target in accounts]
        pairs = [(a, target) for target in targets if target not in accounts for a in accounts]
        met = ["target_id", "account_id"]
    of_pairs = [_range("pair", owner_id=o, target_id=t) for o, t in dict.fromkeys(pairs)]
    return whole + of_pairs, met


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


class _Binds:
    """Values on their way into a statement."""

    def __init__(self, mark: str = "") -> None:
        self.values: dict[str, Any] = {}
        self._mark = mark

    def __call__(self, value: Any) -> str:
        name = f"v{len(self.values)}"
        self.values[name] = value
        return self._mark.format(name)

    def several(self, values: Iterable[Any]) -> str:
        return f"({', '.join([self(value) for value in values]) or 'NULL'})"


def _conditions(binds: _Binds, search: Search, met: frozenset[str]) -> list[str]:
    """Those of a search that are not met yet."""
    found = []
    for name in COLUMNS[1:]:
        values = getattr(search, name)
        if values is not None and name not in met:
            found.append(f"{name} IN {binds.several(values)}")
    if search.account_id is not None and "account_id" not in met:
        accounts, others = search.account_id, search.peer_id
        sides = []
        for one, other in (("owner_id", "target_id"), ("target_id", "owner_id")):
            side = f"{one} IN {binds.several(accounts)}"
            if others is not None:
                side += f" AND {other} IN {binds.several(others)}"
            sides.append(f"({side})")
        found.append(f"({' OR '.join(sides)})")
    return found
