"""Who may read the history, with tokens and with the decorators of the host."""

from __future__ import annotations

import functools
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import pytest
from flask import abort, request

from support.apps import MakeApp

TOKEN = "a-token-of-readers"
HOST_TOKEN = "Bearer a-token-of-the-host"
URLS = pytest.mark.parametrize("url", ["/imcallback/history", "/imcallback/"])


def host_login(view: Callable[..., Any]) -> Callable[..., Any]:
    """Accept a bearer token that only the host knows."""

    @functools.wraps(view)
    def wrapper(**arguments: Any) -> Any:
        if request.headers.get("Authorization") != HOST_TOKEN:
            abort(418)
        return view(**arguments)

    return wrapper


@URLS
@pytest.mark.parametrize("tokens", [[], [TOKEN]], ids=["no tokens", "tokens"])
@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (HOST_TOKEN, 200),
        ("Bearer unknown-to-both", 418),
        ("Basic " + b64encode(b"user:wrong").decode(), 418),
        ("", 418),
    ],
)
def test_the_host_decides_about_an_unknown_token(
    make_app: MakeApp, url: str, tokens: list[str], authorization: str, status: int
) -> None:
    """With decorators, a token that the settings do not list goes to the decorators."""
    app = make_app(IMCALLBACK_HISTORY_TOKENS=tokens, history_decorators=[host_login])
    headers = {"Authorization": authorization} if authorization else {}
    assert app.test_client().get(url, headers=headers).status_code == status


@URLS
def test_a_listed_token_opens_without_the_host(make_app: MakeApp, url: str) -> None:
    """A valid token is enough, although the decorators would refuse it."""
    app = make_app(IMCALLBACK_HISTORY_TOKENS=[TOKEN], history_decorators=[host_login])
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert app.test_client().get(url, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("headers", "detail"),
    [
        ({}, "Send a bearer token: Authorization: Bearer …, or the token as a password"),
        ({"Authorization": "Bearer wrong"}, "The bearer token is invalid."),
    ],
    ids=["no token", "wrong token"],
)
def test_without_decorators_a_token_is_needed(
    make_app: MakeApp, headers: dict[str, str], detail: str
) -> None:
    """The answer is 401, and says what is wrong with the token."""
    app = make_app(IMCALLBACK_HISTORY_TOKENS=[TOKEN], migrate=False)
    response = app.test_client().get("/imcallback/history", headers=headers)
    assert response.status_code == 401
    assert response.get_json()["detail"] == detail


def test_a_closed_history_names_the_setting(make_app: MakeApp) -> None:
    """Without tokens and decorators the answer is 403, with the remedy."""
    response = make_app(migrate=False).test_client().get("/imcallback/history")
    assert response.status_code == 403
    assert response.get_json()["detail"] == (
        "The history is closed. Set IMCALLBACK_HISTORY_TOKENS, or pass history_decorators to "
        "ImCallback, to open it."
    )


@pytest.mark.parametrize(
    "path",
    [
        *("history", "history/1", "history/stats", "history/export", "deliveries", "deliveries/1"),
        *("openapi.json", "health", "account", "removal/1", ""),
    ],
)
@pytest.mark.parametrize("spelling", ["/imcallback/{}/", "/imcallback//{}", "/imcallback///{}//"])
def test_no_spelling_of_a_url_is_redirected(make_app: MakeApp, path: str, spelling: str) -> None:
    """Doubled slashes and a final slash lead to the same response."""
    client = make_app(IMCALLBACK_HISTORY_TOKENS=[TOKEN]).test_client()
    headers = {"Authorization": f"Bearer {TOKEN}"}
    expected = client.get(f"/imcallback/{path}", headers=headers, buffered=True)
    response = client.get(spelling.format(path), headers=headers, buffered=True)
    assert response.status_code == expected.status_code != 308
    assert response.mimetype == expected.mimetype
