"""The schemas of the HTTP API, for parameters and JSON. The command line uses them for options."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import fields as dataclass_fields
from datetime import UTC, datetime
from typing import Any

from marshmallow import RAISE, Schema, ValidationError, fields
from marshmallow.validate import OneOf

from ..errors import HistoryQueryError
from ..removals import Status
from ..storable_text import MAX_TEXT_LENGTH
from ..storage import MAX_ID
from .export import FORMATS, FORMULAS, MANIFESTS, SPREADSHEETS, FileOptions, utc_text
from .filters import FILTERS, GROUPS, Filter
from .queries import (
    BUCKETS,
    DEFAULT_LIMIT,
    MAX_ALTERNATIVES,
    MAX_LIMIT,
    ORDERS,
    DeliveryQuery,
    HistoryQuery,
    StatsQuery,
    format_value,
    join_choices,
    shorten,
    suggest,
)
from .results import RemovalCount

RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


# At run time marshmallow 3 has no Field[datetime].
class Moment(fields.Field):  # type: ignore[type-arg]
    """A time with its offset from UTC (RFC 3339). It is written in UTC, with microseconds and Z."""

    def _serialize(self, value: Any, attr: str | None, obj: Any, **kwargs: Any) -> str | None:
        moment: datetime | None = value
        return None if moment is None else utc_text(moment)

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> datetime:
        moment = _parse_time(value)
        if moment is None:
            raise ValidationError(
                "must be a time with its offset, such as 2026-11-20T18:05:00Z, "
                f"not {format_value(value)}{_advise_on_time(value)}"
            )
        return moment


class WholeNumber(fields.Integer):
    """A number of decimal ASCII digits. `int` of Python would read other texts too."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> int:
        if not re.fullmatch(r"\d{1,16}", value, re.ASCII):
            raise ValidationError(f"must be a whole number, not {format_value(value)}")
        return int(value)


def _parse_time(text: str) -> datetime | None:
    """Return the time in UTC, or None if the text is not a time with an offset (RFC 3339)."""
    try:
        if RFC_3339.fullmatch(text):
            return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    return None


def _advise_on_time(text: str) -> str:
    """Return the remedy for a time in a form that people often write, or an empty text."""
    if _parse_time(f"{text}T00:00:00Z"):
        return f". Write {text}T00:00:00Z for the start of this day in UTC"
    if _parse_time(text.replace(" ", "+")):
        return ". Write %2B for a + in a URL"
    return ""


# OpenAPI and the command line show the metadata. The classes in `queries` do the checks.


def _make_field(row: Filter) -> fields.List[Any]:
    """Return the field of a filter, whose parameter may be repeated."""
    value: fields.Field[Any]
    if row.is_id:
        value = WholeNumber(metadata={"minimum": 1, "maximum": MAX_ID})
    elif row.choices:
        value = fields.String(metadata={"enum": list(row.choices)})
    else:
        lengths = {"minLength": 0 if row.may_be_empty else 1, "maxLength": MAX_TEXT_LENGTH}
        value = fields.String(metadata=lengths)
    return _repeatable(row.description, value)


def _repeatable(description: str, value: fields.Field[Any]) -> fields.List[Any]:
    metadata = {"description": description, "maxItems": MAX_ALTERNATIVES}
    return fields.List(value, metadata=metadata)


def _choice(description: str, choices: Sequence[str], default: str | None = None) -> fields.String:
    metadata: dict[str, Any] = {"description": description, "enum": list(choices)}
    return fields.String(metadata=metadata | ({"default": default} if default else {}))


class PeriodSchema(Schema):
    """The parameters of a period."""

    class Meta:
        unknown = RAISE

    since = Moment(metadata={"description": "start of the period, such as 2026-11-20T18:05:00Z"})
    until = Moment(metadata={"description": "end of the period, exclusive"})


class OrderedSchema(PeriodSchema):
    """The parameters of a period and an order."""

    order = _choice("desc for newest first (the default), or asc", ORDERS, default="desc")


class PagedSchema(OrderedSchema):
    """The parameters of a page."""

    limit = WholeNumber(
        metadata={
            "description": f"size of the page, 1 to {MAX_LIMIT}, by default {DEFAULT_LIMIT}",
            "minimum": 1,
            "maximum": MAX_LIMIT,
            "default": DEFAULT_LIMIT,
        }
    )
    cursor = fields.String(metadata={"description": "next_cursor of the page before"})


FIELDS = {name: _make_field(row) for name, row in FILTERS.items()}


class FilterSchema(Schema.from_dict(FIELDS)):  # type: ignore[misc]
    """The parameters of `FILTERS`."""


class HistoryQuerySchema(FilterSchema, PagedSchema):
    """The parameters of the history."""


class StatsQuerySchema(FilterSchema, PeriodSchema):
    """The parameters of the counts."""

    bucket = _choice("hour, day (the default), week (from Monday) or month", BUCKETS, default="day")
    group_by = _choice(f"count separately by {', '.join(GROUPS)}", GROUPS)
    tz = fields.String(
        metadata={
            "description": "time zone of the buckets, such as Asia/Shanghai, by default UTC",
            "default": "UTC",
        }
    )


class ExportQuerySchema(FilterSchema, OrderedSchema):
    """The parameters of an export."""

    format = _choice("ndjson (the default), csv or parquet", tuple(FORMATS), default="ndjson")
    formulas = _choice(
        "escape (the default) or keep CSV cells that a spreadsheet would run",
        FORMULAS,
        default="escape",
    )
    spreadsheet = _choice(
        "write CSV for a spreadsheet, which shows every id with all its digits",
        SPREADSHEETS,
        default="no",
    )
    manifest = _choice(
        "append the number of removals to the file, or omit it (the default)",
        MANIFESTS,
        default="omit",
    )


