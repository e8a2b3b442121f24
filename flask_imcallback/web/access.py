"""Who may read the history, and the parts that all URLs for readers share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from typing import Any
from urllib.parse import parse_qs

from flask import Blueprint, Response, request

from ..providers import is_one_of
from ..runtime import get_runtime
from .middleware import set_headers
from .problems import BAD_PARAMETER, CLOSED, METHOD_NOT_ALLOWED, UNAUTHORIZED, ProblemError

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE"]
"""The methods that the views get. They answer all but GET and HEAD with a problem, because the
answer of Flask is HTML."""
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
    """The result of a look at the token of a request."""

    VALID = auto()
    INVALID = auto()
    MISSING = auto()


def add_reader_views(
    blueprint: Blueprint,
    views: Mapping[str, View],
    decorators: Sequence[Callable[..., Any]],
) -> None:
    """Add views that only readers may see, as a mapping of URL rule to view."""
    for rule, view in views.items():
        blueprint.add_url_rule(
            rule,
            endpoint=view.__name__[1:],
            view_func=require_reader(view, decorators),
            methods=METHODS,
            strict_slashes=False,
        )
    blueprint.after_request(_add_headers)


def _add_headers(response: Response) -> Response:
    set_headers(response, RESPONSE_HEADERS)
    return response


def check_token() -> TokenCheck:
    """Compare the token of the request with `IMCALLBACK_HISTORY_TOKENS`.

    The token is a bearer token, or the password of HTTP Basic, because nobody can type a bearer
    token into a browser. A wrong password counts as missing, because it may be one of the host.
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
    """Wrap a view so that it answers only requests with a valid token.

    With `decorators` of the host, they decide about every other request.
    """
    view_of_host = view
    for decorator in decorators:
        view_of_host = decorator(view_of_host)

    def protected_view(**arguments: Any) -> Any:
        if request.method not in ("GET", "HEAD"):
            raise ProblemError(METHOD_NOT_ALLOWED, "This URL supports only GET and HEAD.")
        token = check_token()
        if token is TokenCheck.VALID:
            return view(**arguments)
        if decorators:
            return view_of_host(**arguments)
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


def parameters() -> dict[str, list[str]]:
    """Return the query parameters, each with all its values. Raises `ProblemError`."""
    try:
        query = request.query_string.decode()
        return parse_qs(query, keep_blank_values=True, errors="strict")
    except (UnicodeDecodeError, ValueError) as error:
        raise ProblemError(BAD_PARAMETER, "The query is not UTF-8.") from error


def parse_id(text: str) -> int:
    """Return the id that a URL contains, or -1, which no row has, if the text is not an id."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 16 else -1
