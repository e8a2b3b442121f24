"""Cursors: signed texts that hold the last id of a page."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from itsdangerous import BadSignature, URLSafeSerializer

from ..errors import HistoryQueryError

CURSOR_VERSION = 3


class CursorCodec:
    """A codec between ids and signed texts.

    Without keys, it signs with the random key. Such a cursor is valid in the processes that share
    the random key.
    """

    def __init__(self, secret_keys: Sequence[str], random_key: str = "") -> None:
        self._has_keys = bool(secret_keys)
        keys = secret_keys or random_key or secrets.token_hex(32)
        self._serializer = URLSafeSerializer(keys, salt="flask-imcallback-cursor")

    def encode(self, last_id: int, digest: str) -> str:
        """Return the cursor after an id in the result of the query with this digest."""
        return str(self._serializer.dumps([CURSOR_VERSION, digest, last_id]))

    def decode(self, cursor: str, digest: str) -> int:
        """Return the id. Raises `HistoryQueryError` if the cursor is of another query."""
        try:
            version, *parts = self._serializer.loads(cursor)
        except (BadSignature, ValueError, TypeError) as error:
            problem = (
                "is invalid: it was changed, cut off, or signed with another SECRET_KEY. "
                "Start again without it"
            )
            if not self._has_keys:
                problem += (
                    ". The app has no SECRET_KEY, so a cursor is valid only in the process "
                    "that made it. Set SECRET_KEY"
                )
            raise HistoryQueryError("cursor", problem) from error
        if version != CURSOR_VERSION:
            problem = "is from another version of flask-imcallback. Start again without it"
            raise HistoryQueryError("cursor", problem)
        query_digest, last_id = parts
        if query_digest != digest:
            problem = (
                "belongs to other filters or another order. "
                "Repeat its filters and order, or start again without it"
            )
            raise HistoryQueryError("cursor", problem)
        return int(last_id)
