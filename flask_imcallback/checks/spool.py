"""Checks of the spool: can it store a callback while the database is unavailable?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from ..errors import ImCallbackError
from ..runtime import Runtime
from ..storage import UNKNOWN_DATABASE, Drain, Waiting
from .disks import is_disk_full
from .findings import Finding, failure, ok, warning

MAX_WAITING_TIME = timedelta(minutes=10)
"""Time after which a delivery should be in a database that works."""
WHY_UNUSABLE = "While the database is unavailable, callbacks get 503, and only the log keeps them."


def check_spool(runtime: Runtime) -> Iterator[Finding]:
    """Check the spool of an app. Creates no file."""
    if runtime.drain is None:
        yield warning(
            "There is no spool",
            WHY_UNUSABLE,
            "Set IMCALLBACK_SPOOL to a file on a disk that outlives the process.",
        )
        return
    spool = runtime.drain.spool
    if problem := find_spool_problem(runtime.drain):
        yield problem
    else:
        yield ok(f"The spool {spool.path} can be written")
    if spool.mark == f"sqlite:///{os.path.realpath(spool.path)}":
        yield failure(
            "The spool is the database file",
            f"Both are {spool.path}. While the database is locked or damaged, the spool is too.",
            "Set IMCALLBACK_SPOOL to another file.",
        )
    if not runtime.process.get().engines.has_clear_mark():
        yield warning(
            "The URL of the engine names no database",
            f"The spool marks its callbacks with {spool.mark}. Another deployment may have the "
            "same mark and a different database.",
            "Name the database in the URL of the engine, also beside a creator. Or give each "
            "deployment its own IMCALLBACK_SPOOL.",
        )
    try:
        waiting = spool.waiting()
    except (ImCallbackError, OSError):
        return  # the same problem as above
    yield from judge_waiting(waiting)


def find_spool_problem(drain: Drain) -> Finding | None:
    """Return the reason why the spool cannot store a callback now, or None. Creates no file."""
    spool = drain.spool
    if is_disk_full(str(spool.path)):
        return failure(
            "The disk of the spool is full",
            f"{WHY_UNUSABLE} The spool is {spool.path}.",
            "Free space on the disk, or set IMCALLBACK_SPOOL to a file on another disk.",
        )
    try:
        spool.check_writable()
    except (ImCallbackError, OSError) as error:
        return failure(
            "The spool cannot be used",
            f"{WHY_UNUSABLE} The error: {error}.",
            "Let the user of the app write the file and its folder, or set IMCALLBACK_SPOOL to "
            "another file.",
        )
    if drain.spool_problem:
        return failure(
            "The spool cannot be drained",
            f"Its callbacks stay in {spool.path}. The error: {drain.spool_problem}.",
            "Stop the app, and repair a copy of the file with the command .recover of sqlite3.",
        )
    return None


def judge_waiting(waiting: Waiting) -> Iterator[Finding]:
    """Yield the findings about the deliveries in the spool, if the database works."""
    if waiting.count and waiting.oldest:
        title = f"{count_callbacks(waiting.count, 'waits', 'wait')} in the spool"
        received = f"The oldest was received at {waiting.oldest:%Y-%m-%d %H:%M:%S} UTC."
        remedy = "Run flask imcallback spool --drain. It stores the callbacks or prints the reason."
        if datetime.now(UTC) - waiting.oldest > MAX_WAITING_TIME:
            why = f"{received} The drain does not store it."
            yield failure(f"{title} for too long", why, remedy)
        else:
            yield warning(title, f"{received} The history does not show it yet.", remedy)
    if waiting.set_aside:
        yield failure(
            f"{count_callbacks(waiting.set_aside, 'is', 'are')} set aside in the spool",
            "The database refused them, and stored others.",
            "Run flask imcallback spool to see the errors. After the repair, run flask imcallback "
            "spool --drain.",
        )
    for mark, count in waiting.foreign.items():
        if mark == UNKNOWN_DATABASE:
            yield failure(
                f"{count_callbacks(count, 'belongs', 'belong')} to an unknown database",
                "A process kept them in the spool while it could not find out its database.",
                f"Run flask imcallback spool --adopt {mark}, unless another deployment uses the "
                "same spool",
            )
            continue
        yield failure(
            f"{count_callbacks(count, 'belongs', 'belong')} to another database",
            f"The spool holds them for {mark}. This app leaves them there.",
            "If another deployment shares the spool, give each its own IMCALLBACK_SPOOL. If the "
            f"database has moved, run flask imcallback spool --adopt {mark}",
        )


def count_callbacks(count: int, singular_verb: str, plural_verb: str) -> str:
    """Return a number of callbacks with its verb, such as "2 callbacks wait"."""
    return f"1 callback {singular_verb}" if count == 1 else f"{count} callbacks {plural_verb}"
