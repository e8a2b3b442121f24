"""Start the contenders, and measure them while they run."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from http.client import HTTPConnection
from pathlib import Path

from sqlalchemy import URL, NullPool, create_engine, func, select, table

from wrk import APP_ID, SECRET, Load, Measured, measure

ROOT = Path(__file__).parents[1]
APPS = Path(__file__).with_name("contenders")
START_SECONDS = 30
QUIET_SECONDS = 0.3
NEGLIGIBLE = 0.02
PATH = f"/imcallback/openim/{SECRET}/callbackAfterRemoveBlackCommand"
PACKET = {
    "callbackCommand": "callbackAfterRemoveBlackCommand",
    "ownerUserID": "first",
    "blackUserID": "callback",
}


@dataclass(frozen=True)
class Contender:
    what: str
    module: str
    """A module of `contenders/`, or `example_app` for ours."""
    removals: str | None = "removal"
    """The table of the removals. None for a contender that stores nothing."""
    server: str = "gunicorn"
    env: tuple[tuple[str, str], ...] = ()


OURS = Contender("`example_app.py`, the settings that we ship", "example_app", "imcallback_removal")
CONTENDERS = {
    "floor": Contender("a Flask route that reads the packet and stores nothing", "floor", None),
    "ours": OURS,
    "naive": Contender(
        "Flask-SQLAlchemy's ORM, marshmallow, a commit each, on SQLite WAL and synchronous=FULL",
        "naive",
        env=(("SQLITE_WAL_FULL", "1"),),
    ),
    "naive-default": Contender("the same as naive, SQLite with its default settings", "naive"),
    "django": Contender(
        "Django's ORM, bulk_create in one transaction, persistent connections", "django_app"
    ),
    "fastapi": Contender(
        "FastAPI under uvicorn, pydantic, a session of SQLAlchemy's ORM each",
        "fastapi_app",
        server="uvicorn",
    ),
}
ON = {
    "sqlite": ["floor", "ours", "naive", "naive-default", "django", "fastapi"],
    "postgresql": ["floor", "ours", "naive", "django", "fastapi"],
    "mariadb": ["floor", "ours", "naive"],
}
"""The contenders on each database."""


@dataclass(frozen=True)
class Running:
    name: str
    contender: Contender
    url: URL
    port: int
    process: subprocess.Popen[bytes]

    def stored(self) -> int | None:
        """Return the number of stored removals. None for a contender that stores nothing."""
        if self.contender.removals is None:
            return None
        engine = create_engine(self.url, poolclass=NullPool)
        with engine.connect() as connection:
            count = select(func.count()).select_from(table(self.contender.removals))
            return connection.scalar(count) or 0

    def measure(self, load: Load, seconds: int) -> Measured:
        """Put a load on the contender, and wait until it has done all of its work.

        Callbacks that are unanswered at the end count too, with the time that they still take.
        Otherwise a contender that needs a second for each callback would seem much slower.
        Exit if the contender answered more callbacks than it stored.
        """
        before = self.stored()
        measured = measure(self.port, load, seconds)
        start = time.monotonic()
        drained = self._settle()
        if before is None:
            return measured
        while (stored := ((self.stored() or 0) - before) // load.pairs) < measured.answered:
            # Ours may answer after it wrote to the spool, while the database is too slow.
            drained = time.monotonic() - start
            if drained > START_SECONDS:
                raise SystemExit(f"{self.name} answered {measured.answered}, but stored {stored}")
            time.sleep(QUIET_SECONDS)
        if drained < QUIET_SECONDS and stored < measured.answered * (1 + NEGLIGIBLE):
            return measured
        return replace(measured, rate=stored / (measured.seconds + drained))

    def _settle(self) -> float:
        """Wait until the contender is idle, and return the seconds that this took."""
        start = last = time.monotonic()
        before = None
        while (now := time.monotonic()) < last + QUIET_SECONDS:
            state = (self._ticks(), self._connections())
            if state != before or state[1]:
                before, last = state, now
            time.sleep(0.02)
        return last - start

    def workers(self) -> list[int]:
        """Return the ids of the server's processes. All are in the group of the first one."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                group = int(stat.read_text().rpartition(")")[2].split()[2])
            except (FileNotFoundError, ProcessLookupError):
                continue
            if group == self.process.pid:
                found.append(int(stat.parent.name))
        return found

    def memory(self) -> float:
        """Return the resident megabytes of all processes. Shared pages count for each process."""
        pages = sum(
            int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.workers()
        )
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def _ticks(self) -> int:
        """Return the processor time used so far, in hundredths of a second."""
        stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2] for pid in self.workers()]
        return sum(int(n) for stat in stats for n in stat.split()[11:13])

    def _connections(self) -> int:
        """Count the sockets that are established (01) or closed by the client alone (08)."""
        lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
        sockets = [(line.split()[1], line.split()[3]) for line in lines]
        port = f":{self.port:04X}"
        return sum(address.endswith(port) and state in ("01", "08") for address, state in sockets)


