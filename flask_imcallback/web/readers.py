"""Who may read: whoever has a bearer token, or is let in by the host's decorators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flask import request

from ..providers.base import is_one_of
from ..state import get_state
from .problems import CLOSED, METHOD_NOT_ALLOWED, UNAUTHORIZED, ProblemError

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE"]
"""All are routed to the guard, so that each gets an answer that its sender can read."""


def token_is_known(*, in_browser: bool = False) -> bool | None:
    """Whether the token that the request presents is one of ours; None if it has none.

    In a browser it can be the password of Basic credentials. Another one there may be the host's.
    """
    tokens, given = get_state().settings.history_tokens, request.authorization
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
        if get_state().settings.history_tokens:
            other = ", or the token as a password" if in_browser else ""
            detail = f"Send a bearer token: Authorization: Bearer …{other}"
            raise ProblemError(UNAUTHORIZED, detail, schemes=schemes)
        raise ProblemError(
            CLOSED,
            "The history is closed. Set IMCALLBACK_HISTORY_TOKENS, or pass history_decorators to "
            "ImCallback, to open it.",
        )

    return guard
