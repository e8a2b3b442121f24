"""Commands that move the tables between migrations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from ..runtime import get_runtime
from ..storage import current_revision, run_alembic
from .output import (
    _command,
)


def _changes(command: str) -> Callable[..., None]:
    """A command of Alembic that moves the tables; says on stderr from where to where."""

    def change(revision: str, sql: bool) -> None:
        engine = get_runtime().engine()
        if sql:
            run_alembic(engine, command, revision, sql=True)
            return
        before = current_revision(engine)
        run_alembic(engine, command, revision)
        after = current_revision(engine)
        if before != after:
            click.echo(f"flask-imcallback: {before or '<empty>'} -> {after or '<empty>'}", err=True)

    return change


def migration_commands() -> list[click.Command]:
    """The commands on our own tables."""
    sql = click.Option(["--sql"], is_flag=True, help="Print the SQL and change nothing.")
    to_head = click.Argument(["revision"], default="head")
    verbose = click.Option(["-v", "--verbose"], is_flag=True)

    def runs(command: str) -> Callable[..., None]:
        return lambda **options: run_alembic(get_runtime().engine(), command, **options)

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
        _command(
            "show",
            "Show a revision.",
            runs("show"),
            to_head,
        ),
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
