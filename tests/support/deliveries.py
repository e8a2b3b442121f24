"""Deliveries and entries for tests, and functions that store and find them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from flask import Flask

from flask_imcallback.history import Page
from flask_imcallback.providers.base import Origin
from flask_imcallback.removals import Cause, Record, Relation, Removal
from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage.entries import Delivery, Entry
from flask_imcallback.storage.writer import Writer

MOMENT = datetime(2026, 11, 20, 18, 5, 0, 123456, UTC)

MICROSECOND = timedelta(microseconds=1)

DELIVERY = Delivery(
    provider="tencent",
    repeats_callbacks=True,
    origin=Origin(
        command="Sns.CallbackFriendDelete",
        app_id="1400000000",
        request_id="2ea4e023",
        client_ip="203.0.113.7",
        platform="iOS",
    ),
    received_at=MOMENT,
    remote_addr="192.0.2.1",
    authenticated_by="signature",
    query="SdkAppid=1400000000",
    headers={"content-type": "application/json"},
    body=b'{"CallbackCommand": "\xff"}',
    removals=(
        Removal(Relation.FRIEND, "alice", "bob"),
        Removal(Relation.FRIEND, "bob", "alice"),
    ),
)
"""A delivery of two removals that the provider may repeat."""

ANONYMOUS = replace(DELIVERY, repeats_callbacks=False)
"""A delivery whose repetition cannot be recognized."""


def record(app: Flask, delivery: Delivery) -> list[Record]:
    """Record the delivery, and return its removals."""
    with app.app_context():
        stored = get_runtime().recorder.record(delivery)
        assert stored
        return stored.records()


def entry_of(app: Flask, delivery: Delivery) -> Entry:
    """Return an entry for the delivery, with an id from the app."""
    with app.app_context():
        return get_runtime().recorder.make_entry(delivery)


def make_entries(app: Flask, count: int, **changes: Any) -> list[Entry]:
    """Return entries of different callbacks, one for each millisecond."""
    return [
        entry_of(
            app,
            replace(ANONYMOUS, received_at=MOMENT + timedelta(milliseconds=number), **changes),
        )
        for number in range(count)
    ]


def write(
    app: Flask, *entries: Entry, seconds: float = 30, retry_until_deadline: bool = False
) -> None:
    """Store the entries by a new writer."""
    with app.app_context():
        engine = get_runtime().process.get().engines.writing
        writer = Writer(engine, retry_until_deadline=retry_until_deadline)
        writer.write(entries, seconds)


def make_delivery(
    *pairs: tuple[str, str],
    at: datetime = MOMENT,
    relation: Relation = Relation.FRIEND,
    actor_id: str = "",
    cause: Cause = Cause.NONE,
    provider: str = "openim",
    body: bytes = b"{}",
    **origin: str,
) -> Delivery:
    """Return a delivery that removes each pair of owner and target."""
    return Delivery(
        provider=provider,
        repeats_callbacks=False,
        origin=Origin(**origin),
        received_at=at,
        remote_addr="192.0.2.1",
        authenticated_by="secret",
        query="command=x",
        headers={"host": "example.com"},
        body=body,
        removals=tuple(
            Removal(relation, owner, target, actor_id, cause) for owner, target in pairs
        ),
    )


def store(*pairs: tuple[str, str], **arguments: Any) -> list[Record]:
    """Record a delivery of these pairs in the current app, and return its removals."""
    stored = get_runtime().recorder.record(make_delivery(*pairs, **arguments))
    assert stored
    return stored.records()


def store_all(deliveries: Sequence[Delivery]) -> list[Record]:
    """Record the deliveries in the current app in few transactions, and return their removals."""
    runtime = get_runtime()
    entries = [runtime.recorder.make_entry(delivery) for delivery in deliveries]
    Writer(runtime.process.get().engines.writing, retry_until_deadline=True).write(entries, 60)
    assert [entry.error for entry in entries if entry.error] == []
    return [record for entry in entries for record in entry.records()]


def find(**filters: Any) -> Page:
    """Return a page of the current app's history."""
    return get_runtime().history.find(**filters)
