"""The history over HTTP, as a reader with a token asks."""

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
    *("id", "provider", "app_id", "command", "relation", "owner_id", "target_id", "position"),
    *("delivery_id", "client_ip", "platform", "request_id", "received_at"),
]


def open_history(make_app: MakeApp, url: URL | None = None, **arguments: Any) -> Flask:
    tokens = ["old-token", TOKEN]
    return make_app(url, IMCALLBACK_HISTORY_TOKENS=tokens, **arguments)


def get(app: Flask, address: str = HISTORY, token: str | None = TOKEN, **options: Any) -> Any:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    response = app.test_client().open(address, headers=headers, **options)
    assert response.headers["Cache-Control"] == "no-store"
    return response


def assert_problem(response: TestResponse, status: int) -> dict[str, Any]:
    """It is one of RFC 9457; here are its members."""
    assert response.status_code == status
    assert response.mimetype == "application/problem+json"
    problem: dict[str, Any] = response.get_json()
    assert problem["type"].startswith("urn:flask-imcallback:problem:")
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    return problem


TIMES = [
    *("", "now", "2026-11-20", "2026-11-20T18:05:00", "2026-11-20 18:05:00Z", "1763661900"),
    *("2026-11-20T18:05:00 00:00", "2026-11-20T18:05Z", "2026-13-20T18:05:00Z", "20261120T180500Z"),
    *("2026-11-20T18:05:00+25:00", "2026-11-20T18:05:00+0000", "2026-11-20T18:05:00.Z"),
    *("٢٠٢٦-11-20T18:05:00Z", "0000-01-01T00:00:00Z", "2026-11-20T18:05:60Z", "x" * 10_000),
    *("0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00", "2026-11-20T18:05:00Z\n"),
]


def login_required(view: Callable[..., Any]) -> Callable[..., Any]:
    """What a host may have: it lets in who sends a header."""

    @functools.wraps(view)
    def wrapper(**arguments: Any) -> Any:
        if "X-User" not in request.headers:
            abort(401)
        return view(**arguments)

    return wrapper
