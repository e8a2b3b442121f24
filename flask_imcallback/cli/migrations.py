"""The commands that create, upgrade and show the tables."""

from __future__ import annotations

import sys
from typing import Any

import click
from flask.cli import AppGroup

from ..runtime import get_runtime
from ..storage import current_revision, run_alembic
from .output import report_errors

db = AppGroup(
    "db", help="Manage the tables of flask-imcallback. The app has no migrations of its own."
)

REVISION = click.argument("revision", default="head")
SQL = click.option("--sql", is_flag=True, help="Print the SQL and change nothing.")
VERBOSE = click.option("-v", "--verbose", is_flag=True)


@db.command()
@REVISION
@SQL
@report_errors
def upgrade(revision: str, sql: bool) -> None:
    """Create or upgrade the tables."""
    _change_revision("upgrade", revision, sql)


@db.command()
@click.argument("revision", default="-1")
@SQL
@click.option("--yes", is_flag=True, help="Delete without a question.")
@report_errors
def downgrade(revision: str, sql: bool, yes: bool) -> None:
    """Downgrade the tables, by default to the previous revision. This deletes recorded data."""
    runtime = get_runtime()
    if not sql and not yes and current_revision(runtime.engine()):
        _confirm_deletion(
            f"A downgrade deletes tables or columns of {runtime.describe_database()} with their "
            "rows, such as the whole history"
        )
    _change_revision("downgrade", revision, sql)


@db.command()
@REVISION
@SQL
@report_errors
def stamp(revision: str, sql: bool) -> None:
    """Set the revision without a change of the tables."""
    _change_revision("stamp", revision, sql)


@db.command()
@VERBOSE
@report_errors
def current(verbose: bool) -> None:
    """Show the revision of the tables."""
    run_alembic(get_runtime().engine(), "current", verbose=verbose)


@db.command()
@VERBOSE
@report_errors
def history(verbose: bool) -> None:
    """List the revisions."""
    run_alembic(get_runtime().engine(), "history", verbose=verbose)


@db.command()
@VERBOSE
@report_errors
def heads(verbose: bool) -> None:
    """Show the newest revision."""
    run_alembic(get_runtime().engine(), "heads", verbose=verbose)


@db.command()
@REVISION
@report_errors
def show(revision: str) -> None:
    """Show a revision."""
    run_alembic(get_runtime().engine(), "show", revision)


@db.command()
@report_errors
def check() -> None:
    """Fail if the tables differ from the newest revision."""
    run_alembic(get_runtime().engine(), "check")


MIGRATION_COMMANDS: list[click.Command] = list(db.commands.values())
"""The commands that `flask imcallback` and `flask db` share."""


def _confirm_deletion(question: str) -> None:
    """Ask on a terminal, and refuse elsewhere. An input that is not a terminal confirms nothing."""
    if not sys.stdin.isatty():
        raise click.ClickException(f"{question}: add --yes if you want this")
    click.confirm(f"{question}. Continue?", abort=True, err=True)


def _change_revision(command: str, revision: str, sql: bool) -> None:
    """Run an Alembic command and print the old and the new revision to stderr."""
    engine = get_runtime().engine()
    if sql:
        run_alembic(engine, command, revision, sql=True)
        return
    before = current_revision(engine)
    run_alembic(engine, command, revision)
    after = current_revision(engine)
    if before != after:
        click.echo(f"flask-imcallback: {before or '<empty>'} -> {after or '<empty>'}", err=True)


def _refuse_to_write_migrations(**_: Any) -> None:
    raise click.ClickException(
        "this app has no migrations of its own, only those of flask-imcallback: "
        "install Flask-Migrate and call Migrate(app, db) to write migrations"
    )


for command_name in ("init", "migrate", "revision", "merge", "edit"):
    # People know these commands from Flask-Migrate and may expect them here.
    db.add_command(
        click.Command(
            command_name,
            callback=_refuse_to_write_migrations,
            hidden=True,
            context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        )
    )
