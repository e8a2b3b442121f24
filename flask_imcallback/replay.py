"""Replay: callbacks that were kept outside of the history get into it.

A lost callback is in a log, see `LostCallbacks`. An unreadable callback is a delivery in the
database, and can become readable with a newer provider.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from urllib.parse import parse_qs

from flask import Flask
from sqlalchemy import Engine

from .errors import PacketError, StorageError
from .history import DeliveryQuery, DeliveryRecord
from .logger import logger
from .providers import Callback, CallbackRequest, Origin, Provider
from .removals import Status, announce
from .runtime import Runtime
from .storage import (
    FINGERPRINT_BYTES,
    FIRST_ID_STEP_MICROSECONDS,
    AlreadyStored,
    Delivery,
    Entry,
    LostEntry,
    Repetition,
    TakenId,
    Writer,
    concerns_entry,
    describe,
    find_key_conflict,
)

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
        self.oldest = min(self.oldest or entry.received_at, entry.received_at)


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
        writer = Writer(
            runtime.writing_engine,
            retry_until_deadline=True,
            context=runtime.context,
            on_stored=runtime.sequencer.wake,
        )
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

    recorded: int = 0
    """Number of deliveries whose removals are recorded now."""
    recorded_before: int = 0
    """Number of deliveries whose removals were recorded before."""
    without_removals: int = 0
    """Number of unreadable deliveries that can be read now, and that remove nobody."""
    unchanged: int = 0
    """Number of deliveries that have the same result as when they arrived."""
    oldest: datetime | None = None
    """The time at which the oldest recorded delivery was received."""

    def add_recorded(self, entry: Entry) -> None:
        self.recorded += 1
        self.oldest = min(self.oldest or entry.received_at, entry.received_at)


class RecordedBeforeError(Exception):
    """A callback whose removals another delivery has."""


class ReplayedEntry(Entry):
    """The delivery that records the packet of a kept delivery. Its fingerprint stores it once."""

    def mark_duplicate(self, first_id: int) -> None:
        """Refuse to store a repetition, because another replay stored the removals."""
        raise RecordedBeforeError


def replay_kept(app: Flask, runtime: Runtime, status: Status, *, is_dry_run: bool) -> KeptReport:
    """Read the packets of all deliveries with this status again, the oldest first.

    If a packet has removals now, they are stored with a new delivery of nearly the same time, whose
    `duplicate_of` is the kept delivery. The kept delivery stays as it arrived. A dry run changes
    nothing. Needs an app context. Raises `StorageError`.
    """
    report = KeptReport()
    for page in _kept_pages(runtime, status):
        entries = []
        for record in page:
            provider = runtime.providers.get(record.provider)
            callback = _read_again(provider, record) if provider else None
            if provider and callback and callback.removals is not None:
                entry = _make_entry(provider, record, callback)
                if isinstance(find_key_conflict(runtime.engine(), entry), Repetition):
                    report.recorded_before += 1
                else:
                    entries.append(entry)
            elif callback and status is Status.UNREADABLE:
                report.without_removals += 1
            else:
                report.unchanged += 1
        if not is_dry_run:
            writer = Writer(
                runtime.writing_engine, retry_until_deadline=True, context=runtime.context
            )
            writer.write(entries, CHUNK_SECONDS)
        for entry in entries:
            _report_kept(app, entry, report, is_dry_run)
    return report


def _report_kept(app: Flask, entry: Entry, report: KeptReport, is_dry_run: bool) -> None:
    if isinstance(entry.error, RecordedBeforeError):
        report.recorded_before += 1
    elif entry.error:
        raise StorageError(
            f"cannot record the delivery {entry.row['duplicate_of']} ({describe(entry.error)}): "
            "check the database, and run the command again"
        ) from entry.error
    else:
        report.add_recorded(entry)
        if not is_dry_run:
            announce(app, entry.records)


def _kept_pages(runtime: Runtime, status: Status) -> Iterator[Sequence[DeliveryRecord]]:
    """Yield the deliveries with this status that are stored now, the oldest first, in pages."""
    query = DeliveryQuery(status=(status,), until=datetime.now(UTC), order="asc")
    while True:
        page = runtime.history.read_delivery_page(query)
        yield page.data
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


def _make_entry(provider: Provider, record: DeliveryRecord, callback: Callback) -> ReplayedEntry:
    """Return the entry of a new delivery for a packet that can be read now."""
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
        status=Status.RECORDED,
        removals=callback.removals or (),
    )
    # An ignored delivery has the fingerprint of the callback itself.
    fingerprint = delivery.fingerprint if record.status is Status.UNREADABLE else None
    entry = ReplayedEntry.from_delivery(delivery, record.id + 1)
    entry.row["duplicate_of"] = record.id
    entry.row["fingerprint"] = fingerprint or _replay_fingerprint(record.id)
    return entry


def _replay_fingerprint(kept_id: int) -> bytes:
    """Return the fingerprint that all replays of a kept delivery share."""
    return hashlib.sha256(b"replay of %d" % kept_id).digest()[:FINGERPRINT_BYTES]
