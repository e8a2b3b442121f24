"""Stored removals: a `HistoryQuery` in, a `Page` out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self, TypeVar

from itsdangerous import BadSignature, URLSafeSerializer
from sqlalchemy import ColumnElement, Connection, Engine, RowMapping, and_, or_, select
from sqlalchemy.exc import SQLAlchemyError

from .errors import HistoryQueryError, StorageError
from .events import Record, Relation
from .models import MAX_REMOVALS, id_at
from .models import delivery as delivery_table
from .models import removal as removal_table
from .providers.base import MAX_TEXT, UNSTORABLE

TEXT_FILTERS = (
    "provider",
    "app_id",
    "command",
    "relation",
    "owner_id",
    "target_id",
    "account_id",
    "platform",
    "client_ip",
    "request_id",
)
"""Exact; several values of one are alternatives. All are columns but `account_id`, either side."""
MAY_BE_EMPTY = frozenset(["app_id", "command", "platform", "client_ip", "request_id"])
DEFAULT_LIMIT, MAX_LIMIT = 100, 1000
T = TypeVar("T")
NEXT_ID = 2**53
"""Above all ids."""
MAX_SPANS = 500
"""SQLite refuses an OR of a thousand."""


@dataclass(frozen=True, kw_only=True)
class HistoryQuery:
    """A checked question. Raises `HistoryQueryError`, which names the parameter."""

    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The values by filter, for each of `TEXT_FILTERS` that is asked for."""
    delivery_id: tuple[int, ...] | None = None
    since: datetime | None = None
    """Inclusive, aware."""
    until: datetime | None = None
    """Exclusive, aware."""
    order: str = "desc"
    """Newest first, or "asc"."""
    limit: int = DEFAULT_LIMIT
    cursor: str | None = None
    """`next_cursor` of the page before, of the same filters and order."""

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
        for name, values in self.texts.items():
            for value in values:
                _check_text(name, value)
        for number in self.delivery_id or ():
            _check_number("delivery_id", number, NEXT_ID)
        for name, moment in (("since", self.since), ("until", self.until)):
            if moment is None:
                continue
            if not isinstance(moment, datetime) or moment.utcoffset() is None:
                raise HistoryQueryError(name, "must be a time with its offset from UTC")
        if self.order not in ("asc", "desc"):
            raise HistoryQueryError("order", "must be asc or desc")
        _check_number("limit", self.limit, MAX_LIMIT)
        if self.cursor is not None and not isinstance(self.cursor, str):
            raise HistoryQueryError("cursor", "must be a next_cursor of this history")

    @property
    def digest(self) -> str:
        """Equal for queries that list the same removals in the same order."""
        filters = {name: sorted(set(values)) for name, values in self.texts.items()}
        ids = self.delivery_id if self.delivery_id is None else sorted(set(self.delivery_id))
        times = [moment and id_at(moment) for moment in (self.since, self.until)]
        text = json.dumps([filters, ids, times, self.order], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def conditions(self) -> list[ColumnElement[bool]]:
        """What a removal must meet, but for the cursor."""
        column = removal_table.c
        conditions: list[ColumnElement[bool]] = []
        for name, values in self.texts.items():
            if name == "account_id":
                conditions += [or_(column.owner_id.in_(values), column.target_id.in_(values))]
            else:
                conditions += [column[name].in_(values)]
        if self.delivery_id is not None:
            conditions += [column.delivery_id.in_(self.delivery_id)]
            ids = sorted(set(self.delivery_id))
            spans = [(number, number) for number in ids]
            if len(ids) > MAX_SPANS:
                spans = [(ids[0], ids[-1])]
            near = (column.id.between(first, last + MAX_REMOVALS) for first, last in spans)
            conditions += [or_(False, *near)]
        # The id is near the delivery's and in the key; the delivery's is exactly the time.
        if self.since is not None:
            first = id_at(self.since)
            conditions += [column.id >= first, column.delivery_id >= first]
        if self.until is not None:
            end = id_at(self.until)
            conditions += [column.id < end + MAX_REMOVALS, column.delivery_id < end]
        return conditions


@dataclass(frozen=True, slots=True)
class Page:
    """A part of the history."""

    data: list[Record]
    next_cursor: str | None
    """Where the next part starts; None if this is the last."""


class History:
    """The removals in the database of one app."""

    def __init__(self, engine: Callable[[], Engine], secret_keys: Sequence[str]) -> None:
        self._engine = engine
        # Without a secret key the signature only guards against mistakes, and no secret is in it.
        self._cursors = URLSafeSerializer(secret_keys or "", salt="flask-imcallback-cursor")

    def find(self, **filters: Any) -> Page:
        """The removals that meet all filters, which are those of the HTTP address.

        Each is one value or a sequence of alternatives: `provider`, `app_id`, `command`,
        `relation`, `owner_id`, `target_id`, `account_id` (either side), `platform`, `client_ip`,
        `request_id` (all str), `delivery_id` (int). Further `since` (inclusive) and `until`
        (exclusive), aware datetimes; `order`, "desc" (newest first) or "asc"; `limit`, 1 to 1000;
        `cursor`, the `next_cursor` of the page before.

        Raises `HistoryQueryError` for a filter that is unknown or malformed, `StorageError` if
        the database does not answer.
        """
        return self.page(HistoryQuery.from_filters(**filters))

    def page(self, query: HistoryQuery) -> Page:
        """Answer a query; raises as `find` does."""
        column = removal_table.c
        conditions = query.conditions
        if query.cursor is not None:
            last = self._last_id(query.cursor, query)
            conditions += [column.id < last if query.order == "desc" else column.id > last]
        order = column.id.desc() if query.order == "desc" else column.id.asc()
        statement = select(removal_table).where(and_(True, *conditions)).order_by(order)
        rows = self._read(
            lambda connection: connection.execute(statement.limit(query.limit + 1)).mappings().all()
        )
        records = [_record(row) for row in rows[: query.limit]]
        is_last = len(rows) <= query.limit
        next_cursor = None if is_last else self._cursors.dumps([records[-1].id, query.digest])
        return Page(records, None if next_cursor is None else str(next_cursor))

    def get(self, removal_id: int) -> tuple[Record, RowMapping] | None:
        """One removal and its delivery, or None. Raises `StorageError`."""
        if not 0 <= removal_id < NEXT_ID:
            return None
        one = select(removal_table).where(removal_table.c.id == removal_id)

        def read(connection: Connection) -> tuple[Record, RowMapping] | None:
            if (row := connection.execute(one).mappings().one_or_none()) is None:
                return None
            its = select(delivery_table).where(delivery_table.c.id == row["delivery_id"])
            return _record(row), connection.execute(its).mappings().one()

        return self._read(read)

    def _read(self, read: Callable[[Connection], T]) -> T:
        try:
            with self._engine().connect() as connection:
                return read(connection)
        except SQLAlchemyError as error:
            raise StorageError from error

    def _last_id(self, cursor: str, query: HistoryQuery) -> int:
        try:
            last_id, digest = self._cursors.loads(cursor)
        except (BadSignature, ValueError) as error:
            raise HistoryQueryError("cursor", "is not a next_cursor of this history") from error
        if digest != query.digest:
            raise HistoryQueryError("cursor", "belongs to other filters or another order")
        return int(last_id)


def _record(row: RowMapping) -> Record:
    return Record(**{**row, "relation": Relation(row["relation"])})


def _sequence(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple | set | frozenset) else (value,)


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise HistoryQueryError(name, "must be a string")
    if not value and name not in MAY_BE_EMPTY:
        raise HistoryQueryError(name, "must not be empty")
    if len(value) > MAX_TEXT or UNSTORABLE.search(value):
        raise HistoryQueryError(name, f"must be a text of {MAX_TEXT} characters or fewer")
    if name == "relation" and value not in list(Relation):
        raise HistoryQueryError(name, f"must be one of {', '.join(Relation)}")


def _check_number(name: str, value: object, maximum: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= maximum:
        raise HistoryQueryError(name, f"must be a whole number from 1 to {maximum}")
