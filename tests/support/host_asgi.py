"""The host app for ASGI servers."""

from __future__ import annotations

from a2wsgi import WSGIMiddleware

from support.host_app import app

asgi_app = WSGIMiddleware(app, workers=16)  # type: ignore[arg-type]
