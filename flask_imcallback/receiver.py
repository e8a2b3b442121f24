"""The receiver of one callback: authenticate, read, parse, store, answer.

Read this file first. `Receiver.receive` handles every callback.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlencode

from .errors import BodyTooLargeError, PacketError, VerificationError
from .providers import CallbackRequest, Provider, Reply
from .removals import Status, announce
from .settings import Settings
from .storage import MAX_REMOVALS, CallbackCounters, Delivery, Recorder, log_lost_callback

logger = logging.getLogger("flask_imcallback")

KEPT_HEADERS = frozenset(["host", "user-agent", "content-type", "content-length"])
"""The headers that are stored for every provider. They never hold a secret."""

NOT_KEPT = "the packet cannot be read, and its command is not kept"
"""The reason of a refusal that leaves only a count. The packet may hold a message."""

UNVERIFIABLE = "the provider fails to verify the request"
"""The reason of a refusal after a mistake in a provider. The log of level DEBUG has the error."""


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
        return reply

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
    ) -> tuple[Delivery, Reply]:
        """Read the packet. Return the delivery to store, and the answer after it is stored.

        A packet that cannot be read gets the status `unreadable`.
        """
        delivery = Delivery(
            provider=provider.name,
            repeats_callbacks=provider.repeats_callbacks,
            origin=provider.origin(request),
            received_at=request.received_at,
            remote_addr=request.remote_addr,
            authenticated_by=authenticated_by,
            query=encode_kept_query(provider, request.query),
            headers=_kept_headers(provider, request),
            body=body.content,
            status=Status.UNREADABLE,
        )
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
            origin = replace(delivery.origin, command=callback.command)
            removals = callback.removals or ()
            return replace(delivery, status=status, origin=origin, removals=removals), reply
        return replace(delivery, error=problem), provider.refuse(400, problem)

    def _store(self, delivery: Delivery, sender: object) -> None:
        """Record the delivery with its removals, then count it and send the signal."""
        try:
            stored = self._recorder.record(delivery)
        except Exception as error:
            # The log is the last place that can keep the packet.
            log_lost_callback(
                "A callback of %s is lost: %s. It was %r", delivery.provider, error, delivery
            )
            raise RefusalError(503, "it could not be stored") from error
        if delivery.status is not Status.UNREADABLE:
            self._counters.count_accepted(delivery.provider, delivery.origin.command)
        if stored:
            announce(sender, stored.records)


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


def encode_kept_query(provider: Provider, query: Mapping[str, Sequence[str]]) -> str:
    """Return the part of a query that holds no secret and may be stored and logged."""
    kept = {name: values for name, values in query.items() if name.lower() in provider.kept_query}
    return urlencode(kept, doseq=True, errors="replace")


def _kept_headers(provider: Provider, request: CallbackRequest) -> dict[str, str]:
    names = KEPT_HEADERS | provider.kept_headers
    return {name: value for name, value in request.headers.items() if name in names}
