"""The settings for gunicorn that the package ships."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from support.serving import serving

pytestmark = pytest.mark.slow

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
