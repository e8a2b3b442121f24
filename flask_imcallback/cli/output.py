"""Options, tables and error messages that the commands share."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

import click
from flask.cli import with_appcontext
from marshmallow import Schema

from ..checks import Finding
from ..errors import HistoryQueryError, ImCallbackError
from ..history import load_zone

PERIOD = {"since", "until"}
DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
FORMAT_OPTION = click.Option(
    ["--format"],
    type=click.Choice(["table", "ndjson", "csv"]),
    default="table",
    show_default=True,
)


def report_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a command so that it prints errors, also of Alembic, without a traceback."""

    @functools.wraps(function)
    def command(*arguments: Any, **options: Any) -> Any:
        # Alembic is imported here because its import takes a tenth of a second.
        from alembic.util import CommandError

        try:
            return function(*arguments, **options)
        except (ImCallbackError, CommandError) as error:
            raise click.ClickException(str(error)) from error

    return command


def report_wrong_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a command so that it names the option if a query parameter is wrong."""

    @functools.wraps(function)
    def command(**options: Any) -> Any:
        try:
            return function(**options)
        except HistoryQueryError as error:
            problem = str(error).removeprefix(f"{error.parameter} ")
            raise click.BadParameter(problem, param_hint=_flag(error.parameter)) from error

    return command


def make_command(
    name: str, help: str, callback: Callable[..., Any], *parameters: click.Parameter
) -> click.Command:
    """Return a command that runs in an app context and reports errors without a traceback."""
    callback = with_appcontext(report_errors(callback))
    return click.Command(name, callback=callback, params=list(parameters), help=help)


def schema_options(schema: Schema) -> list[click.Parameter]:
    """Return one option for each query parameter of a schema."""
    zone = "--tz" if "tz" in schema.fields else "UTC"
    helps = {name: field.metadata.get("description", "") for name, field in schema.fields.items()}
    for name in helps.keys() & PERIOD:
        helps[name] += f". A date without a time means midnight in {zone}"
    return [
        click.Option(
            [_flag(name)],
            multiple=hasattr(field, "inner"),
            is_flag=field.metadata.get("enum") == ["no", "yes"] or None,
            help=helps[name],
        )
        for name, field in schema.fields.items()
    ]


def query_parameters(options: dict[str, Any]) -> dict[str, list[str]]:
    """Return the options that have a value as query parameters, each with all its values.

    Raises `HistoryQueryError` for a wrong time zone.
    """
    parameters = {
        name: list(value) if isinstance(value, tuple) else ["yes" if value is True else value]
        for name, value in options.items()
        if value not in (None, False, ())
    }
    for name in parameters.keys() & PERIOD:
        parameters[name] = [_add_midnight(text, options.get("tz")) for text in parameters[name]]
    return parameters


def _add_midnight(text: str, tz: str | None) -> str:
    """Return the start of a date in a time zone, as RFC 3339. Other texts are returned as they are.

    Only the command line does this: a program that uses HTTP should name the time that it means.
    """
    if not DATE.fullmatch(text):
        return text
    zone = load_zone(tz or "UTC")
    try:
        return datetime.fromisoformat(text).replace(tzinfo=zone).astimezone(UTC).isoformat()
    except (ValueError, OverflowError):
        return text


def echo_table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """Print rows in aligned columns. Control characters are escaped."""
    lines = [columns] + [tuple(escape(str(row[name])) for name in columns) for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(columns))]
    for line in lines:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


LEVELS = {"ok": "ok     ", "note": "note   ", "warning": "WARNING", "failure": "FAILURE"}


def echo_findings(findings: Iterable[Finding], *, err: bool = False) -> int:
    """Print findings, each with its reason and its remedy. Return the number of failures."""
    failure_count = 0
    for finding in findings:
        failure_count += finding.level == "failure"
        click.echo(f"{LEVELS[finding.level]} {escape(finding.title)}", err=err)
        for line in (finding.why, finding.remedy):
            if line:
                click.echo(f"        {escape(' '.join(line.split()))}", err=err)
    return failure_count


def escape(text: str) -> str:
    """Return the text with its control characters escaped, because a terminal executes them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
