"""What a provider is, and what the providers share. Nothing here knows Flask or SQLAlchemy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar

from ..removals import Removal


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
    def is_enabled(self) -> bool:
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
