"""The objects that one app owns, and how they are built."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
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
"""The key of the `Runtime` in `app.extensions`."""
RESERVED_NAMES = ("account", "deliveries", "health", "history", "page", "removal")
"""Path segments of our own URLs. The URL of a provider with such a name would hide them."""


class Database:
    """The Flask-SQLAlchemy object and the bind that hold the tables of this extension."""

    def __init__(self, db: SQLAlchemy | None, bind_key: str | None) -> None:
        self._db = db
        self._bind_key = bind_key
        self._lock = threading.Lock()

    def open(self) -> SQLAlchemy:
        """Return the `SQLAlchemy` object of the host, or create one. Needs an app context.

        The first call creates it, because the host may initialize its own `SQLAlchemy` after this
        extension, and an app can have only one.
        """
        if self._db is None:
            with self._lock:
                self._db = self._db or current_app.extensions.get("sqlalchemy") or _create_db()
        return self._db

    def engine(self) -> Engine:
        """Return the engine of the bind. Needs an app context.

        Raises `ConfigError` if `IMCALLBACK_BIND_KEY` is not a bind.
        """
        engines = self.open().engines
        if self._bind_key not in engines:
            binds = ", ".join(repr(bind) for bind in engines) or "none"
            raise ConfigError(
                f"IMCALLBACK_BIND_KEY is {self._bind_key!r}, "
                f"but Flask-SQLAlchemy has other binds: use one of {binds}"
            )
        return engines[self._bind_key]


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """The objects that one app owns. They live in `app.extensions` as long as the app."""

    settings: Settings
    providers: Mapping[str, Provider]
    """The providers by name."""
    history_decorators: Sequence[Callable[..., Any]]
    database: Database
    drain: Drain | None
    """None if `IMCALLBACK_SPOOL` is None."""
    recorder: Recorder
    counters: CallbackCounters
    receiver: Receiver
    history: History

    @property
    def has_enabled_provider(self) -> bool:
        return any(provider.is_enabled for provider in self.providers.values())

    def engine(self) -> Engine:
        """Return the engine of our tables. Needs an app context. Raises `ConfigError`."""
        return self.database.engine()

    def prepare_database(self) -> None:
        """Open the database and drain what an earlier process left in the spool.

        Needs an app context.
        """
        self.database.open()
        if self.drain and self.drain.spool.path.exists():
            self.drain.start()


def build_runtime(
    app: Flask,
    *,
    db: SQLAlchemy | None,
    providers: Iterable[type[Provider] | Provider],
    history_decorators: Iterable[Callable[..., Any]],
) -> Runtime:
    """Read the settings of an app and build its objects, without using the database yet.

    Raises `ConfigError` for a wrong setting, for a wrong provider name, and for a provider that
    would accept callbacks from anybody.
    """
    settings = Settings.from_config(app.config)
    database = Database(db, settings.bind_key)
    drain = None
    if settings.spool is not None:
        spool = Spool(Path(app.instance_path, settings.spool))
        drain = Drain(spool, database.engine, app.app_context, partial(announce, app))
    recorder = Recorder(database.engine, deadline=settings.deadline, drain=drain)
    counters = CallbackCounters(database.engine)
    return Runtime(
        settings=settings,
        providers=_build_providers(providers, settings),
        history_decorators=tuple(history_decorators),
        database=database,
        drain=drain,
        recorder=recorder,
        counters=counters,
        receiver=Receiver(settings, recorder, counters),
        history=History(database.engine, _signing_keys(app), settings.deadline),
    )


def get_runtime() -> Runtime:
    """Return the objects of the current app. Raises `ConfigError` if it has no `ImCallback`."""
    runtime = current_app.extensions.get(EXTENSION)
    if runtime is None:
        raise ConfigError("this app has no ImCallback: call ImCallback(app) or init_app(app)")
    return runtime  # type: ignore[no-any-return]


def upgrade(revision: str = "head") -> None:
    """Upgrade the tables of the current app to a revision, by default the newest.

    Raises `ConfigError` if `IMCALLBACK_BIND_KEY` is not a bind, and `StorageError` if the database
    is unavailable.
    """
    run_alembic(get_runtime().engine(), "upgrade", revision)


def _build_providers(
    providers: Iterable[type[Provider] | Provider], settings: Settings
) -> dict[str, Provider]:
    by_name: dict[str, Provider] = {}
    for provider in providers:
        instance = _build_provider(provider, settings)
        name = instance.name
        if not re.fullmatch("[a-z][a-z0-9_]{0,31}", name) or name in RESERVED_NAMES:
            raise ConfigError(
                f"a provider cannot have the name {name!r}: use up to 32 of the characters a to z, "
                f"0 to 9 and '_', but none of {', '.join(RESERVED_NAMES)}"
            )
        if name in by_name:
            raise ConfigError(f"two providers have the name {name!r}: give each its own name")
        by_name[name] = instance
    return by_name


def _build_provider(provider: Any, settings: Settings) -> Provider:
    instance: Provider = provider(settings) if isinstance(provider, type) else provider
    return instance


def _signing_keys(app: Flask) -> list[Any]:
    # Like in Flask's sessions, every key verifies a signature, and the last key signs.
    keys = [*(app.config.get("SECRET_KEY_FALLBACKS") or ()), app.config.get("SECRET_KEY")]
    return [key for key in keys if key]


def _create_db() -> SQLAlchemy:
    app = current_app._get_current_object()  # type: ignore[attr-defined]
    if not app.config.get("SQLALCHEMY_BINDS"):
        app.config.setdefault("SQLALCHEMY_DATABASE_URI", "sqlite:///imcallback.db")
    db = SQLAlchemy(app)
    for engine in db.engines.values():
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", set_durable_pragmas)
    return db
