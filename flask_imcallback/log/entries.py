# ruff: noqa: S608 (only column names and whole numbers are put into the SQL text)
"""The entries of the log in the order of their positions, read with bounded memory.

The feed, the seals and the verifier read the log through this module::

    with engine.connect() as connection:
        last = find_last_position(connection)
        for entry in read_entries(connection, after=0, last=last):
            if entry.delivery is not None:
                for removal in entry.removals:  # before the next entry
                    ...
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Connection, func, select

from ..errors import StorageError
from ..removals import Cause, Record, Relation
from ..storage import (
    DELIVERIES_WITH_SOURCES,
    EPOCH,
    MAX_REMOVALS,
    MICROSECOND,
    SHARED_COLUMNS,
    SourceKey,
)
from ..storage import act as act_table
from ..storage import delivery as delivery_table
from ..storage import inbox as inbox_table
from ..storage import log as log_table

BATCH_ENTRIES = 500
"""Number of entries that are read at once, without their packets and removals."""
BATCH_REMOVALS = 2000
"""Number of removals that are read at once."""
BATCH_PACKET_BYTES = 8 * 1024 * 1024
"""Size of the packets that are read at once. A larger packet is read alone."""


class StoredDelivery(NamedTuple):
    """A row of the delivery table with the values of its source."""

    id: int
    provider: str
    app_id: str
    command: str
    platform: str
    status: str
    duplicate_of: int | None
    error: str
    removal_count: int
    remote_addr: str
    authenticated_by: str
    client_ip: str
    request_id: str
    query: str
    headers: str
    """A JSON object."""
    body: bytes
    fingerprint: bytes | None
    nonce: bytes | None
    packet: bytes | None


class StoredAct(NamedTuple):
    """A row of the act table as it is stored, with the names of its columns."""

    id: int
    kind: str
    actor: str
    affected: int
    detail: str
    nonce: bytes | None
    packet: bytes | None


@dataclass(frozen=True, slots=True)
class LogEntry:
    """An entry of the log: a delivery with its removals, or an act.

    Without a delivery and without an act, somebody has deleted the row that the log names.
    """

    position: int
    entry_id: int
    """The id of the delivery, or the negative id of the act."""
    delivery: StoredDelivery | None = None
    removals: Iterable[Record] = ()
    """The removals in the order of the packet. Read them before the next entry, and only once.

    A removal that was deleted is missing here, so there may be fewer than `removal_count`.
    """
    act: StoredAct | None = None


def find_last_position(connection: Connection) -> int:
    """Return the position of the last entry, or 0 if the log is empty."""
    return connection.scalar(select(func.max(log_table.c.position))) or 0


def is_fully_numbered(connection: Connection) -> bool:
    """Return False if a committed entry has no position yet."""
    return connection.scalar(select(inbox_table.c.entry_id).limit(1)) is None


def read_entries(connection: Connection, after: int, last: int) -> Iterator[LogEntry]:
    """Yield the entries of the positions from `after` + 1 to `last`.

    A position whose row in the log was deleted is skipped. The memory has a bound, whatever the
    numbers of entries and removals are. Raises the errors of SQLAlchemy, and `StorageError` if a
    row of the source table is missing.
    """
    records = _Records(connection)
    for rows in _read_log(connection, after, last):
        acts = _read_acts(connection, [-entry_id for _, entry_id in rows if entry_id < 0])
        sizes = _read_packet_sizes(connection, [entry_id for _, entry_id in rows])
        for part in _split_by_size(rows, sizes):
            deliveries = _read_deliveries(connection, [entry_id for _, entry_id in part])
            chunks = groupby(records.read(deliveries.values()), key=itemgetter(0))
            for position, entry_id in part:
                delivery = deliveries.get(entry_id)
                removals: Iterable[Record] = ()
                if delivery is not None and delivery.removal_count > 0:
                    _, parts = next(chunks)
                    removals = chain.from_iterable(map(itemgetter(1), parts))
                yield LogEntry(position, entry_id, delivery, removals, acts.get(-entry_id))


def read_removals(
    connection: Connection, after: int, last: int, at_once: int = BATCH_REMOVALS
) -> Iterator[tuple[int, list[Record]]]:
    """Yield each position with its removals, from `after` + 1 to `last`. Reads no packets.

    A delivery with many removals is yielded in several parts, each with the same position. A
    position without removals has an empty list. The function reads at most `at_once` removals more
    than the caller takes. Raises as `read_entries` does.
    """
    records = _Records(connection, min(at_once, BATCH_REMOVALS))
    for rows in _read_log(connection, after, last, min(at_once, BATCH_ENTRIES)):
        parents = _read_parents(connection, [entry_id for _, entry_id in rows])
        chunks = groupby(records.read(parents.values()), key=itemgetter(0))
        for position, entry_id in rows:
            if entry_id not in parents:
                yield position, []
                continue
            _, parts = next(chunks)
            for _, removals in parts:
                yield position, removals


LogRow = tuple[int, int]
"""A position and the id of its entry."""


def _read_log(
    connection: Connection, after: int, last: int, at_once: int = BATCH_ENTRIES
) -> Iterator[list[LogRow]]:
    """Yield the rows of the log in batches."""
    column = log_table.c
    while after < last:
        query = select(column.position, column.entry_id).where(
            column.position > after, column.position <= last
        )
        rows = connection.execute(query.order_by(column.position).limit(at_once))
        batch = [(position, entry_id) for position, entry_id in rows]
        if not batch:
            return
        yield batch
        after = batch[-1][0]


def _read_acts(connection: Connection, ids: Sequence[int]) -> dict[int, StoredAct]:
    columns = [act_table.c[name] for name in StoredAct._fields]
    rows = connection.execute(select(*columns).where(act_table.c.id.in_(ids))) if ids else ()
    return {row.id: StoredAct(*row) for row in rows}


def _read_deliveries(connection: Connection, ids: Sequence[int]) -> dict[int, StoredDelivery]:
    """Return the deliveries by id, in the order of `ids`."""
    columns = [
        SHARED_COLUMNS[name] if name in SHARED_COLUMNS else delivery_table.c[name]
        for name in StoredDelivery._fields
    ]
    query = select(*columns).select_from(DELIVERIES_WITH_SOURCES)
    rows = connection.execute(query.where(delivery_table.c.id.in_(ids)))
    found = {}
    for row in rows:
        if row.provider is None:
            raise StorageError(f"imcallback_source has no row for the delivery {row.id}")
        found[row.id] = StoredDelivery(*row)
    return {delivery_id: found[delivery_id] for delivery_id in ids if delivery_id in found}


def _read_packet_sizes(connection: Connection, ids: Sequence[int]) -> dict[int, int]:
    column = delivery_table.c
    query = select(column.id, func.length(column.body)).where(column.id.in_(ids))
    return {row[0]: row[1] for row in connection.execute(query)}


def _read_parents(connection: Connection, ids: Sequence[int]) -> dict[int, _Parent]:
    """Return the deliveries that have removals by id, in the order of `ids`."""
    columns = [delivery_table.c[name] for name in _Parent._fields]
    has_removals = delivery_table.c.removal_count > 0
    rows = connection.execute(select(*columns).where(delivery_table.c.id.in_(ids), has_removals))
    found = {row.id: _Parent(*row) for row in rows}
    return {delivery_id: found[delivery_id] for delivery_id in ids if delivery_id in found}


def _split_by_size(rows: Sequence[LogRow], sizes: Mapping[int, int]) -> Iterator[list[LogRow]]:
    """Yield the rows in parts whose packets fit into the memory."""
    part: list[LogRow] = []
    total_bytes = 0
    for position, entry_id in rows:
        size = sizes.get(entry_id, 0)
        if part and total_bytes + size > BATCH_PACKET_BYTES:
            yield part
            part, total_bytes = [], 0
        part.append((position, entry_id))
        total_bytes += size
    if part:
        yield part


T = TypeVar("T", Relation, Cause)
REMOVAL_COLUMNS = ("id", "source_id", "position", "owner_id", "target_id", "actor_id")
SELECT_REMOVALS = f"SELECT {', '.join(REMOVAL_COLUMNS)} FROM imcallback_removal"
SELECT_SOURCES = f"SELECT id, {', '.join(SourceKey._fields)} FROM imcallback_source"


class _Parent(NamedTuple):
    """The values of a delivery that its removals share."""

    id: int
    removal_count: int
    client_ip: str
    request_id: str


Parent = StoredDelivery | _Parent
Span = tuple[Parent, int, int]
"""A delivery, and the first and the last id of some of its removals."""

# tuple.__new__ skips the Python code of NamedTuple.__new__.
make_record = partial(tuple.__new__, Record)


class _Records:
    """A reader of the removals of deliveries, with a cache of the source table."""

    def __init__(self, connection: Connection, at_once: int = BATCH_REMOVALS) -> None:
        self._connection = connection
        self._at_once = at_once
        self._sources: dict[int, tuple[Any, ...]] = {}

    def read(self, parents: Iterable[Parent]) -> Iterator[tuple[int, list[Record]]]:
        """Yield the id of each delivery with its removals, in the order of `parents`.

        A delivery with very many removals is yielded in several parts. A delivery without removals
        is not yielded.
        """
        for spans in _group_spans(parents, self._at_once):
            rows = {row[0]: row for row in self._connection.exec_driver_sql(_select(spans))}
            for parent, first, last in spans:
                found = [rows[key] for key in range(first, last + 1) if key in rows]
                yield parent.id, self._make_records(parent, found)

    def _make_records(self, parent: Parent, rows: Sequence[Any]) -> list[Record]:
        """Return the removals of a delivery as records, joined with their sources."""
        sources = self._sources
        if any(row[1] not in sources for row in rows):
            self._load_sources()
        client_ip, request_id = parent.client_ip, parent.request_id
        try:
            # A comprehension over plain tuples takes half the time of calls with many arguments.
            return [
                make_record(
                    (
                        id,
                        *(source := sources[source_id])[:4],
                        owner_id,
                        target_id,
                        actor_id,
                        source[4],
                        position,
                        id - position,
                        client_ip,
                        source[5],
                        request_id,
                        EPOCH + (id - position) * MICROSECOND,
                    )
                )
                for id, source_id, position, owner_id, target_id, actor_id in rows
            ]
        except KeyError as error:
            raise StorageError(
                f"imcallback_source has no row {error}, but a removal has, for example {rows[0][0]}"
            ) from error

    def _load_sources(self) -> None:
        for source_id, *key in self._connection.exec_driver_sql(SELECT_SOURCES):
            provider, app_id, command, relation, cause, platform = key
            self._sources[source_id] = (
                *(provider, app_id, command, _member(Relation, relation)),
                *(_member(Cause, cause), platform),
            )


def _group_spans(parents: Iterable[Parent], at_once: int) -> Iterator[list[Span]]:
    """Yield the ids of the removals in groups of at most `at_once` ids."""
    group: list[Span] = []
    size = 0
    for parent in parents:
        end = parent.id + min(parent.removal_count, MAX_REMOVALS)
        for first in range(parent.id, end, at_once):
            last = min(first + at_once, end) - 1
            if group and size + last - first + 1 > at_once:
                yield group
                group, size = [], 0
            group.append((parent, first, last))
            size += last - first + 1
    if group:
        yield group


def _select(spans: Sequence[Span]) -> str:
    """Return the SELECT of the removals with these ids."""
    if len(spans) == 1:
        _, first, last = spans[0]
        return f"{SELECT_REMOVALS} WHERE id BETWEEN {first:d} AND {last:d}"
    ids = ", ".join([f"{key:d}" for _, first, last in spans for key in range(first, last + 1)])
    return f"{SELECT_REMOVALS} WHERE id IN ({ids})"


def _member(kind: type[T], text: str) -> T:
    """Return the member of an enum, or the stored text itself if somebody has changed it."""
    return kind(text) if text in list(kind) else text  # type: ignore[return-value]
