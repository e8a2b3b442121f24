"""Rows of the removal table as records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection

from ..errors import StorageError
from ..removals import Cause, Record, Relation
from ..storage import EPOCH, MICROSECOND, SourceKey

SOURCE_COLUMNS = ", ".join(["id", *SourceKey._fields])

T = TypeVar("T", Relation, Cause)

# tuple.__new__ skips the Python code of NamedTuple.__new__.
make_record = partial(tuple.__new__, Record)


def make_records(connection: Connection, rows: Sequence[Any]) -> list[Record]:
    """Return rows with the `ROW_COLUMNS` as records, joined with their sources.

    Raises `StorageError` if a row of the source table is missing.
    """
    if not rows:
        return []
    sources = _read_sources(connection, {row[2] for row in rows})
    try:
        # A comprehension over plain tuples takes half the time of calls with fifteen arguments.
        return [
            make_record(
                (
                    id,
                    *(source := sources[source_id])[:4],
                    owner_id,
                    target_id,
                    actor_id,
                    source[4],
                    id - delivery_id,
                    delivery_id,
                    client_ip,
                    source[5],
                    request_id,
                    EPOCH + delivery_id * MICROSECOND,
                )
            )
            for (
                id,
                delivery_id,
                source_id,
                owner_id,
                target_id,
                actor_id,
                client_ip,
                request_id,
            ) in rows
        ]
    except KeyError as error:
        raise StorageError(
            f"imcallback_source has no row {error}, but a removal has, for example {rows[0][0]}"
        ) from error


def _read_sources(connection: Connection, ids: Iterable[int]) -> dict[int, tuple[Any, ...]]:
    keys = ", ".join(map(str, ids))
    sql = f"SELECT {SOURCE_COLUMNS} FROM imcallback_source WHERE id IN ({keys})"  # noqa: S608
    sources = {}
    for (
        source_id,
        provider,
        app_id,
        command,
        relation,
        cause,
        platform,
    ) in connection.exec_driver_sql(sql):
        kinds = _member(Relation, str(relation)), _member(Cause, str(cause))
        sources[source_id] = provider, app_id, command, *kinds, platform
    return sources


def _member(kind: type[T], text: str) -> T:
    """Return the member of an enum, or the stored text itself if somebody has changed it."""
    return kind(text) if text in list(kind) else text  # type: ignore[return-value]
