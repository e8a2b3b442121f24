"""Random requests to the URLs of the callbacks.

`make fuzz` sends 100,000 requests to each provider. `IMCALLBACK_FUZZ_EXAMPLES` sets another number.
"""

from __future__ import annotations

import io
import json
import os
from typing import Any

import pytest
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage.tables import delivery, removal
from support.apps import MakeApp

SECRET = "a-secret-of-16-characters"
APP_ID = "1400000000"
WORDS = {
    "tencent": [
        "Sns.CallbackFriendDelete",
        "Sns.CallbackPrevFriendAdd",
        "Group.CallbackAfterMemberExit",
        "C2C.CallbackAfterSendMsg",
        "PairList",
        "From_Account",
        "GroupId",
    ],
    "openim": [
        "callbackAfterRemoveBlackCommand",
        "callbackAfterKickGroupCommand",
        "callbackAfterSendGroupMsgCommand",
        "callbackCommand",
        "ownerUserID",
        "blackUserID",
        "groupID",
        "kickedUserIDs",
    ],
}
MEMBERS = {
    "tencent": {"ActionStatus", "ErrorCode", "ErrorInfo"},
    "openim": {"actionCode", "errCode", "errMsg", "errDlt", "nextCode"},
}
PACKETS = {
    "tencent": {
        "CallbackCommand": "Sns.CallbackFriendDelete",
        "PairList": [{"From_Account": "a", "To_Account": "b"}],
    },
    "openim": {
        "callbackCommand": "callbackAfterRemoveBlackCommand",
        "ownerUserID": "a",
        "blackUserID": "b",
    },
}

# WSGI passes bytes as Latin-1. Servers refuse control characters in a header.
native = st.binary(max_size=40).map(lambda raw: raw.decode("latin-1"))
header = native.map(lambda text: "".join(c for c in text if c.isprintable()))


def jsons(words: list[str]) -> st.SearchStrategy[bytes]:
    texts = st.sampled_from(words) | st.text(st.characters(codec=None), max_size=20)
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | texts
    values = st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
        max_leaves=12,
    )
    return values.map(lambda value: json.dumps(value).encode())


@st.composite
def requests(draw: st.DrawFn, provider: str) -> tuple[dict[str, Any], bool]:
    """Make a WSGI environment, and tell whether it presents a correct guard."""
    words = [*WORDS[provider], SECRET, APP_ID, "SdkAppid", "CallbackCommand", "command"]
    pieces = st.sampled_from(["/", "//", "%2F", "..", *words]) | native
    guarded = draw(st.booleans())
    path = (f"/{SECRET}" if guarded else "") + draw(st.lists(pieces, max_size=4).map("/".join))
    query = draw(st.lists(st.sampled_from(["&", "=", "%00", "%FF", *words]) | native).map("".join))
    if guarded and provider == "tencent":
        path, query = f"/{SECRET}", f"SdkAppid={APP_ID}&{query}"
    packet = json.dumps(PACKETS[provider]).encode()
    cut = st.integers(0, len(packet)).map(lambda end: packet[:end] + packet[end + 1 :])
    body = draw(st.just(packet) | cut | jsons(words) | st.binary(max_size=200))
    length = draw(st.just(str(len(body))) | st.integers(0, 300).map(str) | header)
    environ = {
        "REQUEST_METHOD": draw(st.just("POST") | st.sampled_from(["GET", "PUT", "TRACE"])),
        "SCRIPT_NAME": "",
        "PATH_INFO": f"/imcallback/{provider}/{path.lstrip('/')}",
        "QUERY_STRING": query,
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": draw(st.just("192.0.2.1") | header),
        "CONTENT_LENGTH": length,
        "CONTENT_TYPE": draw(header),
        "HTTP_AUTHORIZATION": draw(header),
        "HTTP_OPERATIONID": draw(header),
        "HTTP_HOST": draw(st.just("localhost") | header),
        "wsgi.input": io.BytesIO(body),
        "wsgi.input_terminated": draw(st.booleans()),
        "wsgi.url_scheme": "http",
        "wsgi.version": (1, 0),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    return environ, guarded


def count_rows(app: Flask) -> int:
    """Return the number of deliveries and removals in the database."""
    with app.app_context(), get_runtime().engine().connect() as connection:
        tables = (delivery, removal)
        return sum(connection.scalar(select(func.count()).select_from(t)) or 0 for t in tables)


@pytest.mark.slow
@pytest.mark.parametrize("provider", ["tencent", "openim"])
def test_every_request_gets_an_answer_of_the_provider(make_app: MakeApp, provider: str) -> None:
    """No request gets a 500 or a redirect, and a request without a guard stores nothing."""
    app = make_app(
        IMCALLBACK_TENCENT_APPS={APP_ID: []},
        IMCALLBACK_SECRETS=[SECRET],
        IMCALLBACK_MAX_BODY=250,
        IMCALLBACK_DEADLINE=30,  # a callback of the spool would be counted later
    )

    @settings(
        max_examples=int(os.environ.get("IMCALLBACK_FUZZ_EXAMPLES", "300")),
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(requests(provider))
    def check(request: tuple[dict[str, Any], bool]) -> None:
        environ, guarded = request
        is_guarded = guarded or SECRET in environ["PATH_INFO"]  # the app takes it out of the path
        start_arguments: list[Any] = []

        def start(*arguments: Any) -> Any:
            start_arguments.extend(arguments)

        rows_before = count_rows(app)
        answer = app.wsgi_app(environ, start)
        body = b"".join(answer)
        status = int(start_arguments[0].split()[0])
        assert status in (200, 400, 403, 404, 405, 413), body
        # Flask answers itself if it finds no route: for an invalid Host such as "a..b", and for a
        # line end in the path.
        if body.startswith(b"<!doctype"):
            assert status in (400, 404)
            assert environ["HTTP_HOST"] != "localhost" or "\n" in environ["PATH_INFO"]
        else:
            assert set(json.loads(body)) >= MEMBERS[provider]
        assert is_guarded or count_rows(app) == rows_before

    check()
