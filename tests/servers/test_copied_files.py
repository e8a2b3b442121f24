"""A backup may copy the SQLite file alone after the server has stopped."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import URL

from support import ROOT
from support.faults import locked
from support.serving import BODY, PATH, Running, environment
from support.wsgi_servers import WSGI_SERVERS, WsgiServer, running, stop

pytestmark = pytest.mark.slow

NAMES = ("gunicorn-gthread-preload", "uwsgi-processes", "flask-run")
SERVERS = [server for server in WSGI_SERVERS if server.name in NAMES] + [
    # Ctrl-C. Waitress has no handler for SIGTERM.
    replace(server, stop=signal.SIGINT, exit_status=0)
    for server in WSGI_SERVERS
    if server.name == "waitress"
]

LIST_REMOVALS = [sys.executable, "-m", "flask", "--app", "example_app", "imcallback", "history"]


def send(host: Running, count: int) -> None:
    for number in range(count):
        packet = BODY.replace(b"user456", b"user%d" % number)
        assert host.ask("POST", PATH, body=packet)[0] == 200


def count_in_copy(file: Path, table: str) -> int:
    """Copy the file without its log, and return how many rows the table has there."""
    copy = file.with_suffix(".copy")
    # Another process copies, because a process that closes the file drops its own locks on it.
    subprocess.run(["cp", file, copy], check=True)
    with closing(sqlite3.connect(copy)) as connection:
        (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    return int(count)


@pytest.mark.parametrize("server", SERVERS, ids=str)
def test_a_copy_of_the_file_has_every_row(
    server: WsgiServer, sqlite_url: URL, tmp_path: Path
) -> None:
    """After a clean stop, `cp` of the database file copies every callback."""
    with running(server, tmp_path, sqlite_url) as host:
        send(host, 20)
        assert count_in_copy(tmp_path / "test.db", "imcallback_removal") == 0
        assert stop(server, host) == server.exit_status, host.log()
    assert count_in_copy(tmp_path / "test.db", "imcallback_removal") == 20


def test_a_copy_of_the_spool_has_every_row(sqlite_url: URL, tmp_path: Path) -> None:
    """After a clean stop during an outage, `cp` of the spool copies the callbacks that wait."""
    (server,) = (server for server in SERVERS if server.name == "gunicorn-gthread-preload")
    settings = {"FLASK_IMCALLBACK_DEADLINE": "0.2"}
    with running(server, tmp_path, sqlite_url, **settings) as host, locked(sqlite_url):
        send(host, 3)
        stop(server, host)
    assert count_in_copy(host.spool, "imcallback_spool") == 3


def test_a_reader_does_not_delay_the_stop(sqlite_url: URL, tmp_path: Path) -> None:
    """A server stops quickly although another process reads, and the reader is not disturbed.

    The last process that uses the file completes it.
    """
    (server,) = (server for server in SERVERS if server.name == "gunicorn-gthread-preload")
    count = "SELECT count(*) FROM imcallback_removal"
    with running(server, tmp_path, sqlite_url) as host:
        send(host, 1)
        with closing(sqlite3.connect(tmp_path / "test.db", isolation_level=None)) as reader:
            reader.execute("BEGIN")
            assert reader.execute(count).fetchone() == (1,)
            send(host, 9)
            started_at = time.monotonic()
            stop(server, host)
            assert time.monotonic() - started_at < 5
            assert reader.execute(count).fetchone() == (1,)
            reader.execute("COMMIT")
            env = environment(tmp_path, sqlite_url)
            subprocess.run(LIST_REMOVALS, cwd=ROOT, env=env, check=True, capture_output=True)
            assert count_in_copy(tmp_path / "test.db", "imcallback_removal") == 10


DELETE_THE_FILE = """
import os, sys
from sqlalchemy import create_engine
from flask_imcallback.storage.sqlite_files import watch_file
engine = create_engine(f"sqlite:///{sys.argv[1]}")
watch_file(engine)
with engine.begin() as connection:
    connection.exec_driver_sql(
        "INSERT INTO imcallback_source VALUES (1, 'a', 'b', 'c', 'd', 'e', 'f')"
    )
os.unlink(sys.argv[1])
"""


def test_a_deleted_file_stays_deleted(sqlite_url: URL, tmp_path: Path) -> None:
    """The end of a process creates no empty file in the place of a deleted one.

    The log of the deleted file also stays, because it can have the only copy of a row.
    """
    file = tmp_path / "test.db"
    subprocess.run([sys.executable, "-c", DELETE_THE_FILE, file], cwd=ROOT, check=True)
    assert not file.exists()
    assert (tmp_path / "test.db-wal").stat().st_size > 0
