"""Where deliveries wait that the database does not take: a SQLite file of this machine."""

from __future__ import annotations

import logging
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
from .entries import BYTES_A_ROW, Entry
from .ids import MAX_REMOVALS
from .inserts import insert, learn_sources
from .sqlite import set_durable_pragmas, turn
from .tables import delivery as delivery_table
from .tables import removal as removal_table
from .tables import source as source_table
from .writer import Writer

logger = logging.getLogger("flask_imcallback")

MAKE_TABLES = [
    str(CreateTable(table, if_not_exists=True).compile(dialect=sqlite.dialect()))
    for table in (delivery_table, removal_table, source_table)
]
SINCE_SOURCES = [
    "ALTER TABLE imcallback_removal RENAME TO imcallback_removal_before",
    *MAKE_TABLES,
    "INSERT INTO imcallback_source (provider, app_id, command, relation, platform) SELECT DISTINCT "
    "provider, app_id, command, relation, platform FROM imcallback_removal_before",
    "INSERT INTO imcallback_removal "
    "SELECT b.id, delivery_id, s.id, owner_id, target_id, client_ip, request_id "
    "FROM imcallback_removal_before b JOIN imcallback_source s "
    "USING (provider, app_id, command, relation, platform)",
    "DROP TABLE imcallback_removal_before",
]
"""Brings a spool to what migration 0004 made of the tables; here they have no indexes."""
PUT_SECONDS = 3
"""What the spool may take for a callback: a late answer is better than none."""
MAX_CHUNK_WEIGHT = 4000


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """What a spool holds."""

    count: int
    """Deliveries."""
    oldest: datetime | None
    """When the oldest of them was received; aware, UTC."""


class Spool:
    """Keeps deliveries in a file until they are drained. Threads and processes may share it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.engine = create_engine(URL.create("sqlite", database=str(path)))
        event.listen(self.engine, "do_connect", self._make_file)
        event.listen(self.engine, "connect", set_durable_pragmas)
        event.listen(self.engine, "connect", _make_tables)
        self._writer = Writer(lambda: self.engine, patient=False)

    def _make_file(self, *_: object) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch(0o600)  # packets are in it

    def put(self, entry: Entry) -> None:
        """Keep an entry; it is durable when this returns. Raises `StorageError`."""
        self._writer.write([entry], PUT_SECONDS)
        if entry.error:
            raise StorageError from entry.error

    def waiting(self) -> Waiting:
        """How much waits; makes no file. Raises `StorageError`."""
        asked = select(func.count(), func.min(delivery_table.c.received_at))
        with self._reading() as connection:
            count, oldest = connection.execute(asked).one() if connection else (0, None)
        return Waiting(count=count, oldest=oldest)

    def oldest(self, after: int, most: int) -> list[SpooledEntry]:
        """The first of those with an id above `after`, as many as fit a transaction."""
        column = delivery_table.c
        weight = 1 + column.removal_count + func.length(column.body) / BYTES_A_ROW
        waiting = select(column.id, column.duplicate_of, weight).where(column.id > after)
        with self._reading() as connection:
            if not connection:
                return []
            ids, total = [], 0
            for delivery_id, first, size in connection.execute(
                waiting.order_by(column.id).limit(most)
            ):
                if first in ids:  # which may get another id when it is stored
                    break
                ids.append(delivery_id)
                total += size
                if total >= MAX_CHUNK_WEIGHT:
                    break
            rows = select(delivery_table).where(column.id.in_(ids)).order_by(column.id)
            removals: dict[int, list[Removal]] = {delivery_id: [] for delivery_id in ids}
            pair = source_table.c.relation, removal_table.c.owner_id, removal_table.c.target_id
            of_source = removal_table.c.source_id == source_table.c.id
            pairs = select(removal_table.c.delivery_id, *pair).where(_of(ids), of_source)
            for of, relation, *accounts in connection.execute(pairs.order_by(removal_table.c.id)):
                removals[of].append(Removal(Relation(relation), *accounts))
            return [
                SpooledEntry(self, dict(row), removals[row["id"]])
                for row in connection.execute(rows).mappings()
            ]

    def remove(self, entries: Sequence[SpooledEntry]) -> None:
        """Forget entries that are stored elsewhere. Raises `StorageError`."""
        with self.writing() as connection:
            _forget(connection, [entry.spooled_as for entry in entries])

    @contextmanager
    def _reading(self) -> Iterator[Connection | None]:
        """None if there is no file."""
        if not self.path.exists():
            yield None
            return
        try:
            with self.engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise StorageError(f"the spool cannot be read: {error}") from error

    @contextmanager
    def writing(self, *entries: Entry) -> Iterator[Connection]:
        """A transaction on the file, which may insert those entries. Raises `StorageError`."""
        try:
            with turn(str(self.path)), self.engine.connect() as connection:
                learn_sources(connection, entries)
                with connection.begin():
                    yield connection
        except SQLAlchemyError as error:
            raise StorageError(f"the spool cannot be written: {error}") from error


class SpooledEntry(Entry):
    """An entry that waits in a spool while it is stored elsewhere."""

    def __init__(self, spool: Spool, row: dict[str, Any], removals: list[Removal]) -> None:
        super().__init__(row, removals)
        self._spool = spool
        self.spooled_as: int = row["id"]

    def be_duplicate(self, first: int) -> None:
        """With those that repeat it; they wait behind it."""
        super().be_duplicate(first)
        with self._spool.writing() as connection:
            self._lead(connection, first)

    def move(self, delivery_id: int) -> None:
        """In the spool first: whoever drains it after a crash must meet what was stored."""
        super().move(delivery_id)
        with self._spool.writing(self) as connection:
            self._lead(connection, delivery_id)
            _forget(connection, [self.spooled_as])
            insert(connection, [self])
        self.spooled_as = delivery_id

    def _lead(self, connection: Connection, first: int) -> None:
        repeated = update(delivery_table).where(delivery_table.c.duplicate_of == self.spooled_as)
        connection.execute(repeated.values(duplicate_of=first))


def _make_tables(connection: Any, _: object) -> None:
    def is_before_sources() -> bool:
        columns = connection.execute("SELECT name FROM pragma_table_info('imcallback_removal')")
        return ("relation",) in columns.fetchall()

    if is_before_sources():
        connection.execute("BEGIN IMMEDIATE")
        for statement in SINCE_SOURCES if is_before_sources() else ():
            connection.execute(statement)
        connection.commit()
    for statement in MAKE_TABLES:
        connection.execute(statement)


def _of(ids: Sequence[int]) -> ColumnElement[bool]:
    """The removals of those deliveries."""
    near = removal_table.c.id.between(min(ids, default=0), max(ids, default=0) + MAX_REMOVALS)
    return and_(near, removal_table.c.delivery_id.in_(ids))


def _forget(connection: Connection, ids: Sequence[int]) -> None:
    connection.execute(delete(removal_table).where(_of(ids)))
    connection.execute(delete(delivery_table).where(delivery_table.c.id.in_(ids)))
