"""Options, tables and error messages that the commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import click
from flask.cli import with_appcontext
from marshmallow import Schema

from ..checks import Finding
from ..errors import HistoryQueryError, ImCallbackError

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
    return [
        click.Option(
            [_flag(name)],
            multiple=hasattr(field, "inner"),
            help=field.metadata.get("description"),
        )
        for name, field in schema.fields.items()
    ]


def query_parameters(options: dict[str, Any]) -> dict[str, list[str]]:
    """Return the options that have a value as query parameters, each with all its values."""
    return {
        name: list(value) if isinstance(value, tuple) else [value]
        for name, value in options.items()
        if value not in (None, ())
    }


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
