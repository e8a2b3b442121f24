"""`flask imcallback …`, and `flask db …` for an app that has none."""

from __future__ import annotations

import functools
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from flask import Flask
from flask.cli import with_appcontext
from marshmallow import Schema

from ..errors import HistoryQueryError, ImCallbackError
from ..history.export import COLUMNS, FORMATS, csv_records, encode, json_lines
from ..history.history import Values
from ..history.queries import HistoryQuery
from ..history.schemas import (
    EXPORT_QUERY,
    HISTORY_QUERY,
    STATS_QUERY,
    TALLY,
    read_export,
    read_query,
    read_stats,
    stats_json,
)
from ..providers import openim, tencent
from ..runtime import get_state
from ..storage.migrations import current_revision, run
from . import sender
from .doctor import examine


def add_commands(app: Flask) -> None:
    group = click.Group("imcallback", help="The removals that IM servers reported.")
    for command in (history, stats, export, status, spool, doctor, send):
        group.add_command(command)
    for command in migration_commands():
        # `history` is the product's own word here.
        name = "revisions" if command.name == "history" else command.name
        group.add_command(command, name)
    app.cli.add_command(group)
    if "db" not in app.cli.commands:
        help = "The migrations of flask-imcallback; the app has none of its own."
        app.cli.add_command(
            click.Group("db", {c.name or "": c for c in bare_db_commands()}, help=help)
        )


def _reports_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Say errors that were raised on purpose in a line, with exit status 1."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        from alembic.util import CommandError

        try:
            return function(*args, **kwargs)
        except (ImCallbackError, CommandError) as error:
            raise click.ClickException(str(error)) from error

    return wrapper


def _changes(command: str) -> Callable[..., None]:
    """A command of Alembic that moves the tables; says on stderr from where to where."""

    def change(revision: str, sql: bool) -> None:
        engine = get_state().engine()
        if sql:
            run(command, revision, sql=True)
            return
        before = current_revision(engine)
        run(command, revision)
        after = current_revision(engine)
        if before != after:
            click.echo(f"flask-imcallback: {before or '<empty>'} -> {after or '<empty>'}", err=True)

    return change


def _command(
    name: str, help: str, callback: Callable[..., Any], *parameters: click.Parameter
) -> click.Command:
    callback = with_appcontext(_reports_errors(callback))
    return click.Command(name, callback=callback, params=list(parameters), help=help)


def migration_commands() -> list[click.Command]:
    """The commands on our own tables."""
    sql = click.Option(["--sql"], is_flag=True, help="Print the SQL and change nothing.")
    to_head = click.Argument(["revision"], default="head")
    verbose = click.Option(["-v", "--verbose"], is_flag=True)

    def runs(command: str) -> Callable[..., None]:
        return lambda **options: run(command, **options)

    return [
        _command("upgrade", "Create or upgrade the tables.", _changes("upgrade"), to_head, sql),
        _command(
            "downgrade",
            "Go back, by one revision unless told otherwise.",
            _changes("downgrade"),
            click.Argument(["revision"], default="-1"),
            sql,
        ),
        _command("stamp", "Set the revision without migrating.", _changes("stamp"), to_head, sql),
        _command("current", "Show the revision of the tables.", runs("current"), verbose),
        _command("history", "List the revisions.", runs("history"), verbose),
        _command("heads", "Show the newest revision.", runs("heads"), verbose),
        _command("show", "Show a revision.", lambda revision: run("show", revision), to_head),
        _command("check", "Fail if the tables differ from the newest revision.", runs("check")),
    ]


def bare_db_commands() -> list[click.Command]:
    """`flask db` for an app without migrations of its own."""

    def explain(**_: Any) -> None:
        raise click.ClickException(
            "this app has no migrations of its own, only those of flask-imcallback; for some, "
            "install Flask-Migrate and call Migrate(app, db)"
        )

    hidden = [
        click.Command(
            name,
            callback=explain,
            hidden=True,
            context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        )
        for name in ("init", "migrate", "revision", "merge", "edit")
    ]
    return migration_commands() + hidden


