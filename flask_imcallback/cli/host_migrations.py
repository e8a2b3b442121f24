"""The host's migrations and ours, side by side.

With Flask-Migrate, the host's `flask db upgrade` brings up our tables first, and its autogenerate
does not see them. All of its other commands are about the host's history alone.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import click
from flask import Flask, appcontext_pushed, current_app

from ..runtime import EXTENSION, get_runtime
from ..storage import VERSION_TABLE, run_alembic
from ..storage import tables as models


def follow(app: Flask) -> None:
    """Hook into the app's Flask-Migrate, now or when it turns up before an app context."""
    if not _hook(app):
        appcontext_pushed.connect(_on_context, app)


def _on_context(app: Flask, **_: Any) -> None:
    if _hook(app):
        appcontext_pushed.disconnect(_on_context, app)


def _hook(app: Flask) -> bool:
    extension = app.extensions.get("migrate")
    if extension is None:
        return False
    callbacks = extension.migrate.configure_callbacks
    if _before_command not in callbacks:  # one Migrate may serve several apps
        extension.migrate.configure(_before_command)
    return True


def _before_command(config: Any) -> Any:
    """Called for every `flask db` command with the host's Alembic configuration."""
    if EXTENSION not in current_app.extensions:
        return config
    _hide_from_comparators()
    _hide_from_names(config)
    context = click.get_current_context(silent=True)
    is_wanted = get_runtime().settings.upgrade_with_host
    if is_wanted and context is not None and _is_upgrade_to_head(context):
        run_alembic(get_runtime().engine(), "upgrade", "head", sql=context.params["sql"])
    return config


def _is_upgrade_to_head(context: click.Context) -> bool:
    from flask_migrate.cli import upgrade as command

    return context.command is command and context.params["revision"] in ("head", "heads")


def _is_ours(name: str | None, host_tables: set[str]) -> bool:
    """Also a table of a newer release than this; but a host may have one with our prefix."""
    if name in models.metadata.tables or name == VERSION_TABLE:
        return True
    return name is not None and name.startswith("imcallback_") and name not in host_tables


def _host_tables() -> set[str]:
    """The names in the host's models, of all its databases and without their schemas."""
    db = current_app.extensions["migrate"].db
    metadatas = getattr(db, "metadatas", None) or {None: db.metadata}
    return {table.name for metadata in metadatas.values() for table in metadata.tables.values()}


def _hide_from_names(config: Any) -> None:
    """Keep our tables out of the log of autogenerate, where the host's env.py leaves a way."""
    arguments = current_app.extensions["migrate"].configure_args
    folder = config.get_main_option("script_location")
    env = Path(folder or "", "env.py")
    if not env.exists() or "include_name" in env.read_text(errors="replace"):
        return
    theirs = arguments.get("include_name")
    if getattr(theirs, "hides_imcallback", False):
        return

    def include_name(name: str | None, kind: str, parents: Any) -> bool:
        if kind == "table" and _is_ours(name, _host_tables()):
            return False
        return theirs is None or bool(theirs(name, kind, parents))

    include_name.hides_imcallback = True  # type: ignore[attr-defined]
    arguments["include_name"] = include_name


@cache
def _hide_from_comparators() -> None:
    """Keep our tables out of what autogenerate writes, whatever the host's env.py says."""
    from alembic.autogenerate import comparators
    from alembic.util import DispatchPriority

    comparators.dispatch_for("schema", priority=DispatchPriority.LAST)(_drop_our_operations)


def _drop_our_operations(context: Any, operations: Any, _: Any) -> None:
    version_table = context.migration_context.version_table
    if not current_app or EXTENSION not in current_app.extensions or version_table == VERSION_TABLE:
        return
    host_tables = {table.name for table in context.sorted_tables}
    operations.ops[:] = [
        operation
        for operation in operations.ops
        if not _is_ours(getattr(operation, "table_name", None), host_tables)
    ]
