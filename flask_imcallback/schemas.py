"""The JSON of our own API: the history's parameters in, records and deliveries out."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from marshmallow import RAISE, Schema, ValidationError, fields

from .errors import HistoryQueryError
from .events import Record, Relation
from .history import DEFAULT_LIMIT, MAX_LIMIT, HistoryQuery

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


def _texts(description: str) -> fields.List[Any]:
    return fields.List(fields.String(), metadata={"description": description})


class HistoryQuerySchema(Schema):
    """The parameters of the history, from strings. A list may be repeated: one of its values."""

    class Meta:
        unknown = RAISE

    provider = _texts("tencent or openim")
    app_id = _texts("Tencent's SDKAppID")
    command = _texts("the provider's name of the callback")
    relation = _texts("friend or blacklist")
    owner_id = _texts("whose list changed")
    target_id = _texts("who left the list")
    account_id = _texts("on either side")
    platform = _texts("as the provider tells it, such as iOS")
    client_ip = _texts("of the user who removed, as the provider tells it")
    request_id = _texts("Tencent's RequestId, OpenIM's operationID")
    delivery_id = fields.List(WholeNumber(), metadata={"description": "of one delivery"})
    since = Moment(metadata={"description": "inclusive, such as 2026-11-20T18:05:00Z"})
    until = Moment(metadata={"description": "exclusive, such as 2026-11-20T18:05:00Z"})
    order = fields.String(metadata={"description": "desc, newest first, or asc"})
    limit = WholeNumber(metadata={"description": f"1 to {MAX_LIMIT}, else {DEFAULT_LIMIT}"})
    cursor = fields.String(metadata={"description": "next_cursor of the page before"})


def read_query(parameters: Mapping[str, list[str]]) -> HistoryQuery:
    """Make a query of all values of each parameter. Raises `HistoryQueryError`."""
    values: dict[str, Any] = {}
    for name, given in parameters.items():
        repeatable = isinstance(HISTORY_QUERY.fields.get(name), fields.List)
        if not repeatable and len(given) > 1:
            raise HistoryQueryError(name, "is given more than once")
        values[name] = given if repeatable else given[0]
    try:
        return HistoryQuery.from_filters(**HISTORY_QUERY.load(values))
    except ValidationError as error:
        problem: Any = error.messages
        name, problem = next(iter(problem.items()))
        while isinstance(problem, dict):
            problem = next(iter(problem.values()))
        raise HistoryQueryError(name, _lower(problem[0])) from error


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


class CountSchema(Schema):
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
REMOVAL = RemovalSchema()
DELIVERY = DeliverySchema()
COUNT = CountSchema()
WAITING = WaitingSchema()


def removal_json(record: Record) -> dict[str, Any]:
    """A record as JSON, its members in the order of the columns of an export."""
    return dict(REMOVAL.dump(record))
