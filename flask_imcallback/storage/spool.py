"""The spool: a SQLite file on this machine that holds deliveries for an unavailable database."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    and_,
    create_engine,
    delete,
    event,
    func,
    select,
    update,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.schema import CreateTable

from ..errors import StorageError
from ..removals import Relation, Removal
from .database_errors import describe
from .entries import BYTES_PER_ROW, Entry
from .ids import MAX_REMOVALS
from .inserts import ensure_sources, insert_entries
from .sqlite import file_lock, set_durable_pragmas
from .tables import delivery as delivery_table
from .tables import removal as removal_table
from .tables import source as source_table
from .writer import Writer

CREATE_TABLES = [
    str(CreateTable(table, if_not_exists=True).compile(dialect=sqlite.dialect()))
    for table in (delivery_table, removal_table, source_table)
]
"""The tables of the database, without their indexes."""

PUT_SECONDS = 3
"""Seconds that the spool may take to store a delivery. A late answer is better than no answer."""

MAX_CHUNK_ROWS = 4000
"""Maximum size of the deliveries that are read at once, in rows (`Entry.weight`)."""

REMEDY = "check the disk, the permissions and IMCALLBACK_SPOOL"


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """The content of a spool, in short."""

    count: int
    """Number of deliveries."""
    oldest: datetime | None
    """Time at which the oldest delivery was received, aware and in UTC. None for an empty spool."""


class Spool:
    """A file that keeps deliveries until they are drained. Threads and processes may share it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.engine = create_engine(URL.create("sqlite", database=str(path)))
        event.listen(self.engine, "do_connect", self._create_file)
        event.listen(self.engine, "connect", set_durable_pragmas)
        event.listen(self.engine, "connect", _create_tables)
        self._writer = Writer(lambda: self.engine, retry_until_deadline=False)

    def _create_file(self, *_: object) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch(0o600)  # the file holds packets, so other users may not read it

    def put(self, entry: Entry) -> None:
        """Keep an entry. It is durable when this method returns. Raises `StorageError`."""
        self._writer.write([entry], PUT_SECONDS)
        if entry.error:
            raise self._error("write", entry.error) from entry.error

    def waiting(self) -> Waiting:
        """Return how much waits. Creates no file. Raises `StorageError`."""
        query = select(func.count(), func.min(delivery_table.c.received_at))
        with self._reading() as connection:
            count, oldest = connection.execute(query).one() if connection else (0, None)
        return Waiting(count=count, oldest=oldest)

    def read_oldest(self, after_id: int, limit: int) -> list[SpooledEntry]:
        """Return the oldest entries with an id above `after_id`, at most `limit` entries.

        The entries fit into one transaction. Raises `StorageError`.
        """
        with self._reading() as connection:
            if not connection:
                return []
            ids = _ids_of_chunk(connection, after_id, limit)
            removals = _removals_of(connection, ids)
            rows = (
                select(delivery_table)
                .where(delivery_table.c.id.in_(ids))
                .order_by(delivery_table.c.id)
            )
            return [
                SpooledEntry(self, dict(row), removals[row["id"]])
                for row in connection.execute(rows).mappings()
            ]

    def remove(self, entries: Sequence[SpooledEntry]) -> None:
        """Remove entries that the database has stored. Raises `StorageError`."""
        with self.writing() as connection:
            _delete(connection, [entry.spooled_id for entry in entries])

    @contextmanager
    def _reading(self) -> Iterator[Connection | None]:
        """Yield a connection, or None if the file does not exist. Raises `StorageError`."""
        if not self.path.exists():
            yield None
            return
        try:
            with self.engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise self._error("read", error) from error

    @contextmanager
    def writing(self, *entries: Entry) -> Iterator[Connection]:
        """Yield a connection in a transaction. It may insert `entries`. Raises `StorageError`."""
        try:
            with file_lock(str(self.path)), self.engine.connect() as connection:
                ensure_sources(connection, entries)
                with connection.begin():
                    yield connection
        except SQLAlchemyError as error:
            raise self._error("write", error) from error

    def _error(self, verb: str, cause: Exception) -> StorageError:
        return StorageError(f"cannot {verb} the spool {self.path} ({describe(cause)}): {REMEDY}")


class SpooledEntry(Entry):
    """An entry that stays in a spool until the database has stored it."""

    def __init__(self, spool: Spool, row: dict[str, Any], removals: list[Removal]) -> None:
        super().__init__(row, removals)
        self._spool = spool
        self.spooled_id: int = row["id"]
        """The id under which the spool holds the entry."""

    def mark_duplicate(self, first_id: int) -> None:
        """Turn the entry, and its repetitions in the spool, into repetitions of `first_id`."""
        super().mark_duplicate(first_id)
        with self._spool.writing() as connection:
            self._point_repetitions_to(connection, first_id)

    def assign_id(self, delivery_id: int) -> None:
        """Give the entry another id, and write the id to the spool at once.

        The spool has the new id before the database, so that after a crash another drain recognizes
        the row that was stored.
        """
        super().assign_id(delivery_id)
        with self._spool.writing(self) as connection:
            self._point_repetitions_to(connection, delivery_id)
            _delete(connection, [self.spooled_id])
            insert_entries(connection, [self])
        self.spooled_id = delivery_id

    def _point_repetitions_to(self, connection: Connection, first_id: int) -> None:
        is_repetition = delivery_table.c.duplicate_of == self.spooled_id
        connection.execute(
            update(delivery_table).where(is_repetition).values(duplicate_of=first_id)
        )


def _create_tables(connection: Any, _: object) -> None:
    for statement in CREATE_TABLES:
        connection.execute(statement)


def _ids_of_chunk(connection: Connection, after_id: int, limit: int) -> list[int]:
    """Return the ids of the oldest deliveries that fit into one transaction."""
    column = delivery_table.c
    weight = 1 + column.removal_count + func.length(column.body) / BYTES_PER_ROW
    query = select(column.id, column.duplicate_of, weight).where(column.id > after_id)
    ids: list[int] = []
    total = 0
    for delivery_id, first_id, rows in connection.execute(query.order_by(column.id).limit(limit)):
        if first_id in ids:  # the first delivery may get another id when it is stored
            break
        ids.append(delivery_id)
        total += rows
        if total >= MAX_CHUNK_ROWS:
            break
    return ids


def _removals_of(connection: Connection, ids: Sequence[int]) -> dict[int, list[Removal]]:
    """Return the removals of each delivery, in their order."""
    removals: dict[int, list[Removal]] = {delivery_id: [] for delivery_id in ids}
    query = (
        select(
            removal_table.c.delivery_id,
            source_table.c.relation,
            removal_table.c.owner_id,
            removal_table.c.target_id,
        )
        .where(_belongs_to(ids), removal_table.c.source_id == source_table.c.id)
        .order_by(removal_table.c.id)
    )
    for delivery_id, relation, *accounts in connection.execute(query):
        removals[delivery_id].append(Removal(Relation(relation), *accounts))
    return removals


def _belongs_to(ids: Sequence[int]) -> ColumnElement[bool]:
    """Return the condition for the removals of the deliveries. It uses the primary key."""
    last = max(ids, default=0) + MAX_REMOVALS
    is_near = removal_table.c.id.between(min(ids, default=0), last)
    return and_(is_near, removal_table.c.delivery_id.in_(ids))


def _delete(connection: Connection, ids: Sequence[int]) -> None:
    connection.execute(delete(removal_table).where(_belongs_to(ids)))
    connection.execute(delete(delivery_table).where(delivery_table.c.id.in_(ids)))
