"""The load: wrk, found or fetched, and what it measured."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from support import servers

SECRET = "a-secret-of-16-characters"
APP_ID = "1400000000"
SCRIPT = Path(__file__).with_name("callback.lua")
PATIENCE = 60
"""Seconds; wrk keeps no latencies above it, and its own 2 seconds would flatter slow servers."""


@dataclass(frozen=True)
class Load:
    provider: str
    pairs: int
    connections: int


@dataclass(frozen=True)
class Measured:
    rate: float
    """Requests a second that were answered with 200."""
    p50: float
    p99: float
    """Milliseconds."""
    seconds: float
    answered: int
    failed: int
    """Answered with an error, or not at all."""


def measure(port: int, load: Load, seconds: int) -> Measured:
    """Send callbacks for a while, over connections that are kept, each busy all the time."""
    program, libraries = find_wrk()
    command: list[str] = [program, "-t1", f"-c{load.connections}", f"-d{seconds}s"]
    command += [f"--timeout={PATIENCE}s", f"--script={SCRIPT}", f"http://127.0.0.1:{port}", "--"]
    command += [load.provider, SECRET, str(load.pairs), secrets.token_hex(3)]
    done = subprocess.run(
        command,
        env=os.environ | {"LD_LIBRARY_PATH": libraries},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.partition("RESULT ")[2])
    answered = found["requests"] - found["refused"]
    failed = found["refused"] + found["broken"]
    seconds = found["seconds"]
    return Measured(answered / seconds, found["p50"], found["p99"], seconds, answered, failed)


def find_wrk() -> tuple[str, str]:
    """The program, and where its libraries are: of the system, else of unpacked packages."""
    if program := shutil.which("wrk"):
        return program, os.environ.get("LD_LIBRARY_PATH", "")
    cache = servers.unpacked(
        "wrk",
        lambda usr: (usr / "bin/wrk").exists(),
        packages=["wrk"],
        remedy="install it (https://github.com/wg/wrk)",
    )
    libraries = ":".join(str(path) for path in cache.glob("usr/lib/*-linux-gnu*"))
    return str(cache / "usr/bin/wrk"), libraries
