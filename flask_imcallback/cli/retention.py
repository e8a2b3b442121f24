"""The commands that take data away: `strip`, `prune` and `erase`."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from ..errors import StorageError
from ..log import MIN_AGE, Retained, names_account, user_actor
from ..runtime import get_runtime
from .output import make_command

OUT_OF_REACH = (
    "Exports, evidence files with packets, backups, replicas and the logs of the app and of the "
    "database are out of reach. Delete them yourself."
)


def _parse_day(text: str) -> datetime:
    """Return the start of a day in UTC, which must be over for a day."""
    try:
        day = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not a day: write it like 2026-01-31", param_hint="--before"
        ) from None
    if day > datetime.now(UTC) - MIN_AGE:
        raise click.BadParameter(
            f"{text} is too new: repetitions of callbacks may still arrive. Name a day that began "
            "more than 24 hours ago, in UTC",
            param_hint="--before",
        )
    return day


def _strip(before: str, yes: bool) -> None:
    day = _parse_day(before)
    result = get_runtime().retention(user_actor()).strip(day, is_dry_run=not yes)
    verb = "Took" if yes else "Would take"
    click.echo(
        f"{verb} the packets and addresses of {result.deliveries} deliveries before {before} away"
    )
    _explain(result, yes)


def _prune(before: str, yes: bool) -> None:
    day = _parse_day(before)
    result = get_runtime().retention(user_actor()).prune(day, is_dry_run=not yes)
    verb = "Deleted" if yes else "Would delete"
    click.echo(
        f"{verb} {result.seals} seals with {result.deliveries} deliveries, {result.removals} "
        f"removals and {result.acts} acts, all before {before}"
    )
    _explain(result, yes)


def _erase(account: str, reason: str, yes: bool) -> None:
    if not account:
        raise click.UsageError("the account is empty")
    if not reason.strip():
        raise click.BadParameter("the reason is empty", param_hint="--reason")
    if names_account(reason, account):
        raise click.BadParameter(
            "the reason names the account, and the log keeps the reason", param_hint="--reason"
        )
    result = get_runtime().retention(user_actor()).erase(account, reason, is_dry_run=not yes)
    verb = "Erased" if yes else "Would erase"
    click.echo(
        f"{verb} the account from {result.removals} removals, {result.deliveries} packets and "
        f"{result.acts} acts"
    )
    if result.later or result.later_packets:
        click.echo(
            f"{result.later} removals and {result.later_packets} packets with the account are not "
            "sealed, or not older than a day. Run the command again after a day.",
            err=True,
        )
    _explain(result, yes)


def _explain(result: Retained, yes: bool) -> None:
    """Print what the command cannot reach, and how to do what it has only counted."""
    drain = get_runtime().drain
    try:
        waiting = drain.spool.waiting() if drain else None
    except StorageError as error:
        click.echo(f"The spool cannot be read: {error}", err=True)
        waiting = None
    if waiting and (waiting.count or waiting.set_aside or waiting.foreign):
        click.echo(
            "The spool of this machine holds callbacks, which are not changed. Run flask "
            "imcallback spool --drain.",
            err=True,
        )
    click.echo(OUT_OF_REACH, err=True)
    if not yes and (result.deliveries or result.acts):
        click.echo("Nothing was changed. Add --yes to do it.", err=True)


BEFORE = click.Option(
    ["--before"], required=True, metavar="DAY", help="A day such as 2026-01-31, in UTC."
)
YES = click.Option(
    ["--yes"],
    is_flag=True,
    help="Delete the data. Without this option, only print what would be deleted.",
)

strip = make_command(
    "strip",
    "Delete the packets and the users' IP addresses of all deliveries before a day. "
    "The removals stay.",
    _strip,
    BEFORE,
    YES,
)

prune = make_command(
    "prune",
    "Delete all deliveries, removals and acts before a day, in whole seals. The log still proves "
    "what is left.",
    _prune,
    BEFORE,
    YES,
)

erase = make_command(
    "erase",
    "Erase ACCOUNT: take its id out of all removals, and take away all packets and acts that name "
    "it. The removals of its counterparts stay.",
    _erase,
    click.Argument(["account"]),
    click.Option(
        ["--reason"],
        required=True,
        metavar="TEXT",
        help="Why. The log keeps it, so it must not name the account.",
    ),
    YES,
)
