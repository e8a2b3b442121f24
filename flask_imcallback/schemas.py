"""The JSON of our own API: the history's parameters in, records and deliveries out."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from marshmallow import RAISE, Schema, ValidationError, fields, validate

from .errors import HistoryQueryError
from .events import Record, Relation
from .history import DEFAULT_LIMIT, MAX_LIMIT, TEXT_FILTERS, HistoryQuery

RFC_3339 = re.compile(
    r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)


class Moment(fields.Field[datetime]):
    """A time with its offset (RFC 3339); out in UTC, with microseconds and `Z`."""

    default_error_messages = {
        "invalid": "must be a time with its offset, such as 2026-11-20T18:05:00Z "
        "(a + in an address is written %2B)"
    }

    def _serialize(self, value: Any, attr: str | None, obj: Any, **kwargs: Any) -> str:
        moment: datetime = value
        return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> datetime:
        if not isinstance(value, str) or not RFC_3339.fullmatch(value):
            raise self.make_error("invalid")
        try:
            return datetime.fromisoformat(value.upper()).astimezone(UTC)
        except (ValueError, OverflowError) as error:
            raise self.make_error("invalid") from error


class Number(fields.Integer):
    """Digits, and nothing else that Python would take for a number."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> int | None:
        if not re.fullmatch(r"\d{1,16}", str(value), re.ASCII):
            raise self.make_error("invalid")
        return super()._deserialize(value, attr, data, **kwargs)


class _HistoryQuerySchema(Schema):
    """The parameters of the history, from strings; lists for those that may be repeated."""

    class Meta:
        unknown = RAISE

    delivery_id = fields.List(Number())
    since = Moment(metadata={"description": "inclusive, RFC 3339 with offset"})
    until = Moment(metadata={"description": "exclusive, RFC 3339 with offset"})
    order = fields.String(validate=validate.OneOf(["asc", "desc"]), dump_default="desc")
    limit = Number(validate=validate.Range(1, MAX_LIMIT), dump_default=DEFAULT_LIMIT)
    cursor = fields.String()

    def read(self, parameters: Mapping[str, list[str]]) -> HistoryQuery:
        """Make a query of all values of each parameter; raises `HistoryQueryError`."""
        values: dict[str, Any] = {}
        for name, given in parameters.items():
            repeatable = isinstance(self.fields.get(name), fields.List)
            if not repeatable and len(given) > 1:
                raise HistoryQueryError(name, "is given more than once")
            values[name] = given if repeatable else given[0]
        try:
            return HistoryQuery.from_filters(**self.load(values))
        except ValidationError as error:
            name, messages = next(iter(error.normalized_messages().items()))
            while isinstance(messages, dict):
                messages = next(iter(messages.values()))
            raise HistoryQueryError(name, messages[0]) from error


HistoryQuerySchema = _HistoryQuerySchema.from_dict(
    {name: fields.List(fields.String()) for name in TEXT_FILTERS}, name="HistoryQuerySchema"
)


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


def _text(body: bytes) -> str | None:
    try:
        return body.decode()
    except UnicodeDecodeError:
        return None


HISTORY_QUERY = HistoryQuerySchema()
REMOVAL = RemovalSchema()
DELIVERY = DeliverySchema()


def removal_json(record: Record) -> dict[str, Any]:
    """A record as JSON, its members in the order of the columns of an export."""
    return dict(REMOVAL.dump(record))
