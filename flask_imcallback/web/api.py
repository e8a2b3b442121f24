"""The history, the feed and the evidence over HTTP, as JSON and as files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any
from urllib.parse import urlencode

from flask import Blueprint, Response, request, stream_with_context

from ..errors import ConfigError, HistoryQueryError
from ..history import (
    DELIVERY,
    FORMATS,
    encode,
    json_lines,
    load_delivery_query,
    load_export_query,
    load_history_query,
    load_stats_query,
    removal_json,
    shorten,
    stats_json,
)
from ..log import ActKind, count_deliveries, feed_lines, load_feed_query
from ..logger import logger
from ..runtime import get_runtime
from .access import View, add_reader_views
from .acts import begin_file, file_acts, log_read
from .problems import NOT_FOUND, NOT_INSTALLED, ProblemError, answer_with_problems, json_response
from .requests import parse_id, read_parameters
from .routing import AnyHostBlueprint


def make_blueprint(decorators: Sequence[Callable[..., Any]]) -> Blueprint:
    """Return the blueprint of the history. The decorators protect its views."""
    blueprint = AnyHostBlueprint("imcallback_history", __name__)
    add_reader_views(blueprint, ROUTES, decorators)
    answer_with_problems(blueprint)
    return blueprint


def _history() -> Response:
    page = get_runtime().history.read_page(load_history_query(read_parameters()))
    log_read(len(page.data))
    # json.dumps would take four times as long.
    data = ", ".join(json_lines(page.data))
    text = f'{{"data": [{data}], "next_cursor": {json.dumps(page.next_cursor)}}}\n'
    response = Response(text, mimetype="application/json")
    if page.next_cursor is not None:
        _link_next(response, page.next_cursor)
    return response


def _feed() -> Response:
    page = get_runtime().feed.read_page(load_feed_query(read_parameters()))
    log_read(len(page.data))
    data = ", ".join(feed_lines(page.data))
    text = f'{{"data": [{data}], "last": {page.last}, "head": {page.head}}}\n'
    return Response(text, mimetype="application/json")


def _removal(removal_id: str) -> Response:
    _refuse_parameters()
    detail = get_runtime().history.get(parse_id(removal_id))
    if detail is None:
        raise ProblemError(NOT_FOUND, "No removal has this id.")
    log_read(1)
    return json_response(
        removal_json(detail.removal) | {"delivery": DELIVERY.dump(detail.delivery)}
    )


def _stats() -> Response:
    counts = get_runtime().history.read_counts(*load_stats_query(read_parameters()))
    log_read(sum(count.count for count in counts))
    return json_response({"data": stats_json(counts)})


def _export() -> Response:
    query, options = load_export_query(read_parameters())
    acts = file_acts(ActKind.EXPORT)
    try:
        file = encode(options, acts.count(get_runtime().history.read_chunks(query), len))
    except ConfigError as error:
        raise ProblemError(NOT_INSTALLED, str(error)) from error
    begin_file(acts)
    return _send_file(file, FORMATS[options.format].media_type, f"removals.{options.format}")


def _checkpoint() -> Response:
    _refuse_parameters()
    return Response(get_runtime().sealer.read_checkpoint(), mimetype="text/plain")


def _evidence() -> Response:
    _refuse_parameters()
    acts = file_acts(ActKind.EVIDENCE)
    begin_file(acts)
    file = acts.count(get_runtime().read_evidence(), count_deliveries)
    return _send_file(file, "application/x-ndjson", "evidence.ndjson")


def _send_file(file: Iterator[bytes], content_type: str, name: str) -> Response:
    # The first bytes are made before the response starts, so an error still gets a status.
    file = chain([next(file, b"")], file)
    # The server never reads nor closes the body of a HEAD response.
    body = iter(()) if request.method == "HEAD" else stream_with_context(_log_failures(file))
    response = Response(body, content_type=content_type)
    response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return response


def _log_failures(file: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the parts of a file. An error is logged, and then the server cuts the response off."""
    try:
        yield from file
    except Exception:
        logger.exception("A file was cut off")
        raise


def _deliveries() -> Response:
    page = get_runtime().history.read_delivery_page(load_delivery_query(read_parameters()))
    log_read(len(page.data))
    data = DELIVERY.dump(page.data, many=True)
    response = json_response({"data": data, "next_cursor": page.next_cursor})
    if page.next_cursor is not None:
        _link_next(response, page.next_cursor)
    return response


def _delivery(delivery_id: str) -> Response:
    _refuse_parameters()
    detail = get_runtime().history.get_delivery(parse_id(delivery_id))
    if detail is None:
        raise ProblemError(NOT_FOUND, "No delivery has this id.")
    log_read(1)
    removals = [removal_json(record) for record in detail.removals]
    return json_response(DELIVERY.dump(detail.delivery) | {"removals": removals})


ROUTES: dict[str, tuple[str, View]] = {
    "/history": ("history", _history),
    "/history/stats": ("stats", _stats),
    "/history/export": ("export", _export),
    "/history/<imcallback_rest:removal_id>": ("removal", _removal),
    "/feed": ("feed", _feed),
    "/checkpoint": ("checkpoint", _checkpoint),
    "/evidence": ("evidence", _evidence),
    "/deliveries": ("deliveries", _deliveries),
    "/deliveries/<imcallback_rest:delivery_id>": ("delivery", _delivery),
}
"""URL rule -> its endpoint and its view."""


def _refuse_parameters() -> None:
    """Raise `HistoryQueryError` if the request has a parameter."""
    for name in read_parameters():
        raise HistoryQueryError(
            shorten(name), "is not a parameter of this URL. This URL takes no parameters"
        )


def _link_next(response: Response, cursor: str) -> None:
    """Add the header that links to the next page."""
    query = urlencode({**read_parameters(), "cursor": [cursor]}, doseq=True)
    response.headers["Link"] = f'<{request.base_url}?{query}>; rel="next"'
