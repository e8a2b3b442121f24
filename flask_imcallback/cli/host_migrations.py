"""Our migrations in a host app that uses Flask-Migrate.

`flask db upgrade` of the host app upgrades our tables first. Autogenerate of the host app ignores
our tables. All other `flask db` commands concern only the tables of the host app.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from flask import Flask, appcontext_pushed, current_app

from ..runtime import EXTENSION, get_runtime
from ..storage import is_our_table, protect_tables, run_alembic


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
    """Prepare a command of Flask-Migrate, which passes its Alembic configuration."""
    if EXTENSION not in current_app.extensions:
        return config
    protect_tables()
    _hide_from_log(config)
    arguments = _arguments_of_upgrade() or {}
    is_upgrade_to_head = arguments.get("revision") in ("head", "heads")
    if is_upgrade_to_head and get_runtime().settings.upgrade_with_host:
        run_alembic(get_runtime().engine(), "upgrade", "head", sql=arguments["sql"])
    return config


def _arguments_of_upgrade() -> dict[str, Any] | None:
    """Return the arguments of the call of `flask_migrate.upgrade` that is running, or None.

    Flask-Migrate does not tell its callbacks which command runs. The command line and the scripts
    of a host app call the same function, so its frame is on the stack.
    """
    import flask_migrate

    code = inspect.unwrap(flask_migrate.upgrade).__code__
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is code:
            return frame.f_locals
        frame = frame.f_back
    return None


def _host_tables() -> set[str]:
    """Return the table names of the models of the host app, without their schemas."""
    db = current_app.extensions["migrate"].db
    metadatas = getattr(db, "metadatas", None) or {None: db.metadata}
    return {table.name for each in metadatas.values() for table in each.tables.values()}


def _hide_from_log(config: Any) -> None:
    """Keep our tables out of the log of autogenerate.

    This needs the option `include_name`. If the env.py of the host app sets it, nothing is done.
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
        if kind == "table" and is_our_table(name, _host_tables()):
            return False
        return filter_of_host is None or bool(filter_of_host(name, kind, parents))

    include_name.hides_imcallback = True  # type: ignore[attr-defined]
    arguments["include_name"] = include_name
