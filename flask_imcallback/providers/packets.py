"""Tools that read packets: JSON, commands, account ids and secrets.

A provider builds its packet schemas from `PacketSchema` and `AccountId`, and calls
`load_object`, `agree_on_command` and `read_packet` in this order. All of them raise `PacketError`.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from marshmallow import EXCLUDE, Schema, ValidationError, fields

from ..errors import PacketError
from ..removals import Relation, Removal
from ..storable_text import MAX_TEXT_LENGTH, is_storable


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


JSON_DECODER = json.JSONDecoder(parse_int=float, parse_constant=_refuse_constant)
"""A decoder that makes floats of all numbers. No provider reads numbers, and Python refuses to
convert a number with thousands of digits to an int."""


def is_one_of(text: str, secrets: Iterable[str]) -> bool:
    """Return whether `text` equals one of the secrets, in constant time for each secret."""
    candidate = text.encode("utf-8", "surrogatepass")
    matches = [hmac.compare_digest(candidate, secret.encode()) for secret in secrets]
    return any(matches)


def load_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in the body. The content type does not matter.

    Raises `PacketError`.
    """
    try:
        packet = JSON_DECODER.decode(body.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise PacketError("the body is not UTF-8") from error
    except RecursionError as error:
        raise PacketError("the body is nested too deeply") from error
    except ValueError as error:
        raise PacketError(f"the body is not JSON: {error}") from error
    if not isinstance(packet, dict):
        raise PacketError("the body is not a JSON object")
    return packet


def agree_on_command(candidates: Iterable[object]) -> str:
    """Return the one command that path, query and body name, or "" if none of them names one.

    None and "" among the candidates mean that this part of the request names no command.
    Raises `PacketError` if they differ, or if one of them cannot be a command.
    """
    commands = [command for command in candidates if command is not None and command != ""]
    for command in commands:
        if not isinstance(command, str) or not is_storable(command):
            raise PacketError(f"the command is not a text of at most {MAX_TEXT_LENGTH} characters")
        if command != commands[0]:
            raise PacketError(
                f"the request names different commands: {commands[0]!r} and {command!r}"
            )
    return str(commands[0]) if commands else ""


class AccountId(fields.String):
    """A field for the id of an account. The id is kept as it is, never trimmed or folded.

    An id has 1 to 255 code points. Tencent's limit is 32 bytes (error 7003), but longer ids were
    seen. OpenIM has no limit, and does not check the id of the removed account.
    """

    default_error_messages = {
        "empty": "the account id is empty",
        "length": f"the account id is longer than {MAX_TEXT_LENGTH} characters",
        "character": "the account id holds U+0000 or a lone surrogate",
    }

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        text = super()._deserialize(value, attr, data, **kwargs)
        if not text:
            raise self.make_error("empty")
        if len(text) > MAX_TEXT_LENGTH:
            raise self.make_error("length")
        if not is_storable(text):
            raise self.make_error("character")
        return text


class OptionalAccountId(AccountId):
    """A field for the id of an account that may be missing. null and a missing id become ""."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_none=True, load_default="", **kwargs)

    def deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        return "" if value in ("", None) else super().deserialize(value, *args, **kwargs)


class AccountIds(fields.List):  # type: ignore[type-arg]  # marshmallow 3 has no type arguments
    """A field for a list of account ids.

    A list can hold all members of a group. So a valid list is returned directly: 1,000 ids take a
    third of the time of `List`. `List` reads every other list, and reports the error.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(AccountId(), **kwargs)

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(value, list) and all(map(_is_account_id, value)):
            return value
        return super()._deserialize(value, *args, **kwargs)


class AccountObjects(fields.Nested):
    """A field for a list of objects. The fields of their schema are all `AccountId`.

    A list can hold all members of a group. So a valid list is read directly: 1,000 objects take a
    sixth of the time of `Nested`. `Nested` reads every other list, and reports the error.
    """

    def __init__(self, schema: type[Schema], **kwargs: Any) -> None:
        super().__init__(schema, many=True, **kwargs)
        self._names = tuple(schema().fields)

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(value, list):
            names = self._names
            valid_objects = [
                {name: item[name] for name in names}
                for item in value
                if type(item) is dict and all(_is_account_id(item.get(name)) for name in names)
            ]
            if len(valid_objects) == len(value):
                return valid_objects
        return super()._deserialize(value, *args, **kwargs)


def _is_account_id(value: object) -> bool:
    return type(value) is str and value != "" and is_storable(value)


class PacketSchema(Schema):
    """Base class of packet schemas. Unknown members are ignored, because products add some."""

    class Meta:
        unknown = EXCLUDE


class RemovalSchema(PacketSchema):
    """Base class of the packets that record removals."""

    def __init__(self, relation: Relation) -> None:
        super().__init__()
        self.relation = relation

    def removals(self, packet: Mapping[str, Any]) -> Iterable[Removal]:
        """Return the removals of a packet that this schema has read, in the order of the packet."""
        raise NotImplementedError

    def samples(self, owner_id: str, target_ids: Sequence[str]) -> list[dict[str, Any]]:
        """Make packets, without their command, in which `owner_id` loses all of `target_ids`."""
        raise NotImplementedError


def read_packet(schema: Schema, packet: Mapping[str, Any]) -> dict[str, Any]:
    """Load the packet. Raises `PacketError` with the name of the first wrong member."""
    try:
        return dict(schema.load(packet))
    except ValidationError as error:
        member: list[str] = []
        problem: Any = error.messages
        while isinstance(problem, dict):
            name, problem = next(iter(problem.items()))
            member += [] if name == "_schema" else [str(name)]
        raise PacketError(f"{'.'.join(member)}: {problem[0]}") from error


def is_about_messages(command: str) -> bool:
    """Return whether the packets of a command can hold a message that a user wrote.

    Push commands also hold it, for example OpenIM's `callbackBeforeGroupOnlinePushCommand`.
    """
    return any(word in command.lower() for word in ("msg", "message", "push"))


def compact_json(packet: Mapping[str, Any]) -> bytes:
    """Encode a packet without blanks, as IM servers do."""
    return json.dumps(packet, separators=(",", ":"), ensure_ascii=False).encode()
