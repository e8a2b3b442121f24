"""The receiver of one callback: authenticate, read, parse, store, answer.

Read this file first. `Receiver.receive` handles every callback.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlencode

from .errors import BodyTooLargeError, PacketError, VerificationError
from .logger import logger
from .providers import CallbackRequest, Origin, Provider, Reply
from .removals import Removal, Status, announce
from .settings import Settings
from .storable_text import is_storable
from .storage import MAX_REMOVALS, CallbackCounters, Delivery, Entry, Recorder

KEPT_HEADERS = frozenset(["host", "user-agent", "content-type", "content-length"])
"""The headers that are stored for every provider. They never hold a secret."""

UNREADABLE = "the packet is unreadable"
"""The reason of a refusal whose delivery is kept. `flask imcallback deliveries` lists it."""

NOT_STORED = "it could not be stored"
"""The reason of a refusal whose packet is in the log."""

NOT_KEPT = "the packet cannot be read, and its command is not kept"
"""The reason of a refusal that leaves only a count. The packet may hold a message."""

UNVERIFIABLE = "the provider fails to verify the request"
"""The reason of a refusal after a mistake in a provider. The log of level DEBUG has the error."""


QUOTED = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\"""")
"""A value of the request in the text of a `PacketError`."""

MAX_LOGGED_LENGTH = 300


@dataclass(frozen=True, kw_only=True)
class Body:
    """The bytes that arrived. `problem` is empty if the body is complete."""

    content: bytes
    problem: str = ""


class RefusalError(Exception):
    """A callback that is refused and not stored. The provider makes the answer."""

    def __init__(self, status: int, problem: str) -> None:
        super().__init__(problem)
        self.status = status
        self.problem = problem


class Receiver:
    """The receiver of one app's callbacks. Threads may share it."""

    def __init__(self, settings: Settings, recorder: Recorder, counters: CallbackCounters) -> None:
        self._settings = settings
        self._recorder = recorder
        self._counters = counters

    def receive(
        self,
        provider: Provider,
        request: CallbackRequest,
        read_body: Callable[[int], Body],
        sender: object,
    ) -> Reply:
        """Store a callback, and return its answer once the removals are durable.

        A callback that the provider does not keep is only counted.

        `read_body` takes the maximum size in bytes and raises `BodyTooLargeError`. It is called
        for authentic callbacks only. `sender` is the sender of the signal `removals_recorded`.
        """
        try:
            authenticated_by = self._authenticate(provider, request)
            body = self._read(provider, read_body)
            delivery, reply = self._parse(provider, request, authenticated_by, body)
            if _is_kept(provider, delivery):
                self._store(delivery, sender)
            elif delivery.status is Status.UNREADABLE:
                self._counters.count_refused(provider.name, NOT_KEPT)
            else:
                self._counters.count_accepted(provider.name, delivery.origin.command)
        except RefusalError as refusal:
            return provider.refuse(refusal.status, refusal.problem)
        return reply or provider.refuse(400, delivery.error)

    def _authenticate(self, provider: Provider, request: CallbackRequest) -> str:
        """Return the guards that the request passed.

        Every refusal has the same answer, so a stranger learns nothing.
        """
        try:
            self._settings.check_address(request.remote_addr)
            return provider.verify(request)
        except VerificationError as error:
            self._counters.count_refused(provider.name, error.reason, error.detail)
            raise RefusalError(403, "not authentic") from error
        except Exception as error:  # A stranger may repeat the request as often as he likes.
            logger.debug("The provider %s cannot verify a request", provider.name, exc_info=error)
            self._counters.count_refused(provider.name, UNVERIFIABLE, type(error).__name__)
            raise RefusalError(503, "the request could not be verified") from error

    def _read(self, provider: Provider, read_body: Callable[[int], Body]) -> Body:
        """Read the body, even if it is cut off."""
        try:
            return read_body(self._settings.max_body)
        except BodyTooLargeError as error:
            self._counters.count_refused(provider.name, str(error))
            raise RefusalError(413, str(error)) from error

    def _parse(
        self, provider: Provider, request: CallbackRequest, authenticated_by: str, body: Body
    ) -> tuple[Delivery, Reply | None]:
        """Read the packet. Return the delivery to store, and the answer after it is stored.

        A packet that cannot be read gets the status `unreadable`, and no answer.
        """
        origin, problem = _read_origin(provider, request), ""
        status, reply = Status.UNREADABLE, None
        removals: tuple[Removal, ...] = ()
        try:
            if body.problem:
                raise PacketError(body.problem)
            callback = provider.parse(request, body.content)
            if len(callback.removals or ()) >= MAX_REMOVALS:
                raise PacketError(f"the packet has {MAX_REMOVALS} removals or more")
            reply = provider.accept(callback)
        except PacketError as error:
            problem = str(error)
        except Exception:  # A mistake in a provider must not lose the packet.
            logger.exception("The provider %s cannot read a packet", provider.name)
            problem = "the packet cannot be read"
        else:
            status = Status.IGNORED if callback.removals is None else Status.RECORDED
            if callback.command != origin.command:
                origin = replace(origin, command=callback.command)
            removals = callback.removals or ()
        known = _known_texts(origin, body.content) if removals else ()
        delivery = Delivery(
            provider=provider.name,
            repeats_callbacks=provider.repeats_callbacks,
            origin=origin,
            received_at=request.received_at,
            remote_addr=request.remote_addr,
            authenticated_by=authenticated_by,
            query=encode_kept_query(provider, request.query, known),
            headers=_kept_headers(provider, request, known),
            body=body.content,
            status=status,
            removals=removals,
            error=problem,
        )
        return delivery, reply

    def _store(self, delivery: Delivery, sender: object) -> None:
        """Record the delivery with its removals, then count it and send the signal."""
        try:
            stored = self._recorder.record(delivery)
        except Exception as error:  # the recorder has logged the packet
            self._counters.count_refused(delivery.provider, NOT_STORED, is_logged=False)
            raise RefusalError(503, NOT_STORED) from error
        if delivery.status is Status.UNREADABLE:
            self._counters.count_refused(delivery.provider, UNREADABLE, is_logged=False)
            _log_unreadable(delivery, stored)
        else:
            self._counters.count_accepted(delivery.provider, delivery.origin.command)
        if stored:
            announce(sender, stored.records)


