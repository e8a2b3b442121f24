"""Over real sockets: the example app under gunicorn, with the settings that we ship."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import pytest

from flask_imcallback.storage.tables import delivery, removal
from support.serving import BODY, MAX_BODY, PACKET, PATH, SECRET, Running, serving


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    """The example app under gunicorn."""
    with serving(tmp_path) as running:
        yield running


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
