"""The URLs that IM servers call."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from io import BytesIO
from tempfile import SpooledTemporaryFile

from flask import Blueprint, Flask, Request, Response, current_app, request

from ..errors import BodyTooLargeError
from ..logger import logger
from ..providers import CallbackRequest, Provider, Reply
from ..receiver import Body
from ..runtime import get_runtime
from .exchange import EXCHANGE_KEY, Answer, Environ, Exchange, decode, read_query
from .request_body import RequestBody
from .routing import AnyHostBlueprint

UNANSWERED = "the callback could not be answered after an unexpected error"
"""The reason of a refusal after a mistake in a provider or in this extension."""
RESULT_HEADER = "Imcallback-Result"
"""The header that tells people whether a callback was accepted. IM servers ignore it."""
METHODS = ["POST", "GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]
"""Every method gets the answer of the provider. After another body, OpenIM may stop its users."""
CHUNK_BYTES = 64 * 1024
MAX_DISCARDED = 2
"""A body that is too large is read up to this multiple of `IMCALLBACK_MAX_BODY`."""
CHUNK_TIMEOUT_SECONDS = 5
"""Time that uWSGI waits for the next chunk. The IM servers stop waiting earlier."""
ROUTER_REMEDY = "start the HTTP router of uWSGI with http-chunked-input = true"


def make_blueprint(providers: Iterable[str]) -> Blueprint:
    """Return the blueprint with the callback URLs of the providers, given by name."""
    blueprint = AnyHostBlueprint("imcallback_callbacks", __name__)
    for name in providers:
        view = _make_view(name)
        for rule in (f"/{name}", f"/{name}/<imcallback_rest:rest>"):
            blueprint.add_url_rule(
                rule,
                endpoint=name,
                view_func=view,
                methods=METHODS,
                provide_automatic_options=False,
                strict_slashes=False,
            )
    return blueprint


def _make_view(name: str) -> Callable[..., Response]:
    """Return the view of one provider.

    A `url_value_preprocessor` of the host app may remove values of the URL, so none is required.
    """

    def receive_callback(rest: str = "", **_: object) -> Response:
        app = current_app._get_current_object()  # type: ignore[attr-defined]
        return _callback(app, request._get_current_object(), name, rest)  # type: ignore[attr-defined]

    return receive_callback


def answer_without_hooks(app: Flask, environ: Environ, name: str) -> None:
    """Set the answer of the exchange in an environment. No hook of a request is called.

    A request context would open the session of the host app, so there is none.
    """
    with app.app_context():
        _callback(app, app.request_class(environ), name)


def _callback(app: Flask, request: Request, name: str, rest: str = "") -> Response:
    """Answer a callback as the provider expects, even after an unexpected error.

    Flask must not handle an error: it would log the path, which may contain a secret.
    """
    runtime = get_runtime()
    provider = runtime.providers[name]
    exchange = _exchange(request, provider, rest)

    try:
        if not provider.is_enabled:
            reply = provider.refuse(404, f"the provider {name} is not enabled")
        elif request.method != "POST":
            reply = provider.refuse(405, "callbacks must use POST")
        else:
            reply = runtime.receiver.receive(
                provider,
                _callback_request(request, exchange),
                partial(_read_body, request),
                sender=app,
            )
    except Exception:
        # `receive` has stored the packet, unless the error came before the packet was read.
        logger.exception("A callback of %s could not be answered", name)
        runtime.counters.count_refused(name, UNANSWERED, is_logged=False)
        reply = provider.refuse(503, "the callback could not be stored")
    response = _response(reply)
    exchange.answer = Answer.copy(response)
    return response


def _exchange(request: Request, provider: Provider, rest: str) -> Exchange:
    """Return the exchange of the middleware, and rewind its body.

    A host app can replace `app.wsgi_app` by an app without our middleware. Then path and query are
    still in the request.
    """
    exchange: Exchange | None = request.environ.get(EXCHANGE_KEY)
    if exchange is None:
        return Exchange(provider, rest, read_query(request.environ.get("QUERY_STRING", "")))
    exchange.is_received = True
    if exchange.body:
        exchange.body.rewind()
    return exchange


def _callback_request(request: Request, exchange: Exchange) -> CallbackRequest:
    return CallbackRequest(
        segments=tuple(segment for segment in exchange.rest.split("/") if segment),
        query=exchange.query,
        headers={name.lower(): decode(value) for name, value in request.headers.items()},
        remote_addr=request.remote_addr or "",
        received_at=datetime.now(UTC),
    )


def _read_body(request: Request, maximum: int) -> Body:
    """Return the body and its problem. Raises `BodyTooLargeError`.

    The WSGI stream is read directly, because Werkzeug drops the received part of an incomplete
    body.
    """
    length = request.content_length
    if length is not None and length > maximum:
        _discard(request, min(length, MAX_DISCARDED * maximum))
        raise BodyTooLargeError
    if length is None and not _input_ends(request):
        return _read_chunks(request, maximum) if _is_chunked(request) else Body(content=b"")
    stream, body, problem = request.environ["wsgi.input"], bytearray(), ""
    bytes_to_read = maximum + 1 if length is None else length
    try:
        while chunk := stream.read(min(CHUNK_BYTES, bytes_to_read - len(body))):
            body += chunk
    except OSError as error:
        problem = f"the body was cut off: {type(error).__name__}"
    if len(body) > maximum:
        _discard(request, MAX_DISCARDED * maximum - len(body))
        raise BodyTooLargeError
    if length is not None and len(body) < length:
        problem = f"the body has {len(body)} bytes, but its Content-Length is {length}"
    return Body(content=bytes(body), problem=problem)


def _discard(request: Request, byte_count: int) -> None:
    """Read the rest of a body, or a part of it.

    If the server closed the connection before, a client that reads only after it has sent all would
    lose the answer.
    """
    stream = request.environ["wsgi.input"]
    with suppress(OSError):
        while byte_count > 0 and (chunk := stream.read(min(CHUNK_BYTES, byte_count))):
            byte_count -= len(chunk)


def _input_ends(request: Request) -> bool:
    """Return True if the WSGI stream ends with the body, even if the length is unknown.

    Such a stream of a2wsgi does not set the flag. Other servers keep the body in a file.
    """
    stream = request.environ["wsgi.input"]
    if isinstance(stream, RequestBody):
        stream = stream.stream
    return (
        bool(request.environ.get("wsgi.input_terminated"))
        or isinstance(stream, BytesIO | SpooledTemporaryFile)
        or type(stream).__module__.startswith("a2wsgi.")
    )


def _is_chunked(request: Request) -> bool:
    return "chunked" in request.headers.get("Transfer-Encoding", "").lower()


def _read_chunks(request: Request, maximum: int) -> Body:
    """Return a body of unknown length from a server that does not pass it as a stream.

    Only uWSGI has a function for these bodies. Raises `BodyTooLargeError`.
    """
    uwsgi = sys.modules.get("uwsgi")
    if uwsgi is None:
        return _undelivered_body("let the proxy send a Content-Length")
    is_routed = request.environ.get("UWSGI_ROUTER") == "http"
    if is_routed and "http" in uwsgi.opt and "http-chunked-input" not in uwsgi.opt:
        return _undelivered_body(ROUTER_REMEDY)
    body = bytearray()
    try:
        while chunk := uwsgi.chunked_read(CHUNK_TIMEOUT_SECONDS):
            body += chunk
            if len(body) > MAX_DISCARDED * maximum:  # see `_discard`
                break
    except OSError:
        if not body and is_routed:  # another uWSGI runs the router
            return _undelivered_body(ROUTER_REMEDY)
        return Body(content=bytes(body), problem="the body was cut off: a chunk is missing")
    if len(body) > maximum:
        raise BodyTooLargeError
    return Body(content=bytes(body))


def _undelivered_body(remedy: str) -> Body:
    problem = f"this server does not hand over chunked bodies: {remedy}"
    logger.error("The body of a callback is lost, because %s", problem)
    return Body(content=b"", problem=problem)


def _response(reply: Reply) -> Response:
    response = Response(json.dumps(reply.body), reply.status, mimetype="application/json")
    # OpenIM expects the same body after a success and after a refusal.
    response.headers[RESULT_HEADER] = "accepted" if reply.status == 200 else "refused"
    if reply.status == 405:
        response.headers["Allow"] = "POST"
    return response
