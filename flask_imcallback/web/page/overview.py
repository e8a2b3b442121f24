"""What stands above the history: what came and what waits; before that, what to enter where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from flask import url_for

from ...errors import StorageError
from ...history.history import Count, Page
from ...providers import openim, tencent
from ...runtime import AppState
from ...storage.counters import ACCEPTED, REFUSED
from ...storage.counters import Count as Callbacks
from ...storage.spool import Waiting

MONTH = timedelta(days=30)
LEAST_SILENCE = timedelta(minutes=10)
MAX_ROWS = 20


@dataclass(frozen=True, kw_only=True)
class Overview:
    """Commands and reasons are those of which one came last."""

    accepted: Sequence[Callbacks]
    refused: Sequence[Callbacks]
    last: datetime | None
    """When the last was accepted."""
    silence: timedelta | None
    """Since then, if that is unusual."""
    waiting: Waiting | None
    """In the spool, if there is one."""
    problem: str
    """Why the spool cannot be read."""


def look(
    state: AppState, now: datetime, page: Page | None = None, counts: Sequence[Count] = ()
) -> Overview:
    """Of the newest page, and the counts of the last month, also whether it is too quiet.

    Raises `StorageError`.
    """
    tally = sorted(state.tally.counts(), key=lambda count: count.last_at, reverse=True)
    accepted = [count for count in tally if count.outcome == ACCEPTED]
    moments = [count.last_at for count in accepted[:1]]
    if page:  # whose first may not be in the tally yet
        moments += [record.received_at for record in page.data[:1]]
    last = max(moments, default=None)
    silence = now - last if page and last else None
    waiting, problem = None, ""
    try:
        waiting = state.drain.spool.waiting() if state.drain else None
    except StorageError as error:
        problem = str(error)
    return Overview(
        accepted=accepted[:MAX_ROWS],
        refused=[count for count in tally if count.outcome == REFUSED][:MAX_ROWS],
        last=last,
        silence=silence if silence and silence > _usual_silence(counts) else None,
        waiting=waiting,
        problem=problem,
    )


def _usual_silence(counts: Sequence[Count]) -> timedelta:
    """Ten times the usual gap of a month; ten removals are the least that has one."""
    gap = MONTH / max(10, sum(count.count for count in counts))
    return max(10 * gap, LEAST_SILENCE)


def setup(state: AppState) -> dict[str, Any]:
    """The addresses of the providers that are on, and by what they are guarded; no secret."""
    settings = state.settings
    apps = settings.tencent_apps.values()
    return {
        "addresses": {
            name: url_for(f"imcallback_callbacks.{name}", _external=True)
            for name, provider in state.providers.items()
            if provider.is_on
        },
        "page": url_for("imcallback_page.index", _external=True).rstrip("/"),
        "commands": {"tencent": list(tencent.RELATIONS), "openim": list(openim.REMOVALS)},
        "has_tokens": any(apps),
        "has_apps_without_token": not all(apps),
        "has_secrets": bool(settings.secrets),
        "has_passwords": bool(settings.openim_credentials),
    }
