"""The views of the HTML pages."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from flask import Blueprint, Response, current_app, request
from marshmallow import Schema, fields
from marshmallow.validate import OneOf

from ...errors import HistoryQueryError
from ...history import DELIVERY, HistoryQuery, HistoryQuerySchema, load_parameters
from ...runtime import get_runtime
from ..access import View, add_reader_views
from ..acts import log_read
from ..middleware import set_headers
from ..problems import NOT_FOUND, ProblemError, answer_with_problems
from ..requests import parse_id, read_parameters
from ..routing import AnyHostBlueprint
from .context import PageContext, Parameters, read_zone
from .environment import render
from .files import FILES, MEDIA_TYPES
from .overview import describe_setup, summarize
from .text import LANGUAGES, Translations, indent_json, show_invisible
from .timeline import count_timeline

DEFAULT_LIMIT = 50
"""Removals on a page without the parameter `limit`."""
MAX_PACKET_LENGTH = 1_000_000
"""Characters of a packet that the page shows."""
LOCAL_TIME = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?)?", re.ASCII)


class PageSchema(Schema):
    """Query parameters of every page."""

    tz = fields.String()
    lang = fields.String(validate=OneOf(LANGUAGES))
    back = fields.List(fields.String())
    """The cursors of the pages before this one. "first" stands for the page without a cursor."""


class RemovalListSchema(HistoryQuerySchema, PageSchema):
    """Query parameters of the pages that list removals."""


PAGE_PARAMETERS, LIST_PARAMETERS = PageSchema(), RemovalListSchema()


def make_blueprint(decorators: Sequence[Callable[..., Any]]) -> Blueprint:
    """Return the blueprint of the pages. `decorators` are the `history_decorators`."""
    blueprint = AnyHostBlueprint("imcallback_page", __name__)
    # Flask calls the last added function first, so this function overrides `Cache-Control`.
    blueprint.after_request(_cache_files)
    add_reader_views(blueprint, VIEWS, decorators)
    answer_with_problems(blueprint, _problem)
    return blueprint


def _index() -> Response:
    runtime, parameters = get_runtime(), _drop_empty_parameters()
    query = _read_query(parameters)
    page = runtime.history.read_page(query)
    log_read(len(page.data))
    now = datetime.now(UTC)
    timeline = count_timeline(runtime.history, query, read_zone(parameters), now)
    has_no_filters = query.digest == HistoryQuery().digest and query.cursor is None
    is_empty = has_no_filters and not page.data and page.next_cursor is None
    return _render(
        "page.html",
        parameters,
        query=query,
        page=page,
        timeline=timeline,
        export_filters=_export_filters(query),
        providers={name: name for name in runtime.providers},
        overview=summarize(runtime, now, page, timeline.counts)
        if has_no_filters
        else summarize(runtime, now),
        setup=describe_setup(runtime) if is_empty else None,
        now=now,
    )


def _account() -> Response:
    return _story("account_id")


def _group() -> Response:
    return _story("group_id")


def _story(required: str) -> Response:
    """Return the page that tells all removals of an account or a group in sentences."""
    parameters = _drop_empty_parameters()
    if required not in parameters:
        raise HistoryQueryError(required, "is missing")
    # Show two accounts in the order of time, and one account newest first.
    parameters.setdefault("order", ["asc" if "peer_id" in parameters else "desc"])
    query = _read_query(parameters)
    page = get_runtime().history.read_page(query)
    log_read(len(page.data))
    return _render(
        "account.html",
        parameters,
        query=query,
        page=page,
        export_filters=_export_filters(query),
    )


def _removal(removal_id: str) -> Response:
    parameters = _drop_empty_parameters()
    load_parameters(PAGE_PARAMETERS, parameters)
    read_zone(parameters)
    history = get_runtime().history
    result = history.get(parse_id(removal_id))
    if result is None:
        raise ProblemError(NOT_FOUND, "There is no such removal.")
    record, delivery = result.removal, result.delivery
    facts = DELIVERY.dump(delivery)
    packet = facts["body"] if facts["body"] is not None else facts["body_base64"]
    if len(packet) <= MAX_PACKET_LENGTH:
        packet = indent_json(packet)
    query = HistoryQuery(delivery_id=(record.delivery_id,), order="asc", limit=DEFAULT_LIMIT)
    siblings = history.read_page(query).data
    log_read(len(siblings))
    seal = get_runtime().sealer.find_seal(record.delivery_id)
    return _render(
        "removal.html",
        parameters,
        seal=seal,
        sealed_at=datetime.fromisoformat(seal.at) if seal else None,
        record=record,
        delivery=facts,
        packet=packet[:MAX_PACKET_LENGTH],
        is_whole_packet=len(packet) <= MAX_PACKET_LENGTH,
        siblings=siblings,
    )


def _file(name: str) -> Response:
    if name not in FILES:
        raise ProblemError(NOT_FOUND, "The page has no such file.")
    return Response(FILES[name].read_bytes(), mimetype=MEDIA_TYPES[FILES[name].suffix])


VIEWS: dict[str, tuple[str, View]] = {
    "/": ("index", _index),
    "/account": ("account", _account),
    "/group": ("group", _group),
    "/removal/<imcallback_rest:removal_id>": ("removal", _removal),
    "/page/<imcallback_rest:name>": ("file", _file),
}
"""URL rule -> its endpoint and its view."""


def _cache_files(response: Response) -> Response:
    """Let browsers keep a file for a year. Its URL changes with its content."""
    if request.endpoint == "imcallback_page.file" and response.status_code == 200:
        set_headers(response, {"Cache-Control": "private, max-age=31536000, immutable"})
    return response


def _problem(problem: ProblemError) -> Response:
    try:
        parameters = _drop_empty_parameters()
    except HistoryQueryError:  # a parameter is not UTF-8
        parameters = {}
    return _render("problem.html", parameters, problem_type=problem.type, detail=str(problem))


def _render(template: str, parameters: Parameters, **variables: Any) -> Response:
    context = PageContext.from_request(parameters)
    translations = Translations(context.language)
    variables |= {
        "page_context": context,
        "parameters": parameters,
        "languages": LANGUAGES,
        "UTC": UTC,
        "show_invisible": show_invisible,
        "_": translations.gettext,
        "ngettext": translations.ngettext,
        "duration": translations.duration,
    }
    return Response(render(current_app, f"imcallback/{template}", variables), mimetype="text/html")


def _drop_empty_parameters() -> dict[str, list[str]]:
    """Return the query parameters without empty values, because a form sends all its fields."""
    filled = (
        (name, [value for value in values if value]) for name, values in read_parameters().items()
    )
    return {name: values for name, values in filled if values}


def _read_query(parameters: Parameters) -> HistoryQuery:
    """Return the query of a page that lists removals. Raises `HistoryQueryError`."""
    zone = read_zone(parameters)
    times = {
        name: [_add_offset(value, zone) for value in parameters[name]]
        for name in ("since", "until")
        if name in parameters
    }
    values = load_parameters(
        LIST_PARAMETERS, {"limit": [str(DEFAULT_LIMIT)], **parameters, **times}
    )
    return HistoryQuery.from_filters(
        {name: value for name, value in values.items() if name not in PAGE_PARAMETERS.fields}
    )


def _add_offset(text: str, zone: ZoneInfo) -> str:
    """Return a local time of the zone as RFC 3339. Any other text is returned as it is."""
    if not LOCAL_TIME.fullmatch(text):
        return text
    try:
        return datetime.fromisoformat(text).replace(tzinfo=zone).astimezone(UTC).isoformat()
    except (ValueError, OverflowError):
        return text


def _export_filters(query: HistoryQuery) -> dict[str, Any]:
    """Return the query parameters of an export of everything that the query matches."""
    filters: dict[str, Any] = {**query.texts, "order": query.order}
    if query.delivery_id:
        filters["delivery_id"] = query.delivery_id
    times = {"since": query.since, "until": query.until}
    return filters | {name: moment.isoformat() for name, moment in times.items() if moment}