@contextmanager
def serving(name: str, url: URL, folder: Path, checkout: Path = ROOT) -> Iterator[Running]:
    """Start a contender with two workers on an empty database. `checkout` has our code."""
    contender = CONTENDERS[name]
    folder.mkdir(exist_ok=True)
    address = url.render_as_string(hide_password=False)
    is_ours = contender is OURS
    env = {k: v for k, v in os.environ.items() if not k.startswith(("FLASK_", "PYTHON"))}
    env |= {"HOME": str(folder), "SECRET": SECRET, "DATABASE_URL": address, **dict(contender.env)}
    env["PYTHONPATH"] = str(checkout if is_ours else APPS)
    if is_ours:
        env["FLASK_SQLALCHEMY_DATABASE_URI"] = address
        env["FLASK_IMCALLBACK_SECRETS"] = env["FLASK_IMCALLBACK_HISTORY_TOKENS"] = json.dumps(
            [SECRET]
        )
        env["FLASK_IMCALLBACK_TENCENT_APPS"] = json.dumps({APP_ID: []})
    python: list[str | Path] = [sys.executable, "-m"]
    create = [*python, "flask", "--app", "example_app", "imcallback", "upgrade"]
    if not is_ours:
        create = [sys.executable, APPS / f"{contender.module}.py"]
    port = _free_port()
    command = [*python, "gunicorn", "-c", "gunicorn.conf.py", f"--bind=127.0.0.1:{port}"]
    if contender.server == "uvicorn":
        command = [*python, "uvicorn", "--workers=2", "--timeout-keep-alive=75", f"--port={port}"]
        command += ["--no-access-log"]
    command.append(f"{contender.module}:app")
    with (folder / f"{name}.log").open("ab") as log:
        created = subprocess.run(create, cwd=checkout, env=env, check=False, stdout=log, stderr=log)
        if created.returncode != 0:
            raise SystemExit(
                f"{name} could not create its tables:\n{_end_of(folder / f'{name}.log')}"
            )
        process = subprocess.Popen(
            command, cwd=checkout, env=env, stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait(process, port, folder / f"{name}.log")
        yield Running(name, contender, url, port, process)
    finally:
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _free_port() -> int:
    """Return a free port below the ports of outgoing connections."""
    while True:
        port = random.randrange(15000, 32768)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait until the contender answers a first callback, or exit with its log."""
    deadline = time.monotonic() + START_SECONDS
    body = json.dumps(PACKET).encode()
    status = None
    while process.poll() is None and time.monotonic() < deadline:
        connection = HTTPConnection("127.0.0.1", port, timeout=START_SECONDS)
        try:
            connection.request("POST", PATH, body, {"Content-Type": "application/json"})
            if (status := connection.getresponse().status) == 200:
                return
        except OSError:
            time.sleep(0.05)
        finally:
            connection.close()
        if status is not None:
            break
    raise SystemExit(f"{log.stem} did not accept a callback (HTTP {status}):\n{_end_of(log)}")


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:]
