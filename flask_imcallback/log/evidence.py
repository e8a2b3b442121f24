"""The evidence of the log, and its verification in the database."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from sqlalchemy import Connection, Engine, Select, and_, func, or_, select

from ..storage import DELIVERIES_WITH_SOURCES, MAX_ID, for_reading, read_protection, storage_errors
from ..storage import act as act_table
from ..storage import delivery as delivery_table
from ..storage import erasure as erasure_table
from ..storage import inbox as inbox_table
from ..storage import log as log_table
from ..storage import removal as removal_table
from ..storage import seal as seal_table
from ..storage import source as source_table
from .lines import Line, read_lines
from .retention import STRIPPED
from .sealer import compute_checkpoint
from .verifier import (
    DELIVERY_ENTRY,
    MARK_BYTES,
    Checkpoint,
    Key,
    Report,
    Seal,
    SecretKey,
    Tree,
    leaf_hash,
    verify,
)

SEALS_AT_ONCE = 100
MAX_ROWS = 20
"""Number of rows that a problem names."""
COPIES = ("provider", "app_id", "command", "platform")
"""Values that a delivery and its removals have from their sources."""


def stream_evidence(
    engine: Engine, origin: str, key: SecretKey | None, *, with_packets: bool = False
) -> Iterator[bytes]:
    """Yield the lines of the evidence. They show one state of the database. Raises `StorageError`.

    The engine may need an app context.
    """
    with _open_snapshot(engine) as connection:
        yield from _read_evidence(connection, origin, key, with_packets=with_packets)


def count_deliveries(line: bytes) -> int:
    """Return 1 for a line of the evidence that has a delivery, and 0 for any other line."""
    return int(line.startswith(DELIVERY_ENTRY))


def verify_database(
    engine: Engine,
    origin: str,
    secret_key: SecretKey | None,
    kept: Iterable[Checkpoint],
    key: Key | None = None,
) -> Report:
    """Check the whole database, and that an app with a key signs its checkpoints with `key`.

    `secret_key` is the key of the app. Raises `NotEvidenceError` and `StorageError`.
    """
    problems: list[str] = []
    report = Report()
    with _open_snapshot(engine) as connection:
        if ids := _find_without_source(connection):
            problems.append(f"the source of these rows is missing: {ids}")
        else:
            lines = _read_evidence(
                connection,
                origin,
                secret_key,
                inspect=lambda line: problems.extend(_check_unsealed(line)),
            )
            # Without a key, the app signs nothing. Then only the kept checkpoints have signatures.
            report = verify(lines, kept, key if secret_key else None)
        problems += _check_nodes(connection)
        problems += _check_sources(connection)
        problems += _check_strays(connection)
        protection = read_protection(connection)
    if protection.open_by:
        problems.append(
            "the tables are open for changes, because imcallback_door has rows: run flask "
            "imcallback protect"
        )
    if protection.missing:
        report.notes.append(
            "the tables are not append-only, because triggers are missing: run flask imcallback "
            f"protect. Missing are {', '.join(protection.missing)}"
        )
    for problem in problems:
        report.add(problem)
    return report


@contextmanager
def _open_snapshot(engine: Engine) -> Iterator[Connection]:
    """Yield a connection that sees one state of the database, whatever others commit."""
    reader = for_reading(engine)
    if engine.dialect.name == "postgresql":
        reader = reader.execution_options(isolation_level="REPEATABLE READ")
    with storage_errors("read the log"), reader.connect() as connection:
        yield connection


def _read_evidence(
    connection: Connection,
    origin: str,
    key: SecretKey | None,
    *,
    with_packets: bool = False,
    inspect: Callable[[Line], None] | None = None,
) -> Iterator[bytes]:
    for row in _read_seals(connection):
        yield f"{row.entry}\t{row.marks.hex()}\n".encode()
        if row.marks:  # the entries of a seal without marks are pruned, or are being pruned
            try:
                seal = Seal.from_json(row.entry)
            except ValueError:
                continue  # the verifier reports this line
            # A changed seal may claim any number of positions.
            after = seal.first - 1
            last = min(seal.last, after + len(row.marks) // MARK_BYTES)
            for line in read_lines(connection, after, last, with_packets=with_packets):
                if inspect:
                    inspect(line)
                yield line.to_bytes()
    note = compute_checkpoint(connection, origin).sign(key)
    yield json.dumps({"checkpoint": note}, ensure_ascii=False).encode() + b"\n"


class _StoredSeal(NamedTuple):
    """A row of a seal."""

    number: int
    last_position: int
    entry: str
    node: bytes
    marks: bytes


def _read_seals(connection: Connection) -> Iterator[_StoredSeal]:
    """Yield the row of each seal, in their order. Values of a wrong type are texts, or empty."""
    column = seal_table.c
    query = select(seal_table).order_by(column.number).limit(SEALS_AT_ONCE)
    after = 0
    while True:
        rows = connection.execute(query.where(column.number > after)).all()
        for row in rows:
            node, marks = [x if isinstance(x, bytes) else b"" for x in (row.node, row.marks)]
            yield _StoredSeal(row.number, row.last_position, str(row.entry), node, marks)
        if len(rows) < SEALS_AT_ONCE:
            return
        after = rows[-1].number


def _check_unsealed(line: Line) -> Iterator[str]:
    """Yield what is wrong with the values of an entry that its sealed line does not hold."""
    if not line.entry:
        return
    act, delivery = line.entry.act, line.entry.delivery
    if act and act.commitment is not None and (act.detail or act.nonce is not None):
        yield (
            f"the act {act.id} (log position {line.position}): somebody has written a detail into "
            "its erased place"
        )
    if not delivery:
        return
    name = f"the delivery {delivery.id} (log position {line.position})"
    if delivery.commitment is not None:
        for column, empty in STRIPPED.items():
            if getattr(delivery, column) != empty:
                yield f"{name}: its packet was taken away, but it has a new {column}"
    if delivery.removal_count != len(line.entry.removals):
        yield f"{name}: it has {len(line.entry.removals)} of {delivery.removal_count} removals"
    for record in line.entry.removals:
        if record.id - record.position != delivery.id:
            yield f"{name}: its removal {record.id} has the position {record.position}"
        for column in COPIES:
            if getattr(record, column) != getattr(delivery, column):
                yield f"{name}: its removal {record.id} has another {column}"


def _find_without_source(connection: Connection) -> str:
    """Return the ids of removals and deliveries whose source is missing."""
    for table in (removal_table, delivery_table):
        query = (
            select(table.c.id)
            .join(source_table, source_table.c.id == table.c.source_id, isouter=True)
            .where(source_table.c.id.is_(None))
        )
        if ids := _ids(connection, query):
            return ids
    return ""


def _check_sources(connection: Connection) -> Iterator[str]:
    """Yield the deliveries whose source does not fit. Their lines do not show it."""
    delivery, source, removal = delivery_table.c, source_table.c, removal_table.c
    names_more = or_(*[source[name] != "" for name in ("command", "relation", "cause", "platform")])
    is_wrong = or_(
        and_(delivery.removal_count > 0, or_(delivery.command != "", delivery.platform != "")),
        and_(delivery.removal_count <= 0, names_more),
        removal.source_id != delivery.source_id,
    )
    first_removal = DELIVERIES_WITH_SOURCES.join(
        removal_table, removal.id == delivery.id, isouter=True
    )
    query = select(delivery.id).select_from(first_removal).where(is_wrong)
    if ids := _ids(connection, query):
        yield f"deliveries whose source does not fit: {ids}"


def _check_nodes(connection: Connection) -> Iterator[str]:
    """Yield the seals whose columns do not fit their entries."""
    if ids := _ids(connection, select(seal_table.c.number).where(seal_table.c.number < 1)):
        yield f"seals that nobody made: {ids}"
    position = log_table.c.position
    first = connection.scalar(select(func.min(position)).where(position > 0))
    tree = Tree()
    for row in _read_seals(connection):
        if tree.append(leaf_hash(row.entry.encode())) != row.node:
            yield f"the node of seal {row.number} was changed"
            return  # all later nodes would differ
        with suppress(ValueError):  # the verifier reports this entry
            seal = Seal.from_json(row.entry)
            if seal.last != row.last_position:
                yield f"the last position of seal {row.number} was changed"
            is_pruned = not row.marks and first is not None and first <= seal.last <= MAX_ID
            if is_pruned and (ids := _ids(connection, _select_positions(seal))):
                yield (
                    f"seal {row.number} is pruned, but these log positions are still there: {ids}. "
                    "If flask imcallback prune was interrupted, run it again. If not, somebody has "
                    "inserted them"
                )


def _check_strays(connection: Connection) -> Iterator[str]:
    """Yield the rows that no log position leads to."""
    removal, delivery, log = removal_table.c, delivery_table.c, log_table.c
    if ids := _ids(connection, select(log.position).where(log.position < 1)):
        yield f"log positions that nobody gave out: {ids}"
    numbered = select(log.entry_id).join(inbox_table, inbox_table.c.entry_id == log.entry_id)
    if ids := _ids(connection, numbered):
        yield f"entries that have a log position, but also wait for one: {ids}"
    for kind, table, entry_id in (
        ("deliveries", delivery_table, delivery.id),
        ("acts", act_table, -act_table.c.id),
    ):
        query = (
            select(table.c.id)
            .join(log_table, log.entry_id == entry_id, isouter=True)
            .join(inbox_table, inbox_table.c.entry_id == entry_id, isouter=True)
            .where(log.entry_id.is_(None), inbox_table.c.entry_id.is_(None))
        )
        if ids := _ids(connection, query):
            yield f"{kind} that are not in the log: {ids}"
    is_outside = or_(
        delivery.id.is_(None),
        removal.position < 0,
        removal.position >= delivery.removal_count,
    )
    query = (
        select(removal.id)
        .join(delivery_table, delivery.id == removal.id - removal.position, isouter=True)
        .where(is_outside)
    )
    if ids := _ids(connection, query):
        yield f"removals that belong to no delivery: {ids}"
    of = erasure_table.c.delivery_id
    erased = select(of).join(delivery_table, delivery.id == of, isouter=True)
    if ids := _ids(
        connection, erased.where(or_(delivery.id.is_(None), delivery.nonce.is_not(None)))
    ):
        yield f"erasures that belong to no erased delivery: {ids}"


def _select_positions(seal: Seal) -> Select[tuple[int]]:
    position = log_table.c.position
    return select(position).where(position.between(max(seal.first, 1), seal.last))


def _ids(connection: Connection, query: Select[tuple[int]]) -> str:
    ids = [str(row[0]) for row in connection.execute(query.limit(MAX_ROWS + 1))]
    return ", ".join(ids[:MAX_ROWS]) + (" and more" if len(ids) > MAX_ROWS else "")
