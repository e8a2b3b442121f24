"""OpenIM Server's webhooks.

Read from its code, https://github.com/openimsdk/open-im-server `pkg/common/webhook/http_client.go`
and `pkg/callbackstruct`, which outranks its pages. It sends each event once, from a queue in
memory, and drops events silently while the queue is full.
"""

from __future__ import annotations

import binascii
from base64 import b64decode

from marshmallow import fields

from ..errors import VerificationError
from ..removals import Relation, Removal
from ..settings import Settings
from .base import Callback, CallbackRequest, Origin, Provider, Reply
from .packets import AccountId, PacketSchema, is_one_of, load_object, read_packet, the_command


class RemoveBlackSchema(PacketSchema):
    """`CallbackAfterRemoveBlackReq`; sent by 3.8.1 and later."""

    callbackCommand = fields.String(required=True)
    ownerUserID = AccountId(required=True)
    target_id = AccountId(required=True, data_key="blackUserID")


class DeleteFriendSchema(PacketSchema):
    """`CallbackAfterDeleteFriendReq`: one direction, the other is an event of its own or none."""

    callbackCommand = fields.String(required=True)
    ownerUserID = AccountId(required=True)
    target_id = AccountId(required=True, data_key="friendUserID")


REMOVALS = {
    "callbackAfterRemoveBlackCommand": (Relation.BLACKLIST, RemoveBlackSchema()),
    "callbackAfterDeleteFriendCommand": (Relation.FRIEND, DeleteFriendSchema()),
}
MEMBERS = {
    command: ("ownerUserID", str(schema.fields["target_id"].data_key))
    for command, (_, schema) in REMOVALS.items()
}
"""The members that name owner and target."""
CONTINUE = {"actionCode": 0, "errCode": 0, "errMsg": "", "errDlt": "", "nextCode": 0}
"""The one answer that the client code of every version takes as "go on"; it never looks at the
status, and another body can stop users (`callbackstruct/common.go`: the codes are int32)."""


class OpenIMProvider(Provider):
    """Callbacks with a secret path segment or Basic credentials; the open edition signs nothing."""

    name = "openim"
    kept_query = frozenset(["command", "contenttype"])

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
            raise VerificationError("neither a secret path segment nor a password is given")
        return "+".join(guards) or "nothing"

    def _secret_and_command(self, request: CallbackRequest) -> tuple[str | None, str]:
        """A single segment is the secret if it equals one, otherwise the command."""
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
        _, command = self._secret_and_command(request)
        in_query = request.query.get("command", ())
        return Origin(
            command=command or next(iter(in_query), ""),
            # Chosen by the caller of the server's API, so that it names no single event.
            request_id=request.headers.get("operationid", ""),
        )

    def parse(self, request: CallbackRequest, body: bytes) -> Callback:
        packet = load_object(body)
        _, in_path = self._secret_and_command(request)
        in_query = request.query.get("command", ())  # the servers before 3.4.2
        command = the_command([in_path, *in_query, packet.get("callbackCommand")])
        removals = None
        if command in REMOVALS:
            relation, schema = REMOVALS[command]
            pair = read_packet(schema, packet)
            removals = (Removal(relation, pair["ownerUserID"], pair["target_id"]),)
        return Callback(command=command, removals=removals, packet=packet)

    def accept(self, callback: Callback) -> Reply:
        return Reply(200, CONTINUE)

    def refuse(self, status: int, problem: str) -> Reply:
        return Reply(status, CONTINUE)


def _basic(authorization: str) -> str:
    """`user:password` from the header; empty, which equals no credentials, if it has none."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return b64decode(value.strip(), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return ""
