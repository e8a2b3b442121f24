"""The JSON of our own API: the history's parameters in, records and deliveries out."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from marshmallow import RAISE, Schema, ValidationError, fields
from marshmallow.validate import OneOf

from .errors import HistoryQueryError
from .events import Record, Relation, Status
from .export import FORMATS
from .history import Count
from .query import (
    BUCKETS,
    DEFAULT_LIMIT,
    GROUPS,
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


def _texts(description: str, *choices: str) -> fields.List[Any]:
    text = fields.String(validate=OneOf(choices) if choices else None)
    return fields.List(text, metadata={"description": description})


def _choice(description: str, *choices: str) -> fields.String:
    return fields.String(validate=OneOf(choices), metadata={"description": description})


class PeriodSchema(Schema):
    """A list may be repeated: one of its values."""

    class Meta:
        unknown = RAISE

    since = Moment(metadata={"description": "inclusive, such as 2026-11-20T18:05:00Z"})
    until = Moment(metadata={"description": "exclusive, such as 2026-11-20T18:05:00Z"})


class OrderedSchema(PeriodSchema):
    order = _choice("desc, newest first, or asc", "desc", "asc")


class PagedSchema(OrderedSchema):
    limit = WholeNumber(metadata={"description": f"1 to {MAX_LIMIT}, else {DEFAULT_LIMIT}"})
    cursor = fields.String(metadata={"description": "next_cursor of the page before"})


class FilterSchema(Schema):
    provider = _texts("tencent or openim")
    app_id = _texts("Tencent's SDKAppID")
    command = _texts("the provider's name of the callback")
    relation = _texts("friend or blacklist", *Relation)
    owner_id = _texts("whose list changed")
    target_id = _texts("who left the list")
    account_id = _texts("on either side")
    peer_id = _texts("on the other side than account_id")
    platform = _texts("as the provider tells it, such as iOS")
    client_ip = _texts("of the user who removed, as the provider tells it")
    request_id = _texts("Tencent's RequestId, OpenIM's operationID")
    delivery_id = fields.List(WholeNumber(), metadata={"description": "of one delivery"})


class HistoryQuerySchema(FilterSchema, PagedSchema):
    """The parameters of the history, from strings."""


class StatsQuerySchema(FilterSchema, PeriodSchema):
    """The parameters of the counts."""

    bucket = _choice("hour, day, week (from Monday) or month, else day", *BUCKETS)
    group_by = _choice(f"{', '.join(GROUPS)}, else none", *GROUPS)
    tz = fields.String(metadata={"description": "where buckets begin: Asia/Shanghai, else UTC"})


class ExportQuerySchema(FilterSchema, OrderedSchema):
    """The parameters of an export."""

    format = _choice("ndjson, csv or parquet, else ndjson", *FORMATS)
    formulas = _choice(
        "escape, or keep cells of CSV that a spreadsheet would run, else escape", "escape", "keep"
    )


class DeliveryQuerySchema(PagedSchema):
    """The parameters of the deliveries."""

    status = _texts(f"one of {', '.join(Status)}", *Status)


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


class RemovalSchema(Schema):
    id = fields.Integer()
    provider = fields.String()
    app_id = fields.String()
    command = fields.String()
    relation = fields.Enum(Relation, by_value=True)
    owner_id = fields.String()
    target_id = fields.String()
    position = fields.Integer()
    delivery_id = fields.Integer()
    client_ip = fields.String()
    platform = fields.String()
    request_id = fields.String()
    received_at = Moment()


class DeliverySchema(Schema):
    """The body is text where it is UTF-8, else in base64."""

    id = fields.Integer()
    provider = fields.String()
    app_id = fields.String()
    command = fields.String()
    status = fields.String()
    duplicate_of = fields.Integer(allow_none=True)
    error = fields.String()
    removal_count = fields.Integer()
    remote_addr = fields.String()
    authenticated_by = fields.String()
    client_ip = fields.String()
    platform = fields.String()
    request_id = fields.String()
    query = fields.String()
    headers = fields.Function(lambda row: json.loads(row["headers"]))
    body = fields.Function(lambda row: _text(row["body"]))
    body_base64 = fields.Function(
        lambda row: None if _text(row["body"]) is not None else b64encode(row["body"]).decode()
    )
    received_at = Moment()


class StatsSchema(Schema):
    """The removals of a bucket, which is named by its begin."""

    bucket = fields.Function(lambda count: count.bucket.isoformat().replace("+00:00", "Z"))
    group = fields.String(allow_none=True)
    count = fields.Integer()


class TallySchema(Schema):
    """The callbacks that were accepted, by command, and refused, by reason."""

    provider = fields.String()
    outcome = fields.String()
    what = fields.String()
    count = fields.Integer()
    last_at = Moment()


class WaitingSchema(Schema):
    waiting = fields.Integer(attribute="count")
    oldest = Moment(allow_none=True)


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
TALLY = TallySchema()
WAITING = WaitingSchema()


def removal_json(record: Record) -> dict[str, Any]:
    """A record as JSON, its members in the order of the columns of an export."""
    return dict(REMOVAL.dump(record))


def stats_json(counts: Sequence[Count]) -> list[dict[str, Any]]:
    """Counts as JSON."""
    return STATS.dump(counts)  # type: ignore[no-any-return]
