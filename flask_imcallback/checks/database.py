"""Checks of the database: can it store a callback now?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from flask import Flask
from sqlalchemy import Engine

from ..runtime import Runtime
from ..storage import (
    DatabaseState,
    has_file,
    is_of_newer_release,
    read_clock,
    read_protection,
    sqlite_path,
)
from .causes import WAITING, explain
from .disks import is_disk_full
from .findings import Finding, failure, note, ok, warning

ASK_SECONDS = 8.0
"""Time that `doctor` gives the database for each answer."""

MAX_CLOCK_DIFFERENCE = timedelta(seconds=5)
DEFAULT_FILE = "imcallback.db"

PACKET_BYTES_PER_BODY_BYTE = 2
"""A driver may need two bytes of a statement for each byte of a body."""
PACKET_MARGIN_BYTES = 512 * 1024
"""Space in a statement for everything but the body."""
MEBIBYTE = 1024 * 1024


def check_database(app: Flask, runtime: Runtime) -> Iterator[Finding]:
    """Check the database of an app. Leaves nothing in it, and creates no file."""
    try:
        engine = runtime.engine()
        yield note_database(app, runtime, engine)
        if problem := _find_memory_problem(engine) or find_file_problem(engine):
            yield problem
            return
        state = runtime.inspect_database(ASK_SECONDS)
    except Exception as error:
        yield explain(error)
        return
    findings = list(judge(state))
    yield from findings
    if any(finding.level == "failure" for finding in findings):
        return
    yield ok(f"The database stores callbacks ({state.server})")
    yield from _check_packet_size(runtime, state)
    yield from _check_isolation_level(runtime.process.get().engines.host())
    yield from _check_clock(runtime)
    yield from _check_protection(runtime)


def find_database_problem(runtime: Runtime) -> Finding | None:
    """Return the reason why the database cannot store a callback now, or None.

    Waits at most `IMCALLBACK_DEADLINE`. Needs an app context.
    """
    try:
        if problem := find_file_problem(runtime.engine()):
            return problem
        findings = judge(runtime.inspect_database())
    except Exception as error:
        return explain(error)
    problem = next((finding for finding in findings if finding.level == "failure"), None)
    if problem is None and runtime.drain and runtime.drain.database_is_down:
        return failure(
            "The database does not store callbacks",
            f"It refused the last one. {WAITING}",
            "Read the log of the app. It has the error of the database.",
        )
    return problem


def find_file_problem(engine: Engine) -> Finding | None:
    """Return the problem of a SQLite file, or None. The file is not opened.

    Opening a missing file would create it.
    """
    path = sqlite_path(engine)
    if path is None:
        return None
    if not os.path.isdir(os.path.dirname(path)):
        return failure(
            "The folder of the database file does not exist",
            f"{WAITING} The database file is {path}.",
            "Create the folder, or name another file in SQLALCHEMY_DATABASE_URI.",
        )
    if not os.path.lexists(path):
        return failure(
            "The database file does not exist",
            f"{WAITING} The database file is {path}.",
            "Run flask db upgrade, which creates the file. If the file exists elsewhere, correct "
            "SQLALCHEMY_DATABASE_URI.",
        )
    if os.path.isdir(path):
        return failure(
            "The database file is a folder",
            f"{WAITING} The folder is {path}.",
            "Name a file in SQLALCHEMY_DATABASE_URI.",
        )
    if is_disk_full(path):
        return failure(
            "The disk of the database is full",
            f"{WAITING} The database file is {path}.",
            "Free space on the disk of the database.",
        )
    return None


def _find_memory_problem(engine: Engine) -> Finding | None:
    if engine.dialect.name != "sqlite" or has_file(engine):
        return None
    return failure(
        "The database is in memory",
        "All removals are lost when the process ends, and each process has its own history.",
        "Set SQLALCHEMY_DATABASE_URI to a file or a server.",
    )


def judge(state: DatabaseState) -> Iterator[Finding]:
    """Yield the problems of a database that answers."""
    if state.encoding_problem:
        yield failure(
            "The database cannot store every account id",
            f"The encoding is {state.encoding}. {WAITING}",
            f"The problem: {state.encoding_problem}.",
        )
    if not state.is_at_head:
        yield failure(
            "The tables need flask db upgrade",
            WAITING,
            "Run flask db upgrade, or flask imcallback upgrade for the tables of this extension "
            "alone.",
        )
    elif is_of_newer_release(state.revision):
        yield warning(
            "The tables belong to a newer release of flask-imcallback",
            f"Their revision is {state.revision}. This release works with it during an upgrade.",
            "Install the newer release on this machine, too.",
        )
    if state.durability_problem:
        yield warning(
            "A power cut of the database server loses callbacks",
            f"In the database, {state.durability_problem}.",
            "Change the setting, unless a cluster makes up for it.",
        )


def note_database(app: Flask, runtime: Runtime, engine: Engine) -> Finding:
    """Return a finding with the URL of the database, without its password."""
    description = f"The database is {runtime.describe_database()}"
    if sqlite_path(engine) == os.path.realpath(Path(app.instance_path, DEFAULT_FILE)):
        return note(
            description,
            "The extension chose this file. To use your own database, set "
            "SQLALCHEMY_DATABASE_URI, or pass db= or engine= to ImCallback.",
        )
    return note(description)


def _check_packet_size(runtime: Runtime, state: DatabaseState) -> Iterator[Finding]:
    """Check that MariaDB accepts the largest callback.

    It breaks the connection of a larger statement, so the error is the same as in an outage.
    """
    body_bytes = runtime.settings.max_body
    needed = PACKET_BYTES_PER_BODY_BYTE * body_bytes + PACKET_MARGIN_BYTES
    if state.max_packet_bytes is None or state.max_packet_bytes >= needed:
        return
    yield failure(
        "The database server refuses large callbacks",
        f"Its setting max_allowed_packet is {state.max_packet_bytes}. A callback of "
        f"{body_bytes} bytes, which IMCALLBACK_MAX_BODY allows, needs {needed}. The server breaks "
        f"the connection of a larger one, as if it were down. {WAITING}",
        # The server rounds the setting down, so the remedy is rounded up.
        f"Set max_allowed_packet = {-(-needed // MEBIBYTE)}M in the section [mysqld] of the "
        "server's configuration, and restart the server. Or lower IMCALLBACK_MAX_BODY.",
    )


def _check_isolation_level(engine: Engine) -> Iterator[Finding]:
    level = engine.get_execution_options().get("isolation_level")
    level = level or getattr(engine.dialect, "_on_connect_isolation_level", None)
    if str(level).upper() == "AUTOCOMMIT":
        yield note(
            "The engine of the app has the isolation level AUTOCOMMIT",
            "The extension does not use this level: it stores each callback in a transaction, on "
            "its own connections.",
        )


def _check_clock(runtime: Runtime) -> Iterator[Finding]:
    """Compare the clock of this machine with the clock of a database server."""
    try:
        before = datetime.now(UTC)
        database_time = runtime.inspector.ask(read_clock, ASK_SECONDS)
        after = datetime.now(UTC)
    except Exception as error:
        yield explain(error)
        return
    if database_time is None:
        return
    difference = max(before - database_time, database_time - after, timedelta())
    if difference > MAX_CLOCK_DIFFERENCE:
        yield explain_clock("the database", difference)


def _check_protection(runtime: Runtime) -> Iterator[Finding]:
    """Check that nobody can change stored rows by accident or in silence."""
    try:
        protection = runtime.inspector.ask(read_protection, ASK_SECONDS)
    except Exception as error:
        yield explain(error)
        return
    if not protection.is_visible:
        yield note(
            "The triggers that protect stored rows were not checked",
            "This database user has no right TRIGGER, so the server shows it no triggers. Run "
            "flask imcallback doctor as the owner of the tables.",
        )
    if protection.missing:
        yield warning(
            "Stored rows can be changed, because triggers are missing",
            f"Missing or switched off: {', '.join(protection.missing)}.",
            "Run flask imcallback protect as a database user who may create triggers.",
        )
    if protection.open_by:
        acts = ", ".join(map(str, protection.open_by))
        yield warning(
            "Stored rows can be changed, because the door was left open",
            f"The table imcallback_door has the acts {acts}. Only a transaction that prunes, "
            "strips or erases puts a row there, and deletes it again.",
            "Find out who inserted the rows, and run flask imcallback protect.",
        )


def explain_clock(other: str, difference: timedelta, provider: str = "") -> Finding:
    """Return the finding that the clock of this machine differs from another clock."""
    title = f"The clocks of this machine and of {other} differ by "
    if provider:
        title = f"{provider}: {title[0].lower()}{title[1:]}"
    return failure(
        f"{title}{difference.total_seconds():.0f} seconds",
        "With a wrong clock, signatures are refused and the history has wrong times.",
        "Set both clocks by NTP.",
    )
