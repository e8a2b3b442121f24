"""Apps on databases of every kind, and what is in their tables."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from flask import Flask
from sqlalchemy import Connection, select

from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage.ids import moment_of
from flask_imcallback.storage.tables import delivery, removal, source

DATABASES = ("sqlite", "postgresql", "mariadb")


MakeApp = Callable[..., Flask]


def stored_removals(connection: Connection) -> list[dict[str, Any]]:
    """All that is stored of each removal, with the names and in the order of a `Record`."""
    of, what = removal.c, source.c
    found = select(
        *(of.id, what.provider, what.app_id, what.command, what.relation, of.owner_id),
        *(of.target_id, (of.id - of.delivery_id).label("position"), of.delivery_id, of.client_ip),
        *(what.platform, of.request_id),
    ).join(source, what.id == of.source_id, isouter=True)
    rows = connection.execute(found.order_by(of.id)).mappings()
    return [{**row, "received_at": moment_of(row["delivery_id"])} for row in rows]


def wait_for_counters() -> None:
    """Until what was counted is saved, which happens behind the answers."""
    join("imcallback-counters")


def join(*names: str) -> None:
    """Wait until the threads of these names have ended: they may have connections."""
    for thread in threading.enumerate():
        if thread.name in names:
            thread.join(30)
            assert not thread.is_alive()


def rows(app: Flask) -> tuple[list[Any], list[Any]]:
    with app.app_context(), get_runtime().engine().connect() as connection:
        deliveries = connection.execute(select(delivery).order_by(delivery.c.id)).mappings().all()
        return list(deliveries), stored_removals(connection)


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
