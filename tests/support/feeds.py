"""Followers of the feed, and checks of the log."""

from __future__ import annotations

from collections import Counter
from typing import Any

from sqlalchemy import URL, NullPool, create_engine, select

from flask_imcallback.log import Feed
from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage.tables import delivery, inbox, log, removal


class Follower:
    """A follower that stores the last position, and counts how often it sees each removal."""

    def __init__(self, **filters: Any) -> None:
        self.filters = filters
        self.last = 0
        self.seen: Counter[int] = Counter()
        self.order: list[tuple[int, int]] = []
        """The log position and the id of each removal."""

    def read(self, limit: int = 1000) -> bool:
        """Read a page. Return True if there are newer positions."""
        feed: Feed = get_runtime().feed
        page = feed.read(after=self.last, limit=limit, **self.filters)
        assert page.last >= self.last
        assert all(self.last < record.log_position <= page.last for record in page.data)
        self.seen.update(record.id for record in page.data)
        self.order += [(record.log_position, record.id) for record in page.data]
        self.last = page.last
        return page.last < page.head

    def read_all(self, limit: int = 1000) -> None:
        """Read to the end."""
        while self.read(limit):
            pass


def check_log(url: URL) -> int:
    """Check that each delivery has one position, without gaps. Return the number of positions."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        rows = connection.execute(select(log).order_by(log.c.position)).all()
        assert [row.position for row in rows] == [*range(1, len(rows) + 1)]
        stored = connection.scalars(select(delivery.c.id)).all()
        assert sorted(row.entry_id for row in rows) == sorted(stored)
        assert connection.scalars(select(inbox.c.entry_id)).all() == []
    return len(rows)


def stored_ids(url: URL) -> Counter[int]:
    """Return the ids of all stored removals, each once."""
    with create_engine(url, poolclass=NullPool).connect() as connection:
        return Counter(connection.scalars(select(removal.c.id)))
