"""The promise under every supported server: an answered callback is stored.

Every test runs the shipped commands over real sockets, on an app that has used its database before
the server forks.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, NullPool, create_engine, inspect, text

from flask_imcallback.storage.tables import removal
from support.faults import locked
from support.serving import SECRET, Running
from support.wsgi_servers import WSGI_SERVERS, WsgiServer, cases, running, stop

pytestmark = pytest.mark.slow

DEADLINE_SECONDS = 1.0
MARGIN_SECONDS = 1.0
"""Time for the spool and for a busy machine."""
LOCK_SECONDS = 2 * DEADLINE_SECONDS
STORE_SECONDS = 30
SETTINGS = {
    "FLASK_IMCALLBACK_TENCENT_APPS": '{"1400000000": []}',
    "FLASK_IMCALLBACK_DEADLINE": str(DEADLINE_SECONDS),
}


CASES = cases(WSGI_SERVERS)


class Clients:
    """IM servers of both providers. They remember which removals were acknowledged."""

    def __init__(self, host: Running) -> None:
        self._host = host
        self.acknowledged: set[str] = set()
        """The target ids of the removals whose callbacks were answered with 200."""

    def send(self, number: int) -> float:
        """Send a callback of one provider, and return the seconds until its answer."""
        target = f"{number}-{secrets.token_hex(8)}"
        path, packet = tencent(target) if number % 2 else openim(target)
        started_at = time.monotonic()
        status, answer = self._host.ask("POST", path, body=json.dumps(packet))
        assert status == 200, (answer, self._host.log())
        self.acknowledged.add(target)
        return time.monotonic() - started_at

    def send_in_chunks(self, number: int) -> tuple[int, Any]:
        """Send a callback without a Content-Length, and return the status and the answer."""
        target = f"{number}-{secrets.token_hex(8)}"
        path, packet = tencent(target) if number % 2 else openim(target)
        body = json.dumps(packet).encode()
        chunks = iter([body[:7], body[7:30], body[30:]])
        headers = {"Transfer-Encoding": "chunked"}
        status, answer = self._host.ask(
            "POST", path, body=chunks, headers=headers, encode_chunked=True
        )
        if status == 200:
            self.acknowledged.add(target)
        return status, answer

    def send_together(self, count: int) -> list[float]:
        """Send callbacks from eight clients, and return the seconds until each answer."""
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(self.send, range(count)))

    def send_until_stopped(self) -> None:
        """Send callbacks until the server takes no more."""
        with suppress(OSError, HTTPException):
            for number in range(100_000):
                self.send(number)


def tencent(target: str) -> tuple[str, object]:
    """Return the URL path and the packet of a callback of Tencent."""
    command = "Sns.CallbackBlackListDelete"
    query = f"SdkAppid=1400000000&CallbackCommand={command}&contenttype=json&OptPlatform=iOS"
    pairs = [{"From_Account": "owner", "To_Account": target}]
    path = f"/imcallback/tencent/{SECRET}?{query}"
    return path, {"CallbackCommand": command, "PairList": pairs}


def openim(target: str) -> tuple[str, object]:
    """Return the URL path and the packet of a callback of OpenIM."""
    command = "callbackAfterDeleteFriendCommand"
    packet = {"callbackCommand": command, "ownerUserID": "owner", "friendUserID": target}
    return f"/imcallback/openim/{SECRET}/{command}", packet


def stored_targets(host: Running) -> list[str]:
    return sorted(row["target_id"] for row in host.rows(removal))


def wait_until_stored(host: Running, clients: Clients) -> None:
    """Wait until the database has everything that was acknowledged, each removal once."""
    deadline, acknowledged = time.monotonic() + STORE_SECONDS, sorted(clients.acknowledged)
    while stored_targets(host) != acknowledged:
        assert time.monotonic() < deadline, host.log()
        time.sleep(0.05)


def spool_holds(host: Running, target: str) -> bool:
    """Return True if any table of the spool holds the target id."""
    if not host.spool.exists():
        return False
    engine = create_engine(URL.create("sqlite", database=str(host.spool)), poolclass=NullPool)
    with engine.connect() as connection:
        return any(
            target in str(row)
            for table in inspect(connection).get_table_names()
            for row in connection.execute(text(f"SELECT * FROM {table}"))
        )


def seconds_of(action: Callable[[], object]) -> float:
    started_at = time.monotonic()
    action()
    return time.monotonic() - started_at


def ask_host_page(host: Running) -> None:
    assert host.ask("GET", "/host-page") == (200, {"host": True})


def check_chunked_bodies(server: WsgiServer, host: Running, clients: Clients) -> None:
    """Check that bodies in chunks are read, or that the answer and the log tell the remedy."""
    openim_status, _ = clients.send_in_chunks(0)
    tencent_status, answer = clients.send_in_chunks(1)
    if not server.chunked_problem:
        assert (openim_status, tencent_status) == (200, 200), host.log()
        return
    assert (openim_status, tencent_status) == (400, 400)
    assert answer["ErrorInfo"] == server.chunked_problem
    line = f"The body of a callback is lost, because {server.chunked_problem}"
    assert host.log().count(line) == 2


@pytest.mark.parametrize(("server", "database"), CASES)
def test_an_answered_callback_is_stored(
    server: WsgiServer, database: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Every callback that was answered with 200 is stored once.

    It is stored also if the database is locked for longer than the deadline, and if the server is
    stopped. Meanwhile the pages of the host answer.
    """
    url: URL = request.getfixturevalue(f"{database}_url")
    with running(server, tmp_path, url, **SETTINGS) as host:
        clients = Clients(host)
        clients.send_together(80)
        check_chunked_bodies(server, host, clients)
        assert stored_targets(host) == sorted(clients.acknowledged)

        with locked(url), ThreadPoolExecutor(1) as pool:
            unlocked_at = time.monotonic() + LOCK_SECONDS
            callbacks = pool.submit(clients.send_together, 16)
            time.sleep(DEADLINE_SECONDS / 2)
            page_seconds = seconds_of(lambda: ask_host_page(host))
            answer_seconds = max(callbacks.result())
            late_seconds = max(clients.send_together(16))
            time.sleep(max(0, unlocked_at - time.monotonic()))
        limit = DEADLINE_SECONDS + MARGIN_SECONDS
        assert answer_seconds < limit
        assert late_seconds < limit
        assert page_seconds < (MARGIN_SECONDS if server.has_concurrency else limit)
        wait_until_stored(host, clients)

        senders = [threading.Thread(target=clients.send_until_stopped) for _ in range(4)]
        for sender in senders:
            sender.start()
        time.sleep(0.3)
        status = stop(server, host)
        for sender in senders:
            sender.join()
        assert status == server.exit_status, host.log()
        stored = stored_targets(host)
        assert len(stored) == len(set(stored))
        lost = [
            target for target in clients.acknowledged - set(stored) if not spool_holds(host, target)
        ]
        assert lost == []
