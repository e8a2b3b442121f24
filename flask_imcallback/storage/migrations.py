"""Our migrations, in their own Alembic environment with their own version table.

The environment needs only an engine of the host app. It does not touch the migrations of the host
app.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from ..errors import ConfigError, StorageError
from .database_errors import describe
from .encodings import check_encoding
from .engines import WRITES

if TYPE_CHECKING:
    from alembic.config import Config

VERSION_TABLE = "alembic_version_imcallback"
FIRST_REVISION = "versions/0001_tables.py"


def run_alembic(engine: Engine, command: str, *arguments: Any, **options: Any) -> None:
    """Run an Alembic command, for example "upgrade", on our tables.

    Raises Alembic's `CommandError`, `ConfigError` and `StorageError`.
    """
    # Importing Alembic takes a tenth of a second, and only migrations need it.
    from alembic import command as commands

    with _storage_errors():
        if command == "upgrade" and not options.get("sql"):
            check_encoding(engine)
        getattr(commands, command)(make_config(engine), *arguments, **options)


def current_revision(engine: Engine) -> str | None:
    """Return the revision of the tables, or None if there are no tables. Raises `StorageError`."""
    with _storage_errors(), engine.connect() as connection:
        return read_revision(connection)


def read_revision(connection: Connection) -> str | None:
    """Return the revision of the tables, or None. Raises the errors of SQLAlchemy."""
    from alembic.migration import MigrationContext

    options = {"version_table": VERSION_TABLE}
    return MigrationContext.configure(connection, opts=options).get_current_revision()


def is_at_head(engine: Engine) -> bool:
    """Return True if the tables are at the newest revision of this release, or at a newer one.

    A revision that this release does not know belongs to a newer release. Raises `StorageError`.
    """
    return is_head(current_revision(engine))


def is_head(revision: str | None) -> bool:
    """Return True for the newest revision of this release, and for one of a newer release."""
    return revision is not None and revision not in _older_revisions()


def is_of_newer_release(revision: str | None) -> bool:
    """Return True for a revision that this release does not know."""
    return revision is not None and revision not in _revisions()


def _older_revisions() -> tuple[str, ...]:
    return _revisions()[:-1]


@cache
def _revisions() -> tuple[str, ...]:
    """Return the revisions of this release, oldest first."""
    return tuple(sorted(path.stem for path in (_folder() / "versions").glob("[0-9]*.py")))


@contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, TypeError, AttributeError) as error:
        # Drivers raise the last two for wrong options in the URL.
        raise StorageError(
            f"cannot access the database ({describe(error)}): check the server, the URL of the "
            "database and the permissions of the database user, or run flask imcallback doctor"
        ) from error


def make_config(engine: Engine | None = None) -> Config:
    """Return Alembic's configuration.

    It holds an engine, because a URL as text would lose its password or its `%`.
    """
    from alembic.config import Config

    # The default of Alembic is the stream at import time, which may be closed.
    config = Config(stdout=sys.stdout)
    config.set_main_option("script_location", str(_folder()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    if engine is not None:
        config.attributes["engine"] = engine.execution_options(**{WRITES: True})
    return config


def _folder() -> Path:
    """Return the migrations folder: inside an installed package, or beside it in a checkout.

    The function looks for files, because not every kind of editable install can import them.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "migrations", package.parent / "migrations"):
        if (folder / FIRST_REVISION).exists():
            return folder
    raise ConfigError(
        f"the migrations of flask-imcallback are missing: {package} has no migrations folder in it "
        "or beside it. Install the package again"
    )
