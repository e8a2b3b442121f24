"""The history for people: pages that are complete without scripts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

from flask import Blueprint, Response, render_template, request, url_for
from marshmallow import Schema, fields
from marshmallow.validate import OneOf

from ...errors import HistoryQueryError
from ...history import (
    DELIVERY,
    HistoryQuery,
    HistoryQuerySchema,
    RemovalCount,
    StatsQuery,
    load_parameters,
)
from ...removals import Record
from ...runtime import get_runtime
from ...storage import moment_of
from ..access import add_guarded, number_in, parameters
from ..problems import NOT_FOUND, ProblemError, answer_with_problems
from .overview import MONTH, look, setup
from .text import LANGUAGES, Words, indented, visible

LIMIT = 50
"""Removals of a page, unless it is asked for more."""
MAX_POINTS = 500
BUCKETS = {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(weeks=1)}
MAX_PACKET = 1_000_000
"""Characters of a packet that are shown."""
LOCAL_TIME = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?)?", re.ASCII)
STATIC = Path(__file__).parent / "static"
TYPES = {".css": "text/css", ".js": "text/javascript"}


def _hash_of(name: str) -> str:
    return hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:8]


ADDRESSES = {
    "bootstrap.min.css": "bootstrap-5.3.8/bootstrap.min.css",
    "uPlot.min.css": "uplot-1.6.32/uPlot.min.css",
    "uPlot.iife.min.js": "uplot-1.6.32/uPlot.iife.min.js",
    **{name: f"{_hash_of(name)}/{name}" for name in ("page.css", "page.js")},
}
"""The address of each file that a page consists of; it changes with the content."""
FILES = {
    address: STATIC / (name if name.startswith("page.") else f"vendor/{address}")
    for name, address in ADDRESSES.items()
}


class ReaderSchema(Schema):
    """What all pages take."""

    tz = fields.String()
    lang = fields.String(validate=OneOf(LANGUAGES))
    back = fields.List(fields.String())
    """The cursors of the pages on the way to this, "first" for none."""


class PageQuerySchema(HistoryQuerySchema, ReaderSchema):
    """What those take that show several removals."""


READER, PAGE_QUERY = ReaderSchema(), PageQuerySchema()
Given = Mapping[str, list[str]]


@dataclass(frozen=True, kw_only=True)
class Reader:
    """How somebody reads: helps the templates."""

    language: str
    zone: ZoneInfo
    kept: Mapping[str, list[str]]
    """What each link keeps of language and time zone."""

    @classmethod
    def of(cls, given: Given) -> Reader:
        """Whatever is wrong with the parameters does not count."""
        language = given.get("lang", [""])[0]
        zone = _zone_of(given, default=ZoneInfo("UTC"))
        kept = {"lang": [language]} if language in LANGUAGES else {}
        if "tz" in given:
            kept["tz"] = [zone.key]
        if language not in LANGUAGES:
            preferred = (tag.partition("-")[0] for tag in request.accept_languages.values())
            language = next((one for one in preferred if one in LANGUAGES), "en")
        return cls(language=language, zone=zone, kept=kept)

    def link(self, endpoint: str, query: Mapping[str, Any] | None = None, **of_path: Any) -> str:
        parameters = urlencode({**self.kept, **(query or {})}, doseq=True)
        return url_for(endpoint, **of_path) + (f"?{parameters}" if parameters else "")

    def account_link(self, record: Record, *account_ids: str) -> str:
        """To all of an account, or of two, in its app: elsewhere the same id is somebody else."""
        query = dict(zip(("account_id", "peer_id"), account_ids, strict=False))
        query |= {"provider": record.provider}
        return self.link(".account", query | ({"app_id": record.app_id} if record.app_id else {}))

    def file(self, name: str) -> str:
        return url_for(".file", name=ADDRESSES[name])

    def at(self, moment: datetime) -> datetime:
        """By the reader's clock, unless no clock shows it."""
        try:
            return moment.astimezone(self.zone)
        except OverflowError:
            return moment

    def input(self, moment: datetime | None) -> str:
        """As the field of a form takes it."""
        if moment is None:
            return ""
        local = self.at(moment).replace(tzinfo=None)
        least = "seconds" if local.second else "minutes"
        return local.isoformat(timespec="milliseconds" if local.microsecond else least)


def make_blueprint(decorators: Sequence[Callable[..., Any]]) -> Blueprint:
    blueprint = Blueprint("imcallback_page", __name__, template_folder="templates")
    blueprint.after_request(_keep_files)  # the last that is added is called first
    add_guarded(blueprint, ROUTES, decorators, in_browser=ROUTES.values())
    answer_with_problems(blueprint, _problem)
    return blueprint


def _index() -> Response:
    runtime, given = get_runtime(), _given()
    query = _read_query(given)
    page = runtime.history.page(query)
    now = datetime.now(UTC)
    until = min(query.until or now, now)
    since = query.since or max(until, moment_of(0) + MONTH) - MONTH
    timeline = replace(query, cursor=None, since=since, until=until)
    bucket = next((b for b in BUCKETS if until - since <= MAX_POINTS * BUCKETS[b]), "month")
    by_relation = StatsQuery(bucket=bucket, group_by="relation", tz=_zone_of(given).key)
    counts = runtime.history.count(timeline, by_relation)
    is_all = query.digest == HistoryQuery().digest and query.cursor is None
    is_empty = is_all and not page.data and page.next_cursor is None
    return _render(
        "page.html",
        given,
        query=query,
        page=page,
        counts=_by_bucket(counts),
        bucket=bucket,
        since=since,
        until=until,
        export=_export_filters(query),
        providers={name: name for name in runtime.providers},
        health=look(runtime, now, page, counts) if is_all else look(runtime, now),
        setup=setup(runtime) if is_empty else None,
        now=now,
    )


