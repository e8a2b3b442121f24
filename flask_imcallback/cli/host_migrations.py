"""Our migrations beside those of a host that uses Flask-Migrate.

`flask db upgrade` of the host upgrades our tables first. Autogenerate of the host ignores them. All
other `flask db` commands see only the migrations of the host.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import click
from flask import Flask, appcontext_pushed, current_app

from ..runtime import EXTENSION, get_runtime
from ..storage import VERSION_TABLE, metadata, run_alembic


def follow_host_migrations(app: Flask) -> None:
    """Connect to the Flask-Migrate of an app, now or when the app initializes it later."""
    if not _connect(app):
        appcontext_pushed.connect(_connect_later, app)


def _connect_later(app: Flask, **_: Any) -> None:
    if _connect(app):
        appcontext_pushed.disconnect(_connect_later, app)


def _connect(app: Flask) -> bool:
    """Register our callback with Flask-Migrate. Return False if the app has no Flask-Migrate."""
    extension = app.extensions.get("migrate")
    if extension is None:
        return False
    callbacks = extension.migrate.configure_callbacks
    if _before_command not in callbacks:  # one Migrate object can serve several apps
        extension.migrate.configure(_before_command)
    return True


def _before_command(config: Any) -> Any:
    """Prepare a `flask db` command. Flask-Migrate calls it with the Alembic configuration."""
    if EXTENSION not in current_app.extensions:
        return config
    _hide_from_generated_scripts()
    _hide_from_log(config)
    context = click.get_current_context(silent=True)
    upgrades_with_host = get_runtime().settings.upgrade_with_host
    if upgrades_with_host and context is not None and _is_upgrade_to_head(context):
        run_alembic(get_runtime().engine(), "upgrade", "head", sql=context.params["sql"])
    return config


def _is_upgrade_to_head(context: click.Context) -> bool:
    from flask_migrate.cli import upgrade

    return context.command is upgrade and context.params["revision"] in ("head", "heads")


def _is_ours(table_name: str | None, host_tables: set[str]) -> bool:
    """Check whether a table belongs to this extension.

    A table with our prefix may come from a newer release, or from the models of the host.
    """
    if table_name in metadata.tables or table_name == VERSION_TABLE:
        return True
    has_our_prefix = table_name is not None and table_name.startswith("imcallback_")
    return has_our_prefix and table_name not in host_tables


def _host_tables() -> set[str]:
    """Return the table names of the host's models in all databases, without their schemas."""
    db = current_app.extensions["migrate"].db
    metadatas = getattr(db, "metadatas", None) or {None: db.metadata}
    return {table.name for each in metadatas.values() for table in each.tables.values()}


def _hide_from_log(config: Any) -> None:
    """Keep our tables out of the log of autogenerate.

    This needs the option `include_name`, so that it does nothing if the host's env.py sets it.
    """
    arguments = current_app.extensions["migrate"].configure_args
    folder = config.get_main_option("script_location")
    env = Path(folder or "", "env.py")
    if not env.exists() or "include_name" in env.read_text(errors="replace"):
        return
    filter_of_host = arguments.get("include_name")
    if getattr(filter_of_host, "hides_imcallback", False):
        return

    def include_name(name: str | None, kind: str, parents: Any) -> bool:
        if kind == "table" and _is_ours(name, _host_tables()):
            return False
        return filter_of_host is None or bool(filter_of_host(name, kind, parents))

    include_name.hides_imcallback = True  # type: ignore[attr-defined]
    arguments["include_name"] = include_name


@cache
def _hide_from_generated_scripts() -> None:
    """Keep our tables out of the scripts that autogenerate writes, with any env.py of the host."""
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
