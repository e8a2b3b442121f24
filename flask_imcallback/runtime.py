"""What one app owns: its settings, providers, database, recorder, counters and history."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from flask import Flask, current_app
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Engine, event

from .errors import ConfigError
from .history import History
from .providers import Provider
from .receiver import Receiver
from .removals import announce
from .settings import Settings
from .storage import CallbackCounters, Drain, Recorder, Spool, run_alembic, set_durable_pragmas

EXTENSION = "imcallback"
RESERVED = ("account", "deliveries", "health", "history", "page", "removal")
"""Addresses of our own, which a provider's would hide."""


class Runtime:
    """Kept in `app.extensions`; it knows its app only as `current_app`."""

    def __init__(
        self,
        app: Flask,
        *,
        db: SQLAlchemy | None,
        providers: Iterable[type[Provider] | Provider],
        history_decorators: Iterable[Callable[..., Any]],
    ) -> None:
        self.settings = Settings.from_config(app.config)
        self.providers: dict[str, Provider] = {}
        for provider in providers:
            self._add(provider)
        self.history_decorators = tuple(history_decorators)
        self.drain: Drain | None = None
        if self.settings.spool is not None:
            spool = Spool(Path(app.instance_path, self.settings.spool))
            self.drain = Drain(spool, self.engine, app.app_context, partial(announce, app))
        deadline = self.settings.deadline
        self.recorder = Recorder(self.engine, deadline=deadline, drain=self.drain)
        self.counters = CallbackCounters(self.engine)
        self.receiver = Receiver(self.settings, self.recorder, self.counters)
        # Like Flask's sessions, the newest key last: it signs, and all of them verify.
        keys = [*(app.config.get("SECRET_KEY_FALLBACKS") or ()), app.config.get("SECRET_KEY")]
        self.history = History(self.engine, [key for key in keys if key], deadline)
        self._db = db
        self.is_ready = False
        """Whether `get_ready` has been called in this process."""
        self._lock = threading.Lock()

    def _add(self, provider: Any) -> None:
        made: Provider = provider(self.settings) if isinstance(provider, type) else provider
        if not re.fullmatch("[a-z][a-z0-9_]{0,31}", made.name) or made.name in RESERVED:
            raise ConfigError(
                f"a provider cannot have the name {made.name!r}: take up to 32 small letters, "
                f"digits and '_', but none of {', '.join(RESERVED)}"
            )
        if made.name in self.providers:
            raise ConfigError(f"two providers have the name {made.name!r}")
        self.providers[made.name] = made

    def database(self) -> SQLAlchemy:
        """The host's `SQLAlchemy`, or one of our own if the app has none by its first use.

        Ours is made late because a host may set up its own after us, and only one fits an app.
        """
        if self._db is None:
            with self._lock:  # others wait until it is whole
                self._db = self._db or current_app.extensions.get("sqlalchemy") or _make_database()
        return self._db

    def get_ready(self) -> None:
        """Have a database, and drain what another process left in the spool."""
        self.database()
        if self.drain and self.drain.spool.path.exists():
            self.drain.start()
        self.is_ready = True

    def engine(self) -> Engine:
        """The engine of the database that holds our tables. Needs an app context.

        Raises `ConfigError` if `IMCALLBACK_BIND_KEY` names none.
        """
        engines = self.database().engines
        key = self.settings.bind_key
        if key not in engines:
            there = ", ".join(repr(bind) for bind in engines) or "none"
            raise ConfigError(
                f"IMCALLBACK_BIND_KEY is {key!r}, but the binds of Flask-SQLAlchemy are: {there}"
            )
        return engines[key]


def get_runtime() -> Runtime:
    """The state of the current app. Raises `ConfigError` if it has no `ImCallback`."""
    state = current_app.extensions.get(EXTENSION)
    if state is None:
        raise ConfigError("this app has no ImCallback: call ImCallback(app) or init_app(app)")
    return state  # type: ignore[no-any-return]


def _make_database() -> SQLAlchemy:
    app = current_app._get_current_object()  # type: ignore[attr-defined]
    if not app.config.get("SQLALCHEMY_BINDS"):
        app.config.setdefault("SQLALCHEMY_DATABASE_URI", "sqlite:///imcallback.db")
    db = SQLAlchemy(app)
    for engine in db.engines.values():
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", set_durable_pragmas)
    return db


def upgrade(revision: str = "head") -> None:
    """Upgrade our tables of the current app to a revision, by default the newest.

    Raises `ConfigError` if the settings name no database, `StorageError` if it does not answer.
    """
    run_alembic(get_runtime().engine(), "upgrade", revision)
