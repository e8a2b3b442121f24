"""Who may read: the bearer tokens."""

from __future__ import annotations

from flask import request

from ..providers.base import is_one_of
from ..state import get_state


def token_is_known() -> bool | None:
    """Whether the bearer token that the request presents is one of ours; None if it has none."""
    tokens, given = get_state().settings.history_tokens, request.authorization
    if not tokens or given is None or given.type != "bearer":
        return None
    return is_one_of(given.token or "", tokens)
