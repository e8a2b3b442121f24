"""OpenIM Server's webhooks.

The facts come from its code, https://github.com/openimsdk/open-im-server
`pkg/common/webhook/http_client.go` and `pkg/callbackstruct`. Where its documentation differs, the
code is right.
The server waits five seconds and sends each event once, from a queue in memory. While the queue is
full, it drops events silently. Its client keeps connections open, and loses an event if the app
closes one at that moment: with one event every two seconds and gunicorn's default keep-alive of two
seconds, 23 of 160 events were lost.
"""

from __future__ import annotations

import binascii
import secrets
from base64 import b64decode, b64encode
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from marshmallow import fields

from ..errors import VerificationError
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
    RemovalSchema,
    agree_on_command,
    compact_json,
    is_about_messages,
    is_one_of,
    load_object,
    read_packet,
)


class RemoveBlackSchema(RemovalSchema):
    """`CallbackAfterRemoveBlackReq`, sent by version 3.8.1 and later."""

    callbackCommand = fields.String(required=True)
    ownerUserID = AccountId(required=True)
    blackUserID = AccountId(required=True)

    def removals(self, packet: Mapping[str, Any]) -> Iterable[Removal]:
        return [Removal(self.relation, packet["ownerUserID"], packet["blackUserID"])]

    def samples(self, owner_id: str, target_ids: Sequence[str]) -> list[dict[str, Any]]:
        return [{"ownerUserID": owner_id, "blackUserID": target} for target in target_ids]


class DeleteFriendSchema(RemovalSchema):
    """`CallbackAfterDeleteFriendReq`. It reports one side of the friendship.

    There may be no event for the other side.
    """

    callbackCommand = fields.String(required=True)
    ownerUserID = AccountId(required=True)
    friendUserID = AccountId(required=True)

    def removals(self, packet: Mapping[str, Any]) -> Iterable[Removal]:
        return [Removal(self.relation, packet["ownerUserID"], packet["friendUserID"])]

    def samples(self, owner_id: str, target_ids: Sequence[str]) -> list[dict[str, Any]]:
        return [{"ownerUserID": owner_id, "friendUserID": target} for target in target_ids]


class QuitGroupSchema(RemovalSchema):
    """`CallbackQuitGroupReq`. An administrator can also cause it for a member."""

    callbackCommand = fields.String(required=True)
    groupID = AccountId(required=True)
    userID = AccountId(required=True)

    def removals(self, packet: Mapping[str, Any]) -> Iterable[Removal]:
        return [Removal(self.relation, packet["groupID"], packet["userID"], cause=Cause.QUIT)]

    def samples(self, owner_id: str, target_ids: Sequence[str]) -> list[dict[str, Any]]:
        return [{"groupID": owner_id, "userID": target} for target in target_ids]


class KickGroupSchema(RemovalSchema):
    """`CallbackKillGroupMemberReq`. It does not name the user who removed the members."""

    callbackCommand = fields.String(required=True)
    groupID = AccountId(required=True)
    kickedUserIDs = AccountIds(required=True, allow_none=True)

    def removals(self, packet: Mapping[str, Any]) -> Iterable[Removal]:
        for target_id in packet["kickedUserIDs"] or ():
            yield Removal(self.relation, packet["groupID"], target_id, cause=Cause.KICKED)

    def samples(self, owner_id: str, target_ids: Sequence[str]) -> list[dict[str, Any]]:
        return [{"groupID": owner_id, "kickedUserIDs": [*target_ids], "reason": ""}]


class DisMissGroupSchema(RemovalSchema):
    """`CallbackDisMissGroupReq`. `ownerID` need not be the user who dismissed the group.

    The server tells a dismissal twice. The second time the members are gone. The first packet can
    also come too late to name them.
    """

    callbackCommand = fields.String(required=True)
    groupID = AccountId(required=True)
    membersID = AccountIds(allow_none=True, load_default=())

    def removals(self, packet: Mapping[str, Any]) -> Iterable[Removal]:
        for target_id in packet["membersID"] or ():
            yield Removal(self.relation, packet["groupID"], target_id, cause=Cause.DISMISSED)

    def samples(self, owner_id: str, target_ids: Sequence[str]) -> list[dict[str, Any]]:
        return [
            {
                "groupID": owner_id,
                "ownerID": "".join(target_ids[:1]),
                # The server turns the number of the type into the character with this number.
                "groupType": "\u0002",
                "membersID": [*target_ids],
            }
        ]


