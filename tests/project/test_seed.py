"""`benchmarks/seed.py` fills every database with the same realistic removals."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from flask import Flask
from sqlalchemy import URL, NullPool, Table, create_engine, inspect, select

from flask_imcallback.providers.base import CallbackRequest, Origin
from flask_imcallback.removals import Cause, Record, Relation, Removal
from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage.entries import Delivery
from flask_imcallback.storage.tables import delivery, removal, source
from support import ROOT
from support.apps import MakeApp, indexes, stored_deliveries

sys.path.append(str(ROOT / "benchmarks"))

import seed

UNTIL = datetime(2026, 11, 1, tzinfo=UTC)
REMOVALS = 2000
SHARED = (
    "provider",
    "app_id",
    "command",
    "client_ip",
    "platform",
    "request_id",
    "received_at",
)
SETTINGS: dict[str, Any] = {
    "IMCALLBACK_TENCENT_APPS": {app_id: ["a token"] for app_id in seed.APPS},
    "IMCALLBACK_SECRETS": ["a-secret-of-the-tests"],
}


def rows(url: URL, table: Table) -> list[dict[str, Any]]:
    """Return all rows of the table, in the order of ids."""
    with create_engine(url, poolclass=NullPool).connect() as connection:
        result = connection.execute(select(table).order_by(table.c.id)).mappings()
        return [dict(row) for row in result]


def find_all(app: Flask) -> list[Record]:
    """Return all removals of the history, the oldest first."""
    with app.app_context():
        return list(get_runtime().history.stream(order="asc"))


def test_the_history_lists_all_seeded_removals(database_url: URL, make_app: MakeApp) -> None:
    """The seed has the requested number of removals and days, and deliveries count them right."""
    app = make_app(database_url)
    seed.fill(database_url, REMOVALS, days=30, until=UNTIL)
    records = find_all(app)
    assert len(records) == REMOVALS
    assert all(UNTIL - timedelta(days=30) <= r.received_at < UNTIL for r in records)
    counts = Counter(record.delivery_id for record in records)
    deliveries = rows(database_url, delivery)
    assert counts == {row["id"]: row["removal_count"] for row in deliveries}
    assert all(record.id == record.delivery_id + record.position for record in records)
    providers = Counter(record.provider for record in records)
    assert 0.3 < providers["openim"] / REMOVALS < 0.5
    assert {record.relation for record in records} == set(Relation)
    assert {record.cause for record in records} == set(Cause)


def test_indexes_are_created_again(database_url: URL, make_app: MakeApp) -> None:
    """A seeded database has the same indexes and constraints as before."""
    make_app(database_url)
    tables = delivery.name, removal.name

    def read() -> list[Any]:
        engine = create_engine(database_url, poolclass=NullPool)
        inspector = inspect(engine)
        uniques = [inspector.get_unique_constraints(table) for table in tables]
        return [*(indexes(inspector, table) for table in tables), *uniques]

    before = read()
    assert before[0]
    assert before[1]
    seed.fill(database_url, 100, until=UNTIL)
    assert read() == before


def test_a_second_seed_adds_removals(database_url: URL, make_app: MakeApp) -> None:
    """A second seed keeps the removals, and adds newer ones."""
    app = make_app(database_url)
    seed.fill(database_url, REMOVALS, until=UNTIL)
    first = find_all(app)
    later = UNTIL + timedelta(days=1)
    seed.fill(database_url, 500, until=later)
    records = find_all(app)
    assert records[:REMOVALS] == first
    assert len(records) == REMOVALS + 500
    assert records[REMOVALS].received_at > first[-1].received_at
    with pytest.raises(seed.SeedError, match="later"):
        seed.fill(database_url, 1, until=UNTIL)


def test_the_same_seed_gives_the_same_rows(
    database_url: URL, make_app: MakeApp, tmp_path: Path
) -> None:
    """The same seed writes equal rows into every database. Another seed writes other rows."""
    file = URL.create("sqlite", database=str(tmp_path / "same.db"))
    other = URL.create("sqlite", database=str(tmp_path / "other.db"))
    for url, number in ((database_url, 7), (file, 7), (other, 8)):
        make_app(url)
        seed.fill(url, 300, until=UNTIL, seed=number)
    for table in (source, delivery, removal):
        assert rows(database_url, table) == rows(file, table)
    assert rows(file, removal) != rows(other, removal)


def test_ids_are_unique(make_app: MakeApp, tmp_path: Path) -> None:
    """Ids of deliveries do not overlap, even with many deliveries in a millisecond."""
    url = URL.create("sqlite", database=str(tmp_path / "test.db"))
    app = make_app(url)
    seed.fill(url, 20_000, days=20.001 / 86_400, until=UNTIL)
    counts = [(row["id"], row["removal_count"]) for row in rows(url, delivery)]
    assert any(first + count == after for (first, count), (after, _) in pairwise(counts))
    assert all(first + count <= after for (first, count), (after, _) in pairwise(counts))
    assert find_all(app)[-1].received_at < UNTIL


def test_packets_agree_with_their_rows(make_app: MakeApp, tmp_path: Path) -> None:
    """A provider reads from each packet the columns and removals of its delivery."""
    url = URL.create("sqlite", database=str(tmp_path / "test.db"))
    app = make_app(url, **SETTINGS)
    seed.fill(url, REMOVALS, until=UNTIL)
    stored: dict[int, list[Record]] = {}
    for record in find_all(app):
        stored.setdefault(record.delivery_id, []).append(record)
    with app.app_context():
        providers = get_runtime().providers
    with create_engine(url, poolclass=NullPool).connect() as connection:
        deliveries = stored_deliveries(connection)
    for row in deliveries:
        provider = providers[row["provider"]]
        request = CallbackRequest(
            segments=(row["command"],) if row["provider"] == "openim" else (),
            query={name: tuple(values) for name, values in parse_qs(row["query"]).items()},
            headers=json.loads(row["headers"]),
            remote_addr=row["remote_addr"],
            received_at=row["received_at"],
        )
        origin = Origin(**{field.name: row[field.name] for field in fields(Origin)})
        callback = provider.parse(request, row["body"])
        assert callback.command == row["command"]
        assert callback.removals == tuple(
            Removal(
                record.relation, record.owner_id, record.target_id, record.actor_id, record.cause
            )
            for record in stored[row["id"]]
        )
        for record in stored[row["id"]]:
            shared = {name: getattr(record, name) for name in SHARED}
            assert shared == {name: row[name] for name in SHARED}
        received = Delivery(
            provider=provider.name,
            repeats_callbacks=provider.repeats_callbacks,
            origin=origin,
            received_at=request.received_at,
            remote_addr=request.remote_addr,
            authenticated_by=row["authenticated_by"],
            query=row["query"],
            headers=request.headers,
            body=row["body"],
        )
        assert row["fingerprint"] == received.fingerprint
        assert row["headers"] == json.dumps(request.headers, separators=(",", ":"))


def test_a_database_without_tables(database_url: URL) -> None:
    """The seed creates no tables. Its error names the command that does."""
    with pytest.raises(seed.SeedError, match="flask db upgrade"):
        seed.fill(database_url, 1, until=UNTIL)
    if database_url.database and database_url.get_backend_name() == "sqlite":
        assert not Path(database_url.database).exists()
