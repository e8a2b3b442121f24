"""Find or fetch wrk, and measure with it."""

from __future__ import annotations

import json
import math
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
    """Callbacks over connections that are kept and always busy."""

    connections: int
    pairs: int = 1
    """OpenIM sends one pair in a callback. Callbacks with more pairs are from Tencent."""

    def __str__(self) -> str:
        connections = "1 connection" if self.connections == 1 else f"{self.connections} connections"
        return connections if self.pairs == 1 else f"{connections}, {self.pairs} pairs"


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
    cpu: float = 0
    """Processor time of the app for a request, in milliseconds: user and system."""
    database_cpu: float = 0
    """Processor time of the database server for a request, in milliseconds."""


def measure(port: int, load: Load, seconds: int) -> Measured:
    """Send callbacks for some seconds. The processor times are not measured here."""
    return finish(start(port, load, seconds))


def start(port: int, load: Load, seconds: int) -> subprocess.Popen[str]:
    """Start to send callbacks for some seconds."""
    program, libraries = find_wrk()
    command: list[str] = [program, "-t1", f"-c{load.connections}", f"-d{seconds}s"]
    command += [
        f"--timeout={TIMEOUT_SECONDS}s",
        f"--script={SCRIPT}",
        f"http://127.0.0.1:{port}",
        "--",
    ]
    provider = "openim" if load.pairs == 1 else "tencent"
    command += [provider, SECRET, str(load.pairs), secrets.token_hex(3)]
    env = os.environ | {"LD_LIBRARY_PATH": libraries}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> Measured:
    """Wait for the end, and return what was measured."""
    output, _ = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"wrk failed with status {process.returncode}")
    found = json.loads(output.partition("RESULT ")[2])
    answered = found["requests"] - found["refused"]
    failed = found["refused"] + found["broken"]
    seconds = found["seconds"]
    p50, p99 = (found["p50"], found["p99"]) if answered else (math.nan, math.nan)
    return Measured(answered / seconds, p50, p99, seconds, answered, failed)


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
