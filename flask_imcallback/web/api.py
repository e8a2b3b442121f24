"""The history as JSON and as files."""

from __future__ import annotations

import json
import logging
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
    read_deliveries,
    read_export,
    read_query,
    read_stats,
    removal_json,
    stats_json,
)
from ..runtime import get_runtime
from .access import add_reader_views, parameters, parse_id
from .problems import NOT_FOUND, NOT_INSTALLED, ProblemError, answer_with_problems, json_response

logger = logging.getLogger("flask_imcallback")


def make_blueprint(decorators: Sequence[Callable[..., Any]]) -> Blueprint:
    blueprint = Blueprint("imcallback_history", __name__)
    # The page links to exports, which a browser saves.
    add_reader_views(blueprint, ROUTES, decorators, browser_views=[_export])
    answer_with_problems(blueprint)
    return blueprint


def _history() -> Response:
    page = get_runtime().history.values_page(read_query(parameters()))
    data = ", ".join(json_lines(page.data))
    text = f'{{"data": [{data}], "next_cursor": {json.dumps(page.next_cursor)}}}\n'
    response = Response(text, mimetype="application/json")
    if page.next_cursor is not None:
        _link_next(response, page.next_cursor)
        if page.is_early:
            response.headers["Retry-After"] = "1"
    elif page.resume_cursor is not None:
        response.headers["Resume-Cursor"] = page.resume_cursor
    return response


def _removal(removal_id: str) -> Response:
    _take_no_parameters()
    found = get_runtime().history.get(parse_id(removal_id))
    if found is None:
        raise ProblemError(NOT_FOUND, "There is no such removal.")
    record, delivery = found
    return json_response(removal_json(record) | {"delivery": DELIVERY.dump(delivery)})


def _stats() -> Response:
    counts = get_runtime().history.stats(*read_stats(parameters()))
    return json_response({"data": stats_json(counts)})


def _export() -> Response:
    query, format, keeps_formulas = read_export(parameters())
    parts = get_runtime().history.stream(query)
    try:
        file = encode(format, parts, keeps_formulas=keeps_formulas)
    except ConfigError as error:
        raise ProblemError(NOT_INSTALLED, str(error)) from error
    # The first bytes are made before the answer begins: what fails until then is told by it.
    file = chain([next(file)], file)
    response = Response(stream_with_context(_logged(file)), content_type=FORMATS[format].media_type)
    name = f"removals.{format}"
    response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return response


def _logged(file: Iterator[bytes]) -> Iterator[bytes]:
    """What fails while it is sent can only be logged; the server cuts the answer off."""
    try:
        yield from file
    except Exception:
        logger.exception("An export was cut off")
        raise


def _deliveries() -> Response:
    data, next_cursor = get_runtime().history.deliveries(read_deliveries(parameters()))
    body = {"data": DELIVERY.dump(data, many=True), "next_cursor": next_cursor}
    response = json_response(body)
    if next_cursor is not None:
        _link_next(response, next_cursor)
    return response


def _delivery(delivery_id: str) -> Response:
    _take_no_parameters()
    found = get_runtime().history.get_delivery(parse_id(delivery_id))
    if found is None:
        raise ProblemError(NOT_FOUND, "There is no such delivery.")
    delivery, removals = found
    body = DELIVERY.dump(delivery) | {"removals": [removal_json(record) for record in removals]}
    return json_response(body)


ROUTES: dict[str, Callable[..., Response]] = {
    "/history": _history,
    "/history/stats": _stats,
    "/history/export": _export,
    "/history/<imcallback_rest:removal_id>": _removal,
    "/deliveries": _deliveries,
    "/deliveries/<imcallback_rest:delivery_id>": _delivery,
}


def _take_no_parameters() -> None:
    for name in parameters():
        raise HistoryQueryError(name, "is not a parameter of this address")


def _link_next(response: Response, cursor: str) -> None:
    query = urlencode({**parameters(), "cursor": [cursor]}, doseq=True)
    response.headers["Link"] = f'<{request.base_url}?{query}>; rel="next"'
