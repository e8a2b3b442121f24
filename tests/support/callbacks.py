"""Callbacks to post."""

from __future__ import annotations

from flask_imcallback import OpenIMProvider
from flask_imcallback.providers import Callback, CallbackRequest

SECRET = "a-secret-of-16-characters"


BODY = {
    "callbackCommand": "callbackAfterRemoveBlackCommand",
    "ownerUserID": "a",
    "blackUserID": "b",
}


class MineProvider(OpenIMProvider):
    """A provider of the host's own, and one whose author made a mistake."""

    name = "mine"

    def parse(self, request: CallbackRequest, body: bytes) -> Callback:
        if body == b'{"fail": 1}':
            raise KeyError("on purpose")
        return super().parse(request, body)
