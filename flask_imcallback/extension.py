"""`ImCallback` wires one app."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from .cli import host_migrations
from .cli.commands import add_commands
from .errors import ConfigError
from .history import History
from .providers import PROVIDERS, Provider
from .runtime import EXTENSION, Runtime, get_runtime
from .storage import CallbackCount
from .web import api as history_pages
from .web import callbacks, health, openapi, routing
from .web.page import views as page

logger = logging.getLogger("flask_imcallback")


class ImCallback:
    """Receives the callbacks of IM servers, records the removals, and lets one query them.

    `db` is the Flask-SQLAlchemy object to use; without it, that of the app, else one of our own.
    `providers` are classes that take the `Settings`, or ready objects. `history_decorators` guard
    the history as the host guards its own views, the last one outermost.
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        db: SQLAlchemy | None = None,
        providers: Iterable[type[Provider] | Provider] = PROVIDERS,
        history_decorators: Iterable[Callable[..., Any]] = (),
    ) -> None:
        self._db = db
        self._providers = tuple(providers)
        self._history_decorators = tuple(history_decorators)
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask, db: SQLAlchemy | None = None) -> None:
        """Set up an app; one object may serve several.

        Raises `ConfigError` for wrong settings, for a provider that they leave unguarded, and for
        a second registration.
        """
        if EXTENSION in app.extensions:
            raise ConfigError(
                "this app has an ImCallback: call ImCallback(app) or init_app(app), not both"
            )
        runtime = Runtime(
            app,
            db=db or self._db,
            providers=self._providers,
            history_decorators=self._history_decorators,
        )
        app.extensions[EXTENSION] = runtime
        prefix = runtime.settings.url_prefix or None
        app.url_map.converters["imcallback_rest"] = routing.Rest
        app.register_blueprint(callbacks.make_blueprint(runtime.providers), url_prefix=prefix)
        for of_readers in (history_pages, openapi, page):
            blueprint = of_readers.make_blueprint(runtime.history_decorators)
            app.register_blueprint(blueprint, url_prefix=prefix)
        app.register_blueprint(health.make_blueprint(), url_prefix=prefix)
        routing.install_middleware(app, runtime)
        add_commands(app)
        host_migrations.follow(app)
        if not any(provider.is_enabled for provider in runtime.providers.values()):
            keys = [
                key for provider in runtime.providers.values() for key in provider.settings_keys
            ]
            logger.warning(
                "No provider is on, so every callback is answered with 404. Set one of: %s",
                ", ".join(keys),
            )

    def counts(self) -> list[CallbackCount]:
        """How many callbacks of the current app were accepted and refused, and the last of each.

        Of all processes, ten seconds late at the most. Raises `StorageError`.
        """
        return get_runtime().counters.counts()

    @property
    def history(self) -> History:
        """The history of the current app."""
        return get_runtime().history
