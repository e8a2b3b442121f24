"""Checked queries. Each class checks its values, and its error names the wrong parameter."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime
from difflib import get_close_matches
from typing import Any, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from ..errors import HistoryQueryError
from ..removals import Status
from ..storable_text import MAX_TEXT_LENGTH, is_storable
from ..storage import MAX_ID, id_at
from .filters import (
    FILTERS,
    GROUPS,
    TEXT_FILTERS,
    DeliveryFilters,
    HistoryFilters,
    RemovalFilters,
    StreamFilters,
)

HISTORY_FILTERS = tuple(HistoryFilters.__annotations__)
STREAM_FILTERS = tuple(StreamFilters.__annotations__)
REMOVAL_FILTERS = tuple(RemovalFilters.__annotations__)
DELIVERY_FILTERS = tuple(DeliveryFilters.__annotations__)
DEFAULT_LIMIT, MAX_LIMIT = 100, 1000
ORDERS = ("desc", "asc")
MAX_ALTERNATIVES = 10_000
"""Maximum number of values of all filters together. Databases accept a limited number of
parameters."""
BUCKETS = ("hour", "day", "week", "month")
MAX_SHOWN_LENGTH = 60
"""Maximum length in characters of a wrong value in an error message."""


@dataclass(frozen=True, kw_only=True)
class PagedQuery:
    """The part that all queries share: a period, an order and a page."""

    since: datetime | None = None
    """Inclusive and aware."""
    until: datetime | None = None
    """Exclusive and aware."""
    order: str = "desc"
    """`desc` is newest first."""
    limit: int = DEFAULT_LIMIT
    cursor: str | None = None
    """The `next_cursor` of the page before, which had the same filters and order."""

    def __post_init__(self) -> None:
        _check_time("since", self.since)
        _check_time("until", self.until)
        check_choice("order", self.order, ORDERS)
        check_number("limit", self.limit, MAX_LIMIT)
        if self.cursor is not None and not isinstance(self.cursor, str):
            raise HistoryQueryError("cursor", f"must be a string, not {format_value(self.cursor)}")

    @property
    def is_descending(self) -> bool:
        return self.order == "desc"


@dataclass(frozen=True, kw_only=True)
class HistoryQuery(PagedQuery):
    """A checked query for removals. Raises `HistoryQueryError`."""

    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The alternatives of each text filter that is used."""
    delivery_id: tuple[int, ...] | None = None

    @classmethod
    def from_filters(
        cls, filters: Mapping[str, Any], allowed: Collection[str] = HISTORY_FILTERS
    ) -> Self:
        """Return the query with these filters. A filter that is None is not used.

        Raises `HistoryQueryError` for a filter that is not in `allowed` or is malformed.
        """
        values = _used_filters(filters, allowed)
        texts = {name: _alternatives(values.pop(name)) for name in TEXT_FILTERS if name in values}
        if "delivery_id" in values:
            values["delivery_id"] = _alternatives(values["delivery_id"])
        return cls(texts=texts, **values)

    def __post_init__(self) -> None:
        alternatives: dict[str, tuple[Any, ...]] = dict(self.texts)
        alternatives["delivery_id"] = self.delivery_id or ()
        _check_filters(alternatives)
        if "peer_id" in self.texts and "account_id" not in self.texts:
            raise HistoryQueryError(
                "peer_id", "needs account_id: it names the account on the other side"
            )
        super().__post_init__()

    @property
    def digest(self) -> str:
        """A hash that is equal for queries with the same result in the same order."""
        texts = {name: sorted(set(values)) for name, values in self.texts.items()}
        ids = self.delivery_id if self.delivery_id is None else sorted(set(self.delivery_id))
        return _digest(texts, ids, _to_ids(self.since, self.until), self.order)


@dataclass(frozen=True, kw_only=True)
class DeliveryQuery(PagedQuery):
    """A checked query for deliveries. Raises `HistoryQueryError`."""

    status: tuple[str, ...] | None = None
    command: tuple[str, ...] | None = None

    @classmethod
    def from_filters(cls, filters: Mapping[str, Any]) -> Self:
        """Return the query with these filters. See `HistoryQuery.from_filters`."""
        values = _used_filters(filters, DELIVERY_FILTERS)
        for name in {"status", "command"} & values.keys():
            values[name] = _alternatives(values[name])
        return cls(**values)

    def __post_init__(self) -> None:
        for status in self.status or ():
            check_choice("status", status, tuple(Status))
        _check_filters({"command": self.command or ()})
        super().__post_init__()

    @property
    def digest(self) -> str:
        """A hash that is equal for queries with the same result in the same order."""
        filters = [
            values if values is None else sorted(set(values))
            for values in (self.status, self.command)
        ]
        return _digest("deliveries", filters, _to_ids(self.since, self.until), self.order)


