"""Tools to read packets: JSON, commands, account ids, secrets."""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterable, Mapping
from typing import Any

from marshmallow import EXCLUDE, Schema, ValidationError, fields

from ..errors import PacketError
from ..text import MAX_TEXT_LENGTH, is_storable


def is_one_of(given: str, accepted: Iterable[str]) -> bool:
    """Compare with every secret, each in a time that does not tell where they differ."""
    candidate = given.encode("utf-8", "surrogatepass")
    matches = [hmac.compare_digest(candidate, secret.encode()) for secret in accepted]
    return any(matches)


def load_object(body: bytes) -> dict[str, Any]:
    """The JSON object that the body holds, whatever its content type says.

    Raises `PacketError`. All numbers become floats: they are read by nobody, and Python refuses
    to make an int of a number with thousands of digits.
    """
    try:
        packet = json.loads(
            body.decode("utf-8-sig"), parse_int=float, parse_constant=_refuse_constant
        )
    except UnicodeDecodeError as error:
        raise PacketError("the body is not UTF-8") from error
    except RecursionError as error:
        raise PacketError("the body is nested too deeply") from error
    except ValueError as error:
        raise PacketError(f"the body is not JSON: {error}") from error
    if not isinstance(packet, dict):
        raise PacketError("the body is not a JSON object")
    return packet


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def the_command(named: Iterable[object]) -> str:
    """The one command that path, query and body name; empty if none does.

    Raises `PacketError` if they name several, or something that cannot be a command.
    """
    names = [name for name in named if name is not None and name != ""]
    for name in names:
        if not isinstance(name, str) or not is_storable(name):
            raise PacketError("the command is not a text of 255 characters or fewer")
        if name != names[0]:
            raise PacketError(f"different commands are named: {names[0]!r} and {name!r}")
    return str(names[0]) if names else ""


class AccountId(fields.String):
    """A string that names an account: kept as it is, never trimmed or folded.

    Our own limit is 255 code points. Tencent's is 32 bytes (error 7003), but longer ones were seen;
    OpenIM has none, and does not check the account that is removed.
    """

    default_error_messages = {
        "empty": "an account id is empty",
        "length": "an account id is longer than 255 characters",
        "character": "an account id holds U+0000 or a lone surrogate",
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


class AccountPairs(fields.Nested):
    """A list of objects that hold account ids and nothing that we read beside them.

    A list of a thousand that is right is taken at a glance; any doubt is left to `Nested`, whose
    word counts.
    """

    def __init__(self, schema: type[Schema], **kwargs: Any) -> None:
        super().__init__(schema, many=True, **kwargs)
        self._names = tuple(schema().fields)

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(value, list):
            names = self._names
            found = [
                {name: item[name] for name in names}
                for item in value
                if type(item) is dict and all(_is_account_id(item.get(name)) for name in names)
            ]
            if len(found) == len(value):
                return found
        return super()._deserialize(value, *args, **kwargs)


def _is_account_id(value: object) -> bool:
    return type(value) is str and value != "" and is_storable(value)


class PacketSchema(Schema):
    """Base of the packets' schemas: members that a provider adds are let through."""

    class Meta:
        unknown = EXCLUDE


def read_packet(schema: Schema, packet: Mapping[str, Any]) -> dict[str, Any]:
    """Load the packet, or raise a `PacketError` that names the first member that is wrong."""
    try:
        return dict(schema.load(packet))
    except ValidationError as error:
        where: list[str] = []
        problem: Any = error.messages
        while isinstance(problem, dict):
            name, problem = next(iter(problem.items()))
            where += [] if name == "_schema" else [str(name)]
        raise PacketError(f"{'.'.join(where)}: {problem[0]}") from error
