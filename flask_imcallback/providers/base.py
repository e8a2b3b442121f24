"""What a provider is, and what the providers share. Nothing here knows Flask or SQLAlchemy."""

from __future__ import annotations

import hmac
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar

from marshmallow import EXCLUDE, Schema, ValidationError, fields

from ..errors import PacketError
from ..removals import Removal

MAX_TEXT = 255
"""Code points of an account id or a command, and of the columns that hold them."""
UNSTORABLE = re.compile("[\0\ud800-\udfff]")
"""PostgreSQL refuses U+0000 in a text, and a lone surrogate has no UTF-8."""


@dataclass(frozen=True, kw_only=True)
class CallbackRequest:
    """All of a callback but its body."""

    segments: tuple[str, ...]
    """The path behind the provider's name, without empty segments."""
    query: Mapping[str, tuple[str, ...]]
    headers: Mapping[str, str]
    """By name in lower case."""
    remote_addr: str
    received_at: datetime
    """Aware, UTC."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What path, query and headers say of a callback; the body may not be readable."""

    command: str = ""
    app_id: str = ""
    request_id: str = ""
    client_ip: str = ""
    platform: str = ""


@dataclass(frozen=True, kw_only=True)
class Callback:
    """A packet that could be read."""

    command: str
    removals: tuple[Removal, ...] | None
    """In the packet's order; None if the command is not one that removes."""
    packet: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Reply:
    """An answer in the provider's words."""

    status: int
    body: Mapping[str, Any]


class Provider(ABC):
    """An IM server product that calls us.

    You write the class attributes and the abstract methods. An instance belongs to one app and is
    used by many threads at once: keep no state of a request in it.
    """

    name: ClassVar[str]
    """In lower case: the segment of the address, and the column of a record."""
    repeats_callbacks: ClassVar[bool] = False
    """Whether the same non-empty request id and body mean the same callback, sent again."""
    kept_query: ClassVar[frozenset[str]] = frozenset()
    """The query parameters that a delivery keeps: none that may hold a secret."""

    @property
    @abstractmethod
    def is_on(self) -> bool:
        """Whether the settings switch this provider on."""

    @abstractmethod
    def verify(self, request: CallbackRequest) -> str:
        """Say how the request was authenticated, such as "signature".

        Raises `VerificationError` if it is not authentic.
        """

    @abstractmethod
    def origin(self, request: CallbackRequest) -> Origin:
        """What the request says of itself outside its body. Raises nothing."""

    @abstractmethod
    def parse(self, request: CallbackRequest, body: bytes) -> Callback:
        """Read the packet. Raises `PacketError` if it cannot be read as its command."""

    @abstractmethod
    def accept(self, callback: Callback) -> Reply:
        """The answer to a callback that is stored."""

    @abstractmethod
    def refuse(self, status: int, problem: str) -> Reply:
        """The answer to a callback that is not: the HTTP status, and what is wrong."""


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


def is_storable(text: str) -> bool:
    """Whether every database keeps the text as it is."""
    return len(text) <= MAX_TEXT and not UNSTORABLE.search(text)


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
        if len(text) > MAX_TEXT:
            raise self.make_error("length")
        if UNSTORABLE.search(text):
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
    return type(value) is str and 0 < len(value) <= MAX_TEXT and not UNSTORABLE.search(value)


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
