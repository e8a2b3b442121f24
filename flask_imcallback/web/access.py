"""Who may read: whoever has a bearer token, or is let in by the host's decorators; and what."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs

from flask import Blueprint, Response, request

from ..providers import is_one_of
from ..runtime import get_runtime
from .problems import BAD_PARAMETER, CLOSED, METHOD_NOT_ALLOWED, UNAUTHORIZED, ProblemError

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE"]
"""All are routed to the guard, so that each gets an answer that its sender can read."""
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
View = Callable[..., Response]


def add_guarded(
    blueprint: Blueprint,
    routes: Mapping[str, View],
    decorators: Sequence[Callable[..., Any]],
    *,
    in_browser: Container[View] = (),
) -> None:
    """Add the views by their rules, as `guarded`, and give all answers the `HEADERS`."""
    for rule, view in routes.items():
        blueprint.add_url_rule(
            rule,
            endpoint=view.__name__[1:],
            view_func=guarded(view, decorators, in_browser=view in in_browser),
            methods=METHODS,
            strict_slashes=False,
        )
    blueprint.after_request(_with_headers)


def _with_headers(response: Response) -> Response:
    response.headers.update(HEADERS)
    return response


def token_is_known(*, in_browser: bool = False) -> bool | None:
    """Whether the token that the request presents is one of ours; None if it has none.

    In a browser it can be the password of Basic credentials. Another one there may be the host's.
    """
    tokens, given = get_runtime().settings.history_tokens, request.authorization
    if not tokens or given is None:
        return None
    if in_browser and given.type == "basic":
        return is_one_of(given.password or "", tokens) or None
    return is_one_of(given.token or "", tokens) if given.type == "bearer" else None


def guarded(
    view: Callable[..., Any], decorators: Sequence[Callable[..., Any]], *, in_browser: bool = False
) -> Callable[..., Any]:
    """Open the view to readers alone; one that is seen `in_browser` takes Basic credentials, too.

    Nobody can send a bearer token by typing an address.
    """
    schemes = ("Basic", "Bearer") if in_browser else ("Bearer",)
    decorated = view
    for decorator in decorators:
        decorated = decorator(decorated)

    def guard(**arguments: Any) -> Any:
        if request.method not in ("GET", "HEAD"):
            raise ProblemError(METHOD_NOT_ALLOWED, "The history is read, by GET.")
        is_known = token_is_known(in_browser=in_browser)
        if is_known:
            return view(**arguments)
        if is_known is False:
            raise ProblemError(UNAUTHORIZED, "The bearer token is not known.", schemes=schemes)
        if decorators:
            return decorated(**arguments)
        if get_runtime().settings.history_tokens:
            other = ", or the token as a password" if in_browser else ""
            detail = f"Send a bearer token: Authorization: Bearer …{other}"
            raise ProblemError(UNAUTHORIZED, detail, schemes=schemes)
        raise ProblemError(
            CLOSED,
            "The history is closed. Set IMCALLBACK_HISTORY_TOKENS, or pass history_decorators to "
            "ImCallback, to open it.",
        )

    return guard


def parameters() -> dict[str, list[str]]:
    """Those of the request, with all values of each. Raises a problem."""
    try:
        query = request.query_string.decode()
        return parse_qs(query, keep_blank_values=True, errors="strict")
    except (UnicodeDecodeError, ValueError) as error:
        raise ProblemError(BAD_PARAMETER, "The query is not UTF-8.") from error


def number_in(text: str) -> int:
    """The id that stands in an address, or one that nothing has."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 16 else -1