@dataclass(frozen=True, kw_only=True)
class StatsQuery:
    """The checked options of a count. Raises `HistoryQueryError`."""

    bucket: str = "day"
    """One of `BUCKETS`. A week begins on Monday."""
    group_by: str | None = None
    """One of `GROUPS`. None counts all removals of a bucket together."""
    tz: str = "UTC"
    """The IANA name of the time zone in which buckets begin."""

    def __post_init__(self) -> None:
        check_choice("bucket", self.bucket, BUCKETS)
        if self.group_by is not None:
            check_choice("group_by", self.group_by, GROUPS)
        load_zone(self.tz)

    @property
    def zone(self) -> ZoneInfo:
        """The time zone in which buckets begin."""
        return load_zone(self.tz)


def load_zone(name: str) -> ZoneInfo:
    """Return the time zone with this IANA name. Raises `HistoryQueryError` if there is none."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError, TypeError, AttributeError) as error:
        problem = f"must name a time zone, such as Asia/Shanghai, not {format_value(name)}"
        raise HistoryQueryError("tz", problem) from error


def format_value(value: object) -> str:
    """Return the value for an error message, cut to a readable length."""
    return shorten(repr(value))


def shorten(text: str) -> str:
    """Return the text, cut to a readable length."""
    return text if len(text) <= MAX_SHOWN_LENGTH else f"{text[:MAX_SHOWN_LENGTH]}…"


def suggest(name: str, known_names: Collection[str]) -> str:
    """Return ": did you mean owner_id?" with the known name that is nearest to a wrong name.

    A full stop means that no name is near.
    """
    matches = get_close_matches(name.lower(), known_names, n=1)
    return f": did you mean {matches[0]}?" if matches else "."


def join_choices(choices: Iterable[str]) -> str:
    """Return the choices as a phrase: "a, b or c"."""
    *others, last = (choice or "empty" for choice in choices)
    return f"{', '.join(others)} or {last}" if others else last


def _used_filters(filters: Mapping[str, Any], allowed: Collection[str]) -> dict[str, Any]:
    for name in filters:
        if name not in allowed:
            problem = f"is not a filter of this method{suggest(name, allowed)}"
            raise HistoryQueryError(name, f"{problem} The filters are {', '.join(allowed)}")
    return {name: value for name, value in filters.items() if value is not None}


def _alternatives(value: Any) -> tuple[Any, ...]:
    is_text = isinstance(value, str | bytes | bytearray)
    is_several = isinstance(value, Sequence | AbstractSet) and not is_text
    return tuple(value) if is_several else (value,)


def _check_filters(alternatives: Mapping[str, tuple[Any, ...]]) -> None:
    if sum(map(len, alternatives.values())) > MAX_ALTERNATIVES:
        longest = max(alternatives, key=lambda name: len(alternatives[name]))
        problem = (
            f"has {len(alternatives[longest])} values. "
            f"All filters together may have at most {MAX_ALTERNATIVES}"
        )
        raise HistoryQueryError(longest, problem)
    for name, values in alternatives.items():
        for value in values:
            _check_filter(name, value)


def _check_filter(name: str, value: object) -> None:
    row = FILTERS[name]
    if row.is_id:
        check_number(name, value, MAX_ID)
    elif row.choices:
        check_choice(name, value, row.choices)
    elif not isinstance(value, str):
        raise HistoryQueryError(name, f"must be a string, not {format_value(value)}")
    elif not value and not row.may_be_empty:
        raise HistoryQueryError(name, "must not be empty")
    elif len(value) > MAX_TEXT_LENGTH:
        problem = f"must have at most {MAX_TEXT_LENGTH} characters, not {len(value)}"
        raise HistoryQueryError(name, problem)
    elif not is_storable(value):
        problem = f"must not contain U+0000 or a lone surrogate: {format_value(value)}"
        raise HistoryQueryError(name, problem)


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Check that the value is one of the choices. Raises `HistoryQueryError`."""
    if value not in choices:
        raise HistoryQueryError(name, f"must be {join_choices(choices)}, not {format_value(value)}")


def check_number(name: str, value: object, maximum: int, minimum: int = 1) -> None:
    """Check that the value is a whole number of this range. Raises `HistoryQueryError`."""
    if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
        problem = f"must be a whole number from {minimum} to {maximum}, not {format_value(value)}"
        raise HistoryQueryError(name, problem)


def _check_time(name: str, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, datetime) or value.utcoffset() is None:
        problem = f"must be a datetime with a time zone, not {format_value(value)}"
        raise HistoryQueryError(name, problem)


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _to_ids(*moments: datetime | None) -> list[int | None]:
    return [None if moment is None else id_at(moment) for moment in moments]
