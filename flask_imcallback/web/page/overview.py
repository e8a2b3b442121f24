"""The overview above the history: recent callbacks, the spool, and the setup of a new app."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from flask import current_app, url_for

from ...checks import find_spool_problem, read_seals
from ...errors import StorageError
from ...history import Page, RemovalCount
from ...runtime import Runtime
from ...storage import ACCEPTED, REFUSED, CallbackCount, Waiting

COUNT_PERIOD = timedelta(days=30)
MIN_SILENCE = timedelta(minutes=10)
SILENCE_GAPS = 10
"""A silence is unusual if it is longer than this number of average gaps between two removals."""
MIN_REMOVALS_PER_MONTH = 10
"""With fewer removals, the usual gap is computed from this number."""
MAX_SHOWN_COUNTS = 20


@dataclass(frozen=True, kw_only=True)
class Overview:
    """The state of the app that the first page shows."""

    accepted: Sequence[CallbackCount]
    """The counts of accepted callbacks by command, the newest first."""
    refused: Sequence[CallbackCount]
    """The counts of refused callbacks by reason, the newest first."""
    last_accepted_at: datetime | None
    """The time of the last accepted callback."""
    silence: timedelta | None
    """The time since the last accepted callback, if it is unusually long."""
    waiting: Waiting | None
    """The callbacks in the spool, if there is a spool that can be read."""
    spool_problem: str
    """The reason why the spool cannot be used, or an empty text."""
    sealed_until: datetime | None
    """The time of the newest seal of the log."""
    seal_problem: str
    """The reason why the log is not sealed, or an empty text."""


def summarize(
    runtime: Runtime, now: datetime, page: Page | None = None, counts: Sequence[RemovalCount] = ()
) -> Overview:
    """Summarize the recent callbacks and the spool.

    If `page` and `counts` are given, also check for an unusually long silence. `page` has the
    newest removals, and `counts` has the counts of the last month. Raises `StorageError`.
    """
    counters = sorted(runtime.counters.counts(), key=lambda count: count.last_at, reverse=True)
    accepted = [count for count in counters if count.outcome == ACCEPTED]
    moments = [count.last_at for count in accepted[:1]]
    if page:  # The counters may not have the newest removal yet.
        moments += [record.received_at for record in page.data[:1]]
    last = max(moments, default=None)
    silence = now - last if page and last else None
    waiting, spool_problem = _look_into_spool(runtime)
    seals = read_seals(runtime)
    sealed_until = seals.sealed_until if seals else ""
    return Overview(
        accepted=accepted[:MAX_SHOWN_COUNTS],
        refused=[count for count in counters if count.outcome == REFUSED][:MAX_SHOWN_COUNTS],
        last_accepted_at=last,
        silence=silence if silence and silence > _usual_silence(counts) else None,
        waiting=waiting,
        spool_problem=spool_problem,
        sealed_until=datetime.fromisoformat(sealed_until) if sealed_until else None,
        seal_problem=seals.problem if seals else "",
    )


def _look_into_spool(runtime: Runtime) -> tuple[Waiting | None, str]:
    """Return the summary of the spool, and the reason why the spool cannot be used."""
    if runtime.drain is None:
        return None, ""
    problem = find_spool_problem(runtime.drain)
    try:
        waiting = runtime.drain.spool.waiting()
    except StorageError as error:
        return None, str(error)
    return waiting, problem.why if problem else ""


def _usual_silence(counts: Sequence[RemovalCount]) -> timedelta:
    """Return the longest silence that is still usual after the counts of a month."""
    gap = COUNT_PERIOD / max(MIN_REMOVALS_PER_MONTH, sum(count.count for count in counts))
    return max(SILENCE_GAPS * gap, MIN_SILENCE)


def describe_setup(runtime: Runtime) -> dict[str, Any]:
    """Return the content of the page before the first removal, without secrets."""
    providers = runtime.providers.values()
    page = url_for("imcallback_page.index", _external=True).rstrip("/")
    return {
        "database": runtime.describe_database(),
        "doctor": f"{_flask_command()} imcallback doctor --url {page}",
        "steps": {
            provider.title or provider.name: provider.setup_steps(
                url_for(f"imcallback_callbacks.{provider.name}", _external=True)
            )
            for provider in providers
            if provider.is_enabled
        },
        "settings_keys": {
            provider.title or provider.name: provider.settings_keys
            for provider in providers
            if provider.settings_keys
        },
    }


def _flask_command() -> str:
    """Return the `flask` command of this app, ready to be pasted into a shell."""
    program = Path(sys.executable).with_name("flask")
    found = shutil.which("flask")
    name = "flask"
    if program.exists() and (found is None or Path(found).resolve() != program.resolve()):
        here = Path.cwd()
        name = str(program.relative_to(here) if program.is_relative_to(here) else program)
    if "FLASK_APP" in os.environ:
        return name
    return f"{name} --app {current_app.import_name}"
