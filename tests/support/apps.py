"""Apps of the tests, and the rows in their tables."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import Connection, Inspector, create_engine, select, text

from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage.append_only import revision
from flask_imcallback.storage.ids import moment_of
from flask_imcallback.storage.tables import delivery, inbox, log, removal, source

DATABASES = ("sqlite", "postgresql", "mariadb")
SERVERS = DATABASES[1:]
"""The databases that run several transactions at once."""
SOURCE_TEXTS = ("command", "platform")
"""The texts that the source has, if a delivery has removals."""
MakeApp = Callable[..., Flask]
"""The type of the fixture `make_app`."""


def long_if(is_long: bool) -> list[pytest.MarkDecorator]:
    """Return the marks of a parameter that only `make test-long` runs, if it is long."""
    return [pytest.mark.long] if is_long else []


def stored_removals(connection: Connection) -> list[dict[str, Any]]:
    """Return all stored removals, with the names and in the order of a `Record`."""
    r, s, d = removal.c, source.c, delivery.c
    delivery_id = r.id - r.position
    removals = select(
        *(r.id, s.provider, s.app_id, s.command, s.relation, r.owner_id, r.target_id),
        *(r.actor_id, s.cause, r.position, delivery_id.label("delivery_id")),
        *(d.client_ip, s.platform, d.request_id),
    ).join(source, s.id == r.source_id, isouter=True)
    removals = removals.join(delivery, d.id == delivery_id, isouter=True)
    rows = connection.execute(removals.order_by(r.id)).mappings()
    return [{**row, "received_at": moment_of(row["delivery_id"])} for row in rows]


def stored_deliveries(connection: Connection) -> list[dict[str, Any]]:
    """Return all stored deliveries, with the texts of their sources, and their times."""
    joined = select(delivery, source.c.provider, source.c.app_id)
    joined = joined.add_columns(*(source.c[name].label(f"of_{name}") for name in SOURCE_TEXTS))
    joined = joined.join(source, source.c.id == delivery.c.source_id).order_by(delivery.c.id)
    rows = [dict(row) for row in connection.execute(joined).mappings()]
    for row in rows:
        row["received_at"] = moment_of(row["id"])
        for name in SOURCE_TEXTS:
            of_source = row.pop(f"of_{name}")
            if row["removal_count"]:
                assert row[name] == ""
                row[name] = of_source
            else:
                assert of_source == ""
    return rows


def drop_triggers(connection: Connection) -> None:
    """Let the test change and delete rows of all tables."""
    for statement in revision().drop_statements(connection.dialect.name):
        connection.execute(text(statement))


def delete_deliveries(connection: Connection) -> None:
    """Delete all deliveries, with their removals and log positions."""
    drop_triggers(connection)
    for table in (delivery, removal, inbox, log):
        connection.execute(table.delete())


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
        runtime.sequencer.stop()
        wait_until(lambda: not runtime.sequencer.is_running)  # it may be using a connection
        process = runtime.process.get()
        process.close_connections()
        if runtime.drain:
            runtime.drain.spool.dispose()
        with suppress(Exception):  # the database may be configured wrongly
            process.engines.host().dispose()


def end_connections(app: Flask) -> None:
    """Let the server close all connections of the app's pool."""
    with app.app_context():
        engine = get_runtime().engine()
        with create_engine(engine.url).connect() as connection:
            if engine.dialect.name == "postgresql":
                others = "pid <> pg_backend_pid() AND datname = current_database()"
                kill = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"
                connection.execute(text(kill)).all()
            else:
                others = "db = DATABASE() AND id <> CONNECTION_ID()"
                ids = f"SELECT id FROM information_schema.processlist WHERE {others}"
                for number in connection.scalars(text(ids)).all():
                    connection.execute(text(f"KILL {number}"))
            connection.invalidate()


def rows(app: Flask) -> tuple[list[Any], list[Any]]:
    """Return all stored deliveries and all stored removals."""
    with app.app_context(), get_runtime().engine().connect() as connection:
        return stored_deliveries(connection), stored_removals(connection)


def wait_until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Wait until a condition is true. Fail after some seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
