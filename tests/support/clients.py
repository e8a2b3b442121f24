"""Client programs of databases, for the commands that the documentation shows."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

from support import servers

PACKAGED = ("sqlite3", "mariadb", "mariadb-dump")
REMEDY = (
    "install sqlite3 and the MariaDB client (on Debian: apt-get install sqlite3 mariadb-client)"
)


def add_program(folder: Path, name: str, *options: str) -> None:
    """Write a script into the folder that runs the program with these options first."""
    script = folder / name
    script.write_text(f'#!/bin/sh\nexec {shlex.join([*find(name), *options])} "$@"\n')
    script.chmod(0o755)


def add_postgresql_programs(folder: Path, server: servers.Server, *names: str) -> None:
    """Write scripts that run PostgreSQL's programs, of the version of the server."""
    for name in names:
        beside = Path(server.node.command[0]).with_name(name) if server.node else shutil.which(name)
        if not beside:
            raise servers.ServerError(f"{name} is missing: install the PostgreSQL client")
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(str(beside))} "$@"\n')
        script.chmod(0o755)


def find(name: str) -> list[str]:
    """Return the start of a command that runs the program, of the system or of Debian packages."""
    if found := shutil.which(name):
        return [found]
    cache = servers.unpacked(
        "clients",
        lambda usr: all((usr / "bin" / program).exists() for program in PACKAGED),
        packages=["sqlite3", "mariadb-client-core"],
        alone=["mariadb-client"],  # has mariadb-dump, and needs many unrelated packages
        remedy=REMEDY,
    )
    libraries = ":".join(str(path) for path in cache.glob("usr/lib/*-linux-gnu*"))
    return ["env", f"LD_LIBRARY_PATH={libraries}", str(cache / "usr/bin" / name)]
