"""Bodies in chunks from WSGI servers of other kinds."""

from __future__ import annotations

import json
import logging
from io import BytesIO, RawIOBase
from tempfile import SpooledTemporaryFile
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import EnvironBuilder, run_wsgi_app

from support.apps import MakeApp, rows
from support.callbacks import BODY

URL = "/imcallback/openim/callbackAfterRemoveBlackCommand"
PROBLEM = "this server does not hand over chunked bodies: let the proxy send a Content-Length"


class Socket(RawIOBase):
    """A stream that would wait for more data without end."""

    def read(self, size: int = -1) -> bytes:
        raise AssertionError("nobody may read a stream that does not end")


def post_in_chunks(app: Flask, stream: Any, **environ: Any) -> str:
    """Send a callback as a server does that knows no length. Return the status line."""
    builder = EnvironBuilder(URL, method="POST", headers=[("Transfer-Encoding", "chunked")])
    request = builder.get_environ()
    del request["wsgi.input"]
    request.pop("CONTENT_LENGTH", None)
    _, status, _ = run_wsgi_app(app, request | {"wsgi.input": stream} | environ)
    return status


def test_a_lost_body_is_named_in_answer_row_and_log(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """A server without chunked bodies hands over nothing. The error tells the remedy."""
    app = make_app(IMCALLBACK_ALLOW_UNAUTHENTICATED=True)
    with caplog.at_level(logging.ERROR):
        status = post_in_chunks(app, Socket())
    assert status.startswith("400 ")
    (delivery,), _ = rows(app)
    assert (delivery["status"], delivery["body"], delivery["error"]) == ("unreadable", b"", PROBLEM)
    assert [record.getMessage() for record in caplog.records] == [
        f"The body of a callback is lost, because {PROBLEM}"
    ]


@pytest.mark.parametrize("kind", [BytesIO, SpooledTemporaryFile])
def test_a_body_that_the_server_has_collected_is_read(make_app: MakeApp, kind: Any) -> None:
    """Some servers collect the chunks in memory or in a file, without telling the length."""
    app = make_app(IMCALLBACK_ALLOW_UNAUTHENTICATED=True)
    with kind() as stream:
        stream.write(json.dumps(BODY).encode())
        stream.seek(0)
        assert post_in_chunks(app, stream) == "200 OK"
    assert len(rows(app)[1]) == 1


def test_a_stream_with_an_end_is_read(make_app: MakeApp) -> None:
    """The flag `wsgi.input_terminated` says that the stream ends with the body."""
    app = make_app(IMCALLBACK_ALLOW_UNAUTHENTICATED=True)

    class Ending(Socket):
        body = BytesIO(json.dumps(BODY).encode())

        def read(self, size: int = -1) -> bytes:
            return self.body.read(size)

    flag = {"wsgi.input_terminated": True}
    assert post_in_chunks(app, Ending(), **flag) == "200 OK"
    assert len(rows(app)[1]) == 1


def test_a_body_that_never_arrives_is_unreadable(make_app: MakeApp) -> None:
    """The stream of some servers simply ends. The delivery is stored with the reason."""
    app = make_app(IMCALLBACK_ALLOW_UNAUTHENTICATED=True)
    status = post_in_chunks(app, BytesIO(), CONTENT_LENGTH="60", HTTP_TRANSFER_ENCODING="")
    assert status.startswith("400 ")
    (delivery,), _ = rows(app)
    assert (delivery["status"], delivery["body"]) == ("unreadable", b"")
    assert delivery["error"] == "the body has 0 bytes, but its Content-Length is 60"
