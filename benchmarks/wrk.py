"""The load: wrk, found or fetched, and what it measured."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import secrets
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

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
    cache = _cache()
    libraries = ":".join(str(path) for path in cache.glob("usr/lib/*-linux-gnu*"))
    return str(cache / "usr/bin/wrk"), libraries


def _cache() -> Path:
    """The folder with Debian's packages of wrk, beside that of the tests' MariaDB."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    system = platform.freedesktop_os_release()
    release = f"{system['ID']}{system.get('VERSION_ID', '')}-{platform.machine()}"
    cache = home / "flask-imcallback-tests" / f"wrk-{release}"
    cache.parent.mkdir(parents=True, exist_ok=True)
    with (cache.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not cache.exists():
            if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
                raise SystemExit("wrk is missing: install it (https://github.com/wg/wrk)")
            with tempfile.TemporaryDirectory(dir=cache.parent) as work:
                _unpack(Path(work)).rename(cache)
    return cache


def _unpack(work: Path) -> Path:
    """Download the packages with a state of apt of our own, which needs no root."""
    archives = work / "cache/archives"
    for folder in (work / "lists/partial", archives / "partial"):
        folder.mkdir(parents=True)
    (work / "apt.conf").write_text(
        f'Dir::State "{work}"; Dir::Cache "{work}/cache";\n'
        'Debug::NoLocking "true"; APT::Sandbox::User "root";\n'
        "#clear APT::Update::Post-Invoke;\n#clear APT::Update::Post-Invoke-Success;\n"
    )
    apt = ["apt-get", "-qq", "-c", str(work / "apt.conf")]
    subprocess.run([*apt, "update"], check=True, capture_output=True)
    install = [*apt, "install", "--download-only", "--reinstall", "--no-install-recommends", "wrk"]
    subprocess.run(install, check=True, capture_output=True)
    for package in archives.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(package), str(work / "root")], check=True)
    return work / "root"
