"""The feed: the removals in the order of the log, for other systems."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import NamedTuple, Unpack

from sqlalchemy import Connection, Engine

from ..history import RemovalFilters, json_lines, utc_text
from ..removals import Cause, Record, Relation
from ..storage import storage_errors
from .entries import find_last_position, find_unnumbered, read_removals
from .queries import DEFAULT_LIMIT, FeedQuery, make_filter
from .sequencer import Sequencer

MAX_POSITIONS = 10_000
"""Maximum number of log positions in a page."""
MAX_READ_REMOVALS = 50_000
"""Number of removals after which a page ends even if none of them matches."""
SOURCE = "urn:imcallback"
"""The source of the events."""
NUMBERING_SECONDS = 1.0
"""Maximum time that a page waits until new entries are numbered."""


class FeedRecord(NamedTuple):
    """A removal with its log position. Its fields are the fields of `Record`, and one more."""

    id: int
    provider: str
    app_id: str
    command: str
    relation: Relation
    owner_id: str
    target_id: str
    actor_id: str
    cause: Cause
    position: int
    delivery_id: int
    client_ip: str
    platform: str
    request_id: str
    received_at: datetime
    log_position: int
    """The position of its delivery in the log. All removals of a delivery share it."""


# tuple.__new__ skips the Python code of NamedTuple.__new__.
make_record = partial(tuple.__new__, FeedRecord)


@dataclass(frozen=True, slots=True)
class FeedPage:
    """A page of the feed. It holds whole deliveries."""

    data: list[FeedRecord]
    last: int
    """The last log position that was read. The next page begins after it."""
    head: int
    """The last log position of the log. There is nothing newer if `last` equals it."""


class Feed:
    """The feed of one app: its removals in the order of the log."""

    def __init__(self, engine: Callable[[], Engine], sequencer: Sequencer) -> None:
        self._engine = engine
        self._sequencer = sequencer

    def read(
        self, after: int = 0, limit: int = DEFAULT_LIMIT, **filters: Unpack[RemovalFilters]
    ) -> FeedPage:
        """Return the removals after a log position that match all filters, in the order of the log.

        The page ends after the delivery that reaches `limit`, 1 to 1000, or after 10,000 positions.
        Ask for the next page with `after=page.last`, also if the page is empty.

        Raises `HistoryQueryError` for an unknown or malformed filter, and `StorageError` if the
        database does not answer.
        """
        return self.read_page(FeedQuery.from_filters(filters, after=after, limit=limit))

    def read_page(self, query: FeedQuery) -> FeedPage:
        """Return the page of a query. Raises `StorageError`."""
        with storage_errors("read the feed"):
            with self._engine().connect() as connection:
                head = find_last_position(connection)
                is_near_head = query.after + MAX_POSITIONS >= head
                is_complete = not is_near_head or find_unnumbered(connection) is None
                if is_complete:
                    return _read_page(connection, query, head)
            # A killed process may have left entries that no other process numbers.
            self._sequencer.catch_up(NUMBERING_SECONDS)
            with self._engine().connect() as connection:
                return _read_page(connection, query, find_last_position(connection))


def _read_page(connection: Connection, query: FeedQuery, head: int) -> FeedPage:
    data: list[FeedRecord] = []
    is_match = make_filter(query.filters)
    read_count, last = 0, query.after
    end = max(query.after, min(head, query.after + MAX_POSITIONS))
    at_once = query.limit if is_match is None else MAX_READ_REMOVALS
    for position, records in read_removals(connection, query.after, end, at_once):
        if len(data) >= query.limit or read_count >= MAX_READ_REMOVALS:
            return FeedPage(data, last, head)
        read_count += len(records)
        found = records if is_match is None else filter(is_match, records)
        data += [make_record((*record, position)) for record in found]
        last = position
    return FeedPage(data, end, head)


def feed_lines(records: Sequence[FeedRecord]) -> list[str]:
    """Return the JSON of each removal, with its log position as the last member."""
    lines = json_lines([Record(*record[:-1]) for record in records])
    return [
        f'{line[:-1]}, "log_position": {record.log_position}}}'
        for line, record in zip(lines, records, strict=True)
    ]


def cloud_events(records: Sequence[FeedRecord]) -> list[str]:
    """Return each removal as an event of CloudEvents 1.0, in JSON."""
    data = json_lines([Record(*record[:-1]) for record in records])
    return [
        json.dumps(
            {
                "specversion": "1.0",
                "id": str(record.id),
                "source": SOURCE,
                "type": f"imcallback.{record.relation}.removed",
                "subject": record.owner_id,
                "time": utc_text(record.received_at),
                "sequence": str(record.log_position),
                "datacontenttype": "application/json",
            },
            ensure_ascii=False,
        )[:-1]
        + f', "data": {removal}}}'
        for record, removal in zip(records, data, strict=True)
    ]