def _given(filters: dict[str, Any]) -> dict[str, list[str]]:
    """The options that were given, as parameters of an address."""
    return {
        name: list(value) if isinstance(value, tuple) else [value]
        for name, value in filters.items()
        if value not in (None, ())
    }


def _names_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Say which option is wrong."""

    @functools.wraps(function)
    def wrapper(**options: Any) -> Any:
        try:
            return function(**options)
        except HistoryQueryError as error:
            raise click.BadParameter(str(error), param_hint=_flag(error.parameter)) from error

    return wrapper


@_names_options
def _history(format: str, **filters: Any) -> None:
    page = get_state().history.values_page(read_query(_given(filters)))
    if format == "ndjson":
        for line in json_lines(page.data):
            click.echo(line)
    elif format == "csv":
        click.echo(csv_records([COLUMNS]) + csv_records(page.data), nl=False)
    else:
        rows = [dict(zip(COLUMNS, values, strict=True)) for values in page.data]
        _echo_table(rows, TABLE)
    if page.next_cursor:
        click.echo(f"There are more: --cursor {page.next_cursor}", err=True)


@_names_options
def _stats(format: str, **parameters: Any) -> None:
    rows = stats_json(get_state().history.stats(*read_stats(_given(parameters))))
    columns = ("bucket", "group", "count")
    if format == "ndjson":
        for row in rows:
            click.echo(json.dumps(row, ensure_ascii=False))
    elif format == "csv":
        cells = [[row[name] for name in columns] for row in rows]
        click.echo(csv_records([columns]) + csv_records(cells), nl=False)
    else:
        _echo_table([row | {"group": row["group"] or "-"} for row in rows], columns)


@_names_options
def _export(file: str, **parameters: Any) -> None:
    suffix = Path(file).suffix[1:].lower()
    if parameters["format"] is None and suffix in FORMATS:
        parameters["format"] = suffix
    query, format, keeps_formulas = read_export(_given(parameters))
    parts = get_state().history.stream(query)
    if sys.stderr.isatty():
        parts = _shown(parts, query)
    made = encode(format, parts, keeps_formulas=keeps_formulas)
    if file == "-":
        for some in made:
            click.echo(some, nl=False)
        return
    # Under its name it is whole.
    unfinished = f"{file}.part"
    try:
        with open(unfinished, "wb") as target, ExitStack() as stack:
            stack.callback(os.unlink, unfinished)
            target.writelines(made)
            target.close()
            os.replace(unfinished, file)
            stack.pop_all()
    except OSError as error:
        raise click.FileError(file, str(error)) from error


def _shown(parts: Iterator[list[Values]], query: HistoryQuery) -> Iterator[list[Values]]:
    """The same, while a progress bar tells how much of the time is covered."""
    history = get_state().history
    ends: list[int] = []
    for order in ("asc", "desc"):
        page = history.values_page(replace(query, order=order, limit=1))
        ends += [values[0] for values in page.data]
    first, last = (min(ends), max(ends)) if ends else (0, 0)
    whole = max(1, last - first)
    with click.progressbar(length=whole, file=sys.stderr) as bar:
        for part in parts:
            yield part
            reached = part[-1][0]
            covered = last - reached if query.order == "desc" else reached - first
            bar.update(max(0, covered - bar.pos))
        bar.update(whole - bar.pos)


TABLE = ("id", "received_at", "provider", "relation", "owner_id", "target_id", "platform")


def _echo_table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """Aligned columns; control characters are shown escaped, since a terminal obeys them."""
    lines = [columns] + [tuple(_visible(str(row[name])) for name in columns) for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(columns))]
    for line in lines:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


def _visible(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _options(schema: Schema) -> list[click.Parameter]:
    """An option for each parameter of an address."""
    options: list[click.Parameter] = []
    for name, field in schema.fields.items():
        help = field.metadata.get("description")
        options += [click.Option([_flag(name)], multiple=hasattr(field, "inner"), help=help)]
    return options


FORMAT = click.Option(
    ["--format"],
    type=click.Choice(["table", "ndjson", "csv"]),
    default="table",
    show_default=True,
)

history = _command(
    "history",
    "List the recorded removals, newest first.",
    _history,
    *_options(HISTORY_QUERY),
    FORMAT,
)
stats = _command(
    "stats",
    "Count the recorded removals by time and group.",
    _stats,
    *_options(STATS_QUERY),
    FORMAT,
)
export = _command(
    "export",
    "Write all that the filters match to FILE, or to stdout for -. Its name tells the format: "
    ".ndjson, .csv or .parquet.",
    _export,
    click.Argument(["file"]),
    *_options(EXPORT_QUERY),
)


def _status() -> None:
    rows = [TALLY.dump(count) for count in get_state().tally.counts()]
    _echo_table(rows, tuple(TALLY.fields))


status = _command(
    "status",
    "How many callbacks were accepted, by command, and refused, by reason; and the last of each.",
    _status,
)


def _spool(drain: bool) -> None:
    """What waits, as a line on stdout; with `drain`, what was drained on stderr."""
    state = get_state()
    if state.drain is None:
        raise click.ClickException("IMCALLBACK_SPOOL is None: there is no spool")
    before = state.drain.spool.waiting()
    if drain:
        problem = state.drain.finish()
        after = state.drain.spool.waiting()
        click.echo(f"{before.count - after.count} drained", err=True)
        before = after
    oldest = f", the oldest received at {before.oldest}" if before.oldest else ""
    click.echo(f"{before.count} waiting in {state.drain.spool.path}{oldest}")
    if drain and before.count:
        raise click.ClickException(f"the database does not take them: {problem}")


spool = _command(
    "spool",
    "Show how many callbacks wait for the database. The app drains them by itself.",
    _spool,
    click.Option(["--drain"], is_flag=True, help="Store them now."),
)


def _doctor(url: str | None, idle: float) -> None:
    failed = 0
    for finding in examine(get_state(), url, idle):
        failed += finding.level == "failure"
        mark = {"ok": "ok     ", "warning": "WARNING", "failure": "FAILURE"}[finding.level]
        click.echo(f"{mark} {finding.title}")
        for line in (finding.why, finding.remedy):
            if line:
                click.echo(f"        {line}")
    if failed:
        raise click.ClickException(f"{failed} of the findings lose callbacks")


doctor = _command(
    "doctor",
    "Find out why callbacks do not arrive, or would be lost. Exit status 1 if anything is wrong.",
    _doctor,
    click.Option(["--url"], help="The live address, such as https://your.host/imcallback."),
    click.Option(
        ["--idle"],
        type=float,
        default=60,
        show_default=True,
        help="Seconds that a connection must survive between two events.",
    ),
)


def _send(url: str, command: str, owner: str, targets: tuple[str, ...], app_id: str | None) -> None:
    settings = get_state().settings
    if command in tencent.RELATIONS or "." in command:
        app_id = app_id or next(iter(settings.tencent_apps), "")
        pairs = [{"From_Account": owner, "To_Account": target} for target in targets]
        packet = {"CallbackCommand": command, "PairList": pairs}
        callbacks = [sender.tencent(settings, packet, app_id)]
    else:
        members = openim.MEMBERS.get(command, ("ownerUserID", "targetUserID"))
        callbacks = [
            sender.openim(
                settings,
                {"callbackCommand": command, members[0]: owner, members[1]: target},
                secrets.token_hex(8),
            )
            for target in targets
        ]
    connection = sender.Sender(url)
    answers = [connection.send(callback) for callback in callbacks]
    connection.close()
    for answer in answers:
        click.echo(answer.body.decode(errors="replace"))
        click.echo(f"{answer.status} after {answer.seconds * 1000:.1f} ms", err=True)
    if any(answer.status != 200 for answer in answers):
        raise click.ClickException("not every callback was accepted")


send = _command(
    "send",
    "Send a callback as the IM server would, with this app's secrets. Its removals are recorded.",
    _send,
    click.Option(["--url"], default="http://127.0.0.1:8000/imcallback", show_default=True),
    click.Argument(["command"]),
    click.Option(["--owner"], default="alice", show_default=True, help="Whose list changed."),
    click.Option(
        ["--target", "targets"],
        multiple=True,
        default=["bob"],
        show_default=True,
        help="Who left it; may be repeated.",
    ),
    click.Option(["--app-id"], help="Tencent's SDKAppID; the first of the settings otherwise."),
)
