"""Tencent Cloud IM (Tencent RTC Chat).

The protocol: https://cloud.tencent.com/document/product/269/1522, in English
https://trtc.io/document/34354. Its server waits two seconds, and ignores what a callback about
something that has already happened is answered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from marshmallow import fields

from ..errors import ConfigError, VerificationError
from ..removals import Relation, Removal
from ..settings import Settings
from .base import Callback, CallbackRequest, Origin, Provider, Reply
from .packets import (
    AccountId,
    AccountPairs,
    PacketSchema,
    is_one_of,
    load_object,
    read_packet,
    the_command,
)

RELATIONS = {
    # "After a user is removed from blocklist": From_Account's blocklist lost To_Account.
    # https://www.tencentcloud.com/document/product/1047/34362
    "Sns.CallbackBlackListDelete": Relation.BLACKLIST,
    # From_Account's friend list lost To_Account; a deletion from both lists is two pairs of one
    # packet. The page describes both accounts in the same words, which is wrong of one of them.
    # https://www.tencentcloud.com/document/product/1047/34360
    "Sns.CallbackFriendDelete": Relation.FRIEND,
}
REQUEST_ID = ("RequestId", "RequestID")
"""Both spellings were captured, in 2021 and 2022; no page has either."""
ASKS_WHOM = {
    # Sent before somebody is added, and answered for each account: 0 allows, 38000-39000 refuses.
    # https://www.tencentcloud.com/document/product/1047/43468 and 43467
    "Sns.CallbackPrevFriendAdd": "FriendItem",
    "Sns.CallbackPrevFriendResponse": "ResponseFriendItem",
}


class PairSchema(PacketSchema):
    From_Account = AccountId(required=True)
    To_Account = AccountId(required=True)


class RemovalSchema(PacketSchema):
    CallbackCommand = fields.String(required=True)
    PairList = AccountPairs(PairSchema, required=True)


class AskedSchema(PacketSchema):
    To_Account = AccountId(required=True)


REMOVAL = RemovalSchema()
ASKED = {
    command: PacketSchema.from_dict(
        {member: fields.Nested(AskedSchema, many=True, required=True)}
    )()
    for command, member in ASKS_WHOM.items()
}


class TencentProvider(Provider):
    """Callbacks of the apps in `IMCALLBACK_TENCENT_APPS`.

    Raises `ConfigError` for an app that nothing would guard.
    """

    name = "tencent"
    repeats_callbacks = True  # The console has a switch to repeat a callback after a time-out.
    # Sign and RequestTime are left out: together they are good for a minute.
    kept_query = frozenset(
        ["SdkAppid", "CallbackCommand", "contenttype", "ClientIP", "OptPlatform", *REQUEST_ID]
    )

    def __init__(self, settings: Settings) -> None:
        self.apps = settings.tencent_apps
        self.secrets = settings.secrets
        self.sign_window = settings.sign_window
        self.allow_unauthenticated = settings.allow_unauthenticated
        unguarded = [app_id for app_id, tokens in self.apps.items() if not tokens]
        if unguarded and not self.secrets and not self.allow_unauthenticated:
            raise ConfigError(
                f"IMCALLBACK_TENCENT_APPS gives app {unguarded[0]} no token, so that anybody could "
                "send callbacks in its name: add the token of the Tencent console, or add a secret "
                "path segment to IMCALLBACK_SECRETS, or (in development only) set "
                "IMCALLBACK_ALLOW_UNAUTHENTICATED"
            )

    @property
    def is_enabled(self) -> bool:
        return bool(self.apps)

    def verify(self, request: CallbackRequest) -> str:
        # The key is spelt SdkAppid in every capture, whatever the pages' prose says.
        app_ids = request.query.get("SdkAppid", ())
        if len(app_ids) != 1:
            raise VerificationError("SdkAppid is missing or repeated")
        tokens = self.apps.get(app_ids[0])
        if tokens is None:
            raise VerificationError("SdkAppid is not in IMCALLBACK_TENCENT_APPS")
        guards = []
        if request.segments:
            if len(request.segments) > 1 or not is_one_of(request.segments[0], self.secrets):
                raise VerificationError("the secret path segment is not in IMCALLBACK_SECRETS")
            guards.append("secret")
        if tokens:
            self._verify_signature(request, tokens)
            guards.append("signature")
        if not guards and not self.allow_unauthenticated:
            raise VerificationError("the app has no token, and the path has no secret")
        return "+".join(guards) or "nothing"

    def _verify_signature(self, request: CallbackRequest, tokens: tuple[str, ...]) -> None:
        """Sign is the SHA-256 of token and RequestTime, which is in seconds since 1970.

        https://cloud.tencent.com/document/product/269/32431
        """
        signs, times = request.query.get("Sign", ()), request.query.get("RequestTime", ())
        if len(signs) != 1 or len(times) != 1:
            raise VerificationError("Sign or RequestTime is missing or repeated")
        (sign,), (time,) = signs, times
        if not (time.isascii() and time.isdecimal() and len(time) <= 12):
            raise VerificationError("RequestTime is not a number of seconds")
        expected = [hashlib.sha256((token + time).encode()).hexdigest() for token in tokens]
        if not is_one_of(sign, expected):
            raise VerificationError("Sign fits none of the app's tokens")
        away = abs(int(request.received_at.timestamp()) - int(time))
        if away > self.sign_window:
            raise VerificationError(
                "RequestTime is farther from our clock than IMCALLBACK_SIGN_WINDOW",
                f"{away} seconds",
            )

    def origin(self, request: CallbackRequest) -> Origin:
        def first(*names: str) -> str:
            return next((value for name in names for value in request.query.get(name, ())), "")

        return Origin(
            command=first("CallbackCommand"),
            app_id=first("SdkAppid"),
            request_id=first(*REQUEST_ID),
            client_ip=first("ClientIP"),
            platform=first("OptPlatform"),
        )

    def parse(self, request: CallbackRequest, body: bytes) -> Callback:
        packet = load_object(body)
        in_query = request.query.get("CallbackCommand", ())
        command = the_command([*in_query, packet.get("CallbackCommand")])
        removals = None
        if relation := RELATIONS.get(command):
            pairs = read_packet(REMOVAL, packet)["PairList"]
            removals = tuple(
                Removal(relation, pair["From_Account"], pair["To_Account"]) for pair in pairs
            )
        elif command in ASKED:
            packet = read_packet(ASKED[command], packet)
        return Callback(command=command, removals=removals, packet=packet)

    def accept(self, callback: Callback) -> Reply:
        body: dict[str, Any] = {"ActionStatus": "OK", "ErrorCode": 0, "ErrorInfo": ""}
        if member := ASKS_WHOM.get(callback.command):
            body["ResultItem"] = [_allow(item) for item in callback.packet[member]]
        return Reply(200, body)

    def refuse(self, status: int, problem: str) -> Reply:
        return Reply(status, {"ActionStatus": "FAIL", "ErrorCode": 1, "ErrorInfo": problem})


def _allow(item: Mapping[str, Any]) -> dict[str, Any]:
    return {"To_Account": item["To_Account"], "ResultCode": 0, "ResultInfo": ""}
