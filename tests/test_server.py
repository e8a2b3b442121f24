"""Over real sockets: the example app under gunicorn, with the settings that we ship."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from servers import family
from sqlalchemy import URL, create_engine, select

from flask_imcallback.storage.tables import delivery, removal

ROOT = Path(__file__).parents[1]
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
    process: subprocess.Popen[bytes]
    port: int
    folder: Path
    url: URL

    def ask(self, method: str, path: str, **arguments: Any) -> tuple[int, Any]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, **arguments)
        response = connection.getresponse()
        answer = response.status, json.loads(response.read() or "null")
        connection.close()
        return answer

    def rows(self, table: Any) -> list[Any]:
        engine = create_engine(self.url)
        with engine.connect() as connection:
            found = connection.execute(select(table).order_by(table.c.id)).mappings().all()
        engine.dispose()
        return list(found)

    def log(self) -> str:
        return (self.folder / "log").read_text()

    @property
    def spool(self) -> Path:
        return self.folder / "spool.db"

    @property
    def workers(self) -> list[int]:
        return family(self.process.pid)[1:]

    def kill(self) -> None:
        """End all its processes at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)

    def waiting(self) -> int:
        """How many callbacks are in the spool."""
        _, health = self.ask("GET", "/imcallback/health")
        count: int = health["spool"]["waiting"]
        return count

    def wait_until_drained(self, seconds: float = 30) -> None:
        """Until nothing waits in the spool."""
        deadline = time.monotonic() + seconds
        while waiting := self.waiting():
            assert time.monotonic() < deadline, (waiting, self.log())
            time.sleep(0.05)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    """The example app under gunicorn."""
    with serving(tmp_path) as running:
        yield running


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
    """`gunicorn -c gunicorn.conf.py example_app:app`, on a port of its own choice.

    The database is a SQLite file in the folder unless told otherwise. `wrapper` is the start of a
    command that runs gunicorn, `variables` are those of its environment.
    """
    url = url or URL.create("sqlite", database=str(folder / "test.db"))
    env = os.environ | {
        "HOME": str(folder),
        "FLASK_SQLALCHEMY_DATABASE_URI": url.render_as_string(hide_password=False),
        "FLASK_IMCALLBACK_SECRETS": json.dumps([SECRET]),
        "FLASK_IMCALLBACK_MAX_BODY": str(MAX_BODY),
        "FLASK_IMCALLBACK_SPOOL": str(folder / "spool.db"),
    }
    env |= variables
    if upgrade:
        command = [sys.executable, "-m", "flask", "--app", "example_app", "db", "upgrade"]
        subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True)
    command = [*wrapper, sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py"]
    with (folder / "log").open("ab") as log:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port, fd = listening.getsockname()[1], listening.fileno()
            process = subprocess.Popen(
                [*command, app, "--bind", f"fd://{fd}", *options],
                cwd=ROOT,
                env=env,
                pass_fds=[fd],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        running = Running(process, port, folder, url)
        try:
            assert running.ask("POST", "/imcallback/openim/x", body=b"{}")[0] == 403
            yield running
        finally:
            process.terminate()
            process.wait(30)


def exchange(port: int, sent: bytes) -> bytes:
    """Send raw bytes, say that no more will come, and read all that is answered."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return answer


def head(path: str, *lines: str) -> bytes:
    return "\r\n".join(
        [f"POST {path} HTTP/1.1", "Host: x", "Connection: close", *lines, "", ""]
    ).encode()


def chunked(body: bytes, size: int) -> bytes:
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def test_bodies_on_the_wire(server: Running) -> None:
    """Cut off, chunked, at the limit and above it: answered at once, and kept as they came."""
    full = BODY + b" " * (MAX_BODY - len(BODY))
    for name, sent, status, kept in (
        ("cut off", head(PATH, "Content-Length: 500") + BODY, b"400", BODY),
        ("none at all", head(PATH, "Content-Length: 500"), b"400", b""),
        ("no length", head(PATH), b"400", b""),
        ("chunked", head(PATH, "Transfer-Encoding: chunked") + chunked(BODY, 7), b"200", BODY),
        ("at the limit", head(PATH, f"Content-Length: {MAX_BODY}") + full, b"200", full),
        (
            "chunked, at it",
            head(PATH, "Transfer-Encoding: chunked") + chunked(full, 999),
            b"200",
            full,
        ),
        ("above", head(PATH, f"Content-Length: {MAX_BODY + 1}") + full + b" ", b"413", None),
        (
            "chunked, above",
            head(PATH, "Transfer-Encoding: chunked") + chunked(full + b" ", 999),
            b"413",
            None,
        ),
        (
            "chunks cut off",
            head(PATH, "Transfer-Encoding: chunked") + chunked(BODY, 7)[:60],
            b"400",
            None,
        ),
    ):
        before = len(server.rows(delivery))
        answer = exchange(server.port, sent)
        assert answer.split(b" ")[1] == status, name
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["nextCode"] == 0, name
        new = server.rows(delivery)[before:]
        if kept is not None:
            assert [row["body"] for row in new] == [kept], name
            assert new[0]["status"] == ("recorded" if status == b"200" else "unreadable"), name
        elif status == b"413":
            assert new == [], name
        else:
            assert new[0]["status"] == "unreadable", name
    assert len(server.rows(removal)) == 3
    assert SECRET not in server.log()


@pytest.mark.parametrize(
    "path",
    [
        f"/imcallback/openim/{SECRET}//callbackAfterRemoveBlackCommand",
        f"/imcallback/openim//{SECRET}//callbackAfterRemoveBlackCommand//",
        f"//imcallback//openim/{SECRET}/callbackAfterRemoveBlackCommand/",
        f"/imcallback/openim/{SECRET}?command=callbackAfterRemoveBlackCommand",
        f"/imcallback/openim/{SECRET}/",
        f"/imcallback/openim/{SECRET.replace('a', '%61')}/callbackAfterRemoveBlackCommand",
    ],
)
def test_no_way_to_write_the_address_is_redirected(server: Running, path: str) -> None:
    """A redirect would lose OpenIM's event."""
    assert server.ask("POST", path, body=BODY)[0] == 200
    assert len(server.rows(removal)) == 1


def test_an_idle_connection_is_kept(server: Running) -> None:
    """Longer than gunicorn's own default of two seconds, at which OpenIM's events are lost."""
    connection = HTTPConnection("127.0.0.1", server.port, timeout=30)
    for _ in range(2):
        connection.request("POST", PATH, body=BODY)
        assert connection.getresponse().read()
        sock = connection.sock
        time.sleep(4)
    assert connection.sock is sock
    connection.close()
    assert len(server.rows(removal)) == 2


def test_what_is_answered_survives_a_kill(server: Running) -> None:
    """All processes are killed right after the answer."""
    assert server.ask("POST", PATH, body=BODY)[0] == 200
    server.kill()
    assert len(server.rows(removal)) == 1


def test_many_at_once(server: Running) -> None:
    """Two workers on one SQLite file take 200 callbacks of 8 clients, and lose none."""

    def send(number: int) -> int:
        packet = json.dumps({**PACKET, "blackUserID": f"user{number}"})
        return server.ask("POST", PATH, body=packet)[0]

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(send, range(200))) == {200}
    targets = {row["target_id"] for row in server.rows(removal)}
    assert targets == {f"user{number}" for number in range(200)}
