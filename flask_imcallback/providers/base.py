"""The `Provider` class, and the plain values that a provider takes and returns.

To add a provider, subclass `Provider`. `docs/providers.md` shows a complete example.
This room knows neither Flask nor SQLAlchemy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar

from ..removals import Relation, Removal


@dataclass(frozen=True, kw_only=True)
class CallbackRequest:
    """A received callback without its body."""

    segments: tuple[str, ...]
    """The path after the provider's name, split at slashes, without empty segments."""
    query: Mapping[str, tuple[str, ...]]
    """All values of each query parameter."""
    headers: Mapping[str, str]
    """The header names are in lower case."""
    remote_addr: str
    """The address of the client that is connected to the app."""
    received_at: datetime
    """Aware, in UTC."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The facts in the path, the query and the headers, even if the body cannot be read."""

    command: str = ""
    app_id: str = ""
    """At most 32 characters."""
    request_id: str = ""
    client_ip: str = ""
    """The address that the IM server sent for the user who removed somebody."""
    platform: str = ""


@dataclass(frozen=True, kw_only=True)
class Callback:
    """A callback whose packet could be read."""

    command: str
    removals: tuple[Removal, ...] | None
    """The removals in the order of the packet. None if the command does not remove anybody.

    An empty tuple is recorded too: for example, a dismissed group whose members are not named.
    """
    packet: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Reply:
    """The answer to a callback. The body is sent as JSON."""

    status: int
    body: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class OutgoingCallback:
    """A callback that is ready to be sent to an app, for example by `flask imcallback send`."""

    path: str
    """The path below `IMCALLBACK_URL_PREFIX`. It begins with a slash."""
    query: str = ""
    """The encoded query, without the question mark."""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Reactions:
    """The reactions of an IM server to a bad answer. Each text is one sentence."""

    after_slow_answer: str = "The IM server stops waiting and counts the callback as failed."
    after_redirect: str = "The IM server does not follow redirects, and loses the callback."
    after_wrong_answer: str = "The IM server counts the callback as failed."


@dataclass(frozen=True, kw_only=True)
class Description:
    """A description of the callbacks of a provider, for the OpenAPI document.

    All schemas are JSON Schemas as plain dictionaries.
    """

    paths: Sequence[str] = ("", "/{rest}")
    """The paths after the provider's name, with path parameters in braces."""
    path_parameters: Mapping[str, str] = field(
        default_factory=lambda: {"rest": "The provider reads this part of the path."}
    )
    """Path parameter -> description."""
    query_parameters: Mapping[str, str] = field(default_factory=dict)
    """Query parameter -> description."""
    required_parameters: Sequence[str] = ()
    """The query parameters that every callback must have."""
    packet: Mapping[str, Any] = field(default_factory=dict)
    """The schema of the body. `{}` allows everything."""
    accepted: Mapping[str, Any] = field(default_factory=lambda: {"type": "object"})
    """The schema of the answer to a callback that is stored."""
    refused: Mapping[str, Any] = field(default_factory=lambda: {"type": "object"})
    """The schema of the answer to a callback that is not stored."""
    security_schemes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """OpenAPI security schemes. Their names begin with the provider's name."""
    needs_scheme: bool = False
    """Whether every callback needs one of the schemes. A secret in the path is not a scheme."""


@dataclass(frozen=True)
class SetupStep:
    """A step that connects the IM server to this app. The page shows it before the first removal.

    `text` is English and the key of its translation. It contains `%(name)s` for each value in
    `values`. Write `%%` for a percent sign. The page shows the values as code.
    """

    text: str
    values: Mapping[str, str] = field(default_factory=dict)


SECRET_STEP = SetupStep("%(secret)s stands for one of IMCALLBACK_SECRETS.", {"secret": "<secret>"})
"""The step that explains `<secret>` in the URL of another step."""


class Provider(ABC):
    """An IM server product that sends callbacks to this app.

    A subclass must set `name` and write the abstract methods. Everything else has a default.
    One instance serves one app in many threads, so it must not keep the state of a request.
    """

    name: ClassVar[str]
    """At most 32 lower-case letters, digits and `_`. It is a path segment and a stored value."""
    title: ClassVar[str] = ""
    """The name of the product for people. Empty: `name` is shown."""
    commands: ClassVar[Mapping[str, Relation]] = {}
    """The commands that record removals, with the list that each command changes."""
    command_member: ClassVar[str] = ""
    """The member of the packet that holds the command.

    The receiver searches for it in a packet that cannot be read, before it asks `keeps`. Empty: the
    receiver asks only for the command of `origin`.
    """
    probe_command: ClassVar[str] = "flask-imcallback.Probe"
    """A command that no IM server sends. `flask imcallback doctor` sends it."""
    settings_keys: ClassVar[tuple[str, ...]] = ()
    """The configuration keys that enable this provider. One of them is enough."""
    reactions: ClassVar[Reactions] = Reactions()
    """The reactions of the IM server to a bad answer."""
    repeats_callbacks: ClassVar[bool] = False
    """Whether a callback with the same request id and the same body is a repetition."""
    kept_query: ClassVar[frozenset[str]] = frozenset()
    """The query parameters that are stored, in lower case. None of them may hold a secret.

    The receiver ignores the case of the received parameters.
    """
    kept_headers: ClassVar[frozenset[str]] = frozenset()
    """Further headers that are stored, in lower case. None of them may hold a secret."""

    @property
    @abstractmethod
    def is_enabled(self) -> bool:
        """Whether the settings enable this provider. A disabled provider answers 404."""

    @abstractmethod
    def verify(self, request: CallbackRequest) -> str:
        """Check that the request is authentic, and return the guards that it passed.

        The text, such as "signature", has at most 64 characters and is stored with the delivery.
        Raises `VerificationError`.
        """

    @abstractmethod
    def origin(self, request: CallbackRequest) -> Origin:
        """Read path, query and headers. Must not raise, because the packet would be lost."""

    @abstractmethod
    def parse(self, request: CallbackRequest, body: bytes) -> Callback:
        """Read the packet. Raises `PacketError` if it cannot be read as its command."""

    @abstractmethod
    def accept(self, callback: Callback) -> Reply:
        """Return the answer to a callback that is recorded, is a duplicate, or removes nobody."""

    @abstractmethod
    def refuse(self, status: int, problem: str) -> Reply:
        """Return the answer with this HTTP status to a callback that is not accepted.

        Must not raise. `problem` says what is wrong.
        """

    def keeps(self, commands: Collection[str]) -> bool:
        """Return whether a packet is stored that removes nobody, or that cannot be read.

        `commands` are all commands that the request names. It is never empty: a packet that cannot
        be read and names no command is always stored. Every other packet is counted by its command,
        and not stored. The default knows only `commands` and `probe_command`. Must not raise.
        """
        return not {*self.commands, self.probe_command}.isdisjoint(commands)

    def sample(
        self, command: str, owner_id: str, target_ids: Sequence[str], *, app_id: str = ""
    ) -> list[OutgoingCallback]:
        """Make callbacks as the IM server sends them, authenticated with this app's settings.

        `owner_id` loses all of `target_ids`. The provider may not know the command. `app_id`
        chooses one of several apps. The default returns an empty list. Then `send` and `doctor`
        cannot try this provider.
        """
        return []

    def describe(self) -> Description:
        """Describe the callbacks for the OpenAPI document. The default allows any JSON object."""
        return Description()

    def setup_steps(self, url: str) -> list[SetupStep]:
        """Return the steps that make the IM server send callbacks to `url`. Shows no secrets."""
        return [SetupStep("Send callbacks to %(url)s", {"url": url})]
