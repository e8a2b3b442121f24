"""The WSGI servers that can run an app with flask-imcallback, and how each is started."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL

from support import ROOT
from support.apps import DATABASES, long_if
from support.servers import family, free_port
from support.serving import Running, environment, have_ready_workers, start

START_SECONDS = 30
STOP_SECONDS = 30
GUNICORN = "gunicorn -c python:flask_imcallback.gunicorn"
UWSGI = (
    "uwsgi --master --need-app --processes 2 --disable-logging --module app:app"
    " --hook-master-start 'unix_signal:15 gracefully_kill_them_all'"
)
UWSGI_HTTP11 = f"{UWSGI} --http11-socket 127.0.0.1:8000 --socket-timeout 75"


@dataclass(frozen=True, kw_only=True)
class WsgiServer:
    """A server and the command of the documentation that starts it."""

    name: str
    command: str
    """The command for the app `app:app` on 127.0.0.1:8000."""
    has_concurrency: bool = True
    """Whether the pages of the host answer while callbacks wait for the database."""
    chunked_problem: str = ""
    """The answer to a chunked body that the server does not hand over."""
    stop: signal.Signals = signal.SIGTERM
    stops_group: bool = False
    """Whether the signal goes to the whole process group, as Ctrl-C does."""
    exit_status: int = 0
    runs_exit_functions: bool = True
    """Whether a process that ends calls the exit functions of Python, so that no count is lost."""
    databases: tuple[str, ...] = ("sqlite",)
    """The databases on which the server is tested. The most used servers have all of them."""

    def __str__(self) -> str:
        return self.name

    def command_for_tests(self, port: int) -> list[str]:
        """Return the command with the programs of this Python, the app of the tests and a port."""
        command = self.command.replace("8000", str(port))
        command = command.replace(" app:asgi_app", " support.host_asgi:asgi_app")
        command = command.replace(" app:app", " support.host_app:app")
        program, *options = shlex.split(command)
        if program == "gunicorn":
            options += ["--bind", f"127.0.0.1:{port}"]
        # pyuwsgi is uWSGI as a wheel.
        program = "pyuwsgi" if program == "uwsgi" else program
        return [str(Path(sys.executable).with_name(program)), *options]


WSGI_SERVERS = [
    WsgiServer(
        name="gunicorn-sync",
        command="gunicorn --workers 2 app:app",
        has_concurrency=False,
    ),
    WsgiServer(
        name="gunicorn-sync-preload",
        command=f"{GUNICORN} --worker-class sync --threads 1 app:app",
        has_concurrency=False,
    ),
    WsgiServer(
        name="gunicorn-gthread",
        command="gunicorn --workers 2 --threads 16 --keep-alive 75 app:app",
    ),
    WsgiServer(name="gunicorn-gthread-preload", command=f"{GUNICORN} app:app", databases=DATABASES),
    WsgiServer(
        name="gunicorn-gevent",
        command="gunicorn --workers 2 --worker-class gevent --keep-alive 75 app:app",
    ),
    WsgiServer(
        name="gunicorn-gevent-preload",
        command=f"{GUNICORN} --worker-class gevent app:app",
        databases=DATABASES,
    ),
    WsgiServer(
        name="uwsgi-processes",
        command=f"{UWSGI} --http-socket 127.0.0.1:8000",
        has_concurrency=False,
    ),
    WsgiServer(
        name="uwsgi-threads",
        command=f"{UWSGI} --http-socket 127.0.0.1:8000 --threads 16",
        databases=DATABASES,
    ),
    WsgiServer(name="uwsgi-threads-http11", command=f"{UWSGI_HTTP11} --threads 16"),
    WsgiServer(
        name="uwsgi-gevent",
        command=f"{UWSGI} --http-socket 127.0.0.1:8000 --gevent 100",
        has_concurrency=False,
        runs_exit_functions=False,
    ),
    WsgiServer(
        name="uwsgi-gevent-patched",
        command=f"{UWSGI} --http-socket 127.0.0.1:8000 --gevent 100 --gevent-monkey-patch",
        runs_exit_functions=False,
    ),
    WsgiServer(
        name="uwsgi-gevent-patched-early",
        command=f"{UWSGI} --http-socket 127.0.0.1:8000 --gevent 100 --gevent-early-monkey-patch",
        runs_exit_functions=False,
    ),
    WsgiServer(
        name="uwsgi-router",
        command=f"{UWSGI} --http 127.0.0.1:8000 --threads 16",
        chunked_problem="this server does not hand over chunked bodies: "
        "start the HTTP router of uWSGI with http-chunked-input = true",
    ),
    WsgiServer(
        name="uwsgi-router-chunked",
        command=f"{UWSGI} --http 127.0.0.1:8000 --http-chunked-input --threads 16",
    ),
    WsgiServer(
        name="waitress",
        command="waitress-serve --listen 127.0.0.1:8000 --threads 16 app:app",
        # waitress has no handler for SIGTERM.
        exit_status=-signal.SIGTERM,
    ),
    WsgiServer(
        name="uvicorn-a2wsgi",
        command="uvicorn --port 8000 --workers 2 --timeout-keep-alive 75 --no-access-log"
        " app:asgi_app",
        runs_exit_functions=False,
    ),
    WsgiServer(
        name="flask-run",
        command="flask --app app:app run --port 8000 --reload",
        stop=signal.SIGINT,
        stops_group=True,
    ),
]


@contextmanager
def running(server: WsgiServer, folder: Path, url: URL, **variables: str) -> Iterator[Running]:
    """Run the host app on a server, and kill what is left of the server at the end."""
    env = environment(folder, url) | python_path() | variables
    port = free_port()
    # gunicorn reads gunicorn.conf.py in its working folder, even if no option names it.
    process = start(folder, server.command_for_tests(port), env, cwd=folder)
    host = Running(process, port, folder, url)
    try:
        _wait_until_ready(server, host)
        yield host
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def python_path() -> dict[str, str]:
    """Return the environment variable with which every server finds the host app."""
    return {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}


def stop(server: WsgiServer, host: Running) -> int:
    """Stop the server as an operator does, and return its exit status."""
    if server.stops_group:
        os.killpg(host.process.pid, server.stop)
    else:
        host.process.send_signal(server.stop)
    return host.process.wait(STOP_SECONDS)


def _wait_until_ready(server: WsgiServer, host: Running) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert host.process.poll() is None, host.log()
        assert time.monotonic() < deadline, host.log()
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", host.port), timeout=1).close()
            is_ready = host.ask("GET", "/host-page") == (200, {"host": True})
            if is_ready and (
                not server.name.startswith("gunicorn")
                or have_ready_workers(family(host.process.pid))
            ):
                return
        time.sleep(0.02)


def cases(servers: Iterable[WsgiServer]) -> list[Any]:
    """Return each server with each of its databases, as parameters of a test.

    `make test` runs the most used server on all databases, and the others on their first.
    """
    return [
        pytest.param(
            server,
            database,
            id=f"{server}-{database}",
            marks=long_if(number > 0 and server.name != "gunicorn-gthread-preload"),
        )
        for server in servers
        for number, database in enumerate(server.databases)
    ]
