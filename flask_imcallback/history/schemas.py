"""The JSON of our own API: the history's parameters in, records and deliveries out."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from marshmallow import EXCLUDE, RAISE, Schema, ValidationError, fields
from marshmallow.validate import OneOf

from ..errors import HistoryQueryError
from ..removals import Record, Relation, Status
from ..storage import MAX_ID
from ..text import MAX_TEXT_LENGTH
from .counts import RemovalCount
from .export import FORMATS
from .queries import (
    BUCKETS,
    DEFAULT_LIMIT,
    GROUPS,
    MAX_ALTERNATIVES,
    MAX_LIMIT,
    DeliveryQuery,
    HistoryQuery,
    StatsQuery,
)

RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


class Moment(fields.Field[datetime]):
    """A time with its offset (RFC 3339); out in UTC, with microseconds and `Z`."""

    default_error_messages = {
        "invalid": "must be a time with its offset, such as 2026-11-20T18:05:00Z "
        "(a + in an address is written %2B)"
    }

    def _serialize(self, value: Any, attr: str | None, obj: Any, **kwargs: Any) -> str | None:
        moment: datetime | None = value
        if moment is None:
            return None
        return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> datetime:
        if not isinstance(value, str) or not RFC_3339.fullmatch(value):
            raise self.make_error("invalid")
        try:
            return datetime.fromisoformat(value.upper()).astimezone(UTC)
        except (ValueError, OverflowError) as error:
            raise self.make_error("invalid") from error


class WholeNumber(fields.Integer):
    """Digits, and nothing else that Python would take for a number."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> int:
        if not re.fullmatch(r"\d{1,16}", str(value), re.ASCII):
            raise self.make_error("invalid")
        return int(value)


# The metadata is for the OpenAPI document: the queries check what it says.
def _alternatives(description: str, one: fields.Field[Any]) -> fields.List[Any]:
    metadata = {"description": description, "maxItems": MAX_ALTERNATIVES}
    return fields.List(one, metadata=metadata)


def _texts(description: str, *, min_length: int = 0) -> fields.List[Any]:
    metadata = {"minLength": min_length, "maxLength": MAX_TEXT_LENGTH}
    return _alternatives(description, fields.String(metadata=metadata))


def _choices(description: str, *choices: str) -> fields.List[Any]:
    return _alternatives(description, fields.String(validate=OneOf(choices)))


def _choice(description: str, *choices: str, default: str | None = None) -> fields.String:
    metadata = {"description": description} | ({"default": default} if default else {})
    return fields.String(validate=OneOf(choices), metadata=metadata)


class PeriodSchema(Schema):
    """A list may be repeated: one of its values."""

    class Meta:
        unknown = RAISE

    since = Moment(metadata={"description": "inclusive, such as 2026-11-20T18:05:00Z"})
    until = Moment(metadata={"description": "exclusive, such as 2026-11-20T18:05:00Z"})


class OrderedSchema(PeriodSchema):
    order = _choice("desc, newest first, or asc", "desc", "asc", default="desc")


class PagedSchema(OrderedSchema):
    limit = WholeNumber(
        metadata={
            "description": f"1 to {MAX_LIMIT}, else {DEFAULT_LIMIT}",
            "minimum": 1,
            "maximum": MAX_LIMIT,
            "default": DEFAULT_LIMIT,
        }
    )
    cursor = fields.String(metadata={"description": "next_cursor of the page before"})


class FilterSchema(Schema):
    provider = _texts("tencent or openim", min_length=1)
    app_id = _texts("Tencent's SDKAppID")
    command = _texts("the provider's name of the callback")
    relation = _choices("friend or blacklist", *Relation)
    owner_id = _texts("whose list changed", min_length=1)
    target_id = _texts("who left the list", min_length=1)
    account_id = _texts("on either side", min_length=1)
    peer_id = _texts("on the other side than account_id, which it needs", min_length=1)
    platform = _texts("as the provider tells it, such as iOS")
    client_ip = _texts("of the user who removed, as the provider tells it")
    request_id = _texts("Tencent's RequestId, OpenIM's operationID")
    delivery_id = _alternatives(
        "of one delivery", WholeNumber(metadata={"minimum": 1, "maximum": MAX_ID})
    )


