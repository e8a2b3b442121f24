# ruff: noqa: S608 (only column names and whole numbers are put into the SQL text)
"""The entries of the log in the order of their positions, read with bounded memory.

The feed, the seals and the verifier read the log through this module::

    with engine.connect() as connection:
        last = find_last_position(connection)
        for entry in read_entries(connection, after=0, last=last):
            if entry.delivery is not None:
                for removal in entry.removals:
                    ...
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_type_hints

from sqlalchemy import Connection, func, select

from ..errors import StorageError
from ..history import make_records
from ..removals import Record
from ..storage import DELIVERIES_WITH_SOURCES, MAX_ID, MAX_REMOVALS, SHARED_COLUMNS
from ..storage import act as act_table
from ..storage import delivery as delivery_table
from ..storage import inbox as inbox_table
from ..storage import log as log_table
from .batches import BATCH_BYTES, REMOVAL_BYTES, split_by_weight

BATCH_ENTRIES = 500
"""Number of entries that are read at once, without their packets and removals."""
BATCH_REMOVALS = 2000
"""Number of removals that are read at once. A delivery with more removals is read alone."""


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
    commitment: bytes | None


class StoredAct(NamedTuple):
    """A row of the act table as it is stored, with the names of its columns."""

    id: int
    kind: str
    actor: str
    affected: int
    detail: str
    nonce: bytes | None
    commitment: bytes | None


@dataclass(frozen=True, slots=True)
class LogEntry:
    """An entry of the log: a delivery with its removals, or an act.

    Without a delivery and without an act, somebody has deleted the row that the log names, or has
    written a value of a wrong type into it, which SQLite allows.
    """

    position: int
    entry_id: int
    """The id of the delivery, or the negative id of the act."""
    delivery: StoredDelivery | None = None
    removals: Sequence[Record] = ()
    """The removals in the order of the packet.

    A removal that was deleted is missing here, so there may be fewer than `removal_count`.
    """
    act: StoredAct | None = None


DELIVERY_TYPES = tuple(get_type_hints(StoredDelivery).values())
ACT_TYPES = tuple(get_type_hints(StoredAct).values())
REMOVAL_TYPES = (int, int, int, str, str, str)
IDS = range(MAX_ID + 1)


def find_last_position(connection: Connection) -> int:
    """Return the position of the last entry, or 0 if the log is empty."""
    return connection.scalar(select(func.max(log_table.c.position))) or 0


def find_unnumbered(connection: Connection) -> int | None:
    """Return the id of the oldest delivery without a position, or else of the oldest such act.

    Returns None if all entries have a position.
    """
    column = inbox_table.c.entry_id
    oldest: int | None = connection.scalar(select(func.min(column)).where(column > 0))
    if oldest is None:  # the id of an act is negative
        oldest = connection.scalar(select(func.max(column)))
    return oldest


def read_entries(connection: Connection, after: int, last: int) -> Iterator[LogEntry]:
    """Yield the entries of the positions from `after` + 1 to `last`.

    A position whose row in the log was deleted is skipped. The memory has a bound, whatever the
    number of entries is. Raises the errors of SQLAlchemy, and `StorageError` if a row of the source
    table is missing.
    """
    for rows in _read_log(connection, after, last, BATCH_ENTRIES):
        ids = [row.entry_id for row in rows]
        acts = _read_acts(connection, [-entry_id for entry_id in ids if entry_id < 0])
        sizes = _read_sizes(connection, ids)
        weighted = ((row, sizes.get(row.entry_id, 0)) for row in rows)
        for part in split_by_weight(weighted, BATCH_BYTES):
            deliveries = _read_deliveries(connection, [row.entry_id for row in part])
            removals = _read_removals(connection, deliveries)
            for position, entry_id in part:
                delivery, act = deliveries.get(entry_id), acts.get(-entry_id)
                yield LogEntry(position, entry_id, delivery, removals.get(entry_id, ()), act)


def read_removals(
    connection: Connection, after: int, last: int, at_once: int = BATCH_REMOVALS
) -> Iterator[tuple[int, list[Record]]]:
    """Yield each position with its removals, from `after` + 1 to `last`. Reads no packets.

    A position without removals has an empty list. The function reads at most `at_once` removals
    more than the caller takes. Raises as `read_entries` does.
    """
    at_once = min(at_once, BATCH_REMOVALS)
    for rows in _read_log(connection, after, last, min(at_once, BATCH_ENTRIES)):
        parents = _read_parents(connection, [row.entry_id for row in rows])
        counts = {key: parent.removal_count for key, parent in parents.items()}
        weighted = ((row, counts.get(row.entry_id, 0)) for row in rows)
        for part in split_by_weight(weighted, at_once):
            ids = [row.entry_id for row in part if row.entry_id in parents]
            removals = _read_removals(connection, {key: parents[key] for key in ids})
            for position, entry_id in part:
                yield position, removals.get(entry_id, [])


class _LogRow(NamedTuple):
    """A row of the log. Its entry id is 0 if somebody has written something else than a number."""

    position: int
    entry_id: int


def _read_log(
    connection: Connection, after: int, last: int, at_once: int
) -> Iterator[list[_LogRow]]:
    """Yield the rows of the log in batches."""
    column = log_table.c
    while after < last:
        query = select(column.position, column.entry_id).where(
            column.position > after, column.position <= last
        )
        found = connection.execute(query.order_by(column.position).limit(at_once))
        rows = [_LogRow(row[0], row[1] if isinstance(row[1], int) else 0) for row in found]
        if not rows:
            return
        yield rows
        after = rows[-1].position


def _read_acts(connection: Connection, ids: Sequence[int]) -> dict[int, StoredAct]:
    columns = [act_table.c[name] for name in StoredAct._fields]
    rows = connection.execute(select(*columns).where(act_table.c.id.in_(ids))) if ids else ()
    return {row.id: StoredAct(*row) for row in rows if _has_types(row, ACT_TYPES)}


def _read_sizes(connection: Connection, ids: Sequence[int]) -> dict[int, int]:
    """Return how much memory each delivery needs, in bytes."""
    column = delivery_table.c
    query = select(column.id, func.length(column.body), column.removal_count)
    rows = connection.execute(query.where(column.id.in_(ids)))
    sizes = [row for row in rows if _has_types(row, (int, int, int))]
    return {id: size + REMOVAL_BYTES * max(count, 0) for id, size, count in sizes}


def _read_deliveries(connection: Connection, ids: Sequence[int]) -> dict[int, StoredDelivery]:
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
        if _has_types(row, DELIVERY_TYPES):
            found[row.id] = StoredDelivery(*row)
    return found


def _has_types(row: Iterable[object], types: Sequence[Any]) -> bool:
    return all(map(isinstance, row, types))


class _Parent(NamedTuple):
    """The values of a delivery that its removals share."""

    id: int
    removal_count: int
    client_ip: str
    request_id: str


PARENT_TYPES = tuple(get_type_hints(_Parent).values())


def _read_parents(connection: Connection, ids: Sequence[int]) -> dict[int, _Parent]:
    """Return the deliveries that have removals."""
    columns = [delivery_table.c[name] for name in _Parent._fields]
    has_removals = delivery_table.c.removal_count > 0
    rows = connection.execute(select(*columns).where(delivery_table.c.id.in_(ids), has_removals))
    return {row.id: _Parent(*row) for row in rows if _has_types(row, PARENT_TYPES)}


def _read_removals(
    connection: Connection, parents: Mapping[int, StoredDelivery | _Parent]
) -> dict[int, list[Record]]:
    """Return the removals of each delivery, in the order of the packet. `parents` has ids as keys.

    A delivery without removals is missing in the result.
    """
    spans = {
        key: range(key, key + min(parent.removal_count, MAX_REMOVALS))
        for key, parent in parents.items()
        if parent.removal_count > 0
    }
    if not spans:
        return {}
    parent_of = {id: parents[key] for key, span in spans.items() for id in span}
    rows = []
    for row in connection.exec_driver_sql(_select_removals(spans.values())):
        if _has_types(row, REMOVAL_TYPES) and row[0] - row[1] in IDS:
            id, position, *values = row
            parent = parent_of[id]
            rows.append((id, id - position, *values, parent.client_ip, parent.request_id))
    records = {record.id: record for record in make_records(connection, rows)}
    return {key: [records[id] for id in span if id in records] for key, span in spans.items()}


def _select_removals(spans: Collection[range]) -> str:
    """Return the SELECT of the removals with these ids, without the values of their deliveries."""
    if len(spans) == 1:
        (span,) = spans
        condition = f"BETWEEN {span[0]:d} AND {span[-1]:d}"
    else:
        condition = f"IN ({', '.join([f'{id:d}' for span in spans for id in span])})"
    return (
        "SELECT id, position, source_id, owner_id, target_id, actor_id FROM imcallback_removal "
        f"WHERE id {condition}"
    )
