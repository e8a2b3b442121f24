"""Chunked bodies under a real uWSGI, which has a function of its own for them."""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path

import pytest
from sqlalchemy import URL

from flask_imcallback.storage.tables import delivery
from support.serving import BODY, MAX_BODY, PATH, Running
from support.wsgi_servers import WSGI_SERVERS, running

pytestmark = pytest.mark.slow

HEAD = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
NAMES = ("uwsgi-threads-http11", "uwsgi-gevent-patched")


@pytest.fixture(scope="module", params=NAMES)
def host(
    request: pytest.FixtureRequest, migrated_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """The host app under uWSGI, started in each way that hands over chunks."""
    (server,) = (server for server in WSGI_SERVERS if server.name == request.param)
    folder = tmp_path_factory.mktemp("uwsgi")
    file = shutil.copy(migrated_file, folder / "test.db")
    with running(server, folder, URL.create("sqlite", database=str(file))) as host:
        yield host


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(content), content)


def exchange(host: Running, *parts: bytes, closes: bool = False) -> tuple[int, object]:
    """Send the parts in separate packets, and return the status and the answer."""
    with socket.create_connection(("127.0.0.1", host.port), timeout=30) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(0.02)
        if closes:
            connection.shutdown(socket.SHUT_WR)
        response = HTTPResponse(connection, method="POST")
        response.begin()
        return response.status, json.loads(response.read())


def test_a_body_at_the_maximum_is_stored(host: Running) -> None:
    """All chunks are stored, whatever their size and whenever they arrive."""
    body = BODY + b" " * (MAX_BODY - len(BODY))
    status, _ = exchange(
        host,
        HEAD,
        chunk(body[:1]),
        chunk(body[1:2000])[:500],
        chunk(body[1:2000])[500:],
        chunk(body[2000:]),
        b"0\r\n\r\n",
    )
    assert status == 200
    assert host.rows(delivery)[-1]["body"] == body


def test_a_body_above_the_maximum_is_refused(host: Running) -> None:
    """The answer is 413, and the next callback on another connection is stored."""
    count = len(host.rows(delivery))
    status, _ = exchange(host, HEAD, chunk(b" " * MAX_BODY), chunk(BODY), b"0\r\n\r\n")
    assert status == 413
    assert len(host.rows(delivery)) == count
    assert host.ask("POST", PATH, body=BODY)[0] == 200


def test_a_body_that_is_cut_off_is_unreadable(host: Running) -> None:
    """The delivery has the chunks that arrived."""
    status, _ = exchange(host, HEAD, chunk(BODY[:10]), closes=True)
    assert status == 400
    row = host.rows(delivery)[-1]
    assert (row["status"], row["body"]) == ("unreadable", BODY[:10])
    assert row["error"] == "the body was cut off: a chunk is missing"
