"""Under gevent, which patches Python after the app is loaded, no request stops another one."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import URL

from support import faults
from support.load import SETTINGS, Callback, Client, Outcome, check, openim
from support.serving import Running, serving
from support.torture import create_tables

DEADLINE_SECONDS = 1.0
MAX_ANSWER_SECONDS = 2.5
"""The deadline, and time for a busy test machine."""


def send_all(running: Running, callbacks: list[Callback]) -> None:
    """Send the callbacks at the same time."""

    def send(callback: Callback) -> None:
        with closing(Client()) as client:
            client.send(running.port, callback)

    with ThreadPoolExecutor(len(callbacks)) as pool:
        list(pool.map(send, callbacks))


@pytest.mark.slow
def test_gevent_keeps_the_deadline_while_the_database_is_locked(
    database_url: URL, tmp_path: Path
) -> None:
    """The shipped settings of gunicorn load the app first, and gevent patches Python in the worker.

    While another process locks the database, callbacks are answered by the deadline, other pages
    at once, and nothing is lost.
    """
    create_tables(database_url)
    callbacks = [openim(f"owner{number}") for number in range(21)]
    with serving(
        tmp_path,
        *("-k", "gevent"),
        url=database_url,
        upgrade=False,
        FLASK_IMCALLBACK_DEADLINE=str(DEADLINE_SECONDS),
        **SETTINGS,
    ) as running:
        send_all(running, callbacks[:1])
        with faults.locked(database_url), ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(send_all, running, callbacks[1:])
            time.sleep(0.3)
            began = time.monotonic()
            assert running.ask("POST", "/imcallback/openim/x", body=b"{}")[0] == 403
            assert (
                time.monotonic() - began < DEADLINE_SECONDS
            )  # a frozen worker answers after the deadline
            waiting.result()
        running.wait_until_drained()
    assert {callback.outcome for callback in callbacks} == {Outcome.ACKNOWLEDGED}
    assert max(callback.seconds for callback in callbacks) < MAX_ANSWER_SECONDS
    assert check(callbacks, database_url).faults == 0
