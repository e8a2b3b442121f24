"""The commands: `flask imcallback`, and `flask db` for an app without its own migrations."""

from __future__ import annotations

from flask import Flask
from flask.cli import AppGroup

from ..runtime import EXTENSION
from . import (
    acts,
    deliveries,
    follow,
    history,
    migrations,
    operations,
    replay,
    retention,
    seals,
)
from .host_migrations import follow_host_migrations

__all__ = ["add_commands", "follow_host_migrations"]


def add_commands(app: Flask) -> None:
    """Add the group `imcallback` to an app, and the group `db` if the app has none."""
    group = AppGroup("imcallback", help="Query the recorded removals and run the extension.")
    for command in (
        history.history,
        deliveries.deliveries,
        history.stats,
        history.export,
        follow.follow,
        acts.acts,
        retention.strip,
        retention.prune,
        retention.erase,
        seals.seal,
        seals.checkpoint,
        seals.evidence,
        seals.verify,
        seals.new_key,
        replay.replay,
        operations.status,
        operations.spool,
        operations.doctor,
        operations.protect,
        operations.make_send(app.extensions[EXTENSION].providers.values()),
    ):
        group.add_command(command)
    for command in migrations.MIGRATION_COMMANDS:
        # `flask imcallback history` lists removals, so the list of revisions has another name.
        group.add_command(command, "revisions" if command.name == "history" else command.name)
    app.cli.add_command(group)
    if "db" not in app.cli.commands:
        app.cli.add_command(migrations.db)
