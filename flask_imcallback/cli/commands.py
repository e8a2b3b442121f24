"""`flask imcallback …`, and `flask db …` for an app that has none."""

from __future__ import annotations

import click
from flask import Flask

from .history import export, history, stats
from .migrations import bare_db_commands, migration_commands
from .operations import doctor, send, spool, status


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
