"""Go, with the packages of its checksum database, as an independent verifier of checkpoints."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path

from support.servers import unpacked

PACKAGES = ("golang-go", "golang-golang-x-mod-dev")
"""Packages of Debian and Ubuntu. A download of 81 MB."""


def run_go(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a Go program, and return its output and exit status."""
    remedy = "install golang-go and golang-golang-x-mod-dev"
    cache = unpacked("go", works, packages=PACKAGES, remedy=remedy)
    environment = _environment(cache / "usr") | {"GOCACHE": str(cache / "build")}
    return subprocess.run(
        [_go(cache / "usr"), "run", str(program), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def works(usr: Path) -> bool:
    """Return True if the folder holds a Go that runs."""
    command = [_go(usr), "version"]
    with suppress(OSError):
        return subprocess.run(command, env=_environment(usr), check=False).returncode == 0
    return False


def _go(usr: Path) -> str:
    # The links in usr/bin are absolute.
    return str(max(usr.glob("lib/go-*/bin/go"), default=usr / "missing"))


def _environment(usr: Path) -> dict[str, str]:
    return {
        **{"PATH": os.environ.get("PATH", os.defpath), "HOME": str(usr)},
        **{"GOPATH": str(usr / "share/gocode"), "GO111MODULE": "off"},
    }
