"""The code that handles Flask requests: callbacks, the history as JSON and as pages, health."""

from __future__ import annotations

from flask import Flask

from ..runtime import Runtime
from ..storage import EXIT_SECONDS
from . import api, callbacks, health, openapi, page
from .middleware import Middleware
from .routing import RestOfPath
from .servers import call_at_sigterm, check_server

__all__ = ["install"]


def install(app: Flask, runtime: Runtime) -> None:
    """Register the blueprints and the WSGI middleware of the extension on an app.

    Raises `ConfigError` if the server of this process would lose callbacks.
    """
    check_server()
    app.url_map.converters["imcallback_rest"] = RestOfPath
    for blueprint in (
        callbacks.make_blueprint(runtime.providers),
        api.make_blueprint(runtime.history_decorators),
        openapi.make_blueprint(runtime.history_decorators),
        page.make_blueprint(runtime.history_decorators),
        health.make_blueprint(),
    ):
        app.register_blueprint(blueprint, url_prefix=runtime.settings.url_prefix or None)
    call_at_sigterm(lambda: runtime.counters.flush(EXIT_SECONDS))
    app.wsgi_app = Middleware(app, runtime)  # type: ignore[method-assign]
