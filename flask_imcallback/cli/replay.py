"""The command `replay`: callbacks that are kept outside of the history get into it."""

from __future__ import annotations

from datetime import datetime
from typing import BinaryIO

import click
from flask import current_app

from ..history import utc_text
from ..removals import Status
from ..replay import replay_kept, replay_log
from ..runtime import get_runtime
from .output import make_command


def _replay(
    file: BinaryIO | None, unreadable: bool, ignored: bool, trust: bool, dry_run: bool
) -> None:
    """Replay a log or the deliveries of one status, and print the result."""
    statuses = [
        status
        for status, is_chosen in ((Status.UNREADABLE, unreadable), (Status.IGNORED, ignored))
        if is_chosen
    ]
    if (file is not None) + len(statuses) != 1:
        raise click.UsageError(
            "name a log file, or - for stdin, or pass --unreadable or --ignored: one of them"
        )
    if file is None:
        _replay_kept(statuses[0], dry_run)
    else:
        _replay_log(file, trust, dry_run)


def _replay_log(file: BinaryIO, trust: bool, dry_run: bool) -> None:
    app = current_app._get_current_object()  # type: ignore[attr-defined]
    report = replay_log(app, get_runtime(), file, trusts_all=trust, is_dry_run=dry_run)
    for number, problem in report.problems:
        click.echo(f"line {number} could not be read: {problem}", err=True)
    verb = "to store" if dry_run else "stored"
    click.echo(
        f"{report.stored} {verb}, {report.already_stored} already there, "
        f"{len(report.problems)} could not be read"
    )
    _hint_at_times(report.oldest, dry_run)
    if report.problems:
        raise click.ClickException("not all lost callbacks of the log could be read")


def _replay_kept(status: Status, dry_run: bool) -> None:
    app = current_app._get_current_object()  # type: ignore[attr-defined]
    report = replay_kept(app, get_runtime(), status, is_dry_run=dry_run)
    parts = [
        f"{report.recorded} {'to record' if dry_run else 'recorded'}",
        f"{report.recorded_before} already recorded",
        f"{report.unchanged} still {status.value}",
    ]
    if report.without_removals:
        parts.insert(2, f"{report.without_removals} without removals")
    click.echo(", ".join(parts))
    _hint_at_times(report.oldest, dry_run)


def _hint_at_times(oldest: datetime | None, dry_run: bool) -> None:
    if oldest is not None and not dry_run:
        click.echo(
            "The history shows the removals at the times at which they were received, from "
            f"{utc_text(oldest)} on",
            err=True,
        )


replay = make_command(
    "replay",
    "Store callbacks that are not in the history yet: lost callbacks from the log in FILE, or from "
    "stdin if FILE is -, or kept deliveries whose packets can be read now. Running the command "
    "again changes nothing.",
    _replay,
    click.Argument(["file"], type=click.File("rb"), required=False),
    click.Option(
        ["--unreadable"],
        is_flag=True,
        help="Read the unreadable deliveries again, after a provider was corrected.",
    ),
    click.Option(
        ["--ignored"],
        is_flag=True,
        help="Read the ignored deliveries again, after a provider learned their commands.",
    ),
    click.Option(
        ["--trust"],
        is_flag=True,
        help="Store also lines of the log without a valid signature.",
    ),
    click.Option(["--dry-run"], is_flag=True, help="Only say what would be stored."),
)
