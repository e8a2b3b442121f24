"""A reader notices that an export broke off, whatever server sends it."""

from __future__ import annotations

import json
from contextlib import ExitStack
from http.client import HTTPConnection, HTTPResponse, IncompleteRead
from pathlib import Path

import pytest
from sqlalchemy import URL, create_engine

from support.serving import SECRET
from support.wsgi_servers import WSGI_SERVERS, WsgiServer, running

pytestmark = pytest.mark.slow

CALLBACKS, PAIRS, ID_LENGTH = 16, 2000, 200
"""The removals are larger than all buffers between the server and the reader."""
TOKEN = "a-token-of-the-test"
SETTINGS = {
    "FLASK_IMCALLBACK_TENCENT_APPS": '{"1400000000": []}',
    "FLASK_IMCALLBACK_HISTORY_TOKENS": json.dumps([TOKEN]),
    "FLASK_IMCALLBACK_MAX_BODY": "1000000",
}
COMMAND = "Sns.CallbackBlackListDelete"
PATH = f"/imcallback/tencent/{SECRET}?SdkAppid=1400000000&CallbackCommand={COMMAND}"


WITHOUT_CHUNKS = {"uwsgi-threads"}
"""Servers that do not say where a response ends. There, only the manifest shows the end."""
NAMES = {"gunicorn-gthread-preload", "gunicorn-gevent-preload", "waitress", "uvicorn-a2wsgi"}
SERVERS = [server for server in WSGI_SERVERS if server.name in NAMES | WITHOUT_CHUNKS]


@pytest.mark.parametrize("server", SERVERS, ids=str)
def test_a_broken_off_export_is_noticed(
    server: WsgiServer, sqlite_url: URL, tmp_path: Path
) -> None:
    """The response ends without its last chunk, or without its manifest."""
    pairs = [{"From_Account": "o" * ID_LENGTH, "To_Account": "t" * ID_LENGTH}] * PAIRS
    packet = json.dumps({"CallbackCommand": COMMAND, "PairList": pairs})
    engine = create_engine(sqlite_url)
    with running(server, tmp_path, sqlite_url, **SETTINGS) as host, ExitStack() as stack:

        def export(query: str) -> HTTPResponse:
            connection = HTTPConnection("127.0.0.1", host.port, timeout=60)
            stack.callback(connection.close)
            headers = {"Authorization": f"Bearer {TOKEN}"}
            connection.request("GET", f"/imcallback/history/export?{query}", headers=headers)
            return stack.enter_context(connection.getresponse())

        response = export("format=ndjson")
        assert (response.status, response.read()) == (200, b"")
        for _ in range(CALLBACKS):
            assert host.ask("POST", PATH, body=packet)[0] == 200
        whole = export("format=ndjson").read()
        assert whole.count(b"\n") == CALLBACKS * PAIRS

        response = export("format=ndjson&manifest=append")
        response.read(1000)
        with engine.begin() as database:
            database.exec_driver_sql("ALTER TABLE imcallback_source RENAME TO away")
        if server.name in WITHOUT_CHUNKS:
            rest = response.read()
            assert len(rest) < len(whole)
            assert b"manifest" not in rest
        else:
            with pytest.raises(IncompleteRead):
                response.read()
        assert "A file was cut off" in host.log()
    engine.dispose()
