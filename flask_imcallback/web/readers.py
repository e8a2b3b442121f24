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


def token_is_known() -> bool | None:
    """Whether the bearer token that the request presents is one of ours; None if it has none."""
    tokens, given = get_state().settings.history_tokens, request.authorization
    if not tokens or given is None or given.type != "bearer":
        return None
    return is_one_of(given.token or "", tokens)


def guarded(
    view: Callable[..., Any], decorators: Sequence[Callable[..., Any]]
) -> Callable[..., Any]:
    """Open the view to readers alone."""
    decorated = view
    for decorator in decorators:
        decorated = decorator(decorated)

    def guard(**arguments: Any) -> Any:
        if request.method not in ("GET", "HEAD"):
            raise ProblemError(METHOD_NOT_ALLOWED, "The history is read, by GET.")
        is_known = token_is_known()
        if is_known:
            return view(**arguments)
        if is_known is False:
            raise ProblemError(UNAUTHORIZED, "The bearer token is not known.")
        if decorators:
            return decorated(**arguments)
        if get_state().settings.history_tokens:
            raise ProblemError(UNAUTHORIZED, "Send a bearer token: Authorization: Bearer …")
        raise ProblemError(
            CLOSED,
            "The history is closed. Set IMCALLBACK_HISTORY_TOKENS, or pass history_decorators to "
            "ImCallback, to open it.",
        )

    return guard
