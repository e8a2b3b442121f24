"""Checked queries for the feed, and the filter that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..history import (
    REMOVAL_FILTERS,
    FilterSchema,
    HistoryQuery,
    PeriodSchema,
    WholeNumber,
    check_number,
    load_parameters,
)
from ..removals import Record, Relation
from ..storage import MAX_ID, id_at

DEFAULT_LIMIT = MAX_LIMIT = 1000
ACCOUNT_FILTERS = {"account_id", "peer_id", "group_id"}
"""The filters that concern more than one field of a removal."""


@dataclass(frozen=True, kw_only=True)
class FeedQuery:
    """A checked query for a page of the feed. Raises `HistoryQueryError`."""

    after: int = 0
    """The page begins after this log position."""
    limit: int = DEFAULT_LIMIT
    """The page ends after the delivery that reaches this number of removals."""
    filters: HistoryQuery = field(default_factory=HistoryQuery)

    def __post_init__(self) -> None:
        check_number("after", self.after, MAX_ID, minimum=0)
        check_number("limit", self.limit, MAX_LIMIT)

    @classmethod
    def from_filters(cls, filters: Mapping[str, Any], **options: Any) -> FeedQuery:
        """Return the query with these filters. See `HistoryQuery.from_filters`."""
        return cls(filters=HistoryQuery.from_filters(filters, allowed=REMOVAL_FILTERS), **options)


class FollowSchema(FilterSchema, PeriodSchema):
    """The options of `follow`."""

    after = WholeNumber(
        metadata={
            "description": "only removals after this log position, by default 0",
            "minimum": 0,
            "maximum": MAX_ID,
            "default": 0,
        }
    )


class FeedSchema(FollowSchema):
    """The parameters of the feed."""

    limit = WholeNumber(
        metadata={
            "description": f"end of the page, in removals, by default {DEFAULT_LIMIT}",
            "minimum": 1,
            "maximum": MAX_LIMIT,
            "default": DEFAULT_LIMIT,
        }
    )


FEED_QUERY = FeedSchema()
FOLLOW_QUERY = FollowSchema()


def load_feed_query(parameters: Mapping[str, list[str]]) -> FeedQuery:
    """Return the query of the parameters of the feed. Raises `HistoryQueryError`."""
    values = load_parameters(FEED_QUERY, parameters)
    options = {name: values.pop(name) for name in ("after", "limit") if name in values}
    return FeedQuery.from_filters(values, **options)


def make_filter(query: HistoryQuery) -> Callable[[Record], bool] | None:
    """Return the function that decides whether a removal matches, or None if all removals do."""
    tests: list[Callable[[Record], bool]] = [
        _field_test(name, frozenset(values))
        for name, values in query.texts.items()
        if name not in ACCOUNT_FILTERS
    ]
    if query.delivery_id is not None:
        tests.append(_field_test("delivery_id", frozenset(query.delivery_id)))
    if "group_id" in query.texts:
        groups = frozenset(query.texts["group_id"])
        tests.append(lambda record: record.relation is Relation.GROUP and record.owner_id in groups)
    if "account_id" in query.texts:
        peers = query.texts.get("peer_id")
        tests.append(_account_test(query.texts["account_id"], peers))
    if query.since is not None:
        first_id = id_at(query.since)
        tests.append(lambda record: record.delivery_id >= first_id)
    if query.until is not None:
        end_id = id_at(query.until)
        tests.append(lambda record: record.delivery_id < end_id)
    return (lambda record: all(test(record) for test in tests)) if tests else None


def _field_test(name: str, values: frozenset[Any]) -> Callable[[Record], bool]:
    index = Record._fields.index(name)
    return lambda record: record[index] in values


def _account_test(
    accounts: tuple[str, ...], peers: tuple[str, ...] | None
) -> Callable[[Record], bool]:
    """Return the test for an account on one side and a peer on the other. A group is neither."""
    ours, others = frozenset(accounts), None if peers is None else frozenset(peers)

    def test(record: Record) -> bool:
        owner, target, is_account = record.owner_id, record.target_id, record.relation != "group"
        if others is None:
            return target in ours or (is_account and owner in ours)
        return is_account and (
            (owner in ours and target in others) or (target in ours and owner in others)
        )

    return test
