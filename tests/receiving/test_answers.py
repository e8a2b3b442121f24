"""Every row of the table of answers, from the example app under gunicorn over real sockets.

The table is in the section "Callbacks" of the page on the HTTP API.
"""

from __future__ import annotations

import hashlib
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from sqlalchemy import create_engine

from flask_imcallback.storage import delivery, removal
from support.apps import delete_deliveries
from support.serving import MAX_BODY, SECRET, Running, serving

pytestmark = pytest.mark.slow

TOKEN, APP_ID = "the token of the console", "1400000000"
TENCENT_SETTINGS: dict[str, Any] = {"FLASK_IMCALLBACK_TENCENT_APPS": json.dumps({APP_ID: [TOKEN]})}
OK = {"ActionStatus": "OK", "ErrorCode": 0, "ErrorInfo": ""}
CONTINUE = {"actionCode": 0, "errCode": 0, "errMsg": "", "errDlt": "", "nextCode": 0}
DELETE_FRIEND = "Sns.CallbackFriendDelete"
REMOVE_BLACK = "callbackAfterRemoveBlackCommand"
TENCENT_PACKET = {
    "CallbackCommand": DELETE_FRIEND,
    "PairList": [{"From_Account": "alice", "To_Account": "bob"}],
}
OPENIM_PACKET = {"callbackCommand": REMOVE_BLACK, "ownerUserID": "alice", "blackUserID": "bob"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A request, its answer, and what is kept."""

    id: str
    packet: Any
    command: str = ""
    is_authentic: bool = True
    method: str = "POST"
    missing_bytes: int = 0
    """The number of bytes that the Content-Length promises, but the client does not send."""
    status: int
    error: str = ""
    """The start of Tencent's ErrorInfo."""
    more: tuple[tuple[str, Any], ...] = ()
    """Further members of Tencent's answer."""
    kept: str = ""
    """The status of the delivery. Empty if nothing is kept."""
    removals: int = 0

    @property
    def body(self) -> bytes:
        return self.packet if isinstance(self.packet, bytes) else json.dumps(self.packet).encode()


LARGE = b" " * (MAX_BODY + 1)
SHARED = [
    Case(id="no JSON", packet=b"{", status=400, error="the body is not JSON", kept="unreadable"),
    Case(id="no object", packet=[], status=400, error="the body is not a JSON", kept="unreadable"),
    Case(id="too large", packet=LARGE, status=413, error="the body is larger than IMCALLBACK_MAX"),
    Case(
        id="another method", packet=b"", method="PUT", status=405, error="callbacks must use POST"
    ),
]
TENCENT = [
    Case(id="recorded", packet=TENCENT_PACKET, status=200, kept="recorded", removals=1),
    Case(
        id="another command of the family",
        packet={"CallbackCommand": "Group.CallbackAfterNewMemberJoin"},
        status=200,
        kept="ignored",
    ),
    Case(id="another command", packet={"CallbackCommand": "X.Y"}, status=200),
    Case(id="a message", packet={"CallbackCommand": "Group.CallbackAfterSendMsg"}, status=200),
    Case(
        id="a message without JSON",
        packet=b"{",
        command="Group.CallbackAfterSendMsg",
        status=400,
        error="the body is not JSON",
    ),
    Case(
        id="asks about accounts",
        packet={
            "CallbackCommand": "Sns.CallbackPrevFriendAdd",
            "FriendItem": [{"To_Account": "bob"}],
        },
        status=200,
        more=(("ResultItem", [{"To_Account": "bob", "ResultCode": 0, "ResultInfo": ""}]),),
        kept="ignored",
    ),
    Case(
        id="lacks what its command needs",
        packet={"CallbackCommand": DELETE_FRIEND},
        status=400,
        error="PairList: ",
        kept="unreadable",
    ),
    Case(
        id="cut off",
        packet=TENCENT_PACKET,
        missing_bytes=9,
        status=400,
        error="the body has ",
        kept="unreadable",
    ),
    Case(
        id="different commands",
        packet=TENCENT_PACKET,
        command="X.Y",
        status=400,
        error="the request names different commands",
        kept="unreadable",
    ),
    Case(id="not authentic", packet={}, is_authentic=False, status=403, error="not authentic"),
    *SHARED,
]
OPENIM = [
    Case(id="recorded", packet=OPENIM_PACKET, status=200, kept="recorded", removals=1),
    Case(
        id="another command of the family",
        packet={"callbackCommand": "callbackAfterJoinGroupCommand"},
        status=200,
        kept="ignored",
    ),
    Case(id="another command", packet={"callbackCommand": "callbackX"}, status=200),
    Case(
        id="a message", packet={"callbackCommand": "callbackAfterSendGroupMsgCommand"}, status=200
    ),
    Case(
        id="a message without JSON",
        packet=b"{",
        command="callbackAfterSendGroupMsgCommand",
        status=400,
    ),
    Case(
        id="lacks what its command needs",
        packet={"callbackCommand": REMOVE_BLACK},
        status=400,
        kept="unreadable",
    ),
    Case(id="cut off", packet=OPENIM_PACKET, missing_bytes=9, status=400, kept="unreadable"),
    Case(
        id="different commands",
        packet=OPENIM_PACKET,
        command="callbackX",
        status=400,
        kept="unreadable",
    ),
    Case(id="not authentic", packet={}, is_authentic=False, status=403),
    *SHARED,
]


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The example app under gunicorn with an access log, for all cases."""
    folder = tmp_path_factory.mktemp("answers")
    with serving(folder, "--access-logfile", "-", **TENCENT_SETTINGS) as running:
        yield running


@pytest.fixture
def server(shared_server: Running) -> Running:
    """The running app with empty tables."""
    engine = create_engine(shared_server.url)
    with engine.begin() as connection:
        delete_deliveries(connection)
    engine.dispose()
    return shared_server


def tencent_path(command: str, *, is_authentic: bool = True, **query: str) -> str:
    """Return the URL of a signed callback of Tencent."""
    now = str(int(time.time()))
    sign = hashlib.sha256((TOKEN + now).encode()).hexdigest()
    query |= {"SdkAppid": APP_ID, "RequestTime": now, "Sign": sign if is_authentic else "0" * 64}
    query |= {"CallbackCommand": command} if command else {}
    return f"/imcallback/tencent?{urlencode(query)}"


def openim_path(command: str, *, is_authentic: bool = True) -> str:
    """Return the URL of a callback of OpenIM with a secret."""
    secret = SECRET if is_authentic else "a-wrong-secret-of-16-characters"
    return f"/imcallback/openim/{secret}" + (f"/{command}" if command else "")


def exchange(port: int, case: Case, path: str) -> tuple[int, dict[str, Any]]:
    """Send a request, close the sending side, and return the status and the answer."""
    head = (
        f"{case.method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Content-Length: {len(case.body) + case.missing_bytes}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(head.encode() + case.body)
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    first, _, body = answer.partition(b"\r\n\r\n")
    return int(first.split(b" ")[1]), json.loads(body)


def check_kept(server: Running, case: Case) -> None:
    """Check what is stored. The log has no secret, also in the lines of the access log."""
    rows = server.rows(delivery)
    assert [row["status"] for row in rows] == ([case.kept] if case.kept else [])
    assert [row["body"] for row in rows] == ([case.body] if case.kept else [])
    assert len(server.rows(removal)) == case.removals
    assert SECRET not in server.log()
    assert "Sign=" not in server.log()


@pytest.mark.parametrize("case", TENCENT, ids=lambda case: case.id)
def test_an_answer_to_tencent(server: Running, case: Case) -> None:
    """The status says whether the callback is kept, and ErrorInfo says what is wrong."""
    path = tencent_path(case.command, is_authentic=case.is_authentic)
    status, answer = exchange(server.port, case, path)
    assert status == case.status
    if status == 200:
        assert answer == OK | dict(case.more)
    else:
        assert answer.pop("ErrorInfo").startswith(case.error)
        assert answer == {"ActionStatus": "FAIL", "ErrorCode": 1}
    check_kept(server, case)


@pytest.mark.parametrize("case", OPENIM, ids=lambda case: case.id)
def test_an_answer_to_openim(server: Running, case: Case) -> None:
    """The answer is always the same five members, because another one can stop users."""
    path = openim_path(case.command, is_authentic=case.is_authentic)
    assert exchange(server.port, case, path) == (case.status, CONTINUE)
    check_kept(server, case)


def test_a_repetition_is_a_duplicate(server: Running) -> None:
    """Tencent gets OK again, and the second delivery has no removals."""
    case = TENCENT[0]
    path = tencent_path("", RequestID="2ea4e023")
    for _ in range(2):
        assert exchange(server.port, case, path) == (200, OK)
    first, second = server.rows(delivery)
    assert (first["status"], second["status"]) == ("recorded", "duplicate")
    assert second["duplicate_of"] == first["id"]
    assert len(server.rows(removal)) == 1


def test_a_provider_that_is_off(tmp_path: Path) -> None:
    """Without any Tencent app, its URL answers 404."""
    with serving(tmp_path) as running:
        status, answer = exchange(running.port, TENCENT[0], tencent_path(""))
        assert status == 404
        assert answer["ErrorInfo"] == "the provider tencent is not enabled"
        assert running.rows(delivery) == []


def test_a_callback_that_nothing_stores(tmp_path: Path) -> None:
    """Without tables and without a spool the answer is 503, and the log has the packet."""
    settings = {**TENCENT_SETTINGS, "FLASK_IMCALLBACK_SPOOL": "null"}
    with serving(tmp_path, upgrade=False, **settings) as running:
        status, answer = exchange(running.port, TENCENT[0], tencent_path(""))
        assert (status, answer["ErrorInfo"]) == (503, "it could not be stored")
        assert exchange(running.port, OPENIM[0], openim_path("")) == (503, CONTINUE)
        log = running.log()
    for packet in (TENCENT[0].body, OPENIM[0].body):
        assert json.dumps(packet.decode()) in log
    assert SECRET not in log