class HistoryQuerySchema(FilterSchema, PagedSchema):
    """The parameters of the history, from strings."""


class StatsQuerySchema(FilterSchema, PeriodSchema):
    """The parameters of the counts."""

    bucket = _choice("hour, day, week (from Monday) or month, else day", *BUCKETS, default="day")
    group_by = _choice(f"{', '.join(GROUPS)}, else none", *GROUPS)
    tz = fields.String(
        metadata={"description": "where buckets begin: Asia/Shanghai, else UTC", "default": "UTC"}
    )


class ExportQuerySchema(FilterSchema, OrderedSchema):
    """The parameters of an export."""

    format = _choice("ndjson, csv or parquet, else ndjson", *FORMATS, default="ndjson")
    formulas = _choice(
        "escape, or keep cells of CSV that a spreadsheet would run, else escape",
        *("escape", "keep"),
        default="escape",
    )


class DeliveryQuerySchema(PagedSchema):
    """The parameters of the deliveries."""

    status = fields.List(
        fields.String(validate=OneOf(list(Status))),
        metadata={"description": f"one of {', '.join(Status)}"},
    )


def read(schema: Schema, parameters: Mapping[str, list[str]]) -> dict[str, Any]:
    """Load all values of each parameter. Raises `HistoryQueryError`."""
    values: dict[str, Any] = {}
    for name, given in parameters.items():
        repeatable = isinstance(schema.fields.get(name), fields.List)
        if not repeatable and len(given) > 1:
            raise HistoryQueryError(name, "is given more than once")
        values[name] = given if repeatable else given[0]
    try:
        return dict(schema.load(values))
    except ValidationError as error:
        problem: Any = error.messages
        name, problem = next(iter(problem.items()))
        while isinstance(problem, dict):
            problem = next(iter(problem.values()))
        raise HistoryQueryError(name, _lower(problem[0])) from error


def read_query(parameters: Mapping[str, list[str]]) -> HistoryQuery:
    """Make a query of the parameters of the history. Raises `HistoryQueryError`."""
    return HistoryQuery.from_filters(**read(HISTORY_QUERY, parameters))


def read_stats(parameters: Mapping[str, list[str]]) -> tuple[HistoryQuery, StatsQuery]:
    """Likewise of the parameters of the counts."""
    given = read(STATS_QUERY, parameters)
    stats = {name: given.pop(name) for name in ("bucket", "group_by", "tz") if name in given}
    return HistoryQuery.from_filters(**given), StatsQuery(**stats)


def read_export(parameters: Mapping[str, list[str]]) -> tuple[HistoryQuery, str, bool]:
    """Likewise of those of an export: the query, the format, and whether formulas are kept."""
    given = read(EXPORT_QUERY, parameters)
    format, keeps_formulas = given.pop("format", "ndjson"), given.pop("formulas", "") == "keep"
    return HistoryQuery.from_filters(**given), format, keeps_formulas


def read_deliveries(parameters: Mapping[str, list[str]]) -> DeliveryQuery:
    """Likewise of those of the deliveries."""
    return DeliveryQuery.from_filters(**read(DELIVERY_QUERY, parameters))


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:].rstrip(".")


class AnswerSchema(Schema):
    """What we say, in which no member is ever missing unless it says so itself; others may come."""

    class Meta:
        unknown = EXCLUDE

    def on_bind_field(self, field_name: str, field_obj: fields.Field[Any]) -> None:
        field_obj.required = not field_obj.metadata.get("may_be_missing")


class RemovalSchema(AnswerSchema):
    """`owner_id`'s list lost `target_id`."""

    id = fields.Integer()
    provider = fields.String()
    app_id = fields.String()
    command = fields.String()
    relation = fields.Enum(Relation, by_value=True, metadata={"type": "string"})
    owner_id = fields.String()
    target_id = fields.String()
    position = fields.Integer()
    delivery_id = fields.Integer()
    client_ip = fields.String()
    platform = fields.String()
    request_id = fields.String()
    received_at = Moment()