PACKETS: Mapping[str, RemovalSchema] = {
    "callbackAfterRemoveBlackCommand": RemoveBlackSchema(Relation.BLACKLIST),
    "callbackAfterDeleteFriendCommand": DeleteFriendSchema(Relation.FRIEND),
    "callbackAfterQuitGroupCommand": QuitGroupSchema(Relation.GROUP),
    "callbackAfterKickGroupCommand": KickGroupSchema(Relation.GROUP),
    "callbackAfterDisMissGroupCommand": DisMissGroupSchema(Relation.GROUP),
}
"""The packets that record removals, by command.

Before 3.7, the server used other names for the events of groups, such as
`callbackQuitGroupCommand`. They are kept, but record nothing.
"""
EVENTS = (
    "afterRemoveBlack",
    "afterDeleteFriend",
    "afterQuitGroup",
    "afterKickGroupMember",
    "afterDismissGroup",
)
"""The events of `webhooks.yml` that send these packets."""
KEPT_FAMILIES = ("friend", "black", "group")
"""The parts, in lower case, of the commands whose packets are kept."""
CONTINUE = {"actionCode": 0, "errCode": 0, "errMsg": "", "errDlt": "", "nextCode": 0}
"""The only answer with which every version of OpenIM continues.

Its client ignores the status. Another body can stop users (`callbackstruct/common.go`:
the codes are int32).
"""
CREDENTIALS_STEP = SetupStep(
    "%(user)s and %(password)s stand for one of IMCALLBACK_OPENIM_CREDENTIALS.",
    {"user": "<user>", "password": "<password>"},
)


