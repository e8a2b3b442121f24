"""Receives a POST: HTTP in, the provider's answer out."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from datetime import UTC, datetime
from urllib.parse import parse_qs

from flask import Blueprint, Response, current_app, request

from ..errors import BodyTooLargeError
from ..providers import CallbackRequest, Reply
from ..receiver import Body
from ..runtime import get_runtime

logger = logging.getLogger("flask_imcallback")

METHODS = ["POST", "GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]
"""All are routed here, so that each gets the provider's answer: another body can stop users."""
CHUNK = 64 * 1024


def make_blueprint(providers: Iterable[str]) -> Blueprint:
    blueprint = Blueprint("imcallback_callbacks", __name__)
    for name in providers:
        for rule in (f"/{name}", f"/{name}/<imcallback_rest:rest>"):
            blueprint.add_url_rule(
                rule,
                endpoint=name,
                view_func=_callback,
                defaults={"name": name},
                methods=METHODS,
                provide_automatic_options=False,
                strict_slashes=False,
            )
    return blueprint


def _callback(name: str, rest: str = "") -> Response:
    """Answer in the provider's words, come what may.

    Flask would log the path of a request that fails, and the path may hold a secret.
    """
    runtime = get_runtime()
    app = current_app._get_current_object()  # type: ignore[attr-defined]
    provider = runtime.providers[name]
    try:
        if not provider.is_enabled:
            reply = provider.refuse(404, f"{name} is off")
        elif request.method != "POST":
            reply = provider.refuse(405, "callbacks are sent by POST")
        else:
            reply = runtime.receiver.receive(
                provider, _callback_request(rest), _read_body, sender=app
            )
    except Exception:
        logger.exception("A callback of %s is lost: it could not be verified and read", name)
        reply = provider.refuse(503, "it could not be stored")
    if runtime.counters.is_due:
        runtime.counters.save_soon(app.app_context)
    return _response(reply)


def _callback_request(rest: str) -> CallbackRequest:
    # Werkzeug's `args` raises where a byte is not UTF-8.
    query = parse_qs(request.query_string.decode(errors="replace"), keep_blank_values=True)
    return CallbackRequest(
        segments=tuple(segment for segment in rest.split("/") if segment),
        query={name: tuple(values) for name, values in query.items()},
        headers={name.lower(): value for name, value in request.headers.items()},
        remote_addr=request.remote_addr or "",
        received_at=datetime.now(UTC),
    )


def _read_body(maximum: int) -> Body:
    """The bytes that came, and what is wrong with them; raises `BodyTooLargeError`.

    Read from the server itself: Werkzeug drops what came of a body that is cut off.
    """
    length = request.content_length
    if length is not None and length > maximum:
        raise BodyTooLargeError
    if length is None and not request.environ.get("wsgi.input_terminated"):
        return Body(content=b"")
    stream, body, problem = request.environ["wsgi.input"], bytearray(), ""
    wanted = maximum + 1 if length is None else length
    try:
        while chunk := stream.read(min(CHUNK, wanted - len(body))):
            body += chunk
    except OSError as error:
        problem = f"the body was cut off: {type(error).__name__}"
    if len(body) > maximum:
        raise BodyTooLargeError
    if length is not None and len(body) < length:
        if not body and (read_before := request.get_data()):
            return Body(content=read_before)  # by the host's own before_request
        problem = f"the body has {len(body)} bytes, but its Content-Length is {length}"
    return Body(content=bytes(body), problem=problem)


def _response(reply: Reply) -> Response:
    response = Response(json.dumps(reply.body), reply.status, mimetype="application/json")
    if reply.status == 405:
        response.headers["Allow"] = "POST"
    return response
