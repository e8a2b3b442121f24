"""Replay: callbacks that were kept outside of the history get into it.

A lost callback is in a log, see `LostCallbacks`. An unreadable callback is a delivery in the
database, and can become readable with a newer provider.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from urllib.parse import parse_qs

from flask import Flask
from sqlalchemy import Engine

from .errors import PacketError, StorageError
from .history import DeliveryQuery, DeliveryRecord
from .providers import Callback, CallbackRequest, Origin, Provider
from .removals import Status, announce
from .runtime import Runtime
from .storage import (
    FIRST_ID_STEP_MICROSECONDS,
    AlreadyStored,
    Delivery,
    Entry,
    LostEntry,
    TakenId,
    Writer,
    change_kept_delivery,
    concerns_entry,
    describe,
    find_key_conflict,
)

logger = logging.getLogger("flask_imcallback")

CHUNK_ENTRIES = 100
"""Maximum number of entries that are stored in one step."""

CHUNK_SECONDS = 60
"""Time that the database has for a chunk."""


@dataclass
class LogReport:
    """The result of the replay of a log."""

    stored: int = 0
    already_stored: int = 0
    problems: list[tuple[int, str]] = field(default_factory=list)
    """The number of each line that was not stored, and the reason."""
    oldest: datetime | None = None
    """The time at which the oldest stored callback was received."""

    def add_stored(self, entry: Entry) -> None:
        self.stored += 1
        self.oldest = min(self.oldest or entry.row["received_at"], entry.row["received_at"])


def replay_log(
    app: Flask, runtime: Runtime, lines: Iterable[bytes], *, trusts_all: bool, is_dry_run: bool
) -> LogReport:
    """Store the lost callbacks in the lines of a log, each only once, also if this runs again.

    With `trusts_all`, also lines with a wrong signature are stored. A dry run changes nothing.
    Needs an app context. Raises `StorageError` if the database stores nothing.
    """
    report, chunk = LogReport(), []
    for line in runtime.lost_callbacks.read(lines, trusts_all=trusts_all):
        if line.entry is None:
            report.problems.append((line.number, line.problem))
            continue
        chunk.append((line.number, line.entry))
        if len(chunk) == CHUNK_ENTRIES:
            _replay_chunk(app, runtime, chunk, report, is_dry_run)
            chunk = []
    _replay_chunk(app, runtime, chunk, report, is_dry_run)
    return report


def _replay_chunk(
    app: Flask,
    runtime: Runtime,
    chunk: list[tuple[int, LostEntry]],
    report: LogReport,
    is_dry_run: bool,
) -> None:
    if is_dry_run:
        for _, entry in chunk:
            entry.was_stored_before = _is_stored(runtime.engine(), entry)
    else:
        writer = Writer(runtime.writing_engine, retry_until_deadline=True)
        writer.write([entry for _, entry in chunk], CHUNK_SECONDS)
    for number, entry in chunk:
        if entry.error and concerns_entry(entry.error):
            report.problems.append((number, f"the database refuses it ({describe(entry.error)})"))
        elif entry.error:
            raise StorageError(
                f"cannot store the callbacks ({describe(entry.error)}): check the database, and "
                f"run the command again. {report.stored} are stored"
            ) from entry.error
        elif entry.was_stored_before:
            report.already_stored += 1
        else:
            report.add_stored(entry)
            if not is_dry_run:
                announce(app, entry.records)


def _is_stored(engine: Engine, entry: LostEntry) -> bool:
    """Return True if the database has the entry. Moves its id as the writer thread does."""
    while isinstance(conflict := find_key_conflict(engine, entry), TakenId):
        entry.assign_id(entry.row["id"] + entry.choose_step(FIRST_ID_STEP_MICROSECONDS))
    return isinstance(conflict, AlreadyStored)


@dataclass
class KeptReport:
    """The result of the replay of kept deliveries."""

    changed: dict[Status, int] = field(default_factory=dict)
    """Number of deliveries by their new status."""
    unchanged: int = 0
    """Number of deliveries that still have the old status."""
    oldest: datetime | None = None
    """The time at which the oldest changed delivery was received."""

    def add_changed(self, entry: Entry) -> None:
        status = Status(entry.row["status"])
        self.changed[status] = self.changed.get(status, 0) + 1
        self.oldest = min(self.oldest or entry.row["received_at"], entry.row["received_at"])


def replay_kept(app: Flask, runtime: Runtime, status: Status, *, is_dry_run: bool) -> KeptReport:
    """Read the packets of all deliveries with this status again, the oldest first.

    A delivery whose packet has another result now gets the new status and its removals, in one
    transaction. A dry run changes nothing. Needs an app context. Raises `StorageError`.
    """
    report = KeptReport()
    for record in _kept_deliveries(runtime, status):
        provider = runtime.providers.get(record.provider)
        callback = _read_again(provider, record) if provider else None
        entry = _make_entry(provider, record, callback) if provider and callback else None
        if entry is None or entry.row["status"] == status:
            report.unchanged += 1
        elif is_dry_run:
            report.add_changed(entry)
        elif change_kept_delivery(runtime.writing_engine(), entry, status):
            report.add_changed(entry)
            announce(app, entry.records)
    return report


def _kept_deliveries(runtime: Runtime, status: Status) -> Iterator[DeliveryRecord]:
    """Yield the deliveries with this status that are stored now, the oldest first."""
    query = DeliveryQuery(status=(status,), until=datetime.now(UTC), order="asc")
    while True:
        page = runtime.history.read_delivery_page(query)
        yield from page.data
        if page.next_cursor is None:
            return
        query = replace(query, cursor=page.next_cursor)


def _read_again(provider: Provider, record: DeliveryRecord) -> Callback | None:
    """Return the callback of a delivery, or None if the provider cannot read it."""
    query = parse_qs(record.query, keep_blank_values=True)
    request = CallbackRequest(
        # The secret of the path is not stored. The command of the path is.
        segments=(record.command,) if record.command else (),
        query={name: tuple(values) for name, values in query.items()},
        headers=record.headers,
        remote_addr=record.remote_addr,
        received_at=record.received_at,
    )
    try:
        return provider.parse(request, record.body)
    except PacketError:
        return None
    except Exception:  # a mistake in a provider must not stop the replay
        logger.exception("The provider %s cannot read the delivery %s", provider.name, record.id)
        return None


def _make_entry(provider: Provider, record: DeliveryRecord, callback: Callback) -> Entry:
    """Return the entry of a delivery whose packet can be read now."""
    delivery = Delivery(
        provider=record.provider,
        repeats_callbacks=provider.repeats_callbacks,
        origin=Origin(
            command=callback.command,
            app_id=record.app_id,
            request_id=record.request_id,
            client_ip=record.client_ip,
            platform=record.platform,
        ),
        received_at=record.received_at,
        remote_addr=record.remote_addr,
        authenticated_by=record.authenticated_by,
        query=record.query,
        headers=record.headers,
        body=record.body,
        status=Status.IGNORED if callback.removals is None else Status.RECORDED,
        removals=callback.removals or (),
    )
    return Entry.from_delivery(delivery, record.id)
