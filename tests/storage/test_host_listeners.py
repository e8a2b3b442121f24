"""Event listeners of the host app disturb neither the database nor the spool."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import Engine, Pool, create_engine, event

from flask_imcallback import ImCallback, upgrade
from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage.spool import Spool
from support.apps import MakeApp, close_connections, rows
from support.deliveries import DELIVERY, MOMENT, entry_of, record


class HostError(Exception):
    """An error that only the host app knows."""


@contextmanager
def listening(target: Any, name: str, listener: Callable[..., object]) -> Iterator[None]:
    """Add a listener, and remove it afterwards, because the classes outlive the test."""
    event.listen(target, name, listener)
    try:
        yield
    finally:
        event.remove(target, name, listener)


def refuse(*_: object) -> None:
    raise HostError


def check_spool(app: Flask, path: Path) -> None:
    """Put a delivery into a new spool, and check the spool."""
    spool = Spool(path, lambda: "database")
    spool.check_writable()
    spool.put(entry_of(app, DELIVERY))
    spool.check_writable()
    assert spool.waiting().count == 1
    spool.dispose()


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (Engine, "begin"),
        (Engine, "engine_connect"),
        (Engine, "before_cursor_execute"),
        (Engine, "commit"),
        (Engine, "handle_error"),
        (Pool, "checkout"),
        (Pool, "checkin"),
        (Pool, "reset"),
    ],
)
def test_listeners_at_the_classes_of_sqlalchemy_do_not_reach_us(
    target: Any, name: str, tmp_path: Path, make_app: MakeApp
) -> None:
    """A listener that needs a request of the host app does not run on our connections."""
    app = make_app()
    with listening(target, name, refuse):
        check_spool(app, tmp_path / "spool.db")
        for second in range(2):  # the second delivery is a duplicate
            record(app, replace(DELIVERY, received_at=MOMENT + timedelta(seconds=second)))
        assert [row["status"] for row in rows(app)[0]] == ["recorded", "duplicate"]


@pytest.mark.parametrize("name", ["connect", "do_connect"])
def test_listeners_for_the_connections_of_the_host_do_not_reach_the_spool(
    name: str, tmp_path: Path, make_app: MakeApp
) -> None:
    """A class-level listener that sets a schema or a password is not for a SQLite file."""
    app = make_app()
    with listening(Engine, name, refuse):
        check_spool(app, tmp_path / "spool.db")


def test_a_class_level_listener_prepares_our_connections(make_app: MakeApp) -> None:
    """The listener may choose the schema of the host app."""
    drivers: list[Any] = []
    with listening(Engine, "connect", lambda driver, _: drivers.append(driver)):
        app = make_app()
        with app.app_context(), get_runtime().engine().connect() as connection:
            assert connection.connection.dbapi_connection in drivers


def test_an_error_of_the_host_does_not_hide_a_duplicate(tmp_path: Path) -> None:
    """The host turns the errors of its engine into its own errors, but not ours."""
    engine = create_engine(f"sqlite:///{tmp_path / 'test.db'}")
    event.listen(engine, "handle_error", refuse)
    app = Flask("host", instance_path=str(tmp_path / "instance"))
    app.config["SECRET_KEY"] = "a secret key of the tests"
    ImCallback(app, engine=engine)
    with app.app_context():
        upgrade()
    for second in range(2):
        record(app, replace(DELIVERY, received_at=MOMENT + timedelta(seconds=second)))
    assert [row["status"] for row in rows(app)[0]] == ["recorded", "duplicate"]
    with pytest.raises(HostError), engine.connect() as connection:
        connection.exec_driver_sql("SELECT * FROM a_missing_table")
    close_connections(app)