def _read_origin(provider: Provider, request: CallbackRequest) -> Origin:
    try:
        return provider.origin(request)
    except Exception:  # A mistake in a provider must not lose the packet.
        logger.exception("The provider %s cannot read the origin of a callback", provider.name)
        return Origin()


def _log_unreadable(delivery: Delivery, stored: Entry | None) -> None:
    """Log an unreadable callback. Its texts could hold a mistyped secret, so they are left out."""
    if stored is None:
        place = "It waits in the spool"
    else:
        place = f"Run flask imcallback deliveries {stored.row['id']} to see its packet"
    reason = " ".join(QUOTED.sub("…", delivery.error).split())[:MAX_LOGGED_LENGTH]
    logger.warning("A callback of %s is unreadable: %s. %s.", delivery.provider, reason, place)


def _is_kept(provider: Provider, delivery: Delivery) -> bool:
    """Return whether a delivery is stored. Messages and everything else are only counted."""
    if delivery.status is Status.RECORDED:
        return True
    if delivery.status is Status.IGNORED:
        return provider.keeps([delivery.origin.command])
    commands = _named_commands(provider, delivery)
    return not commands or provider.keeps(commands)


def _named_commands(provider: Provider, delivery: Delivery) -> set[str]:
    """Return all commands that an unreadable delivery names, also in a body that is no JSON."""
    commands = {delivery.origin.command} - {""}
    if provider.command_member:
        member = re.escape(provider.command_member).encode()
        found = re.findall(rb'"%b"\s*:\s*"([^"\\]+)"' % member, delivery.body)
        commands.update(command.decode(errors="replace") for command in found)
    return commands


def encode_kept_query(
    provider: Provider, query: Mapping[str, Sequence[str]], known: Collection[str] = ()
) -> str:
    """Return the part of a query that holds no secret and may be stored and logged.

    Values in `known` are left out.
    """
    kept = [
        (name, value)
        for name, values in query.items()
        if name.lower() in provider.kept_query
        for value in values
        if value not in known
    ]
    return urlencode(kept, errors="replace")


def _kept_headers(
    provider: Provider, request: CallbackRequest, known: Collection[str]
) -> dict[str, str]:
    names = KEPT_HEADERS | provider.kept_headers
    headers = request.headers.items()
    return {name: value for name, value in headers if name in names and value not in known}


def _known_texts(origin: Origin, body: bytes) -> set[str]:
    """Return the values that other fields of the delivery hold, so query and headers need not.

    A delivery without removals keeps them, because a later release may read its packet again.
    """
    texts = {origin.app_id, origin.command, origin.client_ip, origin.platform, origin.request_id}
    return {text for text in texts if text and is_storable(text)} | {str(len(body))}
