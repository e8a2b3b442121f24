"""The acts: what people did with the history. Each act is an entry of the log."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import random
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeVar

from sqlalchemy import Engine, select
from sqlalchemy.exc import SQLAlchemyError

from ..errors import StorageError
from ..logger import logger
from ..storable_text import MAX_TEXT_LENGTH, make_storable
from ..storage import (
    NONCE_BYTES,
    Fault,
    LockTakenError,
    classify,
    describe,
    drop_idle_connections,
    file_lock,
    id_at,
    moment_of,
    sqlite_path,
    storage_errors,
)
from ..storage import act as act_table
from ..storage import inbox as inbox_table

T = TypeVar("T")

MAX_ATTEMPTS = 20
"""Attempts to find a free id, and to win against other transactions."""

LOCK_SECONDS = 1.0
"""Time for which a reader waits for the lock of a SQLite file. Under gevent, all requests wait."""

APP = "app"
"""The actor of a request that the decorators of the host app let through."""


class ActKind(StrEnum):
    """What somebody did."""

    READ = "read"
    EXPORT = "export"
    EVIDENCE = "evidence"
    STRIP = "strip"
    PRUNE = "prune"
    ERASE = "erase"


@dataclass(frozen=True, kw_only=True)
class Act:
    """A stored act."""

    id: int
    kind: str
    """The value of an `ActKind`, or another text from a newer release."""
    actor: str
    affected: int
    """The number of removals or deliveries that the act showed or was to change, or of deliveries
    in an evidence file. 0 for a file that has just begun, see `FileActs`."""
    detail: Mapping[str, Any]
    """For example the filters. Empty after an erasure that took it away."""

    @property
    def at(self) -> datetime:
        """The time of the act, aware, in UTC."""
        return moment_of(self.id)


class FileActs:
    """The two acts of a file that somebody gets: one before its first byte, and one at its end.

    Only the second one knows the number. If the process is killed meanwhile, the first one is left.
    `store` stores an act, and returns its id.
    """

    def __init__(
        self,
        store: Callable[[ActKind, str, int, Mapping[str, Any]], int],
        kind: ActKind,
        actor: str,
        detail: Mapping[str, Any],
    ) -> None:
        self._store = store
        self._kind = kind
        self._actor = actor
        self._detail = detail
        self._begun: int | None = None

    def begin(self) -> None:
        """Store the first act. Raises `StorageError`, and then nobody may get the file."""
        self._begun = self._store(self._kind, self._actor, 0, self._detail)

    def count(self, parts: Iterable[T], size: Callable[[T], int]) -> Generator[T, None, None]:
        """Yield the parts of the file. Store the second act at the end, also of a file cut off."""
        total = 0
        try:
            for part in parts:
                total += size(part)
                yield part
        finally:
            try:
                if isinstance(parts, Generator):  # it may still read, and SQLite could not write
                    parts.close()
            finally:
                if self._begun is not None:
                    self._end(total)

    def _end(self, total: int) -> None:
        try:
            self._store(self._kind, self._actor, total, {**self._detail, "begun": self._begun})
        except StorageError:
            logger.exception("The number of removals in a file could not be noted in the log")


def store_act(
    engine: Engine, kind: ActKind, actor: str, affected: int, detail: Mapping[str, Any]
) -> int:
    """Store an act in its own transaction. Return its id.

    `detail` must hold no secret. Raises `StorageError`.
    """
    row: dict[str, Any] = {
        "id": id_at(datetime.now(UTC)),
        "kind": kind.value,
        "actor": make_storable(actor, MAX_TEXT_LENGTH),
        "affected": affected,
        "detail": json.dumps(detail),
        "nonce": os.urandom(NONCE_BYTES),
    }
    for attempt in range(MAX_ATTEMPTS):
        try:
            with file_lock(sqlite_path(engine), seconds=LOCK_SECONDS):
                return _insert_act(engine, row)
        except (SQLAlchemyError, LockTakenError) as error:
            fault = classify(error)
            if fault is Fault.DUPLICATE_KEY:  # another process used this microsecond
                row["id"] += random.randrange(1, 1000 << attempt)  # noqa: S311
            elif fault is Fault.DISCONNECTED and attempt == 0:
                drop_idle_connections(engine)  # they all lead to this server
            elif fault is not Fault.RETRY:
                raise _storage_error(error) from error
            problem = error
    raise _storage_error(problem) from problem


def _insert_act(engine: Engine, row: Mapping[str, Any]) -> int:
    """Insert an act and its inbox row in one transaction. Return the id of the act."""
    act_id: int = row["id"]
    with engine.begin() as connection:
        connection.execute(act_table.insert().values(row))
        connection.execute(inbox_table.insert().values(entry_id=-act_id))
    return act_id


def _storage_error(cause: Exception) -> StorageError:
    return StorageError(
        f"cannot note in the log who does this ({describe(cause)}): check that the database "
        "can be written, and run `flask db upgrade` if a table is missing"
    )


def read_acts(engine: Engine, limit: int) -> list[Act]:
    """Return the newest acts, newest first. Raises `StorageError`."""
    query = select(act_table).order_by(act_table.c.id.desc()).limit(limit)
    with storage_errors("read the acts"), engine.connect() as connection:
        rows = connection.execute(query).all()
    return [
        Act(
            id=row.id,
            kind=row.kind,
            actor=row.actor,
            affected=row.affected,
            detail=_read_detail(row.detail),
        )
        for row in rows
    ]


def _read_detail(text: str) -> dict[str, Any]:
    """Return the detail of an act, also if somebody has changed it to something else than JSON."""
    with suppress(ValueError, TypeError, RecursionError):
        detail = json.loads(text or "{}")
        if isinstance(detail, dict):
            return detail
    return {"damaged": text}


def token_actor(token: str) -> str:
    """Return the actor of a request with a bearer token. The token cannot be found from it."""
    return f"token:{hashlib.sha256(token.encode()).hexdigest()[:8]}"


def user_actor() -> str:
    """Return the actor of a command: the user who runs it."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user without a name
        name = str(os.getuid())
    return f"cli:{name}"
