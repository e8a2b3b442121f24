"""The example app under a real server."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from sqlalchemy import URL, create_engine, select

from support import ROOT
from support.commands import run_flask
from support.servers import ending_with_us, family

SECRET = "a-secret-of-16-characters"
PATH = f"/imcallback/openim/{SECRET}/callbackAfterRemoveBlackCommand"
MAX_BODY = 4096
PACKET = {
    "callbackCommand": "callbackAfterRemoveBlackCommand",
    "ownerUserID": "user123",
    "blackUserID": "user456",
}
BODY = json.dumps(PACKET).encode()


@dataclass
class Running:
    """A running server with its port, its folder and its database."""

    process: subprocess.Popen[bytes]
    port: int
    folder: Path
    url: URL

    def ask(self, method: str, path: str, **arguments: Any) -> tuple[int, Any]:
        """Send a request, and return the status and the JSON body."""
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.request(method, path, **arguments)
            with connection.getresponse() as response:
                return response.status, json.loads(response.read() or "null")

    def rows(self, table: Any, order: Any = None) -> list[Any]:
        """Return all rows of a table, by default in the order of their ids."""
        engine = create_engine(self.url)
        order = table.c.id if order is None else order
        with engine.connect() as connection:
            rows = connection.execute(select(table).order_by(order)).mappings().all()
        engine.dispose()
        return list(rows)

    def log(self) -> str:
        return (self.folder / "log").read_text()

    @property
    def spool(self) -> Path:
        return self.folder / "spool.db"

    @property
    def workers(self) -> list[int]:
        return family(self.process.pid)[1:]

    def kill(self) -> None:
        """Kill all processes of the server at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)

    def waiting(self) -> int:
        """Return how many callbacks are in the spool."""
        _, health = self.ask("GET", "/imcallback/health")
        count: int = health["spool"]["waiting"]
        return count

    def wait_until_drained(self, seconds: float = 30) -> None:
        """Wait until the spool is empty."""
        deadline = time.monotonic() + seconds
        while waiting := self.waiting():
            assert time.monotonic() < deadline, (waiting, self.log())
            time.sleep(0.05)


@contextmanager
def serving(
    folder: Path,
    *options: str,
    app: str = "example_app:app",
    url: URL | None = None,
    upgrade: bool = True,
    wrapper: Sequence[str] = (),
    **variables: str,
) -> Iterator[Running]:
    """Run gunicorn with our settings and `example_app:app` on a free port, and stop it.

    Without `url`, the database is a SQLite file in the folder. `wrapper` is a command that starts
    gunicorn, such as strace. `variables` are environment variables.
    """
    url = url or URL.create("sqlite", database=str(folder / "test.db"))
    env = environment(folder, url) | variables
    if upgrade:
        upgrade_tables(env)
    command = [
        *wrapper,
        sys.executable,
        "-m",
        "gunicorn",
        "-c",
        "python:flask_imcallback.gunicorn",
        app,
    ]
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port, fd = listening.getsockname()[1], listening.fileno()
        process = start(folder, [*command, "--bind", f"fd://{fd}", *options], env, pass_fds=[fd])
    running = Running(process, port, folder, url)
    try:
        assert running.ask("POST", "/imcallback/openim/x", body=b"{}")[0] == 403
        yield running
    finally:
        wait_for_workers(family(process.pid)[len(wrapper) > 0 :])
        process.terminate()
        process.wait(30)


def wait_for_workers(processes: Sequence[int], seconds: float = 3) -> None:
    """Wait until the workers of gunicorn handle signals by themselves. The first one is the master.

    A worker that gets SIGTERM before loses it, and gunicorn waits for this worker.
    """
    deadline = time.monotonic() + seconds
    while not have_ready_workers(processes) and time.monotonic() < deadline:
        time.sleep(0.02)
        processes = family(processes[0]) if processes else []


def have_ready_workers(processes: Sequence[int]) -> bool:
    """Return True if both workers of gunicorn handle signals by themselves."""
    try:
        master, *workers = map(_caught_signals, processes)
    except (ValueError, OSError):  # the server has ended
        return True
    return len(workers) >= 2 and master not in workers


def _caught_signals(pid: int) -> str:
    """Return the signals that a process handles, as the kernel shows them."""
    status = Path(f"/proc/{pid}/status").read_text()
    return status.partition("SigCgt:")[2].split()[0]


def environment(folder: Path, url: URL) -> dict[str, str]:
    """Return environment variables for the example app with this database."""
    return os.environ | {
        "HOME": str(folder),
        "FLASK_SQLALCHEMY_DATABASE_URI": url.render_as_string(hide_password=False),
        "FLASK_IMCALLBACK_SECRETS": json.dumps([SECRET]),
        "FLASK_IMCALLBACK_MAX_BODY": str(MAX_BODY),
        "FLASK_IMCALLBACK_SPOOL": str(folder / "spool.db"),
        # The checkpoint would stay in the instance folder of the example app.
        "FLASK_IMCALLBACK_SEAL_SECONDS": "0",
    }


def upgrade_tables(env: Mapping[str, str]) -> None:
    """Create the tables of the example app."""
    done = run_flask(["--app", "example_app", "db", "upgrade"], ROOT, env)
    assert done.returncode == 0, done.stderr


def start(
    folder: Path,
    command: Sequence[str],
    env: Mapping[str, str],
    *,
    cwd: Path = ROOT,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a server as the leader of a process group. It writes to the file `log`.

    The server stops if the tests are killed.
    """
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [*ending_with_us(signal.SIGTERM), *command],
            cwd=cwd,
            env=env,
            pass_fds=pass_fds,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
