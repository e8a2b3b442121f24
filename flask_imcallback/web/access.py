"""Access to the history: tokens, decorators, and the parts that all URLs for readers share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from typing import Any

from flask import Blueprint, Response, request

from ..providers import is_one_of
from ..runtime import get_runtime
from .middleware import set_headers
from .problems import (
    ALLOWED_METHODS,
    CLOSED,
    METHOD_NOT_ALLOWED,
    UNAUTHORIZED,
    ProblemError,
)

METHODS = ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE"]
"""The methods that the views get. Flask would answer OPTIONS with all of them, and would refuse a
method with HTML."""
RESPONSE_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
View = Callable[..., Response]


class TokenCheck(Enum):
    """The result of a check of the token of a request."""

    VALID = auto()
    INVALID = auto()
    MISSING = auto()


def add_reader_views(
    blueprint: Blueprint,
    views: Mapping[str, tuple[str, View]],
    decorators: Sequence[Callable[..., Any]],
) -> None:
    """Add views that only readers may see, as a mapping of URL rule to endpoint and view."""
    for rule, (endpoint, view) in views.items():
        blueprint.add_url_rule(
            rule,
            endpoint=endpoint,
            view_func=require_reader(view, decorators),
            methods=METHODS,
            provide_automatic_options=False,
            strict_slashes=False,
        )
    blueprint.after_request(_add_headers)


def _add_headers(response: Response) -> Response:
    set_headers(response, RESPONSE_HEADERS)
    return response


def check_token() -> TokenCheck:
    """Compare the token of the request with `IMCALLBACK_HISTORY_TOKENS`.

    The token is a bearer token, or the password of HTTP Basic, because nobody can type a bearer
    token into a browser. A wrong password counts as missing: it may belong to the host app.
    """
    tokens, credentials = get_runtime().settings.history_tokens, request.authorization
    if not tokens or credentials is None:
        return TokenCheck.MISSING
    if credentials.type == "bearer":
        is_valid = is_one_of(credentials.token or "", tokens)
        return TokenCheck.VALID if is_valid else TokenCheck.INVALID
    if credentials.type == "basic":
        is_valid = is_one_of(credentials.password or "", tokens)
        return TokenCheck.VALID if is_valid else TokenCheck.MISSING
    return TokenCheck.MISSING


def require_reader(
    view: Callable[..., Any], decorators: Sequence[Callable[..., Any]]
) -> Callable[..., Any]:
    """Wrap a view, so only requests with a valid token get its response.

    If there are `decorators` of the host app, they decide about all other requests.
    """
    decorated_view = view
    for decorator in decorators:
        decorated_view = decorator(decorated_view)

    def protected_view(**arguments: Any) -> Any:
        if request.method == "OPTIONS":
            return Response(headers={"Allow": ALLOWED_METHODS})
        if request.method not in ("GET", "HEAD"):
            raise ProblemError(METHOD_NOT_ALLOWED, "This URL supports only GET and HEAD.")
        token = check_token()
        if token is TokenCheck.VALID:
            return view(**arguments)
        if decorators:
            return decorated_view(**arguments)
        if token is TokenCheck.INVALID:
            raise ProblemError(UNAUTHORIZED, "The bearer token is invalid.")
        if get_runtime().settings.history_tokens:
            raise ProblemError(
                UNAUTHORIZED,
                "Send a bearer token: Authorization: Bearer …, or the token as a password",
            )
        raise ProblemError(
            CLOSED,
            "The history is closed. Set IMCALLBACK_HISTORY_TOKENS, or pass history_decorators to "
            "ImCallback, to open it.",
        )

    return protected_view
