"""What the commands share: options, tables, errors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click
from flask.cli import with_appcontext
from marshmallow import Schema

from ..errors import HistoryQueryError, ImCallbackError


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


def _command(
    name: str, help: str, callback: Callable[..., Any], *parameters: click.Parameter
) -> click.Command:
    callback = with_appcontext(_reports_errors(callback))
    return click.Command(name, callback=callback, params=list(parameters), help=help)


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
            problem = str(error).removeprefix(f"{error.parameter} ")  # click names the option
            raise click.BadParameter(problem, param_hint=_flag(error.parameter)) from error

    return wrapper


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
