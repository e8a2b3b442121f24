"""The entries of the log, as the feed and the seals read them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from flask import Flask
from sqlalchemy import URL, Connection, select

from flask_imcallback.errors import StorageError
from flask_imcallback.log import LogEntry, read_entries
from flask_imcallback.log.entries import BATCH_REMOVALS, find_unnumbered, read_removals
from flask_imcallback.removals import Cause, Relation, Status
from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage import SHARED_COLUMNS, act, delivery, log, removal, source
from support.apps import MakeApp, drop_triggers
from support.deliveries import ANONYMOUS, make_delivery, store, store_all

pytestmark = pytest.mark.servers


@pytest.fixture
def app(make_app: MakeApp, database_url: URL) -> Iterator[Flask]:
    app = make_app(database_url)
    with app.app_context():
        yield app


@contextmanager
def numbered_log() -> Iterator[Connection]:
    """Number all entries, and give a connection to the database."""
    get_runtime().sequencer.catch_up(30)
    with get_runtime().writing_engine().connect() as connection:
        assert find_unnumbered(connection) is None
        yield connection


def test_an_entry_holds_its_delivery_and_its_removals_in_order(app: Flask) -> None:
    """An entry is the row of the delivery and the records of the history."""
    records = store(
        *[("g", f"m{number}") for number in range(50)],
        relation=Relation.GROUP,
        cause=Cause.KICKED,
        actor_id="boss",
        request_id="r",
        client_ip="203.0.113.7",
        platform="iOS",
        body=b"{\xff}",
    )
    with numbered_log() as connection:
        (entry,) = read_entries(connection, 0, 10)
        stored = connection.execute(select(delivery)).one()

        def read(entry: LogEntry) -> tuple[object, ...]:
            return entry.position, entry.entry_id, entry.act, list(entry.removals)

        assert [read(entry) for entry in read_entries(connection, 0, 10)] == [
            (1, records[0].delivery_id, None, records)
        ]
    assert entry.delivery is not None
    source_values = {name: getattr(records[0], name) for name in SHARED_COLUMNS}
    expected = stored._asdict() | source_values
    del expected["source_id"]
    assert entry.delivery._asdict() == expected
    assert type(entry.delivery.body) is bytes


def test_entries_come_in_the_order_of_the_log(app: Flask) -> None:
    """Positions count, not ids. The range excludes its start and includes its end."""
    first, second, third = (store(("a", str(number)))[0] for number in range(3))
    with numbered_log() as connection:
        drop_triggers(connection)
        connection.execute(log.delete())
        for position, record in enumerate([third, first, second], 1):
            connection.execute(log.insert().values(position=position, entry_id=record.id))
        found = [(entry.position, *entry.removals) for entry in read_entries(connection, 0, 3)]
        assert found == [(1, third), (2, first), (3, second)]
        middle = [(entry.position, *entry.removals) for entry in read_entries(connection, 1, 2)]
        assert middle == [(2, first)]
        assert list(read_removals(connection, 0, 3)) == [(1, [third]), (2, [first]), (3, [second])]


def test_an_act_and_a_deleted_delivery_are_entries(app: Flask) -> None:
    """An act has no removals. A delivery that was deleted leaves its position."""
    ignored = replace(ANONYMOUS, status=Status.IGNORED, removals=())
    gone, kept = store_all([ANONYMOUS, make_delivery(("a", "b")), ignored])[::2]
    with numbered_log() as connection:
        values = {
            "kind": "export",
            "actor": "me",
            "affected": 3,
            "detail": "{}",
            "nonce": b"n" * 16,
        }
        connection.execute(act.insert().values(id=7, commitment=None, **values))
        connection.execute(log.insert().values(position=4, entry_id=-7))
        drop_triggers(connection)
        connection.execute(delivery.delete().where(delivery.c.id == gone.delivery_id))
        entries = [
            (entry.position, entry.delivery and entry.delivery.status, len(list(entry.removals)))
            for entry in read_entries(connection, 0, 4)
        ]
        assert {entry[1:] for entry in entries[:3]} == {(None, 0), ("recorded", 1), ("ignored", 0)}
        (last,) = read_entries(connection, 3, 4)
        assert last.delivery is None
        assert last.act is not None
        assert last.act._asdict() == {"id": 7, "commitment": None, **values}
        assert [len(removals) for _, removals in read_removals(connection, 0, 4)].count(1) == 1
        assert kept


def test_small_and_large_deliveries_have_their_own_removals(app: Flask) -> None:
    """Small deliveries share a query, and a large one is read alone."""
    sizes = [1, BATCH_REMOVALS + 5, 3, 2 * BATCH_REMOVALS, 2]
    stored = [store(*[("a", f"b{number}") for number in range(size)]) for size in sizes]
    with numbered_log() as connection:
        assert [entry.removals for entry in read_entries(connection, 0, 9)] == stored
        assert list(read_removals(connection, 0, 9)) == list(enumerate(stored, 1))


def test_a_missing_source_is_an_error(app: Flask) -> None:
    """The message names the row that is missing, and a row that needs it."""
    (record,) = store(("a", "b"))
    with numbered_log() as connection:
        source_id = connection.scalar(select(removal.c.source_id))
        drop_triggers(connection)
        connection.execute(source.delete())
        with pytest.raises(
            StorageError,
            match=f"imcallback_source has no row {source_id}, .* for example {record.id}",
        ):
            list(read_removals(connection, 0, 1))
        with pytest.raises(StorageError, match=f"no row for the delivery {record.delivery_id}"):
            list(read_entries(connection, 0, 1))


@pytest.mark.slow
def test_large_deliveries_and_packets_do_not_fill_the_memory(make_app: MakeApp) -> None:
    """Twelve packets of 4 MB, and 100,000 removals, are read with less than 80 MB."""
    with make_app().app_context():
        store_all([make_delivery(("a", "b"), body=b"x" * 4_000_000) for _ in range(12)])
        members = [("group", f"member{number}") for number in range(100_000)]
        store_all([make_delivery(*members)])
        with numbered_log() as connection:
            connection.execute(select(delivery.c.id)).all()
            tracemalloc.start()
            counts = [len(entry.removals) for entry in read_entries(connection, 0, 99)]
            _, peak_bytes = tracemalloc.get_traced_memory()
            tracemalloc.stop()
    assert sum(counts) == 100_012
    assert peak_bytes < 80_000_000
