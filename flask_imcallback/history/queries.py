"""The questions to the history, checked: a `HistoryQuery` and a `StatsQuery`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from ..errors import HistoryQueryError
from ..removals import Relation, Status
from ..storage import MAX_ID, id_at
from ..text import MAX_TEXT_LENGTH, is_storable

TEXT_FILTERS = (
    "provider",
    "app_id",
    "command",
    "relation",
    "owner_id",
    "target_id",
    "account_id",
    "peer_id",
    "platform",
    "client_ip",
    "request_id",
)
"""Exact; several values of one are alternatives."""
MAY_BE_EMPTY = frozenset(["app_id", "command", "platform", "client_ip", "request_id"])
DEFAULT_LIMIT, MAX_LIMIT = 100, 1000
MAX_ALTERNATIVES = 10_000
"""Of all filters together; databases take some ten thousand parameters."""
BUCKETS = ("hour", "day", "week", "month")
GROUPS = ("provider", "app_id", "command", "relation", "platform")


@dataclass(frozen=True, kw_only=True)
class PagedQuery:
    """What all questions have that are answered by pages."""

    since: datetime | None = None
    """Inclusive, aware."""
    until: datetime | None = None
    """Exclusive, aware."""
    order: str = "desc"
    """Newest first, or "asc"."""
    limit: int = DEFAULT_LIMIT
    cursor: str | None = None
    """`next_cursor` of the page before, of the same filters and order."""

    def __post_init__(self) -> None:
        _check_range(self.since, self.until)
        _check_paging(self.order, self.limit, self.cursor)


@dataclass(frozen=True, kw_only=True)
class HistoryQuery(PagedQuery):
    """A checked question. Raises `HistoryQueryError`, which names the parameter."""

    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The values by filter, for each of `TEXT_FILTERS` that is asked for."""
    delivery_id: tuple[int, ...] | None = None

    @classmethod
    def from_filters(cls, **filters: Any) -> Self:
        """One value for a filter, or a sequence of them; those that are None do not count."""
        given = {name: value for name, value in filters.items() if value is not None}
        texts = {name: _sequence(given.pop(name)) for name in TEXT_FILTERS if name in given}
        if "delivery_id" in given:
            given["delivery_id"] = _sequence(given["delivery_id"])
        for name in given:
            if name not in cls.__dataclass_fields__ or name == "texts":
                raise HistoryQueryError(name, "is not a filter of the history")
        return cls(texts=texts, **given)

    def __post_init__(self) -> None:
        numbers = {name: len(values) for name, values in self.texts.items()}
        numbers["delivery_id"] = len(self.delivery_id or ())
        if sum(numbers.values()) > MAX_ALTERNATIVES:
            problem = f"makes, with the others, more than {MAX_ALTERNATIVES} alternatives"
            raise HistoryQueryError(max(numbers, key=lambda name: numbers[name]), problem)
        for name, values in self.texts.items():
            for value in values:
                _check_text(name, value)
        if "peer_id" in self.texts and "account_id" not in self.texts:
            raise HistoryQueryError("peer_id", "is the other side of account_id, and needs it")
        for number in self.delivery_id or ():
            _check_number("delivery_id", number, MAX_ID)
        super().__post_init__()

    @property
    def digest(self) -> str:
        """Equal for queries that list the same removals in the same order."""
        filters = {name: sorted(set(values)) for name, values in self.texts.items()}
        ids = self.delivery_id if self.delivery_id is None else sorted(set(self.delivery_id))
        return _digest(filters, ids, _ids_at(self.since, self.until), self.order)


@dataclass(frozen=True, kw_only=True)
class DeliveryQuery(PagedQuery):
    """A checked question for deliveries. Raises `HistoryQueryError`, which names the parameter."""

    status: tuple[str, ...] | None = None

    @classmethod
    def from_filters(cls, **filters: Any) -> Self:
        """As that of a `HistoryQuery`."""
        given = {name: value for name, value in filters.items() if value is not None}
        for name in given:
            if name not in cls.__dataclass_fields__:
                raise HistoryQueryError(name, "is not a filter of the deliveries")
        if "status" in given:
            given["status"] = _sequence(given["status"])
        return cls(**given)

    def __post_init__(self) -> None:
        for status in self.status or ():
            if status not in list(Status):
                raise HistoryQueryError("status", f"must be one of {', '.join(Status)}")
        super().__post_init__()

    @property
    def digest(self) -> str:
        """Equal for queries that list the same deliveries in the same order."""
        statuses = self.status if self.status is None else sorted(set(self.status))
        return _digest("deliveries", statuses, _ids_at(self.since, self.until), self.order)


@dataclass(frozen=True, kw_only=True)
class StatsQuery:
    """How to count. Raises `HistoryQueryError`, which names the parameter."""

    bucket: str = "day"
    """One of `BUCKETS`; a week begins on Monday."""
    group_by: str | None = None
    """One of `GROUPS`; None counts all together."""
    tz: str = "UTC"
    """The IANA name of the time zone in which buckets begin."""

    def __post_init__(self) -> None:
        if self.bucket not in BUCKETS:
            raise HistoryQueryError("bucket", f"must be one of {', '.join(BUCKETS)}")
        if self.group_by is not None and self.group_by not in GROUPS:
            raise HistoryQueryError("group_by", f"must be one of {', '.join(GROUPS)}")
        self.zone  # noqa: B018

    @property
    def zone(self) -> ZoneInfo:
        try:
            return ZoneInfo(self.tz)
        except (ZoneInfoNotFoundError, ValueError, OSError, TypeError, AttributeError) as error:
            problem = "must be the name of a time zone, such as Asia/Shanghai"
            raise HistoryQueryError("tz", problem) from error


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _ids_at(*moments: datetime | None) -> list[int | None]:
    return [None if moment is None else id_at(moment) for moment in moments]


def _sequence(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple | set | frozenset) else (value,)


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise HistoryQueryError(name, "must be a string")
    if not value and name not in MAY_BE_EMPTY:
        raise HistoryQueryError(name, "must not be empty")
    if not is_storable(value):
        raise HistoryQueryError(name, f"must be a text of {MAX_TEXT_LENGTH} characters or fewer")
    if name == "relation" and value not in list(Relation):
        raise HistoryQueryError(name, f"must be one of {', '.join(Relation)}")


def _check_number(name: str, value: object, maximum: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= maximum:
        raise HistoryQueryError(name, f"must be a whole number from 1 to {maximum}")


def _check_range(since: object, until: object) -> None:
    for name, moment in (("since", since), ("until", until)):
        if moment is None:
            continue
        if not isinstance(moment, datetime) or moment.utcoffset() is None:
            raise HistoryQueryError(name, "must be a time with its offset from UTC")


def _check_paging(order: object, limit: object, cursor: object) -> None:
    if order not in ("asc", "desc"):
        raise HistoryQueryError("order", "must be asc or desc")
    _check_number("limit", limit, MAX_LIMIT)
    if cursor is not None and not isinstance(cursor, str):
        raise HistoryQueryError("cursor", "must be a next_cursor of this history")
