"""Find or fetch wrk, and measure with it."""

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
TIMEOUT_SECONDS = 60
"""wrk forgets longer latencies. Its own default of 2 seconds would flatter slow servers."""


@dataclass(frozen=True)
class Load:
    provider: str
    pairs: int
    connections: int


@dataclass(frozen=True)
class Measured:
    rate: float
    """Requests answered with 200, per second."""
    p50: float
    """Milliseconds."""
    p99: float
    """Milliseconds."""
    seconds: float
    answered: int
    failed: int
    """Requests that got an error or no answer."""


def measure(port: int, load: Load, seconds: int) -> Measured:
    """Send callbacks for some seconds, over connections that are kept and always busy."""
    program, libraries = find_wrk()
    command: list[str] = [program, "-t1", f"-c{load.connections}", f"-d{seconds}s"]
    command += [
        f"--timeout={TIMEOUT_SECONDS}s",
        f"--script={SCRIPT}",
        f"http://127.0.0.1:{port}",
        "--",
    ]
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
    """Return the program and its library path, from the system or from unpacked packages."""
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
