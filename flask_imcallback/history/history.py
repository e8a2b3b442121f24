"""The history: pages, streams and counts of the stored removals and deliveries."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from datetime import UTC, datetime
from itertools import chain
from typing import Any, Unpack

from sqlalchemy import Connection, Engine, Row, Select, false, func, select, union_all
from sqlalchemy.exc import SQLAlchemyError

from ..errors import StorageError
from ..removals import Record, Status
from ..storage import (
    DELIVERIES_WITH_SOURCES,
    IS_NOT_RECORDED,
    MAX_ID,
    MAX_REMOVALS,
    SHARED_COLUMNS,
    id_at,
    moment_of,
)
from ..storage import delivery as delivery_table
from .counts import count_removals
from .cursors import CursorCodec
from .filters import DeliveryFilters, HistoryFilters, RemovalFilters, StreamFilters
from .finder import Finder
from .queries import REMOVAL_FILTERS, STREAM_FILTERS, DeliveryQuery, HistoryQuery, StatsQuery
from .records import make_records
from .resolve import ResolvedQuery, resolve
from .results import (
    DeliveryDetail,
    DeliveryPage,
    DeliveryRecord,
    Page,
    RemovalCount,
    RemovalDetail,
)
from .statements import PageSpec

CHUNK_REMOVALS = 2000
"""Number of removals that a stream reads in one step."""
MAX_SCANNED_DELIVERIES = 9000
"""Maximum number of deliveries that a page searches for a command or for recorded deliveries. No
index has them, because it would cost each delivery more than this rare search is worth."""
MAX_BODY_BYTES_PER_PAGE = 4 * 1024 * 1024
"""Maximum size of all packets in a page of deliveries. A larger packet has a page of its own."""
DELIVERY_COLUMNS = [
    *(column.label(name) for name, column in SHARED_COLUMNS.items()),
    *(
        delivery_table.c[field.name]
        for field in fields(DeliveryRecord)
        if field.name not in {*SHARED_COLUMNS, "received_at"}
    ),
]


class History:
    """The removals and deliveries in the database of one app."""

    def __init__(
        self,
        engine: Callable[[], Engine],
        secret_keys: Sequence[str],
        random_key: str = "",
    ) -> None:
        self._engine = engine
        self._cursors = CursorCodec(secret_keys, random_key)

    def find(self, **filters: Unpack[HistoryFilters]) -> Page:
        """Return a page of the removals that match all filters.

        Raises `HistoryQueryError` for an unknown or malformed filter, and `StorageError` if the
        database does not answer.
        """
        return self.read_page(HistoryQuery.from_filters(filters))

    def stream(self, **filters: Unpack[StreamFilters]) -> Iterator[Record]:
        """Return an iterator over all removals that match, in order.

        Removals that are received more than a second after the call are not included. The stream
        reads in parts, each in its own short transaction. Each part needs an app context.

        Raises as `find` does. A wrong filter raises at the call, not at the first removal.
        """
        query = HistoryQuery.from_filters(filters, allowed=STREAM_FILTERS)
        return chain.from_iterable(self.read_chunks(query))

    def stats(
        self,
        *,
        bucket: str = "day",
        group_by: str | None = None,
        tz: str = "UTC",
        **filters: Unpack[RemovalFilters],
    ) -> list[RemovalCount]:
        """Return the number of removals in each time bucket, in the order of time and group.

        `bucket` is `"hour"`, `"day"`, `"week"` (from Monday) or `"month"`. `group_by` is
        `"provider"`, `"app_id"`, `"command"`, `"relation"`, `"cause"`, `"platform"` or None. `tz`
        is the IANA name of the time zone in which buckets begin.

        The buckets cover the time from `since` to `until`. Without `since` they begin with the
        first matching removal, and without `until` they end now. A bucket without removals has
        the count 0.

        Raises as `find` does, also if there are more than 10,000 counts.
        """
        stats = StatsQuery(bucket=bucket, group_by=group_by, tz=tz)
        return self.read_counts(HistoryQuery.from_filters(filters, allowed=REMOVAL_FILTERS), stats)

    def deliveries(self, **filters: Unpack[DeliveryFilters]) -> DeliveryPage:
        """Return a page of deliveries, including deliveries without removals.

        A page ends before its limit if its packets are large. Raises as `find` does.
        """
        return self.read_delivery_page(DeliveryQuery.from_filters(filters))

    def get(self, removal_id: int) -> RemovalDetail | None:
        """Return a removal and its delivery, or None if no removal has this id.

        Raises `StorageError` if the database does not answer.
        """
        if not 0 <= removal_id < MAX_ID:
            return None
        with self._connect() as connection:
            ids = ResolvedQuery(above_id=removal_id - 1, below_id=removal_id + 1)
            rows = Finder(connection).find(ids, PageSpec(is_descending=True, limit=1)).rows
            if not rows:
                return None
            delivery = _read_delivery(connection, rows[0].delivery_id)
            if delivery is None:
                problem = f"imcallback_delivery has no row {rows[0].delivery_id}, but a removal has"
                raise StorageError(problem)
            (removal,) = make_records(connection, rows)
            return RemovalDetail(removal, delivery)

    def get_delivery(self, delivery_id: int) -> DeliveryDetail | None:
        """Return a delivery and its removals, or None if no delivery has this id.

        Raises `StorageError` if the database does not answer.
        """
        if not 0 <= delivery_id < MAX_ID:
            return None
        with self._connect() as connection:
            delivery = _read_delivery(connection, delivery_id)
            if delivery is None:
                return None
            count = delivery.removal_count
            ids = ResolvedQuery(above_id=delivery_id - 1, below_id=delivery_id + count)
            rows = Finder(connection).find(ids, PageSpec(is_descending=False, limit=count)).rows
            return DeliveryDetail(delivery, make_records(connection, rows))

    # The methods below take checked queries, for the web pages and the command line.

    def read_page(self, query: HistoryQuery) -> Page:
        """Return the page of a query. Raises `StorageError`.

        Raises `HistoryQueryError` if the cursor is wrong.
        """
        start_id = self._find_start(query)
        with self._connect() as connection:
            resolved = resolve(connection, query)
            resolved = resolved.beyond(start_id, is_descending=query.is_descending)
            page = PageSpec(query.is_descending, limit=query.limit + 1)
            found = Finder(connection).find(resolved, page)
            rows = found.rows[: query.limit]
            data = make_records(connection, rows)
        if found.stopped_at is None and len(found.rows) <= query.limit:
            return Page(data, None)
        end_id = rows[-1].id if found.stopped_at is None else found.stopped_at
        return Page(data, self._cursors.encode(end_id, query.digest))

    def read_chunks(self, query: HistoryQuery) -> Iterator[list[Record]]:
        """Return an iterator over the stream of a query, in lists of bounded length.

        The limit and the cursor of the query are not used. See `stream`.
        """
        with self._connect() as connection:
            resolved = resolve(connection, query)
        # A removal of a delivery that was received now can have an id up to a second later.
        end_id = id_at(datetime.now(UTC)) + MAX_REMOVALS
        resolved = replace(resolved, below_id=min(resolved.below_id, end_id))
        return self._iterate_chunks(resolved, PageSpec(query.is_descending, CHUNK_REMOVALS))

    def read_counts(self, query: HistoryQuery, stats: StatsQuery) -> list[RemovalCount]:
        """Return the counts of a query. See `stats`."""
        with self._connect() as connection:
            return count_removals(connection, query, stats)

    def read_delivery_page(self, query: DeliveryQuery) -> DeliveryPage:
        """Return the page of a query for deliveries. Raises as `read_page` does."""
        column = delivery_table.c
        start_id = self._find_start(query)
        with self._connect() as connection:
            sizes = connection.execute(_select_sizes(query, start_id))
            ids, is_last = _cut_to_limits(sizes, query.limit)
            end = None if is_last else ids[-1]
            if is_last and _must_scan(query):
                end = connection.scalar(_select_last_scanned(query, start_id))
            chosen = select(*DELIVERY_COLUMNS).select_from(DELIVERIES_WITH_SOURCES)
            chosen = chosen.where(column.id.in_(ids))
            rows = connection.execute(chosen.order_by(_order_by(query, column.id)))
            data = [_make_delivery_record(row) for row in rows]
        if end is None:
            return DeliveryPage(data, None)
        return DeliveryPage(data, self._cursors.encode(end, query.digest))

    @contextmanager
    def _connect(self) -> Iterator[Connection]:
        try:
            with self._engine().connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise StorageError from error

    def _find_start(self, query: HistoryQuery | DeliveryQuery) -> int:
        """Return the id after which the page of a query starts."""
        if query.cursor is None:
            return MAX_ID if query.is_descending else -1
        return self._cursors.decode(query.cursor, query.digest)

    def _iterate_chunks(self, query: ResolvedQuery, page: PageSpec) -> Iterator[list[Record]]:
        while True:
            with self._connect() as connection:
                found = Finder(connection).find(query, page)
                data = make_records(connection, found.rows)
                if connection.dialect.name == "sqlite":
                    # Free the cache, because a stream reads each database page only once.
                    connection.exec_driver_sql("PRAGMA shrink_memory")
            if data:
                yield data
            last_id = data[-1].id if len(data) == page.limit else found.stopped_at
            if last_id is None:
                return
            query = query.beyond(last_id, is_descending=page.is_descending)


def _read_delivery(connection: Connection, delivery_id: int) -> DeliveryRecord | None:
    query = select(*DELIVERY_COLUMNS).select_from(DELIVERIES_WITH_SOURCES)
    row = connection.execute(query.where(delivery_table.c.id == delivery_id)).one_or_none()
    return _make_delivery_record(row) if row else None


def _make_delivery_record(row: Row[Any]) -> DeliveryRecord:
    values = dict(row._mapping)
    values |= {
        "status": Status(row.status),
        "headers": json.loads(row.headers),
        "body": bytes(row.body),
        "received_at": moment_of(row.id),
    }
    return DeliveryRecord(**values)


def _must_scan(query: DeliveryQuery) -> bool:
    """Return True if no index has the deliveries of a query.

    The index of the status has only the deliveries that are not recorded.
    """
    statuses = set(query.status or ())
    return query.command is not None or (Status.RECORDED in statuses and statuses != set(Status))


def _select_sizes(query: DeliveryQuery, start_id: int) -> Select[int, int]:
    """Return the SELECT of ids and body sizes for a page, with one row more than its limit."""
    column = delivery_table.c
    size = func.length(column.body).label("size")
    limit = query.limit + 1
    if not _must_scan(query):
        return _select_in_order(query, start_id, limit, column.id, size)
    # The inner LIMIT bounds the search, and leaves the database no other index to use.
    columns = column.id, size, column.status, SHARED_COLUMNS["command"].label("command")
    scanned = _select_in_order(query, start_id, MAX_SCANNED_DELIVERIES, *columns).subquery()
    matching = select(scanned.c.id, scanned.c.size)
    if query.command is not None:
        matching = matching.where(scanned.c.command.in_(query.command))
    if query.status is not None:
        matching = matching.where(scanned.c.status.in_(set(query.status)))
    return matching.order_by(_order_by(query, scanned.c.id)).limit(limit)


def _select_last_scanned(query: DeliveryQuery, start_id: int) -> Select[int]:
    """Return the SELECT of the last id that a page scans, if there are more."""
    scanned = _select_in_order(query, start_id, MAX_SCANNED_DELIVERIES, delivery_table.c.id)
    return scanned.limit(1).offset(MAX_SCANNED_DELIVERIES - 1)


def _select_in_order(query: DeliveryQuery, start_id: int, limit: int, *columns: Any) -> Select[Any]:
    """Return the SELECT of the next deliveries, without the conditions that no index answers.

    Each rare status is a separate range, because an index lists the ids of one status in order.
    """
    column = delivery_table.c
    conditions = [column.id < start_id if query.is_descending else column.id > start_id]
    if query.since is not None:
        conditions.append(column.id >= id_at(query.since))
    if query.until is not None:
        conditions.append(column.id < id_at(query.until))
    page = select(*columns).select_from(
        DELIVERIES_WITH_SOURCES if _must_scan(query) else delivery_table
    )
    page = page.where(*conditions).order_by(_order_by(query, column.id)).limit(limit)
    if query.status is None or Status.RECORDED in query.status:
        return page
    parts = [
        page.where(column.status == status, IS_NOT_RECORDED).subquery()
        for status in sorted(set(query.status))
    ]
    if not parts:
        return page.where(false())
    rows = union_all(*(select(part) for part in parts)).subquery()
    return select(rows).order_by(_order_by(query, rows.c.id)).limit(limit)


def _order_by(query: DeliveryQuery, column: Any) -> Any:
    return column.desc() if query.is_descending else column.asc()


def _cut_to_limits(sizes: Iterable[Row[int, int]], limit: int) -> tuple[list[int], bool]:
    """Return the ids that fit into a page, and whether it is the last page."""
    ids: list[int] = []
    total_bytes = 0
    for delivery_id, body_bytes in sizes:
        total_bytes += body_bytes
        if len(ids) == limit or (ids and total_bytes > MAX_BODY_BYTES_PER_PAGE):
            return ids, False
        ids.append(delivery_id)
    return ids, True
