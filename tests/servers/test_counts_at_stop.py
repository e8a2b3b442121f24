"""The counts of callbacks are complete after a server was stopped."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from sqlalchemy import URL

from flask_imcallback.storage.tables import counters
from support.apps import wait_until
from support.faults import locked
from support.serving import BODY, PATH, Running
from support.wsgi_servers import WSGI_SERVERS, WsgiServer, cases, running, stop

pytestmark = pytest.mark.slow

REFUSED_PATH = "/imcallback/openim/callbackX"
STOP_SECONDS = 10
STOPPED_WITH_A_LOCK = (
    "gunicorn-gthread-preload",
    "gunicorn-gevent-preload",
    "uwsgi-threads",
    "waitress",
)


def send(host: Running, count: int) -> None:
    """Send callbacks of which each second one is refused."""
    for number in range(count):
        path, status = ((PATH, 200), (REFUSED_PATH, 403))[number % 2]
        assert host.ask("POST", path, body=BODY)[0] == status


def counts(host: Running) -> dict[str, int]:
    """Return the saved counts by outcome."""
    return {row["outcome"]: row["count"] for row in host.rows(counters, counters.c.outcome)}


CASES = cases(server for server in WSGI_SERVERS if server.runs_exit_functions)


@pytest.mark.parametrize(("server", "database"), CASES)
def test_the_counts_are_complete_after_a_stop(
    server: WsgiServer, database: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """A server that is stopped right after a burst has counted every callback."""
    url: URL = request.getfixturevalue(f"{database}_url")
    with running(server, tmp_path, url) as host:
        send(host, 40)
        assert stop(server, host) == server.exit_status, host.log()
        assert counts(host) == {"accepted": 20, "refused": 20}, host.log()


@pytest.mark.long
@pytest.mark.parametrize(
    "server", [server for server in WSGI_SERVERS if not server.runs_exit_functions], ids=str
)
def test_the_counts_are_complete_after_ten_seconds(
    server: WsgiServer, sqlite_url: URL, tmp_path: Path
) -> None:
    """Every server saves the counts without further callbacks."""
    with running(server, tmp_path, sqlite_url) as host:
        send(host, 40)
        wait_until(lambda: counts(host) == {"accepted": 20, "refused": 20}, seconds=10)


@pytest.mark.parametrize(
    "server",
    [server for server in WSGI_SERVERS if server.name in STOPPED_WITH_A_LOCK],
    ids=str,
)
def test_a_locked_database_does_not_delay_a_stop(
    server: WsgiServer, sqlite_url: URL, tmp_path: Path
) -> None:
    """The last save gives up after two seconds. The process ends as usual."""
    variables = {"FLASK_IMCALLBACK_DEADLINE": "0.3"}
    with running(server, tmp_path, sqlite_url, **variables) as host, locked(sqlite_url):
        send(host, 4)
        started_at = time.monotonic()
        assert stop(server, host) == server.exit_status, host.log()
        assert time.monotonic() - started_at < STOP_SECONDS
