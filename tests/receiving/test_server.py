"""The example app under gunicorn with the shipped settings, over real sockets."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from flask_imcallback.storage.tables import delivery, removal
from support.apps import delete_deliveries
from support.serving import BODY, MAX_BODY, PACKET, PATH, SECRET, Running, serving

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The example app under gunicorn, for all tests that do not stop it."""
    with serving(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def server(shared_server: Running) -> Running:
    """The running example app with empty tables."""
    engine = create_engine(shared_server.url)
    with engine.begin() as connection:
        delete_deliveries(connection)
    engine.dispose()
    return shared_server


def exchange(port: int, sent: bytes) -> bytes:
    """Send raw bytes, close the sending side, and return the whole response."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return answer


def request_head(path: str, *lines: str) -> bytes:
    """Return the request line and the headers of a POST."""
    return "\r\n".join(
        [f"POST {path} HTTP/1.1", "Host: x", "Connection: close", *lines, "", ""]
    ).encode()


def chunked(body: bytes, size: int) -> bytes:
    """Encode a body in chunks of this size."""
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


FULL_BODY = BODY + b" " * (MAX_BODY - len(BODY))
CHUNKED = request_head(PATH, "Transfer-Encoding: chunked")
CUT_OFF = request_head(PATH, "Content-Length: 500")
STORED_BODIES = [
    pytest.param(CUT_OFF + BODY, b"400", BODY, id="cut off"),
    pytest.param(CUT_OFF, b"400", b"", id="empty"),
    pytest.param(request_head(PATH), b"400", b"", id="no length"),
    pytest.param(CHUNKED + chunked(BODY, 7), b"200", BODY, id="chunked"),
    pytest.param(
        request_head(PATH, f"Content-Length: {MAX_BODY}") + FULL_BODY,
        *(b"200", FULL_BODY),
        id="maximum size",
    ),
    pytest.param(CHUNKED + chunked(FULL_BODY, 999), b"200", FULL_BODY, id="chunked, maximum size"),
]


@pytest.mark.parametrize(("request_bytes", "status", "body"), STORED_BODIES)
def test_the_received_bytes_are_stored(
    server: Running, request_bytes: bytes, status: bytes, body: bytes
) -> None:
    """Every body is answered at once and stored as it arrived, also one that is cut off."""
    answer = exchange(server.port, request_bytes)
    assert answer.split(b" ")[1] == status
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["nextCode"] == 0
    (row,) = server.rows(delivery)
    assert row["body"] == body
    assert row["status"] == ("recorded" if status == b"200" else "unreadable")
    assert len(server.rows(removal)) == (1 if status == b"200" else 0)
    assert SECRET not in server.log()


def test_chunks_that_are_cut_off_are_unreadable(server: Running) -> None:
    """The delivery is stored with the bytes that arrived."""
    answer = exchange(server.port, CHUNKED + chunked(BODY, 7)[:60])
    assert answer.split(b" ")[1] == b"400"
    assert [row["status"] for row in server.rows(delivery)] == ["unreadable"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        request_head(PATH, f"Content-Length: {MAX_BODY + 1}") + FULL_BODY + b" ",
        CHUNKED + chunked(FULL_BODY + b" ", 999),
    ],
    ids=["with length", "chunked"],
)
def test_a_body_above_the_maximum_is_refused(server: Running, request_bytes: bytes) -> None:
    """The answer is 413, and nothing is stored."""
    answer = exchange(server.port, request_bytes)
    assert answer.split(b" ")[1] == b"413"
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["nextCode"] == 0
    assert server.rows(delivery) == []


def test_a_client_that_reads_after_it_has_sent_all_gets_its_answer(tmp_path: Path) -> None:
    """The server reads on, although the body is too large. A closed connection hides the answer."""
    maximum = 4_000_000
    body = BODY + b" " * (2 * maximum - len(BODY))
    with serving(tmp_path, FLASK_IMCALLBACK_MAX_BODY=str(maximum)) as running:
        for _ in range(3):
            assert running.ask("POST", PATH, body=body)[0] == 413
        assert running.rows(delivery) == []


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
def test_no_spelling_of_the_url_is_redirected(server: Running, path: str) -> None:
    """OpenIM loses an event after a redirect."""
    assert server.ask("POST", path, body=BODY)[0] == 200
    assert len(server.rows(removal)) == 1


def test_an_idle_connection_is_kept(server: Running) -> None:
    """gunicorn's own default of two seconds would lose events of OpenIM."""
    connection = HTTPConnection("127.0.0.1", server.port, timeout=30)
    for _ in range(2):
        connection.request("POST", PATH, body=BODY)
        assert connection.getresponse().read()
        sock = connection.sock
        time.sleep(4)
    assert connection.sock is sock
    connection.close()
    assert len(server.rows(removal)) == 2


def test_an_answered_callback_survives_a_kill(tmp_path: Path) -> None:
    """All processes are killed right after the answer, and the removal is in the database."""
    with serving(tmp_path) as running:
        assert running.ask("POST", PATH, body=BODY)[0] == 200
        running.kill()
        assert len(running.rows(removal)) == 1


def test_concurrent_callbacks_are_all_stored(server: Running) -> None:
    """Two workers on one SQLite file store 200 callbacks of 8 clients."""

    def send(number: int) -> int:
        packet = json.dumps({**PACKET, "blackUserID": f"user{number}"})
        return server.ask("POST", PATH, body=packet)[0]

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(send, range(200))) == {200}
    targets = {row["target_id"] for row in server.rows(removal)}
    assert targets == {f"user{number}" for number in range(200)}
