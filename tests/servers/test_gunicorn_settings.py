"""The settings for gunicorn that the package ships."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.serving import serving

pytestmark = pytest.mark.slow

THREAD_SECONDS = 1
SLOW_THREADS = f"""
import threading, time
from flask_imcallback.gunicorn import *
start = threading.Thread.start
def slow_start(thread):
    time.sleep({THREAD_SECONDS})
    start(thread)
def when_ready(server):
    threading.Thread.start = slow_start
"""
REFUSED = r"the request has neither a secret path segment nor a password\."
HOST_WITH_LOG = """
import logging
logging.basicConfig(format="host %(levelname)s %(message)s")
from example_app import app
"""


@pytest.mark.parametrize("worker", ["gthread", "gevent"])
def test_the_log_looks_like_the_log_of_gunicorn(tmp_path: Path, worker: str) -> None:
    """Each line has time, process and level. The database is named once in each process."""
    with serving(tmp_path, "--worker-class", worker, "--workers", "1") as running:
        log = running.log()
    start = r"^\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \+0000\] \[\d+\] "
    stored = rf"{start}\[INFO\] Callbacks are stored in sqlite:///{tmp_path.resolve()}/test\.db$"
    assert len(re.findall(stored, log, re.MULTILINE)) == 1, log
    assert re.search(rf"{start}\[WARNING\] .*{REFUSED}$", log, re.MULTILINE), log


def test_the_log_of_a_host_stays_as_it_is(tmp_path: Path) -> None:
    """A host that configures logging gets each line once, in its own format."""
    (tmp_path / "host_with_log.py").write_text(HOST_WITH_LOG)
    with serving(
        tmp_path, "--pythonpath", str(tmp_path), "--workers", "1", app="host_with_log:app"
    ) as running:
        log = running.log()
    assert re.findall(f"^.*{REFUSED}$", log, re.MULTILINE) == re.findall(
        f"^host WARNING .*{REFUSED}$", log, re.MULTILINE
    )
    assert len(re.findall(REFUSED, log)) == 1, log
    assert "Callbacks are stored in" not in log


def test_ctrl_c_is_left_to_the_master(tmp_path: Path) -> None:
    """A worker ignores Ctrl-C, because a worker that gets two signals at once can hang."""
    with serving(tmp_path, "--workers", "1") as running:
        (worker,) = running.workers
        os.kill(worker, signal.SIGINT)
        time.sleep(0.5)
        assert running.workers == [worker], running.log()


def test_ctrl_c_while_a_worker_starts_a_thread(tmp_path: Path) -> None:
    """The server stops soon. gunicorn's own handler would wait for a lock that is never free."""
    settings = tmp_path / "slow_threads.py"
    settings.write_text(SLOW_THREADS)
    with (
        serving(tmp_path, "--workers", "1", "-c", str(settings)) as running,
        ExitStack() as stack,
    ):
        for _ in range(3):  # more connections than idle threads
            client = stack.enter_context(socket.create_connection(("127.0.0.1", running.port)))
            client.sendall(b"GET /imcallback/health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(THREAD_SECONDS / 2)
        os.killpg(running.process.pid, signal.SIGINT)
        assert running.process.wait(20) == 0, running.log()
