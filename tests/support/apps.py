"""Apps of the tests, and the rows in their tables."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from flask import Flask
from sqlalchemy import Connection, Inspector, select

from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage.ids import moment_of
from flask_imcallback.storage.tables import delivery, removal, source

DATABASES = ("sqlite", "postgresql", "mariadb")
MakeApp = Callable[..., Flask]
"""The type of the fixture `make_app`."""


def stored_removals(connection: Connection) -> list[dict[str, Any]]:
    """Return all stored removals, with the names and in the order of a `Record`."""
    r, s = removal.c, source.c
    removals = select(
        *(r.id, s.provider, s.app_id, s.command, s.relation, r.owner_id, r.target_id),
        *(r.actor_id, s.cause, (r.id - r.delivery_id).label("position"), r.delivery_id),
        *(r.client_ip, s.platform, r.request_id),
    ).join(source, s.id == r.source_id, isouter=True)
    rows = connection.execute(removals.order_by(r.id)).mappings()
    return [{**row, "received_at": moment_of(row["delivery_id"])} for row in rows]


def save_counts(app: Flask) -> None:
    """Save the counts of this process now, not after some seconds."""
    app.extensions["imcallback"].counters.flush(30)


def indexes(inspector: Inspector, table: str) -> list[str]:
    """Return the indexes of a table as texts, because the condition of an index equals no other."""
    definitions = inspector.get_indexes(table)
    for definition in definitions:
        options = definition.get("dialect_options", {})
        definition["dialect_options"] = {name: str(value) for name, value in options.items()}
    return sorted(map(str, definitions))


def join(*names: str) -> None:
    """Wait until all threads of these names have ended, because they may hold connections."""
    for thread in threading.enumerate():
        if thread.name in names:
            thread.join(30)
            assert not thread.is_alive()


def close_connections(app: Flask) -> None:
    """Save the counts, and close the idle connections of the app, and those of the host."""
    save_counts(app)
    with app.app_context():
        runtime = get_runtime()
        engines = runtime.process.get().engines
        engines.dispose()
        if runtime.drain:
            runtime.drain.spool.dispose()
        with suppress(Exception):  # the database may be configured wrongly
            engines.host().dispose()


def rows(app: Flask) -> tuple[list[Any], list[Any]]:
    """Return all stored deliveries and all stored removals."""
    with app.app_context(), get_runtime().engine().connect() as connection:
        deliveries = connection.execute(select(delivery).order_by(delivery.c.id)).mappings().all()
        return list(deliveries), stored_removals(connection)


def wait_until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Wait until a condition is true. Fail after some seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
