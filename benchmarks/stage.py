"""Start a database server, on a quick or a slow disk, and contenders that use it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import sqlite_version

from sqlalchemy import URL

from serving import ROOT, Running, serving
from support import servers

DATABASES = {"sqlite": "SQLite", "postgresql": "PostgreSQL", "mariadb": "MariaDB"}
SLOW_SYNC = Path(__file__).with_name("slow_sync.c")
SLOW_SYNC_MS = 3.0


@dataclass(frozen=True)
class Stage:
    """A database server on which contenders start, each with an empty database."""

    folder: Path
    version: str
    node: servers.Node | None
    """None for SQLite."""
    preload: Path | None
    """The library that makes the disk slow, or None."""

    @contextmanager
    def database(self) -> Iterator[URL]:
        """Create an empty database, and drop it at the end."""
        if self.node:
            with servers.database(self.node) as url:
                yield url
        else:
            with tempfile.TemporaryDirectory(dir=self.folder) as folder:
                yield URL.create("sqlite", database=f"{folder}/imcallback.db")

    @contextmanager
    def serve(self, name: str, url: URL, checkout: Path = ROOT) -> Iterator[Running]:
        """Start a contender on a database. `checkout` has the code of flask-imcallback."""
        process = self.node.process if self.node else None
        with (
            tempfile.TemporaryDirectory(dir=self.folder) as folder,
            serving(
                name, url, Path(folder), checkout, database=process, preload=self.preload
            ) as running,
        ):
            yield running

    def commit_ms(self, url: URL) -> float:
        """Return the p50 of a bare durable commit. The database needs a callback."""
        command = [sys.executable, str(Path(__file__).with_name("commit.py"))]
        command.append(url.render_as_string(hide_password=False))
        env = {"LD_PRELOAD": str(self.preload)} if self.preload else None
        found = float(subprocess.check_output(command, env=env, text=True))
        if self.preload and found < SLOW_SYNC_MS:
            sys.exit(f"a commit takes {found:.2f} ms, so slow_sync.c has no effect on this system")
        return found


@contextmanager
def stage(database: str, *, is_slow: bool = False) -> Iterator[Stage]:
    """Start a private and durable server, or none for SQLite."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="imcallback-")))
        # The user of the servers cannot read the other folder.
        server_folder = stack.enter_context(servers.private_folder())
        preload = _compile(server_folder) if is_slow else None
        if database == "sqlite":
            yield Stage(folder, f"SQLite {sqlite_version}", None, preload)
            return
        is_mariadb = database == "mariadb"
        make_node = servers.mariadb_node if is_mariadb else servers.postgresql_node
        node = make_node(server_folder)
        if preload:
            node.wrapper = ["env", f"LD_PRELOAD={preload}"]
        version, node = stack.enter_context(servers.running(node))
        version = version.partition(" on ")[0]
        yield Stage(folder, f"MariaDB {version}" if is_mariadb else version, node, preload)


def can_slow_down() -> bool:
    """Return True if this system can make a disk slow."""
    return sys.platform == "linux" and shutil.which("cc") is not None


def _compile(folder: Path) -> Path:
    library = folder / "slow_sync.so"
    command = ["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(SLOW_SYNC), "-ldl"]
    subprocess.run(command, check=True)
    return library
