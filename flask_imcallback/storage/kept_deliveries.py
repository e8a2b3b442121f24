"""The change of a kept delivery whose packet can be read now."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine, select
from sqlalchemy.exc import SQLAlchemyError

from ..errors import StorageError
from ..removals import Status
from .database_errors import Fault, classify, describe
from .entries import Entry
from .inserts import ensure_sources, insert_removals
from .sqlite import file_lock, sqlite_path
from .tables import delivery as delivery_table
from .writer import FIRST_ID_STEP_MICROSECONDS, MAX_ATTEMPTS

CHANGED_COLUMNS = (
    "id",
    "received_at",
    "command",
    "status",
    "duplicate_of",
    "error",
    "removal_count",
    "fingerprint",
)
"""The columns that depend on the packet. All others stay as they were received."""


def change_kept_delivery(engine: Engine, entry: Entry, kept_status: Status) -> bool:
    """Replace a kept delivery by the entry with the same id, and insert its removals.

    One transaction does both. Returns False if the delivery no longer has `kept_status`: another
    replay has changed it. The entry gets another id if the ids of its removals are taken, and
    becomes a duplicate if its callback is recorded already. Raises `StorageError`.
    """
    kept_id: int = entry.row["id"]
    attempt = 0
    while True:
        try:
            with file_lock(sqlite_path(engine)), engine.connect() as connection:
                ensure_sources(connection, [entry])
                with connection.begin():
                    return _change(connection, entry, kept_id, kept_status)
        except SQLAlchemyError as error:
            _prepare_retry(engine, entry, kept_id, error, attempt)
        attempt += 1


def _prepare_retry(
    engine: Engine, entry: Entry, kept_id: int, error: SQLAlchemyError, attempt: int
) -> None:
    """Change the keys of the entry if they are taken. Raises `StorageError` for other errors."""
    fault = classify(error)
    if fault not in (Fault.RETRY, Fault.DUPLICATE_KEY) or attempt == MAX_ATTEMPTS:
        raise StorageError(
            f"cannot record the delivery {kept_id} ({describe(error)}): check the database, and "
            "run the command again"
        ) from error
    if fault is Fault.RETRY:
        return
    first_id = _find_first(engine, entry, kept_id)
    if first_id is not None:
        entry.mark_duplicate(first_id)
    else:
        step = entry.choose_step(FIRST_ID_STEP_MICROSECONDS << attempt)
        entry.assign_id(entry.row["id"] + step)


def _change(connection: Connection, entry: Entry, kept_id: int, kept_status: Status) -> bool:
    column = delivery_table.c
    values: dict[str, Any] = {name: entry.row[name] for name in CHANGED_COLUMNS}
    update = delivery_table.update().where(column.id == kept_id, column.status == kept_status.value)
    if not connection.execute(update.values(values)).rowcount:
        return False
    if entry.row["id"] != kept_id:
        duplicates = delivery_table.update().where(
            column.status == Status.DUPLICATE.value, column.duplicate_of == kept_id
        )
        connection.execute(duplicates.values(duplicate_of=entry.row["id"]))
    insert_removals(connection, [entry])
    return True


def _find_first(engine: Engine, entry: Entry, kept_id: int) -> int | None:
    """Return the id of another delivery of the same callback, or None."""
    if entry.row["fingerprint"] is None:
        return None
    column = delivery_table.c
    query = select(column.id).where(
        column.fingerprint == entry.row["fingerprint"], column.id != kept_id
    )
    with engine.connect() as connection:
        return connection.scalar(query)