def _account() -> Response:
    given = _given()
    if "account_id" not in given:
        raise HistoryQueryError("account_id", "is missing")
    # The story of two is read from its begin, that of one from its end.
    given.setdefault("order", ["asc" if "peer_id" in given else "desc"])
    query = _read_query(given)
    page = get_runtime().history.page(query)
    return _render("account.html", given, query=query, page=page, export=_export_filters(query))


def _removal(removal_id: str) -> Response:
    given = _given()
    load_parameters(READER, given)
    _zone_of(given)
    history = get_runtime().history
    found = history.get(number_in(removal_id))
    if found is None:
        raise ProblemError(NOT_FOUND, "There is no such removal.")
    record, delivery = found.removal, found.delivery
    its = HistoryQuery(delivery_id=(record.delivery_id,), order="asc", limit=LIMIT)
    facts = DELIVERY.dump(delivery)
    packet = indented(facts["body"] if facts["body"] is not None else facts["body_base64"])
    return _render(
        "removal.html",
        given,
        record=record,
        delivery=facts,
        packet=packet[:MAX_PACKET],
        is_whole=len(packet) <= MAX_PACKET,
        siblings=history.page(its).data,
    )


def _file(name: str) -> Response:
    if name not in FILES:
        raise ProblemError(NOT_FOUND, "The page has no such file.")
    return Response(FILES[name].read_bytes(), mimetype=TYPES[FILES[name].suffix])


ROUTES: dict[str, Callable[..., Response]] = {
    "/": _index,
    "/account": _account,
    "/removal/<imcallback_rest:removal_id>": _removal,
    "/page/<imcallback_rest:name>": _file,
}


def _keep_files(response: Response) -> Response:
    if request.endpoint == "imcallback_page.file" and response.status_code == 200:
        response.headers["Cache-Control"] = "private, max-age=31536000, immutable"
    return response


def _problem(problem: ProblemError) -> Response:
    try:
        given = _given()
    except ProblemError:
        given = {}
    return _render("problem.html", given, kind=problem.kind, detail=str(problem))


def _render(template: str, given: Given, **context: Any) -> Response:
    reader = Reader.of(given)
    words = Words(reader.language)
    text = render_template(
        f"imcallback/{template}",
        _=words.gettext,
        ngettext=words.ngettext,
        span=words.span,
        visible=visible,
        reader=reader,
        languages=LANGUAGES,
        given=given,
        here=lambda **changes: _here({**given, **changes}),
        UTC=UTC,
        **context,
    )
    return Response(text, mimetype="text/html")


def _here(query: Mapping[str, Any]) -> str:
    """The address of this page with other parameters."""
    address = url_for(request.endpoint or "", **(request.view_args or {}))
    return f"{address}?{urlencode(query, doseq=True)}"


def _given() -> dict[str, list[str]]:
    """The parameters but those that are empty: a form sends all of its fields."""
    found = ((name, [value for value in values if value]) for name, values in parameters().items())
    return {name: values for name, values in found if values}


def _zone_of(given: Given, default: ZoneInfo | None = None) -> ZoneInfo:
    """Raises `HistoryQueryError` if it is none and there is no default."""
    try:
        return StatsQuery(tz=given.get("tz", ["UTC"])[0]).zone
    except HistoryQueryError:
        if default is None:
            raise
        return default


def _read_query(given: Given) -> HistoryQuery:
    zone = _zone_of(given)
    times = {
        name: [_with_offset(value, zone) for value in given[name]]
        for name in ("since", "until")
        if name in given
    }
    asked = load_parameters(PAGE_QUERY, {"limit": [str(LIMIT)], **given, **times})
    return HistoryQuery.from_filters({n: v for n, v in asked.items() if n not in READER.fields})


def _with_offset(text: str, zone: ZoneInfo) -> str:
    """A time of the reader's clock as RFC 3339; another text as it is."""
    if not LOCAL_TIME.fullmatch(text):
        return text
    try:
        return datetime.fromisoformat(text).replace(tzinfo=zone).astimezone(UTC).isoformat()
    except (ValueError, OverflowError):
        return text


def _export_filters(query: HistoryQuery) -> dict[str, Any]:
    """Those of the export of all that a question finds."""
    filters: dict[str, Any] = {**query.texts, "order": query.order}
    if query.delivery_id:
        filters["delivery_id"] = query.delivery_id
    times = {"since": query.since, "until": query.until}
    return filters | {name: moment.isoformat() for name, moment in times.items() if moment}


def _by_bucket(
    counts: Sequence[RemovalCount],
) -> tuple[list[str], list[tuple[datetime, list[int]]]]:
    """The relations, and their counts for each bucket; each bucket has all of them."""
    names = list(dict.fromkeys(count.group or "" for count in counts))
    rows = [counts[first : first + len(names)] for first in range(0, len(counts), len(names) or 1)]
    return names, [(row[0].bucket, [count.count for count in row]) for row in rows]
