"""A search among the removals, as ranges of the indexes, each in the order of ids.

SQL as text: what a planner makes of it decides between a millisecond and a minute, and each
database has its own words to say which index is meant. PostgreSQL has none. There, the order by the
first column of an index and the id can only be that of the index, as long as the planner does not
see that the first is always the same, which is why it is given as an array of one; and other
conditions stand outside of a LIMIT, where they do not lead it to other indexes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from ..storage import MAX_ID

COLUMNS = ("id", "delivery_id", "source_id", "owner_id", "target_id", "client_ip", "request_id")
MAX_RANGES = 200
"""Of more than these together, the database itself chooses how to find them."""
MAX_VALUES = 25_000
"""Parameters of a statement, of which SQLite takes 32,766."""


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
