"""The host app for ASGI servers."""

from __future__ import annotations

from a2wsgi import WSGIMiddleware

from support.host_app import app as flask_app

app = WSGIMiddleware(flask_app, workers=16)
