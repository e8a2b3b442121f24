"""Start the contenders, and measure them while they run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from http.client import HTTPConnection
from pathlib import Path

from sqlalchemy import URL, NullPool, create_engine, func, select, table

from support import servers
from wrk import APP_ID, SECRET, Load, Measured, finish, start

ROOT = Path(__file__).parents[1]
APPS = Path(__file__).with_name("contenders")
START_SECONDS = 30
QUIET_SECONDS = 0.3
NEGLIGIBLE = 0.02
IDLE_CPU = 20
"""Milliseconds of processor time in `QUIET_SECONDS`."""
PATH = f"/imcallback/openim/{SECRET}/callbackAfterRemoveBlackCommand"
PACKET = {
    "callbackCommand": "callbackAfterRemoveBlackCommand",
    "ownerUserID": "first",
    "blackUserID": "callback",
}


@dataclass(frozen=True)
class Contender:
    what: str
    module: str = "example_app"
    """A module of `contenders/`, or `example_app` for flask-imcallback."""
    removals: str | None = "removal"
    """The table of the removals. None for a contender that stores nothing."""


CONTENDERS = {
    "floor": Contender("a Flask route that reads the packet and stores nothing", "floor", None),
    "ours": Contender("`example_app.py`, the settings that we ship", removals="imcallback_removal"),
    "against": Contender("`example_app.py` of another commit", removals="imcallback_removal"),
    "naive": Contender(
        "Flask-SQLAlchemy's ORM, marshmallow, a commit each, on SQLite WAL and synchronous=FULL",
        "naive",
    ),
    "django": Contender(
        "Django's ORM, bulk_create in one transaction, persistent connections, on SQLite WAL and "
        "synchronous=FULL",
        "django_app",
    ),
}


@dataclass(frozen=True)
class Running:
    """A contender that accepts callbacks."""

    name: str
    url: URL
    port: int
    process: subprocess.Popen[bytes]
    database: subprocess.Popen[bytes] | None
    """The database server. None for SQLite."""

    def stored(self) -> int | None:
        """Return the number of stored removals. None for a contender that stores nothing."""
        removals = CONTENDERS[self.name].removals
        if removals is None:
            return None
        engine = create_engine(self.url, poolclass=NullPool)
        with engine.connect() as connection:
            return connection.scalar(select(func.count()).select_from(table(removals))) or 0

    def measure(self, load: Load, seconds: int) -> Measured:
        """Put a load on the contender, and wait until it has done all of its work.

        Callbacks that are unanswered at the end count too, with the time that they still take.
        Otherwise a contender that needs a second for each callback would seem much slower.
        Exit if the contender answered more callbacks than it stored.
        """
        while True:
            before = self.stored()
            cpu, database_cpu = _cpu(self.process), _cpu(self.database)
            wrk = start(self.port, load, seconds)
            # It is luck whether one worker gets both of two connections. Then it is half as fast.
            if load.connections != 2 or self._is_in_two_workers(wrk):
                break
            wrk.kill()
            wrk.wait()
            self.settle()
        measured = finish(wrk)
        ended = time.monotonic()
        drained = self.settle()
        cpu, database_cpu = _cpu(self.process) - cpu, _cpu(self.database) - database_cpu
        stored = measured.answered
        if before is not None:
            while (stored := ((self.stored() or 0) - before) // load.pairs) < measured.answered:
                # Ours may answer after it wrote to the spool, while the database is too slow.
                drained = time.monotonic() - ended
                if drained > START_SECONDS:
                    raise SystemExit(
                        f"{self.name} answered {measured.answered}, but stored {stored}"
                    )
                time.sleep(QUIET_SECONDS)
        requests = max(stored, 1)
        measured = replace(measured, cpu=cpu / requests, database_cpu=database_cpu / requests)
        if drained < QUIET_SECONDS and stored < measured.answered * (1 + NEGLIGIBLE):
            return measured
        return replace(measured, rate=stored / (measured.seconds + drained))

    def memory(self) -> tuple[float, float]:
        """Return the resident megabytes of the app and of the database server.

        A page that several processes share counts once.
        """
        return _memory(self.process), _memory(self.database)

    def settle(self) -> float:
        """Wait until the contender is idle, and return the seconds that this took."""
        start = last = time.monotonic()
        cpu = _cpu(self.process)
        while (now := time.monotonic()) < last + QUIET_SECONDS:
            # Threads that only look for work now and then are idle.
            if self._connections() or _cpu(self.process) > cpu + IDLE_CPU:
                cpu, last = _cpu(self.process), now
            time.sleep(0.02)
        return last - start

    def _connections(self) -> int:
        """Count the sockets that are established (01) or closed by the client alone (08)."""
        return sum(state in ("01", "08") for state, _ in self._sockets())

    def _is_in_two_workers(self, wrk: subprocess.Popen[str]) -> bool:
        """Wait until both connections are accepted, and return True if two workers have them."""
        while wrk.poll() is None:
            links = {f"socket:[{inode}]" for state, inode in self._sockets() if state == "01"}
            owners = [pid for pid in _family(self.process) for link in _files(pid) if link in links]
            if len(owners) == 2:
                return len(set(owners)) == 2
            time.sleep(0.02)
        return True

    def _sockets(self) -> list[tuple[str, str]]:
        """Return the state and the inode of each socket on the port of the contender."""
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        port = f":{self.port:04X}"
        return [(line[3], line[9]) for line in lines if line[1].endswith(port)]


def _files(pid: int) -> list[str]:
    """Return the targets of the open files of a process."""
    links = []
    for file in Path("/proc").glob(f"{pid}/fd/*"):
        with suppress(OSError):  # the file may have been closed
            links.append(os.readlink(file))
    return links


def _family(process: subprocess.Popen[bytes] | None) -> list[int]:
    return servers.family(process.pid) if process else []


def _cpu(process: subprocess.Popen[bytes] | None) -> float:
    """Return the milliseconds of processor time that the process and its descendants used."""
    ticks = 0
    for pid in _family(process):
        with suppress(OSError):  # the process may have ended
            # user and system of the process, and of its children that have ended
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks * 1000 / os.sysconf("SC_CLK_TCK")


def _memory(process: subprocess.Popen[bytes] | None) -> float:
    kib = 0
    for pid in _family(process):
        with suppress(OSError):  # the process may have ended
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            kib += int(rollup.partition("\nPss:")[2].split()[0])
    return kib * 1024 / 1e6


def create_tables(name: str, url: URL, folder: Path, checkout: Path = ROOT) -> None:
    """Create the tables of a contender, or exit with the reason."""
    module = CONTENDERS[name].module
    command = [sys.executable, "-m", "flask", "--app", module, "imcallback", "upgrade"]
    if module != "example_app":
        command = [sys.executable, str(APPS / f"{module}.py")]
    log = folder / f"{name}.log"
    with log.open("ab") as output:
        env = _environment(name, url, folder, checkout)
        done = subprocess.run(
            command, cwd=checkout, env=env, check=False, stdout=output, stderr=output
        )
    if done.returncode != 0:
        raise SystemExit(f"{name} could not create its tables:\n{_end_of(log)}")


@contextmanager
def serving(
    name: str,
    url: URL,
    folder: Path,
    checkout: Path = ROOT,
    *,
    database: subprocess.Popen[bytes] | None = None,
    preload: Path | None = None,
) -> Iterator[Running]:
    """Create the tables of a contender, and start it with two workers.

    `checkout` has the code of flask-imcallback. `preload` is a library for LD_PRELOAD.
    """
    create_tables(name, url, folder, checkout)
    env = _environment(name, url, folder, checkout)
    if preload:
        env["LD_PRELOAD"] = str(preload)
    port = servers.free_port()
    command = [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py"]
    command += [f"--bind=127.0.0.1:{port}", f"{CONTENDERS[name].module}:app"]
    log = folder / f"{name}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=checkout, env=env, stdout=output, stderr=output, start_new_session=True
        )
    try:
        _wait(process, port, log)
        yield Running(name, url, port, process, database)
    finally:
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _environment(name: str, url: URL, folder: Path, checkout: Path) -> dict[str, str]:
    address = url.render_as_string(hide_password=False)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("FLASK_", "PYTHON"))}
    env |= {"HOME": str(folder), "SECRET": SECRET, "DATABASE_URL": address}
    if CONTENDERS[name].module != "example_app":
        return env | {"PYTHONPATH": str(APPS)}
    return env | {
        "PYTHONPATH": str(checkout),
        "FLASK_SQLALCHEMY_DATABASE_URI": address,
        "FLASK_IMCALLBACK_SECRETS": json.dumps([SECRET]),
        "FLASK_IMCALLBACK_HISTORY_TOKENS": json.dumps([SECRET]),
        "FLASK_IMCALLBACK_TENCENT_APPS": json.dumps({APP_ID: []}),
        # The default file is in the instance folder of the checkout, which a demo may use.
        "FLASK_IMCALLBACK_SPOOL": json.dumps(str(folder / f"{name}-spool.db")),
    }


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