class OpenIMProvider(Provider):
    """Callbacks with a secret path segment or Basic credentials.

    The open-source edition does not sign callbacks.
    """

    name = "openim"
    title = "OpenIM"
    commands = {command: schema.relation for command, schema in PACKETS.items()}
    command_member = "callbackCommand"
    probe_command = "flaskImcallbackProbeCommand"
    settings_keys = ("IMCALLBACK_SECRETS", "IMCALLBACK_OPENIM_CREDENTIALS")
    reactions = Reactions(
        after_slow_answer="OpenIM drops events while its queue waits for answers.",
        after_redirect="OpenIM repeats a redirected callback as GET or drops it.",
        after_wrong_answer="OpenIM can stop its users after another answer.",
    )
    kept_query = frozenset(["command", "contenttype"])
    kept_headers = frozenset(["operationid"])

    def __init__(self, settings: Settings) -> None:
        self.secrets = settings.secrets
        self.credentials = [
            f"{user}:{password}" for user, password in settings.openim_credentials.items()
        ]
        self.allow_unauthenticated = settings.allow_unauthenticated

    @property
    def is_enabled(self) -> bool:
        return bool(self.secrets or self.credentials or self.allow_unauthenticated)

    def verify(self, request: CallbackRequest) -> str:
        secret, _ = self._secret_and_command(request)
        guards = []
        if secret is not None:
            if not is_one_of(secret, self.secrets):
                raise VerificationError("the secret path segment is not in IMCALLBACK_SECRETS")
            guards.append("secret")
        if self.credentials and "authorization" in request.headers:
            if not is_one_of(_basic(request.headers["authorization"]), self.credentials):
                raise VerificationError("the password is not in IMCALLBACK_OPENIM_CREDENTIALS")
            guards.append("password")
        if not guards and not self.allow_unauthenticated:
            raise VerificationError("the request has neither a secret path segment nor a password")
        return "+".join(guards) or "nothing"

    def _secret_and_command(self, request: CallbackRequest) -> tuple[str | None, str]:
        """Return the secret and the command in the path.

        If the path has one segment, and it equals one of `IMCALLBACK_SECRETS`, it is the secret.
        Otherwise it is the command.
        """
        match request.segments:
            case ():
                return None, ""
            case (segment,) if is_one_of(segment, self.secrets):
                return segment, ""
            case (segment,):
                return None, segment
            case (secret, command):
                return secret, command
        raise VerificationError("the path has more segments than a secret and a command")

    def origin(self, request: CallbackRequest) -> Origin:
        _, path_command = self._secret_and_command(request)
        query_commands = request.query.get("command", ())
        return Origin(
            command=path_command or next(iter(query_commands), ""),
            # A caller of the server's API chooses this id, so several events can share it.
            request_id=request.headers.get("operationid", ""),
        )

    def parse(self, request: CallbackRequest, body: bytes) -> Callback:
        packet = load_object(body)
        _, path_command = self._secret_and_command(request)
        # Servers before 3.4.2 send the command in the query.
        query_commands = request.query.get("command", ())
        command = agree_on_command([path_command, *query_commands, packet.get("callbackCommand")])
        removals = None
        if schema := PACKETS.get(command):
            removals = tuple(schema.removals(read_packet(schema, packet)))
        return Callback(command=command, removals=removals, packet=packet)

    def accept(self, callback: Callback) -> Reply:
        return Reply(200, CONTINUE)

    def refuse(self, status: int, problem: str) -> Reply:
        return Reply(status, CONTINUE)

    def keeps(self, commands: Collection[str]) -> bool:
        """Keep the packets of `KEPT_FAMILIES`, but never a message."""
        if any(is_about_messages(command) for command in commands):
            return False
        return self.probe_command in commands or any(
            family in command.lower() for family in KEPT_FAMILIES for command in commands
        )

    def sample(
        self, command: str, owner_id: str, target_ids: Sequence[str], *, app_id: str = ""
    ) -> list[OutgoingCallback]:
        """Make callbacks in the form of version 3.7 and later: one for all members of a group that
        are kicked or dismissed, otherwise one for each target.

        In this form the body ends with a newline.
        """
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "Operationid": secrets.token_hex(8),
        }
        for credentials in self.credentials[:1]:
            headers["Authorization"] = f"Basic {b64encode(credentials.encode()).decode()}"
        schema = PACKETS.get(command) or PACKETS["callbackAfterDeleteFriendCommand"]
        segments = [self.name, *self.secrets[:1], quote(command, safe="")]
        return [
            OutgoingCallback(
                path="/" + "/".join(segments),
                headers=headers,
                # The server's JSON encoder ends with a newline.
                body=compact_json({"callbackCommand": command, **packet}) + b"\n",
            )
            for packet in schema.samples(owner_id, target_ids)
        ]

    def describe(self) -> Description:
        scheme = {"type": "http", "scheme": "basic"}
        return Description(
            paths=["", "/{secret_or_command}", "/{secret}/{command}"],
            path_parameters={
                "secret": "One of IMCALLBACK_SECRETS.",
                "command": "The command, as in the body.",
                "secret_or_command": "The secret, if it equals one of IMCALLBACK_SECRETS. "
                "Otherwise the command.",
            },
            query_parameters={
                "command": "The command, sent by servers before 3.4.2.",
                "contenttype": "Always json.",
            },
            packet=packet_schema(
                "callbackCommand",
                PACKETS,
                "Any other command. It is acknowledged. Its packet is stored, without removals, if "
                "the command holds Friend, Black or Group and is not about messages.",
            ),
            accepted=answer_schema(CONTINUE),
            refused=answer_schema(CONTINUE),
            security_schemes={f"{self.name}_password": scheme} if self.credentials else {},
            needs_scheme=not (self.secrets or self.allow_unauthenticated),
        )

    def setup_steps(self, url: str) -> list[SetupStep]:
        explanations = []
        if self.secrets:
            url = f"{url}/<secret>"
            explanations = [SECRET_STEP]
        elif self.credentials:
            url = url.replace("://", "://<user>:<password>@", 1)
            explanations = [CREDENTIALS_STEP]
        return [
            SetupStep("In webhooks.yml: %(url)s", {"url": f"url: {url}"}),
            SetupStep("Switch on %(events)s there.", {"events": ", ".join(EVENTS)}),
            *explanations,
        ]


def _basic(authorization: str) -> str:
    """Return `user:password` of the header, or "", which equals no credentials."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return b64decode(value.strip(), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return ""
