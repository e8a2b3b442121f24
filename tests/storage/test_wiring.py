"""A wrong database stops the start with a message, and a late mistake loses no callback."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flask_sqlalchemy
import pytest
from flask import Flask
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session, sessionmaker

from flask_imcallback import ConfigError, StorageError, upgrade
from flask_imcallback.runtime import Runtime, build_runtime, get_runtime
from support.apps import close_connections, wait_until
from support.deliveries import DELIVERY
from support.engines import HAS_LITE


def build(app: Flask, **arguments: Any) -> Runtime:
    runtime = build_runtime(app, providers=(), history_decorators=(), **arguments)
    app.extensions["imcallback"] = runtime
    return runtime


def new_app(tmp_path: Path, **config: Any) -> Flask:
    app = Flask("host", instance_path=str(tmp_path / "instance"))
    app.config.update(config)
    return app


ENGINE = create_engine("sqlite://")

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "db=engine": ({"db": ENGINE}, "^db is an object of the type Engine: pass it as engine$"),
    "db=Session": ({"db": Session(ENGINE)}, "or pass an engine as engine$"),
    "db=sessionmaker": ({"db": sessionmaker(ENGINE)}, "or pass an engine as engine$"),
    "engine=url": (
        {"engine": "sqlite://"},
        "^engine is an object of the type str: pass a SQLAlchemy Engine",
    ),
    "both": ({"db": ENGINE, "engine": ENGINE}, "has both db and engine: pass only one of them"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_database_stops_the_start(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """The message shows the type of the wrong object and says what to pass."""
    with pytest.raises(ConfigError, match=message):
        build(new_app(tmp_path), **arguments)


def test_an_unknown_bind_stops_the_start(tmp_path: Path) -> None:
    """The message shows the wrong bind and the right ones."""
    app = new_app(
        tmp_path, SQLALCHEMY_DATABASE_URI="sqlite:///host.db", IMCALLBACK_BIND_KEY="nowhere"
    )
    flask_sqlalchemy.SQLAlchemy(app)
    message = (
        "^IMCALLBACK_BIND_KEY is 'nowhere', but Flask-SQLAlchemy has other binds: use one of None$"
    )
    with pytest.raises(ConfigError, match=message):
        build(app)


def with_engine(app: Flask, engine: Engine) -> dict[str, Any]:
    return {"engine": engine}


def with_function(app: Flask, engine: Engine) -> dict[str, Any]:
    return {"engine": lambda: engine}


def with_lite(app: Flask, engine: Engine) -> dict[str, Any]:
    app.config["SQLALCHEMY_ENGINES"] = {"default": engine.url}
    from flask_sqlalchemy_lite import SQLAlchemy

    return {"db": SQLAlchemy(app)}


def with_lite_of_the_app(app: Flask, engine: Engine) -> dict[str, Any]:
    with_lite(app, engine)
    return {}


@pytest.mark.parametrize(
    "wire",
    [with_engine, with_function, *((with_lite, with_lite_of_the_app) if HAS_LITE else ())],
)
def test_a_host_without_flask_sqlalchemy_is_served(
    wire: Callable[[Flask, Engine], dict[str, Any]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The callback is in the database of the host, and the log names it at the start."""
    app, path = new_app(tmp_path), tmp_path / "host.db"
    host = create_engine(f"sqlite:///{path}")
    runtime = build(app, **wire(app, host))
    with app.app_context(), caplog.at_level(logging.INFO, "flask_imcallback"):
        upgrade()
        runtime.prepare_database()
        assert runtime.recorder.record(DELIVERY)
    assert caplog.messages.count(f"Callbacks are stored in sqlite:///{path}") == 1
    with host.connect() as connection:
        count = connection.exec_driver_sql("SELECT count(*) FROM imcallback_removal").scalar_one()
    assert count == 2
    host.dispose()
    close_connections(app)


def test_a_mistake_at_the_first_use_loses_no_callback(tmp_path: Path) -> None:
    """The engine function of the host fails. The callback waits in the spool."""

    def fail() -> Engine:
        raise LookupError("no such configuration")

    app = new_app(tmp_path)
    build(app, engine=fail)
    with app.app_context():
        assert get_runtime().recorder.record(DELIVERY) is None
        drain = get_runtime().drain
        assert drain
        assert drain.spool.waiting().count == 1
        message = r"^the app gives no database engine \(LookupError: no such configuration\): check"
        for question in (get_runtime().inspect_database, get_runtime().history.find):
            with pytest.raises(StorageError, match=message):
                question()
        drain.spool.path.unlink()


def test_a_callback_finds_its_database_after_the_mistake(tmp_path: Path) -> None:
    """The engine function of the host fails once. Then the drain stores the callback."""
    host = create_engine(f"sqlite:///{tmp_path / 'host.db'}")
    answers = [host]

    def fail_once() -> Engine:
        return answers.pop()

    app = new_app(tmp_path)
    build(app, engine=fail_once)
    with app.app_context():
        upgrade()
    app = new_app(tmp_path)
    runtime = build(app, engine=fail_once)
    with app.app_context():
        assert runtime.recorder.record(DELIVERY) is None
        answers.append(host)
        assert runtime.drain
        spool = runtime.drain.spool
        wait_until(lambda: not (spool.waiting().count or spool.waiting().foreign))
        assert len(runtime.history.find().data) == 2
    close_connections(app)
    host.dispose()


def test_a_database_in_the_memory_of_each_thread_is_refused(tmp_path: Path) -> None:
    """The message says how to share the database between threads."""
    app = new_app(tmp_path)
    build(app, engine=create_engine("sqlite://"))
    with app.app_context(), pytest.raises(ConfigError, match="poolclass=StaticPool"):
        upgrade()
