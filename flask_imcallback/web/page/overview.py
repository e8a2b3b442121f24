"""What stands above the history: what came and what waits; before that, what to enter where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from flask import url_for

from ...errors import StorageError
from ...history import Page, RemovalCount
from ...providers import openim, tencent
from ...runtime import Runtime
from ...storage import ACCEPTED, REFUSED, CallbackCount, Waiting

MONTH = timedelta(days=30)
LEAST_SILENCE = timedelta(minutes=10)
MAX_ROWS = 20


@dataclass(frozen=True, kw_only=True)
class Overview:
    """Commands and reasons are those of which one came last."""

    accepted: Sequence[CallbackCount]
    refused: Sequence[CallbackCount]
    last: datetime | None
    """When the last was accepted."""
    silence: timedelta | None
    """Since then, if that is unusual."""
    waiting: Waiting | None
    """In the spool, if there is one."""
    problem: str
    """Why the spool cannot be read."""


def look(
    runtime: Runtime, now: datetime, page: Page | None = None, counts: Sequence[RemovalCount] = ()
) -> Overview:
    """Of the newest page, and the counts of the last month, also whether it is too quiet.

    Raises `StorageError`.
    """
    counters = sorted(runtime.counters.counts(), key=lambda count: count.last_at, reverse=True)
    accepted = [count for count in counters if count.outcome == ACCEPTED]
    moments = [count.last_at for count in accepted[:1]]
    if page:  # whose first may not be in the counters yet
        moments += [record.received_at for record in page.data[:1]]
    last = max(moments, default=None)
    silence = now - last if page and last else None
    waiting, problem = None, ""
    try:
        waiting = runtime.drain.spool.waiting() if runtime.drain else None
    except StorageError as error:
        problem = str(error)
    return Overview(
        accepted=accepted[:MAX_ROWS],
        refused=[count for count in counters if count.outcome == REFUSED][:MAX_ROWS],
        last=last,
        silence=silence if silence and silence > _usual_silence(counts) else None,
        waiting=waiting,
        problem=problem,
    )


def _usual_silence(counts: Sequence[RemovalCount]) -> timedelta:
    """Ten times the usual gap of a month; ten removals are the least that has one."""
    gap = MONTH / max(10, sum(count.count for count in counts))
    return max(10 * gap, LEAST_SILENCE)


def setup(runtime: Runtime) -> dict[str, Any]:
    """The addresses of the providers that are on, and by what they are guarded; no secret."""
    settings = runtime.settings
    apps = settings.tencent_apps.values()
    return {
        "addresses": {
            name: url_for(f"imcallback_callbacks.{name}", _external=True)
            for name, provider in runtime.providers.items()
            if provider.is_enabled
        },
        "page": url_for("imcallback_page.index", _external=True).rstrip("/"),
        "commands": {"tencent": list(tencent.RELATIONS), "openim": list(openim.REMOVALS)},
        "has_tokens": any(apps),
        "has_apps_without_token": not all(apps),
        "has_secrets": bool(settings.secrets),
        "has_passwords": bool(settings.openim_credentials),
    }
