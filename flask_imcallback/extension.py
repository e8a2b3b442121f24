"""The extension object `ImCallback`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from flask import Flask
from sqlalchemy import Engine

from . import cli, web
from .errors import ConfigError
from .history import History
from .log import Feed
from .logger import logger
from .providers import PROVIDERS, Provider
from .runtime import EXTENSION, build_runtime, get_runtime
from .storage import CallbackCount, protect_tables


class ImCallback:
    """Flask extension that receives the callbacks of IM servers and records the removals.

    `db` is the object of Flask-SQLAlchemy or Flask-SQLAlchemy-Lite to use. Without it, the
    extension uses the object of the app, or creates one. `engine` is for an app with plain
    SQLAlchemy: an `Engine`, or a function that returns one. `providers` are provider classes or
    provider objects. A class is called with the `Settings`. `history_decorators` protect the
    history in the same way as the host app protects its own views. The last one is the outermost.
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        db: Any = None,
        engine: Engine | Callable[[], Engine] | None = None,
        providers: Iterable[type[Provider] | Provider] = PROVIDERS,
        history_decorators: Iterable[Callable[..., Any]] = (),
    ) -> None:
        self._db = db
        self._engine = engine
        self._providers = tuple(providers)
        self._history_decorators = tuple(history_decorators)
        if app is not None:
            self.init_app(app)

    def init_app(
        self,
        app: Flask,
        db: Any = None,
        *,
        engine: Engine | Callable[[], Engine] | None = None,
    ) -> None:
        """Set up an app. One extension object can serve several apps.

        A `db` or an `engine` for this app replaces the one of the extension object. Raises
        `ConfigError` for a wrong setting, for a wrong `db` or `engine`, for a provider that would
        accept callbacks from anybody, and if the app already has an `ImCallback`.
        """
        if not isinstance(app, Flask):
            raise ConfigError(
                f"{type(app).__module__}.{type(app).__name__} is not a Flask app: pass the Flask "
                "app, or run flask-imcallback in its own Flask app beside it"
            )
        if EXTENSION in app.extensions:
            raise ConfigError(
                "this app already has an ImCallback: call ImCallback(app) or init_app(app), "
                "not both"
            )
        if db is None and engine is None:
            db, engine = self._db, self._engine
        try:
            runtime = build_runtime(
                app,
                db=db,
                engine=engine,
                providers=self._providers,
                history_decorators=self._history_decorators,
            )
        except ConfigError as error:
            # The message is complete. A short traceback leads to the call in the app.
            raise error.with_traceback(None) from None
        app.extensions[EXTENSION] = runtime
        web.install(app, runtime)
        cli.add_commands(app)
        cli.follow_host_migrations(app)
        protect_tables()
        if not runtime.has_enabled_provider:
            keys = [
                key for provider in runtime.providers.values() for key in provider.settings_keys
            ]
            logger.warning(
                "No provider is enabled, so every callback is answered with 404. Set one of: %s",
                ", ".join(keys),
            )

    def counts(self) -> list[CallbackCount]:
        """Return how many callbacks of the current app were accepted and refused.

        Each count has the time of its last callback. The counts include all processes and may be
        up to ten seconds old. Raises `StorageError`.
        """
        return get_runtime().counters.counts()

    @property
    def history(self) -> History:
        """The history of the current app."""
        return get_runtime().history

    @property
    def feed(self) -> Feed:
        """The feed of the current app: the removals in the order of the log."""
        return get_runtime().feed
