"""The history: pages, streams and counts of the stored removals and deliveries."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import chain
from typing import Any, Unpack

from sqlalchemy import Connection, Engine, Row, Select, false, func, select, union_all
from sqlalchemy.exc import SQLAlchemyError

from ..errors import StorageError
from ..removals import Cause, Record, Relation, Status
from ..storage import EPOCH, MAX_ID, MAX_REMOVALS, MICROSECOND, SourceKey, id_at
from ..storage import delivery as delivery_table
from .counts import count_removals
from .cursors import CursorCodec, Position, fit_page
from .filters import DeliveryFilters, HistoryFilters, RemovalFilters, StreamFilters
from .queries import STATS_FILTERS, STREAM_FILTERS, DeliveryQuery, HistoryQuery, StatsQuery
from .resolve import ResolvedQuery, resolve
from .results import (
    DeliveryDetail,
    DeliveryPage,
    DeliveryRecord,
    Page,
    RemovalCount,
    RemovalDetail,
)
from .statements import Finder, PageSpec, SearchResult

CHUNK_REMOVALS = 2000
"""Number of removals that a stream reads in one step."""
MAX_SCANNED_DELIVERIES = 9000
"""Maximum number of deliveries that a page searches for a command. No index has the commands,
because it would cost each delivery more than this rare search is worth."""
MAX_BODY_BYTES_PER_PAGE = 4 * 1024 * 1024
"""Maximum size of all packets in a page of deliveries. A larger packet has a page of its own."""
COMMIT_MARGIN = timedelta(seconds=5)
"""Time after the deadline in which a transaction may still commit. It includes a difference between
clocks."""
DELIVERY_COLUMNS = [delivery_table.c[field.name] for field in fields(DeliveryRecord)]
SOURCE_COLUMNS = ", ".join(["id", *SourceKey._fields])


class History:
    """The removals and deliveries in the database of one app."""

    def __init__(
        self,
        engine: Callable[[], Engine],
        secret_keys: Sequence[str],
        deadline: float,
        random_key: str = "",
    ) -> None:
        self._engine = engine
        self._cursors = CursorCodec(secret_keys, random_key)
        self._commit_time = COMMIT_MARGIN + timedelta(seconds=deadline)

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
        return self.read_counts(HistoryQuery.from_filters(filters, allowed=STATS_FILTERS), stats)

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
            (removal,) = _make_records(connection, rows)
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
            return DeliveryDetail(delivery, _make_records(connection, rows))

    # The methods below take checked queries, for the web pages and the command line.

    def read_page(self, query: HistoryQuery) -> Page:
        """Return the page of a query. Raises `StorageError`.

        Raises `HistoryQueryError` if the cursor is wrong.
        """
        start = self._find_start(query)
        with self._connect() as connection:
            resolved = resolve(connection, query)
            if query.is_descending:
                return self._descending_page(connection, query, resolved, start)
            return self._ascending_page(connection, query, resolved, start)

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
        start = self._find_start(query)
        with self._connect() as connection:
            sizes = connection.execute(_select_sizes(query, start))
            ids, is_last = _cut_to_limits(sizes, query.limit)
            end = None if is_last else ids[-1]
            if is_last and query.command is not None:
                end = connection.scalar(_select_last_scanned(query, start))
            chosen = select(*DELIVERY_COLUMNS).where(column.id.in_(ids))
            rows = connection.execute(chosen.order_by(_order_by(query, column.id)))
            data = [_make_delivery_record(row) for row in rows]
        if end is None:
            return DeliveryPage(data, None)
        return DeliveryPage(data, self._cursors.encode(Position(end), query.digest))

    @contextmanager
    def _connect(self) -> Iterator[Connection]:
        try:
            with self._engine().connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise StorageError from error

    def _find_start(self, query: HistoryQuery | DeliveryQuery) -> Position:
        """Return the position at which the page of a query starts."""
        if query.cursor is None:
            return Position(MAX_ID if query.is_descending else -1)
        return self._cursors.decode(query.cursor, query.digest)

    def _descending_page(
        self, connection: Connection, query: HistoryQuery, resolved: ResolvedQuery, start: Position
    ) -> Page:
        resolved = replace(resolved, below_id=min(resolved.below_id, start.high_water_mark))
        page = PageSpec(is_descending=True, limit=query.limit + 1)
        found = Finder(connection).find(resolved, page)
        rows = found.rows[: query.limit]
        data = _make_records(connection, rows)
        if found.stopped_at is None and len(found.rows) <= query.limit:
            return Page(data, None)
        end = rows[-1].id if found.stopped_at is None else found.stopped_at
        return Page(data, self._cursors.encode(Position(end), query.digest))

    def _ascending_page(
        self, connection: Connection, query: HistoryQuery, resolved: ResolvedQuery, start: Position
    ) -> Page:
        now = datetime.now(UTC)
        last_final_id = id_at(now - self._commit_time)
        found = _find_new_rows(connection, resolved, start, query.limit + 1, last_final_id)
        ids = [row.id for row in found.rows[: query.limit]]
        fitted = fit_page(
            start,
            ids,
            is_last=found.stopped_at is None and len(found.rows) <= query.limit,
            last_read_id=found.stopped_at if found.stopped_at is not None else max(ids, default=0),
            last_final_id=last_final_id,
            now_id=id_at(now),
        )
        data = _make_records(connection, found.rows[: fitted.count])
        cursor = self._cursors.encode(fitted.position, query.digest)
        if fitted.is_last:
            return Page(data, None, resume_cursor=cursor)
        return Page(data, cursor, is_incomplete=bool(found.rows) and not data)

    def _iterate_chunks(self, query: ResolvedQuery, page: PageSpec) -> Iterator[list[Record]]:
        while True:
            with self._connect() as connection:
                found = Finder(connection).find(query, page)
                data = _make_records(connection, found.rows)
                if connection.dialect.name == "sqlite":
                    # Free the cache, because a stream reads each database page only once.
                    connection.exec_driver_sql("PRAGMA shrink_memory")
            if data:
                yield data
            last_id = data[-1].id if len(data) == page.limit else found.stopped_at
            if last_id is None:
                return
            if page.is_descending:
                query = replace(query, below_id=last_id)
            else:
                query = replace(query, above_id=last_id)


def _find_new_rows(
    connection: Connection,
    query: ResolvedQuery,
    start: Position,
    limit: int,
    last_final_id: int,
) -> SearchResult:
    """Return rows in ascending order from a position on, without rows that were returned before.

    The search does not stop among ids above `last_final_id`. A cursor cannot hold such a position:
    the next page would start at `last_final_id` again.
    """
    finder = Finder(connection)
    rows: list[Any] = []
    above_id = max(query.above_id, start.high_water_mark)
    # Rows that were returned before are skipped in large parts, even if the pages are short.
    rows_at_once = max(limit, CHUNK_REMOVALS) if start.already_returned else limit
    page = PageSpec(is_descending=False, limit=rows_at_once)
    while len(rows) < limit:
        found = finder.find(replace(query, above_id=above_id), page)
        rows += [row for row in found.rows if not start.has_returned(row.id)]
        if len(found.rows) == page.limit:
            above_id = found.rows[-1].id
        elif found.stopped_at is not None and found.stopped_at > last_final_id:
            above_id = found.stopped_at
        else:
            return SearchResult(rows[:limit], found.stopped_at if len(rows) < limit else None)
    return SearchResult(rows[:limit])


# tuple.__new__ skips the Python code of NamedTuple.__new__.
make_record = partial(tuple.__new__, Record)


def _make_records(connection: Connection, rows: Sequence[Any]) -> list[Record]:
    """Return the rows as records, joined with their sources."""
    if not rows:
        return []
    ids = ", ".join({str(row.source_id) for row in rows})
    sql = f"SELECT {SOURCE_COLUMNS} FROM imcallback_source WHERE id IN ({ids})"  # noqa: S608
    shared, causes, platforms = {}, {}, {}
    for source_id, *key in connection.exec_driver_sql(sql):
        provider, app_id, command, relation, cause, platform = key
        shared[source_id] = provider, app_id, command, Relation(relation)
        causes[source_id], platforms[source_id] = Cause(cause), platform
    try:
        # A comprehension over plain tuples takes half the time of calls with fifteen arguments.
        return [
            make_record(
                (
                    id,
                    *shared[source_id],
                    owner_id,
                    target_id,
                    actor_id,
                    causes[source_id],
                    id - delivery_id,
                    delivery_id,
                    client_ip,
                    platforms[source_id],
                    request_id,
                    EPOCH + delivery_id * MICROSECOND,
                )
            )
            for (
                id,
                delivery_id,
                source_id,
                owner_id,
                target_id,
                actor_id,
                client_ip,
                request_id,
            ) in rows
        ]
    except KeyError as error:
        raise StorageError(f"imcallback_source has no row {error}, but a removal has") from error


def _read_delivery(connection: Connection, delivery_id: int) -> DeliveryRecord | None:
    query = select(*DELIVERY_COLUMNS).where(delivery_table.c.id == delivery_id)
    row = connection.execute(query).one_or_none()
    return _make_delivery_record(row) if row else None


def _make_delivery_record(row: Row[Any]) -> DeliveryRecord:
    values = dict(row._mapping)
    values |= {
        "status": Status(row.status),
        "headers": json.loads(row.headers),
        "body": bytes(row.body),
    }
    return DeliveryRecord(**values)


def _select_sizes(query: DeliveryQuery, start: Position) -> Select[int, int]:
    """Return the SELECT of ids and body sizes for a page, with one row more than its limit."""
    column = delivery_table.c
    size = func.length(column.body).label("size")
    limit = query.limit + 1
    if query.command is None:
        return _select_in_order(query, start, limit, column.id, size)
    # The inner LIMIT bounds the search, and leaves the database no other index to use.
    scanned = _select_in_order(
        query, start, MAX_SCANNED_DELIVERIES, column.id, size, column.command
    ).subquery()
    matching = select(scanned.c.id, scanned.c.size).where(scanned.c.command.in_(query.command))
    return matching.order_by(_order_by(query, scanned.c.id)).limit(limit)


def _select_last_scanned(query: DeliveryQuery, start: Position) -> Select[int]:
    """Return the SELECT of the last id that a page searches for a command, if there are more."""
    scanned = _select_in_order(query, start, MAX_SCANNED_DELIVERIES, delivery_table.c.id)
    return scanned.limit(1).offset(MAX_SCANNED_DELIVERIES - 1)


def _select_in_order(
    query: DeliveryQuery, start: Position, limit: int, *columns: Any
) -> Select[Any]:
    """Return the SELECT of the next deliveries of a query, without its condition on commands.

    Each status is a separate range, because an index lists the ids of one status in order.
    """
    column = delivery_table.c
    mark = start.high_water_mark
    conditions = [column.id < mark if query.is_descending else column.id > mark]
    if query.since is not None:
        conditions.append(column.id >= id_at(query.since))
    if query.until is not None:
        conditions.append(column.id < id_at(query.until))
    page = select(*columns).where(*conditions).order_by(_order_by(query, column.id)).limit(limit)
    statuses = set(Status if query.status is None else query.status)
    if statuses == set(Status):
        return page
    parts = [page.where(column.status == status).subquery() for status in sorted(statuses)]
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
