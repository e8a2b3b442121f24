"""Requests to the history over HTTP, by a reader with a token."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from flask import Flask, abort, request
from sqlalchemy import URL
from werkzeug.test import TestResponse

from support.apps import MakeApp

HISTORY = "/imcallback/history"
TOKEN = "new/token+of~64.bits=="
MEMBERS = [
    *("id", "provider", "app_id", "command", "relation", "owner_id", "target_id", "actor_id"),
    *("cause", "position", "delivery_id", "client_ip", "platform", "request_id", "received_at"),
]
"""The members of a removal's JSON, in their order."""


def open_history(make_app: MakeApp, url: URL | None = None, **arguments: Any) -> Flask:
    """Return an app whose history is open to readers with a token."""
    tokens = ["old-token-of-readers", TOKEN]
    return make_app(url, IMCALLBACK_HISTORY_TOKENS=tokens, **arguments)


def get(app: Flask, path: str = HISTORY, token: str | None = TOKEN, **options: Any) -> Any:
    """Return the response to a request with the token."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    response = app.test_client().open(path, headers=headers, **options)
    assert response.headers["Cache-Control"] == "no-store"
    return response


def assert_problem(response: TestResponse, status: int) -> dict[str, Any]:
    """Check that the response is a problem (RFC 9457), and return its members."""
    assert response.status_code == status
    assert response.mimetype == "application/problem+json"
    problem: dict[str, Any] = response.get_json()
    assert problem["type"].startswith("urn:flask-imcallback:problem:")
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    return problem


BAD_TIMES = [
    *("", "now", "2026-11-20", "2026-11-20T18:05:00", "2026-11-20 18:05:00Z", "1763661900"),
    *("2026-11-20T18:05:00 00:00", "2026-11-20T18:05Z", "2026-13-20T18:05:00Z", "20261120T180500Z"),
    *("2026-11-20T18:05:00+25:00", "2026-11-20T18:05:00+0000", "2026-11-20T18:05:00.Z"),
    *("٢٠٢٦-11-20T18:05:00Z", "0000-01-01T00:00:00Z", "2026-11-20T18:05:60Z", "x" * 10_000),
    *("0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00", "2026-11-20T18:05:00Z\n"),
]
"""Texts that are no RFC 3339 times, or times that Python cannot hold in UTC."""


def login_required(view: Callable[..., Any]) -> Callable[..., Any]:
    """Guard a view as a host might: a request must have a header."""

    @functools.wraps(view)
    def wrapper(**arguments: Any) -> Any:
        if "X-User" not in request.headers:
            abort(401)
        return view(**arguments)

    return wrapper