class DeliveryQuerySchema(PagedSchema):
    """The parameters of the deliveries."""

    status = fields.List(
        fields.String(metadata={"enum": list(Status)}),
        metadata={"description": join_choices(Status)},
    )
    command = _make_field(FILTERS["command"])


def load_parameters(schema: Schema, parameters: Mapping[str, list[str]]) -> dict[str, Any]:
    """Return the values of the parameters by name. Each parameter has a list of all its texts.

    Raises `HistoryQueryError` for a parameter that is unknown or malformed, and for a parameter
    that is repeated although it takes one value.
    """
    texts: dict[str, Any] = {}
    for name, values in parameters.items():
        if name not in schema.fields:
            problem = (
                f"is not a parameter of this URL{suggest(name, schema.fields)} "
                f"The parameters are {', '.join(schema.fields)}"
            )
            raise HistoryQueryError(shorten(name), problem)
        is_repeatable = isinstance(schema.fields[name], fields.List)
        if not is_repeatable and len(values) > 1:
            raise HistoryQueryError(name, f"must not be repeated, but is given {len(values)} times")
        texts[name] = values if is_repeatable else values[0]
    try:
        return dict(schema.load(texts))
    except ValidationError as error:
        name, problem = _first_problem(error)
        raise HistoryQueryError(name, problem) from error


def load_history_query(parameters: Mapping[str, list[str]]) -> HistoryQuery:
    """Return the query of the parameters of the history. Raises `HistoryQueryError`."""
    return HistoryQuery.from_filters(load_parameters(HISTORY_QUERY, parameters))


def load_stats_query(parameters: Mapping[str, list[str]]) -> tuple[HistoryQuery, StatsQuery]:
    """Return the query and the options of a count. Raises `HistoryQueryError`."""
    values = load_parameters(STATS_QUERY, parameters)
    options = {name: values.pop(name) for name in ("bucket", "group_by", "tz") if name in values}
    return HistoryQuery.from_filters(values), StatsQuery(**options)


def load_export_query(parameters: Mapping[str, list[str]]) -> tuple[HistoryQuery, FileOptions]:
    """Return the query of an export and the options of its file. Raises `HistoryQueryError`."""
    values = load_parameters(EXPORT_QUERY, parameters)
    names = [field.name for field in dataclass_fields(FileOptions) if field.name in values]
    options = FileOptions(**{name: values.pop(name) for name in names})
    return HistoryQuery.from_filters(values), options


def load_delivery_query(parameters: Mapping[str, list[str]]) -> DeliveryQuery:
    """Return the query of the parameters of the deliveries. Raises `HistoryQueryError`."""
    return DeliveryQuery.from_filters(load_parameters(DELIVERY_QUERY, parameters))


def _first_problem(error: ValidationError) -> tuple[str, str]:
    """Return the name of the first wrong parameter, and its message."""
    messages: Any = error.messages
    name, problem = next(iter(messages.items()))
    while isinstance(problem, dict):
        problem = next(iter(problem.values()))
    return name, problem[0][:1].lower() + problem[0][1:].rstrip(".")


class DeliverySchema(Schema):
    """A delivery. The packet is text if it is UTF-8, else base64."""

    id = fields.Integer()
    provider = fields.String()
    app_id = fields.String()
    command = fields.String()
    status = fields.String(validate=OneOf(list(Status)))
    duplicate_of = fields.Integer(allow_none=True)
    error = fields.String()
    removal_count = fields.Integer()
    remote_addr = fields.String()
    authenticated_by = fields.String()
    client_ip = fields.String()
    platform = fields.String()
    request_id = fields.String()
    query = fields.String()
    headers = fields.Function(
        lambda delivery: delivery.headers,
        metadata={"type": "object", "additionalProperties": {"type": "string"}},
    )
    body = fields.Function(
        lambda delivery: _utf8(delivery.body), metadata={"type": "string"}, allow_none=True
    )
    body_base64 = fields.Function(
        lambda delivery: _base64(delivery.body),
        metadata={"type": "string"},
        allow_none=True,
    )
    received_at = Moment()


class StatsSchema(Schema):
    """The number of removals in a bucket. `bucket` is the start of the bucket."""

    bucket = fields.Function(
        lambda count: count.bucket.isoformat().replace("+00:00", "Z"),
        metadata={"type": "string", "format": "date-time"},
    )
    group = fields.String(allow_none=True)
    count = fields.Integer()


class CallbackCountSchema(Schema):
    """The number of accepted callbacks of a command, or of refused callbacks of a reason."""

    provider = fields.String()
    outcome = fields.String()
    name = fields.String()
    count = fields.Integer()
    last_at = Moment()


class WaitingSchema(Schema):
    """The deliveries in the spool."""

    waiting = fields.Integer(attribute="count")
    oldest = Moment(allow_none=True)
    set_aside = fields.Integer()
    foreign = fields.Integer(attribute="foreign_count")


def _utf8(body: bytes) -> str | None:
    try:
        return body.decode()
    except UnicodeDecodeError:
        return None


def _base64(body: bytes) -> str | None:
    return b64encode(body).decode() if _utf8(body) is None else None


HISTORY_QUERY = HistoryQuerySchema()
STATS_QUERY = StatsQuerySchema()
EXPORT_QUERY = ExportQuerySchema()
DELIVERY_QUERY = DeliveryQuerySchema()
DELIVERY = DeliverySchema()
STATS = StatsSchema(many=True)
CALLBACK_COUNT = CallbackCountSchema()
WAITING = WaitingSchema()


def stats_json(counts: Sequence[RemovalCount]) -> list[dict[str, Any]]:
    """Return the counts as JSON."""
    return STATS.dump(counts)  # type: ignore[no-any-return]
