"""Tencent Cloud IM (Tencent RTC Chat).

The protocol: https://cloud.tencent.com/document/product/269/1522, in English
https://trtc.io/document/34354. Its server waits two seconds for an answer. It ignores the answer
to a callback about something that has already happened.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from marshmallow import fields
from marshmallow.validate import OneOf

from ..errors import ConfigError, VerificationError
from ..removals import Cause, Relation, Removal
from ..settings import Settings
from .base import (
    SECRET_STEP,
    Callback,
    CallbackRequest,
    Description,
    Origin,
    OutgoingCallback,
    Provider,
    Reactions,
    Reply,
    SetupStep,
)
from .json_schemas import answer_schema, packet_schema
from .packets import (
    AccountId,
    AccountIds,
    AccountObjects,
    OptionalAccountId,
    PacketSchema,
    RemovalSchema,
    agree_on_command,
    compact_json,
    is_about_messages,
    is_one_of,
    load_object,
    read_packet,
)

COMMANDS_WITH_ANSWERS = {
    # Sent before somebody is added. The answer allows (0) or refuses (38000 to 39000) each account.
    # https://www.tencentcloud.com/document/product/1047/43468 and 43467
    "Sns.CallbackPrevFriendAdd": "FriendItem",
    "Sns.CallbackPrevFriendResponse": "ResponseFriendItem",
}
"""Command -> the packet member that lists the accounts. The answer must name each account."""


class PairSchema(PacketSchema):
    """A pair: the list of `From_Account` lost `To_Account`."""

    From_Account = AccountId(required=True)
    To_Account = AccountId(required=True)


class PairListSchema(RemovalSchema):
    """The packet of the `Sns.` commands that record removals."""

    CallbackCommand = fields.String(required=True)
    PairList = AccountObjects(PairSchema, required=True)

    def removals(self, packet: Mapping[str, Any]) -> Iterable[Removal]:
        for pair in packet["PairList"]:
            yield Removal(self.relation, pair["From_Account"], pair["To_Account"])

    def samples(self, owner_id: str, target_ids: Sequence[str]) -> list[dict[str, Any]]:
        pairs = [{"From_Account": owner_id, "To_Account": target} for target in target_ids]
        return [{"PairList": pairs}]


class FollowedAccounts(AccountIds):
    """The accounts that are not followed any more.

    Tencent's sample has strings, but its table says "user objects". Both are read.
    """

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(value, list):
            value = [item.get("To_Account") if type(item) is dict else item for item in value]
        return super()._deserialize(value, *args, **kwargs)


class FollowDeleteSchema(RemovalSchema):
    """`Follow.CallbackAfterFollowDelete`: one account stops to follow others."""

    CallbackCommand = fields.String(required=True)
    From_Account = AccountId(required=True)
    To_Account = FollowedAccounts(required=True)

    def removals(self, packet: Mapping[str, Any]) -> Iterable[Removal]:
        for target_id in packet["To_Account"]:
            yield Removal(self.relation, packet["From_Account"], target_id)

    def samples(self, owner_id: str, target_ids: Sequence[str]) -> list[dict[str, Any]]:
        return [
            {
                "From_Account": owner_id,
                "To_Account": [*target_ids],
                "EventTime": _milliseconds(),
            }
        ]


class MemberSchema(PacketSchema):
    """A member of a group."""

    Member_Account = AccountId(required=True)


EXIT_CAUSES = {"Kicked": Cause.KICKED, "Quit": Cause.QUIT}
"""ExitType -> cause."""


class MemberExitSchema(RemovalSchema):
    """`Group.CallbackAfterMemberExit`: members quit a group, or somebody removes them."""

    CallbackCommand = fields.String(required=True)
    GroupId = AccountId(required=True)
    ExitType = fields.String(
        required=True, validate=OneOf([*EXIT_CAUSES], error="must be Kicked or Quit")
    )
    # The table of the documentation calls this account the user who leaves, the sample calls it the
    # operator. In the sample of a kick it is not in the list, so it is the operator.
    Operator_Account = OptionalAccountId()
    ExitMemberList = AccountObjects(MemberSchema, required=True)

    def removals(self, packet: Mapping[str, Any]) -> Iterable[Removal]:
        group_id, actor_id = packet["GroupId"], packet["Operator_Account"]
        cause = EXIT_CAUSES[packet["ExitType"]]
        for member in packet["ExitMemberList"]:
            yield Removal(self.relation, group_id, member["Member_Account"], actor_id, cause)

    def samples(self, owner_id: str, target_ids: Sequence[str]) -> list[dict[str, Any]]:
        return [
            {
                "GroupId": owner_id,
                "Type": "Public",
                "ExitType": "Kicked",
                "Operator_Account": "administrator",
                "ExitMemberList": _members(target_ids),
                "EventTime": str(_milliseconds()),
            }
        ]


class GroupDestroyedSchema(RemovalSchema):
    """`Group.CallbackAfterGroupDestroyed`. Communities come without their members."""

    CallbackCommand = fields.String(required=True)
    GroupId = AccountId(required=True)
    MemberList = AccountObjects(MemberSchema, allow_none=True, load_default=())

    def removals(self, packet: Mapping[str, Any]) -> Iterable[Removal]:
        for member in packet["MemberList"] or ():
            yield Removal(
                self.relation, packet["GroupId"], member["Member_Account"], cause=Cause.DISMISSED
            )

    def samples(self, owner_id: str, target_ids: Sequence[str]) -> list[dict[str, Any]]:
        return [
            {
                "GroupId": owner_id,
                "Type": "Public",
                "Owner_Account": "".join(target_ids[:1]),
                "Name": "A sample of flask-imcallback",
                "MemberList": _members(target_ids),
                "EventTime": str(_milliseconds()),
            }
        ]


def _members(account_ids: Iterable[str]) -> list[dict[str, str]]:
    return [{"Member_Account": account_id} for account_id in account_ids]


def _milliseconds() -> int:
    return int(time.time() * 1000)


class AskedAccountSchema(PacketSchema):
    """An account that the answer must allow or refuse."""

    To_Account = AccountId(required=True)


PACKETS: Mapping[str, RemovalSchema] = {
    # "After a user is removed from blocklist": From_Account's blocklist lost To_Account.
    # https://www.tencentcloud.com/document/product/1047/34362
    "Sns.CallbackBlackListDelete": PairListSchema(Relation.BLACKLIST),
    # From_Account's friend list lost To_Account. A deletion from both lists is one packet with
    # two pairs. Tencent describes both accounts in the same words. That is wrong for one.
    # https://www.tencentcloud.com/document/product/1047/34360
    "Sns.CallbackFriendDelete": PairListSchema(Relation.FRIEND),
    # https://www.tencentcloud.com/document/product/1047/70356
    "Follow.CallbackAfterFollowDelete": FollowDeleteSchema(Relation.FOLLOW),
    # https://www.tencentcloud.com/document/product/1047/34373
    "Group.CallbackAfterMemberExit": MemberExitSchema(Relation.GROUP),
    # https://www.tencentcloud.com/document/product/1047/34377
    "Group.CallbackAfterGroupDestroyed": GroupDestroyedSchema(Relation.GROUP),
}
"""The packets that record removals, by command."""
KEPT_FAMILIES = ("sns.", "follow.", "group.")
"""The beginnings, in lower case, of the commands whose packets are kept."""
PACKETS_WITH_ANSWERS = {
    command: PacketSchema.from_dict(
        {member: fields.Nested(AskedAccountSchema, many=True, required=True)}
    )()
    for command, member in COMMANDS_WITH_ANSWERS.items()
}


class TencentProvider(Provider):
    """Callbacks of the Tencent apps in `IMCALLBACK_TENCENT_APPS`.

    Raises `ConfigError` for a Tencent app that has no guard.
    """

    name = "tencent"
    title = "Tencent Cloud IM"
    commands = {command: schema.relation for command, schema in PACKETS.items()}
    command_member = "CallbackCommand"
    settings_keys = ("IMCALLBACK_TENCENT_APPS",)
    reactions = Reactions(
        after_slow_answer="Tencent waits two seconds, then counts the callback as failed.",
        after_redirect="Tencent counts a redirected callback as failed.",
        after_wrong_answer="Tencent counts the callback as failed.",
    )
    # The console has a switch to repeat a callback after a timeout.
    repeats_callbacks = True
    # Sign and RequestTime are left out: together they are valid for a minute.
    kept_query = frozenset(
        ["sdkappid", "callbackcommand", "contenttype", "clientip", "optplatform", "requestid"]
    )

    def __init__(self, settings: Settings) -> None:
        self.apps = settings.tencent_apps
        self.secrets = settings.secrets
        self.sign_window = settings.sign_window
        self.allow_unauthenticated = settings.allow_unauthenticated
        unguarded = [app_id for app_id, tokens in self.apps.items() if not tokens]
        if unguarded and not self.secrets and not self.allow_unauthenticated:
            raise ConfigError(
                f"IMCALLBACK_TENCENT_APPS has no token for app {unguarded[0]}, so anybody could "
                "send callbacks in its name: add the token of the Tencent console, or add a secret "
                "path segment to IMCALLBACK_SECRETS, or (in development only) set "
                "IMCALLBACK_ALLOW_UNAUTHENTICATED"
            )

    @property
    def is_enabled(self) -> bool:
        return bool(self.apps)

    def verify(self, request: CallbackRequest) -> str:
        # Every captured request spells the key SdkAppid, although Tencent's documentation differs.
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
            raise VerificationError("the Tencent app has no token, and the path has no secret")
        return "+".join(guards) or "nothing"

    def _verify_signature(self, request: CallbackRequest, tokens: tuple[str, ...]) -> None:
        """Check Sign, the SHA-256 of token and RequestTime, which is in seconds since 1970.

        https://cloud.tencent.com/document/product/269/32431
        """
        signs, times = request.query.get("Sign", ()), request.query.get("RequestTime", ())
        if len(signs) != 1 or len(times) != 1:
            raise VerificationError("Sign or RequestTime is missing or repeated")
        (sign,), (request_time,) = signs, times
        is_number = request_time.isascii() and request_time.isdecimal()
        if not is_number or len(request_time) > 12:
            raise VerificationError("RequestTime is not a number of seconds")
        if not is_one_of(sign, [_sign(token, request_time) for token in tokens]):
            raise VerificationError("Sign matches none of the app's tokens")
        difference = abs(int(request.received_at.timestamp()) - int(request_time))
        if difference > self.sign_window:
            raise VerificationError(
                "RequestTime differs from our clock by more than IMCALLBACK_SIGN_WINDOW",
                f"{difference} seconds",
            )

    def origin(self, request: CallbackRequest) -> Origin:
        return Origin(
            command=_first(request, "CallbackCommand"),
            app_id=_first(request, "SdkAppid"),
            request_id=_request_id(request),
            client_ip=_first(request, "ClientIP"),
            platform=_first(request, "OptPlatform"),
        )

    def parse(self, request: CallbackRequest, body: bytes) -> Callback:
        packet = load_object(body)
        query_commands = request.query.get("CallbackCommand", ())
        command = agree_on_command([*query_commands, packet.get("CallbackCommand")])
        removals = None
        if schema := PACKETS.get(command):
            removals = tuple(schema.removals(read_packet(schema, packet)))
        elif command in PACKETS_WITH_ANSWERS:
            packet = read_packet(PACKETS_WITH_ANSWERS[command], packet)
        return Callback(command=command, removals=removals, packet=packet)

    def accept(self, callback: Callback) -> Reply:
        body: dict[str, Any] = {"ActionStatus": "OK", "ErrorCode": 0, "ErrorInfo": ""}
        if member := COMMANDS_WITH_ANSWERS.get(callback.command):
            body["ResultItem"] = [_allow(account) for account in callback.packet[member]]
        return Reply(200, body)

    def refuse(self, status: int, problem: str) -> Reply:
        return Reply(status, {"ActionStatus": "FAIL", "ErrorCode": 1, "ErrorInfo": problem})

    def keeps(self, commands: Collection[str]) -> bool:
        """Keep the packets of `KEPT_FAMILIES`, but never a message."""
        if any(is_about_messages(command) for command in commands):
            return False
        return self.probe_command in commands or any(
            command.lower().startswith(KEPT_FAMILIES) for command in commands
        )

    def sample(
        self, command: str, owner_id: str, target_ids: Sequence[str], *, app_id: str = ""
    ) -> list[OutgoingCallback]:
        """Make one callback with all targets.

        The app's first token signs it. The path has a secret if the settings have one.
        """
        app_id = app_id or next(iter(self.apps), "")
        query = {
            "CallbackCommand": command,
            "OptPlatform": "RESTAPI",
            "SdkAppid": app_id,
            "contenttype": "json",
        }
        if tokens := self.apps.get(app_id):
            query["RequestTime"] = str(int(time.time()))
            query["Sign"] = _sign(tokens[0], query["RequestTime"])
        schema = PACKETS.get(command) or PACKETS["Sns.CallbackFriendDelete"]
        return [
            OutgoingCallback(
                path="/" + "/".join([self.name, *self.secrets[:1]]),
                query=urlencode(query),
                headers={"Content-Type": "application/json"},
                body=compact_json({"CallbackCommand": command, **packet}),
            )
            for packet in schema.samples(owner_id, target_ids)
        ]

    def describe(self) -> Description:
        allowed = {"To_Account": {"type": "string"}, "ResultCode": {"const": 0}}
        accepted = answer_schema({"ActionStatus": "OK", "ErrorCode": 0, "ErrorInfo": ""})
        accepted["properties"]["ResultItem"] = {
            "description": "All accounts that the callback asks about. All are allowed.",
            "type": "array",
            "items": {
                "type": "object",
                "properties": {**allowed, "ResultInfo": {"const": ""}},
                "required": [*allowed, "ResultInfo"],
            },
        }
        scheme = {
            "type": "apiKey",
            "in": "query",
            "name": "Sign",
            "description": "The SHA-256 of a token of the app and RequestTime, in hexadecimal.",
        }
        return Description(
            paths=["", "/{secret}"],
            path_parameters={"secret": "One of IMCALLBACK_SECRETS."},
            query_parameters={
                "SdkAppid": "An app of IMCALLBACK_TENCENT_APPS.",
                "CallbackCommand": "The command, as in the body.",
                "contenttype": "Always json.",
                "ClientIP": "The address of the user.",
                "OptPlatform": "The platform of the user, such as iOS.",
                "RequestId": "The id of the callback. Any spelling in case is read.",
                "RequestTime": "Seconds since 1970. Required for an app that has a token.",
            },
            required_parameters=["SdkAppid"],
            packet=packet_schema(
                "CallbackCommand",
                {**PACKETS, **PACKETS_WITH_ANSWERS},
                "Any other command. It is acknowledged. Its packet is stored, without removals, if "
                "the command begins with Sns., Follow. or Group. and is not about messages.",
            ),
            accepted=accepted,
            refused=answer_schema(self.refuse(400, "").body, free_members=["ErrorInfo"]),
            security_schemes={f"{self.name}_sign": scheme} if any(self.apps.values()) else {},
            needs_scheme=all(self.apps.values()),
        )

    def setup_steps(self, url: str) -> list[SetupStep]:
        steps = []
        if any(self.apps.values()):
            steps.append(
                SetupStep(
                    "In the console, callback configuration: the URL %(url)s and the token of "
                    "IMCALLBACK_TENCENT_APPS.",
                    {"url": url},
                )
            )
        if not all(self.apps.values()):
            secret_url = f"{url}/<secret>" if self.secrets else url
            steps.append(SetupStep("For an app without a token: %(url)s", {"url": secret_url}))
            steps += [SECRET_STEP] if self.secrets else []
        commands = ", ".join(self.commands)
        steps.append(SetupStep("Switch on these callbacks: %(commands)s", {"commands": commands}))
        return steps


def _sign(token: str, request_time: str) -> str:
    return hashlib.sha256((token + request_time).encode()).hexdigest()


def _first(request: CallbackRequest, name: str) -> str:
    return next(iter(request.query.get(name, ())), "")


def _request_id(request: CallbackRequest) -> str:
    """Return the first request id that is not empty, under any spelling in case.

    `RequestId` was captured in 2021 and `RequestID` in 2022. Tencent's documentation has neither.
    """
    values = [_first(request, name) for name in request.query if name.lower() == "requestid"]
    return next(filter(None, values), "")


def _allow(account: Mapping[str, Any]) -> dict[str, Any]:
    return {"To_Account": account["To_Account"], "ResultCode": 0, "ResultInfo": ""}
