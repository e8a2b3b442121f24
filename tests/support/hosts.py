"""Folders with an app of a host, and the commands that run in them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from sqlalchemy import NullPool, create_engine, inspect, text

from flask_imcallback.storage import metadata
from support import ROOT
from support.commands import run_flask

HOSTS = ROOT / "tests/hosts"
HEAD = "0002_append_only"
OUR_TABLES = {*metadata.tables, "alembic_version_imcallback"}
HOST_TABLES = {"thing", "alembic_version"}


@dataclass(frozen=True)
class Result:
    """The result of a command."""

    status: int
    out: str
    err: str


def checked(done: subprocess.CompletedProcess[str], status: int) -> Result:
    """Return the result of a command, and check its exit status."""
    assert done.returncode == status, done.stdout + done.stderr
    return Result(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class Site:
    """A folder with an app, and the environment variables of its commands."""

    folder: Path
    app: str
    settings: dict[str, str] = field(default_factory=dict)

    def flask(self, *arguments: str, cwd: Path | None = None, status: int = 0) -> Result:
        """Run `flask` with arguments, and check the exit status."""
        done = run_flask(["--app", self.app, *arguments], cwd or self.folder, self.environment())
        return checked(done, status)

    def python(self, *arguments: str, cwd: Path | None = None, status: int = 0) -> Result:
        """Run Python with arguments, and check the exit status."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=cwd or self.folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        return checked(done, status)

    def environment(self) -> dict[str, str]:
        """Return the environment variables of the commands."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("FLASK_", "HOST_"))}
        provider = {"FLASK_IMCALLBACK_SECRETS": '["a-secret-path-segment"]'}
        return {**inherited, **provider, "PYTHONDONTWRITEBYTECODE": "1", **self.settings}

    def configured(self, **settings: str) -> Site:
        """Return the site with more environment variables."""
        return replace(self, settings={**self.settings, **settings})

    def files(self) -> set[str]:
        paths = (path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)) for path in paths}

    def url(self, database: str) -> str:
        return f"sqlite:///{self.folder}/instance/{database}"

    def tables(self, database: str) -> set[str]:
        engine = create_engine(self.url(database), poolclass=NullPool)
        return set(inspect(engine).get_table_names())

    def query(self, database: str, sql: str) -> list[str]:
        with create_engine(self.url(database), poolclass=NullPool).connect() as connection:
            return list(connection.scalars(text(sql)))

    def revisions(self) -> dict[str, str]:
        paths = (self.folder / "migrations/versions").glob("*.py")
        return {path.name: path.read_text("utf-8") for path in paths}
