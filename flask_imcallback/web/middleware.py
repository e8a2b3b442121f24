"""The WSGI middleware around the host app, for work that must not depend on its hooks."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import Any

from flask import Flask, Response, request

from ..checks import exempt_views
from ..logger import logger
from ..runtime import Runtime
from .callbacks import answer_without_hooks
from .exchange import App, Environ, Exchange, StartResponse
from .servers import check_server

HEADERS_KEY = "flask_imcallback.headers"
"""The key, in the WSGI environment, of the headers that the host app must not change."""
ANSWERED_BY_HOST = "answered by something else in the app"
"""The reason of refusals that the host app caused. The HTTP status follows."""

WARNING_SECONDS = 60
"""Minimum time between two equal warnings."""


class Middleware:
    """The WSGI app around the host app.

    1. Before the first request, it opens the database and starts the drain. A missing `SQLAlchemy`
       object cannot be created later, because Flask refuses new extensions during a request.
       It also exempts our views from extensions of the host app that would answer callbacks, and
       checks the server again, because eventlet may have patched Python after the start.
    2. It removes doubled slashes from the paths below our prefix. Werkzeug would redirect them,
       and the client of OpenIM loses a redirected event.
    3. It hides the secrets of callbacks from the hooks of the host app, and sends the answer of our
       view unchanged. See `Exchange`.
    4. If the host app fails before our view is called, or answers with a 2xx, it lets our view
       handle the callback without the functions of the host app. It reports callbacks that the host
       app refused.
    5. It sends the headers of `set_headers` unchanged.
    """

    def __init__(self, app: Flask, runtime: Runtime) -> None:
        self._app = app
        self._runtime = runtime
        self._inner_app: App = app.wsgi_app
        prefix = re.escape(runtime.settings.url_prefix)
        names = "|".join(re.escape(name) for name in runtime.providers)
        self._callback_path = re.compile(f"({prefix}/({names}))(?:/(.*))?", re.DOTALL)
        self._is_checked = False
        self._warned_at: dict[tuple[str, str], float] = {}

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        self._prepare()
        path = environ.get("PATH_INFO", "")
        if "//" in path:
            path = re.sub("//+", "/", path)
        if match := self._callback_path.fullmatch(path):
            return self._serve_callback(environ, start_response, *match.groups(default=""))
        prefix = self._runtime.settings.url_prefix
        if prefix and path != prefix and not path.startswith(f"{prefix}/"):
            return self._inner_app(environ, start_response)
        if prefix:
            environ["PATH_INFO"] = path
        return self._serve_with_headers(environ, start_response)

    def _prepare(self) -> None:
        if not self._is_checked:
            check_server()
            exempt_views(self._app)
            self._is_checked = True
        if not self._runtime.is_prepared:
            # An error is ignored here. The request that uses the database reports it.
            with suppress(Exception), self._app.app_context():
                self._runtime.prepare_database()

    def _serve_callback(
        self, environ: Environ, start_response: StartResponse, path: str, name: str, rest: str
    ) -> Iterable[bytes]:
        provider = self._runtime.providers[name]
        max_body = self._runtime.settings.max_body
        exchange = Exchange.begin(environ, provider, path, rest, max_body)
        settings = self._runtime.settings
        # Without a guard of our own, the functions of the host app may be the only guard.
        has_guard = not settings.allow_unauthenticated or bool(settings.allowed_networks)
        handle = partial(self._handle_without_host, environ, name) if has_guard else None
        report = partial(self._report, name)
        return exchange.run(self._inner_app, environ, start_response, handle, report)

    def _handle_without_host(self, environ: Environ, name: str, status: str) -> None:
        """Handle a callback that something else in the app answered, and log it once a minute."""
        now = time.monotonic()
        if now - self._warned_at.get((name, status), -WARNING_SECONDS) >= WARNING_SECONDS:
            self._warned_at[name, status] = now
            logger.warning(
                "Something else in the app answered a callback of %s with %s, so the extension "
                "handles such callbacks without the functions of the app",
                name,
                status,
            )
        answer_without_hooks(self._app, environ, name)

    def _report(self, name: str, status: str, detail: str) -> None:
        """Count and log a callback that something else in the app answered."""
        self._runtime.counters.count_refused(name, f"{ANSWERED_BY_HOST}: {status}", detail)

    def _serve_with_headers(
        self, environ: Environ, start_response: StartResponse
    ) -> Iterable[bytes]:
        own_headers: dict[str, str] = {}
        environ[HEADERS_KEY] = own_headers

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            names = {name.lower() for name in own_headers}
            others = [pair for pair in headers if pair[0].lower() not in names]
            return start_response(status, [*others, *own_headers.items()], exc_info)

        return self._inner_app(environ, start)


def set_headers(response: Response, headers: dict[str, str]) -> None:
    """Set headers of the current response. No function of the host app can change them."""
    response.headers.update(headers)
    request.environ.get(HEADERS_KEY, {}).update(headers)
