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
from collections.abc import Sequence
from urllib.parse import quote

from marshmallow import fields

from ..errors import VerificationError
from ..removals import Relation, Removal
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
    PacketSchema,
    agree_on_command,
    compact_json,
    is_one_of,
    load_object,
    read_packet,
)


class RemoveBlackSchema(PacketSchema):
    """`CallbackAfterRemoveBlackReq`, sent by version 3.8.1 and later."""

    callbackCommand = fields.String(required=True)
    owner_id = AccountId(required=True, data_key="ownerUserID")
    target_id = AccountId(required=True, data_key="blackUserID")


class DeleteFriendSchema(PacketSchema):
    """`CallbackAfterDeleteFriendReq`. It reports one side of the friendship.

    There may be no event for the other side.
    """

    callbackCommand = fields.String(required=True)
    owner_id = AccountId(required=True, data_key="ownerUserID")
    target_id = AccountId(required=True, data_key="friendUserID")


PACKETS = {
    "callbackAfterRemoveBlackCommand": RemoveBlackSchema(),
    "callbackAfterDeleteFriendCommand": DeleteFriendSchema(),
}
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
    commands = {
        "callbackAfterRemoveBlackCommand": Relation.BLACKLIST,
        "callbackAfterDeleteFriendCommand": Relation.FRIEND,
    }
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
        if command in PACKETS:
            pair = read_packet(PACKETS[command], packet)
            removals = (Removal(self.commands[command], pair["owner_id"], pair["target_id"]),)
        return Callback(command=command, removals=removals, packet=packet)

    def accept(self, callback: Callback) -> Reply:
        return Reply(200, CONTINUE)

    def refuse(self, status: int, problem: str) -> Reply:
        return Reply(status, CONTINUE)

    def sample(
        self, command: str, owner_id: str, target_ids: Sequence[str], *, app_id: str = ""
    ) -> list[OutgoingCallback]:
        """Make a callback for each target, in the form of version 3.7 and later.

        In this form the body ends with a newline.
        """
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "Operationid": secrets.token_hex(8),
        }
        for credentials in self.credentials[:1]:
            headers["Authorization"] = f"Basic {b64encode(credentials.encode()).decode()}"
        owner_member, target_member = account_members(command)
        packets = [
            {"callbackCommand": command, owner_member: owner_id, target_member: target}
            for target in target_ids
        ]
        segments = [self.name, *self.secrets[:1], quote(command, safe="")]
        return [
            OutgoingCallback(
                path="/" + "/".join(segments),
                headers=headers,
                body=compact_json(packet) + b"\n",  # The server's JSON encoder ends with a newline.
            )
            for packet in packets
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
                "Any other command. It is acknowledged and stored without removals.",
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
            SetupStep(
                "Switch on %(events)s there.", {"events": "afterRemoveBlack, afterDeleteFriend"}
            ),
            *explanations,
        ]


def account_members(command: str) -> tuple[str, str]:
    """Return the packet members that name owner and target."""
    if command not in PACKETS:
        return "ownerUserID", "targetUserID"
    fields_by_name = PACKETS[command].fields
    return str(fields_by_name["owner_id"].data_key), str(fields_by_name["target_id"].data_key)


def _basic(authorization: str) -> str:
    """Return `user:password` of the header, or "", which equals no credentials."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return b64decode(value.strip(), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return ""