class DeliverySchema(AnswerSchema):
    """The body is text where it is UTF-8, else in base64."""

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
        lambda row: json.loads(row["headers"]),
        metadata={"type": "object", "additionalProperties": {"type": "string"}},
    )
    body = fields.Function(
        lambda row: _text(row["body"]), metadata={"type": "string"}, allow_none=True
    )
    body_base64 = fields.Function(
        lambda row: None if _text(row["body"]) is not None else b64encode(row["body"]).decode(),
        metadata={"type": "string"},
        allow_none=True,
    )
    received_at = Moment()


class StatsSchema(AnswerSchema):
    """The removals of a bucket, which is named by its begin."""

    bucket = fields.Function(
        lambda count: count.bucket.isoformat().replace("+00:00", "Z"),
        metadata={"type": "string", "format": "date-time"},
    )
    group = fields.String(allow_none=True)
    count = fields.Integer()


class CallbackCountSchema(AnswerSchema):
    """The callbacks that were accepted, by command, and refused, by reason."""

    provider = fields.String()
    outcome = fields.String()
    name = fields.String()
    count = fields.Integer()
    last_at = Moment()


class WaitingSchema(AnswerSchema):
    """What waits in the spool."""

    waiting = fields.Integer(attribute="count")
    oldest = Moment(allow_none=True)


# These are made by hand, of those above, and are here for the OpenAPI document.


class HistoryPageSchema(AnswerSchema):
    """A page of removals."""

    data = fields.List(fields.Nested(RemovalSchema))
    next_cursor = fields.String(allow_none=True)


class OneRemovalSchema(RemovalSchema):
    """A removal with the delivery that it came in."""

    delivery = fields.Nested(DeliverySchema)


class DeliveryPageSchema(AnswerSchema):
    """A page of deliveries."""

    data = fields.List(fields.Nested(DeliverySchema))
    next_cursor = fields.String(allow_none=True)


class OneDeliverySchema(DeliverySchema):
    """A delivery with its removals."""

    removals = fields.List(fields.Nested(RemovalSchema))


class CountsSchema(AnswerSchema):
    """All counts."""

    data = fields.List(fields.Nested(StatsSchema))


class HealthSchema(AnswerSchema):
    """Whether callbacks can be recorded, and if not, why."""

    status = fields.String(validate=OneOf(["ok", "unavailable"]))
    problem = fields.String()
    callbacks = fields.List(
        fields.Nested(CallbackCountSchema),
        metadata={"description": "for readers only", "may_be_missing": True},
    )
    spool = fields.Nested(WaitingSchema, metadata={"may_be_missing": True})


class ProblemSchema(AnswerSchema):
    """A problem of RFC 9457."""

    type = fields.String()
    title = fields.String()
    status = fields.Integer()
    detail = fields.String()
    parameter = fields.String(
        metadata={"description": "the one that is wrong", "may_be_missing": True}
    )


def _text(body: bytes) -> str | None:
    try:
        return body.decode()
    except UnicodeDecodeError:
        return None


HISTORY_QUERY = HistoryQuerySchema()
STATS_QUERY = StatsQuerySchema()
EXPORT_QUERY = ExportQuerySchema()
DELIVERY_QUERY = DeliveryQuerySchema()
REMOVAL = RemovalSchema()
DELIVERY = DeliverySchema()
STATS = StatsSchema(many=True)
CALLBACK_COUNT = CallbackCountSchema()
WAITING = WaitingSchema()


def removal_json(record: Record) -> dict[str, Any]:
    """A record as JSON, its members in the order of the columns of an export."""
    return dict(REMOVAL.dump(record))


def stats_json(counts: Sequence[RemovalCount]) -> list[dict[str, Any]]:
    """Counts as JSON."""
    return STATS.dump(counts)  # type: ignore[no-any-return]
