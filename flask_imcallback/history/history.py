"""Stored removals and deliveries: a query in, a page, a stream or counts out."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from math import gcd
from typing import Any

from itsdangerous import BadSignature, URLSafeSerializer
from sqlalchemy import Connection, Engine, RowMapping, func, select
from sqlalchemy.exc import SQLAlchemyError

from ..errors import HistoryQueryError, StorageError, TooWideError
from ..removals import Record, Relation
from ..storage import EPOCH, MAX_ID, MAX_REMOVALS, MICROSECOND, id_at, moment_of
from ..storage import delivery as delivery_table
from ..storage import removal as removal_table
from ..storage import source as source_table
from .buckets import starts_between
from .counts import MAX_COUNTS, RemovalCount, _groups
from .cursors import VERSION, _fit, _packed, _Place
from .plans import Search
from .queries import GROUPS, DeliveryQuery, HistoryQuery, StatsQuery
from .statements import Finder, Found

CHUNK = 2000
"""Removals of a stream that are read at once."""
MAX_BODIES = 4 * 1024 * 1024
"""Bytes of packets in a page of deliveries, or one packet."""
UNSETTLED = timedelta(seconds=5)
"""What a transaction may take, and clocks may differ, beyond the deadline."""
SOURCE = ", ".join(column.name for column in source_table.c)
START = EPOCH.replace(tzinfo=None)
Values = tuple[Any, ...]
"""A removal: the fields of `Record` in their order, but `received_at` is text."""


@dataclass(frozen=True, slots=True)
class Page:
    """A part of the history."""

    data: list[Record]
    next_cursor: str | None
    """Where the next part starts; None if this is the last."""
    resume_cursor: str | None = None
    """In ascending order, on the last page: what to ask with later for what came since."""


@dataclass(frozen=True, slots=True)
class ValuesPage:
    """As a `Page`, for whoever needs no records."""

    data: list[Values]
    next_cursor: str | None
    resume_cursor: str | None
    is_early: bool = False
    """Whether there is more, but the cursor holds no more of it until it is settled."""


class History:
    """The removals and deliveries in the database of one app."""

    def __init__(
        self, engine: Callable[[], Engine], secret_keys: Sequence[str], deadline: float
    ) -> None:
        self._engine = engine
        # Without a secret key the signature only guards against mistakes, and no secret is in it.
        self._cursors = URLSafeSerializer(secret_keys or "", salt="flask-imcallback-cursor")
        self._unsettled = UNSETTLED + timedelta(seconds=deadline)

    def find(self, **filters: Any) -> Page:
        """The removals that meet all filters, which are those of the HTTP address.

        Each is one value or a sequence of alternatives: `provider`, `app_id`, `command`,
        `relation`, `owner_id`, `target_id`, `account_id` (either side), `peer_id` (the other
        side), `platform`, `client_ip`, `request_id` (all str), `delivery_id` (int). Further
        `since` (inclusive) and `until` (exclusive), aware datetimes; `order`, "desc" (newest
        first) or "asc"; `limit`, 1 to 1000; `cursor`, the `next_cursor` of the page before.

        Raises `HistoryQueryError` for a filter that is unknown or malformed, `StorageError` if
        the database does not answer.
        """
        return self.page(HistoryQuery.from_filters(**filters))

    def page(self, query: HistoryQuery) -> Page:
        """Answer a query; raises as `find` does."""
        page = self.values_page(query)
        return Page([_record(values) for values in page.data], page.next_cursor, page.resume_cursor)

    def values_page(self, query: HistoryQuery) -> ValuesPage:
        """As `page`, without making records."""
        is_desc, limit = query.order == "desc", query.limit
        place = self._place(query)
        now = datetime.now(UTC)
        with self._reading() as connection:
            search = _resolve(connection, query)
            settled = id_at(now - self._unsettled)
            find = _find_desc if is_desc else partial(_find_asc, settled=settled)
            found = find(connection, search, place, limit + 1) if search else Found([])
            rows, end = found.rows[:limit], found.end
            is_last = len(found.rows) <= limit and end is None
            if not is_desc:
                rows, is_last, place = _fit(
                    place, settled, id_at(now), rows=rows, is_last=is_last, end=end
                )
            elif not is_last:
                place = _Place(rows[-1].id if end is None else end)
            data = _values(connection, rows)
        cursor = str(self._cursors.dumps(_packed(place, query.digest)))
        if not is_last:
            return ValuesPage(data, cursor, None, is_early=bool(found.rows) and not data)
        return ValuesPage(data, None, None if is_desc else cursor)

    def stream(self, query: HistoryQuery) -> Iterator[list[Values]]:
        """All that meets the filters, in order, whatever the limit; in parts of bounded size.

        What is received after the begin is not in it. Each part is read by itself, so that no
        transaction is open while they are taken, which needs an app context each time. Raises as
        `find` does; what is wrong with the filters at once.
        """
        is_desc = query.order == "desc"
        with self._reading() as connection:
            search = _resolve(connection, query)
        now = id_at(datetime.now(UTC)) + MAX_REMOVALS
        return self._stream(search and replace(search, high=min(search.high, now)), is_desc)

    def _stream(self, search: Search | None, is_desc: bool) -> Iterator[list[Values]]:
        while search is not None:
            with self._reading() as connection:
                found = Finder(connection).find(search, is_desc=is_desc, limit=CHUNK)
                data = _values(connection, found.rows)
                if connection.dialect.name == "sqlite":
                    # The pages of the file that it keeps will not be read again.
                    connection.exec_driver_sql("PRAGMA shrink_memory")
            if data:
                yield data
            last: int | None = data[-1][0] if len(data) == CHUNK else found.end
            if last is None:
                return
            search = replace(search, high=last) if is_desc else replace(search, low=last)

    def stats(self, query: HistoryQuery, stats: StatsQuery) -> list[RemovalCount]:
        """How many removals meet the filters, by bucket and group, in their order.

        From `since`, or else the first removal that is counted, to `until`, or else now; also where
        there are none. Raises `TooWideError` if that were too many counts, else as `find` does.
        """
        until = min(query.until or datetime.now(UTC), moment_of(MAX_ID))
        query = replace(query, until=until)
        with self._reading() as connection:
            search = _resolve(connection, query) or Search(delivery_id=())
            since = query.since
            if since is None:
                first = Finder(connection).first(search)
                since = moment_of(first.delivery_id) if first else until
            since = max(since, moment_of(0))
            starts = starts_between(since, until, stats.bucket, stats.zone, MAX_COUNTS)
            # All begin at a multiple of the width, so that what is counted together is in one.
            width = gcd(*map(id_at, starts)) if len(starts) > 1 else MAX_ID
            by_source = stats.group_by is not None
            found = Finder(connection).count(search, width, by_source=by_source)
            groups = _groups(connection, stats.group_by)
        counts: dict[str | None, dict[datetime, int]] = defaultdict(lambda: defaultdict(int))
        for number, source_id, count in found:
            start = starts[max(0, bisect_right(starts, moment_of(number * width)) - 1)]
            counts[groups[source_id]][start] += count
        if stats.group_by is None and not counts:
            counts[None] = defaultdict(int)
        if len(starts) * len(counts) > MAX_COUNTS:
            problem = f"makes more than {MAX_COUNTS} counts with these buckets"
            raise TooWideError("group_by", problem)
        names = sorted(counts, key=lambda name: name or "")
        return [
            RemovalCount(start.astimezone(stats.zone), name, counts[name][start])
            for start in starts
            for name in names
        ]

    def get(self, removal_id: int) -> tuple[Record, RowMapping] | None:
        """One removal and its delivery, or None. Raises `StorageError`."""
        if not 0 <= removal_id < MAX_ID:
            return None
        with self._reading() as connection:
            one = Search(low=removal_id - 1, high=removal_id + 1)
            rows = Finder(connection).find(one, is_desc=True, limit=1).rows
            if not rows:
                return None
            its = select(delivery_table).where(delivery_table.c.id == rows[0].delivery_id)
            delivery = connection.execute(its).mappings().one_or_none()
            if delivery is None:
                raise StorageError("the removal's delivery is not in the database")
            return _record(_values(connection, rows)[0]), delivery

    def get_delivery(self, delivery_id: int) -> tuple[RowMapping, list[Record]] | None:
        """One delivery and its removals, or None. Raises `StorageError`."""
        if not 0 <= delivery_id < MAX_ID:
            return None
        one = select(delivery_table).where(delivery_table.c.id == delivery_id)
        with self._reading() as connection:
            delivery = connection.execute(one).mappings().one_or_none()
            if delivery is None:
                return None
            count = delivery["removal_count"]
            search = Search(low=delivery_id - 1, high=delivery_id + count)
            rows = Finder(connection).find(search, is_desc=False, limit=count).rows
            return delivery, [_record(values) for values in _values(connection, rows)]

    def deliveries(self, query: DeliveryQuery) -> tuple[list[RowMapping], str | None]:
        """A page of deliveries, also those without removals, and the cursor of the next page.

        It ends before the limit where packets are large. Raises as `find` does.
        """
        column, is_desc = delivery_table.c, query.order == "desc"
        place = self._place(query)
        conditions = [column.id < place.id if is_desc else column.id > place.id]
        if query.status is not None:
            conditions.append(column.status.in_(set(query.status)))
        if query.since is not None:
            conditions.append(column.id >= id_at(query.since))
        if query.until is not None:
            conditions.append(column.id < id_at(query.until))
        order = column.id.desc() if is_desc else column.id.asc()
        sizes = select(column.id, func.length(column.body)).where(*conditions).order_by(order)
        with self._reading() as connection:
            taken: list[int] = []
            size, is_last = 0, True
            for delivery_id, bytes_of_body in connection.execute(sizes.limit(query.limit + 1)):
                size += bytes_of_body
                if len(taken) == query.limit or (taken and size > MAX_BODIES):
                    is_last = False
                    break
                taken.append(delivery_id)
            those = select(delivery_table).where(column.id.in_(taken)).order_by(order)
            data = list(connection.execute(those).mappings())
        if is_last:
            return data, None
        return data, str(self._cursors.dumps(_packed(_Place(taken[-1]), query.digest)))

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        try:
            with self._engine().connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise StorageError from error

    def _place(self, query: HistoryQuery | DeliveryQuery) -> _Place:
        """Where the cursor says that the page begins."""
        if query.cursor is None:
            return _Place(MAX_ID if query.order == "desc" else -1)
        try:
            version, *parts = self._cursors.loads(query.cursor)
        except (BadSignature, ValueError, TypeError) as error:
            problem = "was altered, is cut off, or is not one of this history"
            raise HistoryQueryError("cursor", problem) from error
        if version != VERSION:
            raise HistoryQueryError("cursor", "is outdated: begin again without it")
        digest, place, runs = parts
        if digest != query.digest:
            raise HistoryQueryError("cursor", "belongs to other filters or another order")
        ends = [place]
        for step in runs:
            ends.append(ends[-1] + step)
        return _Place(place, tuple(zip(ends[1::2], ends[2::2], strict=True)))


def _resolve(connection: Connection, query: HistoryQuery) -> Search | None:
    """The query in terms of ids and sources; None if nothing can meet it."""
    found: dict[str, Any] = {n: tuple(dict.fromkeys(values)) for n, values in query.texts.items()}
    if not all(found.values()):
        return None
    asked = [source_table.c[name].in_(found.pop(name)) for name in GROUPS if name in found]
    if asked:
        found["source_id"] = tuple(connection.scalars(select(source_table.c.id).where(*asked)))
    if query.delivery_id is not None:
        column = delivery_table.c
        its = select(column.id, column.removal_count).where(column.id.in_(query.delivery_id))
        rows = [(first, count) for first, count in connection.execute(its) if count]
        found["delivery_id"] = tuple(first for first, _ in rows)
        found["spans"] = tuple((first, first + count - 1) for first, count in rows)
    if not all(found.values()):
        return None
    if query.since is not None:
        found["low"] = _first_id(connection, query.since) - 1
    if query.until is not None:
        found["high"] = _first_id(connection, query.until)
    return Search(**found)


def _first_id(connection: Connection, moment: datetime) -> int:
    """The least id that removals have which were received at that moment, or later.

    A delivery of before may have ids that are later moments.
    """
    first, column = id_at(moment), removal_table.c
    later = select(column.delivery_id).where(column.id >= first).order_by(column.id).limit(1)
    before = connection.scalar(later)
    if before is None or before >= first:
        return first
    its = column.id.between(first, before + MAX_REMOVALS), column.delivery_id == before
    return 1 + (connection.scalar(select(func.max(column.id)).where(*its)) or first)


def _find_desc(connection: Connection, search: Search, place: _Place, limit: int) -> Found:
    """Rows from that place on."""
    search = replace(search, high=min(search.high, place.id))
    return Finder(connection).find(search, is_desc=True, limit=limit)


def _find_asc(
    connection: Connection, search: Search, place: _Place, limit: int, *, settled: int
) -> Found:
    """Rows from that place on, without those that were shown.

    What is not settled yet is read to its end: a page that ends in it leads back to its begin.
    """
    finder = Finder(connection)
    rows: list[Any] = []
    low = max(search.low, place.id)
    at_once = max(limit, CHUNK) if place.shown else limit
    while len(rows) < limit:
        more = finder.find(replace(search, low=low), is_desc=False, limit=at_once)
        rows += [row for row in more.rows if not place.has(row.id)]
        if len(more.rows) == at_once:
            low = more.rows[-1].id
        elif more.end is not None and more.end > settled:
            low = more.end
        else:
            return Found(rows[:limit], more.end if len(rows) < limit else None)
    return Found(rows[:limit])


def _values(connection: Connection, rows: Sequence[Any]) -> list[Values]:
    """The rows with what they share with others."""
    if not rows:
        return []
    ids = ", ".join({str(row[2]) for row in rows})
    asked = f"SELECT {SOURCE} FROM imcallback_source WHERE id IN ({ids})"  # noqa: S608
    shared = {source[0]: source[1:] for source in connection.exec_driver_sql(asked)}
    data = []
    try:
        for id, delivery_id, source_id, owner_id, target_id, client_ip, request_id in rows:
            provider, app_id, command, relation, platform = shared[source_id]
            data.append(
                (
                    *(id, provider, app_id, command, relation, owner_id, target_id),
                    *(id - delivery_id, delivery_id, client_ip, platform, request_id),
                    f"{(START + delivery_id * MICROSECOND).isoformat('T', 'microseconds')}Z",
                )
            )
    except KeyError as error:
        raise StorageError(f"imcallback_source has no row {error}") from error
    return data


def _record(values: Values) -> Record:
    relation, moment = Relation(values[4]), moment_of(values[8])
    return Record(
        id=values[0],
        provider=values[1],
        app_id=values[2],
        command=values[3],
        relation=relation,
        owner_id=values[5],
        target_id=values[6],
        position=values[7],
        delivery_id=values[8],
        client_ip=values[9],
        platform=values[10],
        request_id=values[11],
        received_at=moment,
    )
