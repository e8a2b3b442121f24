"""Our migrations: an Alembic environment and a version table of our own.

The host's own history, if it has one, stays as it is; we take nothing but an engine from it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from ..errors import ConfigError, StorageError

if TYPE_CHECKING:
    from alembic.config import Config

VERSION_TABLE = "alembic_version_imcallback"
FIRST = "versions/0001_delivery_and_removal.py"


def run_alembic(engine: Engine, command: str, *arguments: Any, **options: Any) -> None:
    """Run an Alembic command, such as "upgrade", on our tables.

    Raises Alembic's `CommandError`, `ConfigError` and `StorageError`.
    """
    from alembic import command as commands  # a tenth of a second that only migrations need

    with _storage_errors():
        getattr(commands, command)(make_config(engine), *arguments, **options)


def current_revision(engine: Engine) -> str | None:
    """The revision that the tables are at; None if there are none. Raises `StorageError`."""
    from alembic.migration import MigrationContext

    with _storage_errors(), engine.connect() as connection:
        options = {"version_table": VERSION_TABLE}
        return MigrationContext.configure(connection, opts=options).get_current_revision()


def is_at_head(engine: Engine) -> bool:
    """Whether the tables are at the newest revision that this release knows. Raises `StorageError`.

    So they are also when a newer release has upgraded them: it is this one that is behind then.
    """
    current = current_revision(engine)
    return current is not None and current not in _older_revisions()


@cache
def _older_revisions() -> frozenset[str]:
    names = sorted(path.stem for path in (_folder() / "versions").glob("[0-9]*.py"))
    return frozenset(names[:-1])


@contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        raise StorageError(f"the database is away, or refuses: {error}") from error


def make_config(engine: Engine) -> Config:
    """Alembic's configuration; an engine, because a URL as text loses the password or its `%`."""
    from alembic.config import Config

    config = Config(stdout=sys.stdout)  # not that of Alembic's import, which tests may have closed
    config.set_main_option("script_location", str(_folder()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["engine"] = engine
    return config


def _folder() -> Path:
    """The migrations: inside the package when installed, beside it in a checkout.

    Looked for as files: no import finds them in every kind of editable install.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "migrations", package.parent / "migrations"):
        if (folder / FIRST).exists():
            return folder
    raise ConfigError("the migrations are missing: flask-imcallback is not installed as a whole")
