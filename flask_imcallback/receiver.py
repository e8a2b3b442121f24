"""The story of one callback."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from urllib.parse import urlencode

from .errors import BodyTooLargeError, PacketError, VerificationError
from .providers import CallbackRequest, Provider, Reply
from .removals import Removal, Status, announce
from .settings import Settings
from .storage import CallbackCounters, Delivery, Recorder

logger = logging.getLogger("flask_imcallback")

KEPT_HEADERS = ("host", "user-agent", "content-type", "content-length", "operationid")
"""None of them ever holds a secret; the others are dropped."""


def receive(
    request: CallbackRequest,
    read_body: Callable[[int], tuple[bytes, str]],
    *,
    provider: Provider,
    settings: Settings,
    recorder: Recorder,
    counters: CallbackCounters,
    sender: object,
) -> Reply:
    """Verify, read, parse, record and answer a callback.

    `read_body` takes the most bytes to accept, and gives those that came and what is wrong with
    them, if anything; it is called for authentic callbacks only. `sender` is that of the signal.
    """
    try:
        if not settings.allows(request.remote_addr):
            raise VerificationError("the address is not in IMCALLBACK_ALLOWED_NETWORKS")
        authenticated_by = provider.verify(request)
    except VerificationError as error:
        counters.refuse(provider.name, error.reason, error.detail)
        return provider.refuse(403, "not authentic")

    try:
        body, problem = read_body(settings.max_body)
    except BodyTooLargeError as error:
        counters.refuse(provider.name, str(error))
        return provider.refuse(413, str(error))

    origin, status = provider.origin(request), Status.UNREADABLE
    removals: tuple[Removal, ...] = ()
    try:
        if problem:
            raise PacketError(problem)
        callback = provider.parse(request, body)
        reply = provider.accept(callback)
    except Exception as error:
        if not isinstance(error, PacketError):  # a provider's own fault must not lose the packet
            logger.exception("The provider %s cannot read a packet", provider.name)
        problem = str(error) if isinstance(error, PacketError) else "the packet cannot be read"
        reply = provider.refuse(400, problem)
    else:
        status = Status.IGNORED if callback.removals is None else Status.RECORDED
        origin = replace(origin, command=callback.command)
        removals = callback.removals or ()

    delivery = Delivery(
        provider=provider.name,
        repeats_callbacks=provider.repeats_callbacks,
        origin=origin,
        received_at=request.received_at,
        remote_addr=request.remote_addr,
        authenticated_by=authenticated_by,
        query=_kept_query(request, provider),
        headers={name: request.headers[name] for name in KEPT_HEADERS if name in request.headers},
        body=body,
        status=status,
        removals=removals,
        error=problem,
    )
    try:
        stored = recorder.record(delivery)
    except Exception as error:
        logger.exception("A callback of %s is lost: %s. It was %r", provider.name, error, delivery)
        return provider.refuse(503, "it could not be stored")
    if status is not Status.UNREADABLE:
        counters.accept(provider.name, origin.command)
    if stored:
        announce(sender, stored.records)
    return reply


def _kept_query(request: CallbackRequest, provider: Provider) -> str:
    kept = {name: values for name, values in request.query.items() if name in provider.kept_query}
    return urlencode(kept, doseq=True, errors="replace")
