"""Removals counted by time bucket and group."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, select

from ..storage import source as source_table

MAX_COUNTS = 10_000
"""That are given at once."""


@dataclass(frozen=True, slots=True)
class RemovalCount:
    """How many removals there were in a bucket."""

    bucket: datetime
    """When it begins; aware, in the time zone of the question."""
    group: str | None
    count: int


def _groups(connection: Connection, group_by: str | None) -> dict[int, str | None]:
    """The group by source id."""
    if group_by is None:
        return {0: None}
    asked = select(source_table.c.id, source_table.c[group_by])
    return {row[0]: row[1] for row in connection.execute(asked)}
