"""Servers that cannot keep the promise, and what the start says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from flask import Flask
from sqlalchemy import URL

from flask_imcallback import ConfigError, ImCallback
from support.servers import free_port
from support.serving import environment, start
from support.wsgi_servers import UWSGI_HTTP11, WsgiServer, python_path


@pytest.mark.slow
def test_uwsgi_refuses_gevent_with_an_http11_socket(sqlite_url: URL, tmp_path: Path) -> None:
    """uWSGI itself drops connections in this combination, also those of other apps."""
    server = WsgiServer(name="refused", command=f"{UWSGI_HTTP11} --gevent 100")
    env = environment(tmp_path, sqlite_url) | python_path()
    process = start(tmp_path, server.command_for_tests(free_port()), env, cwd=tmp_path)
    assert process.wait(30) != 0
    assert (
        "flask_imcallback.errors.ConfigError: uWSGI drops connections of an http11-socket while it "
        "runs gevent: use http-socket with gevent, or threads in place of gevent\n"
    ) in (tmp_path / "log").read_text()


def test_uwsgi_without_threads_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Old releases of uWSGI run without threads unless they are told otherwise."""
    uwsgi = ModuleType("uwsgi")
    vars(uwsgi).update(has_threads=0, opt={})
    monkeypatch.setitem(sys.modules, "uwsgi", uwsgi)
    with pytest.raises(ConfigError) as caught:
        ImCallback(Flask("host"))
    assert str(caught.value) == (
        "uWSGI runs without threads, so nothing can move waiting callbacks from the spool to the "
        "database: set enable-threads = true"
    )


EVENTLET = """
import eventlet
from flask import Flask
from flask_imcallback import ImCallback

def patch():
    eventlet.monkey_patch({names})

app = Flask("host")
{calls}
"""


def run_with_eventlet(folder: Path, names: str, calls: str) -> subprocess.CompletedProcess[str]:
    """Run an app in a process that has imported eventlet. `names` are the modules to patch."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", EVENTLET.format(names=names, calls=calls)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("names", ["", "socket=True", "thread=True"])
@pytest.mark.parametrize(
    "calls",
    ["patch()\nImCallback(app)", "ImCallback(app)\npatch()\napp.test_client().get('/')"],
    ids=["before the start", "before the first request"],
)
def test_eventlet_is_refused(tmp_path: Path, names: str, calls: str) -> None:
    """Its locks do not work between threads, and the extension uses threads."""
    result = run_with_eventlet(tmp_path, names, calls)
    assert result.returncode == 1
    assert result.stderr.endswith(
        "flask_imcallback.errors.ConfigError: eventlet has replaced the threads or the sockets of "
        "Python, so a callback that waits for the database stops all other requests: use gevent, "
        'or threads. With Flask-SocketIO, pass async_mode="gevent" or async_mode="threading"\n'
    )


def test_eventlet_without_patches_is_not_refused(tmp_path: Path) -> None:
    """Packages may import eventlet without running the app under it."""
    result = run_with_eventlet(tmp_path, "", "ImCallback(app)\napp.test_client().get('/')")
    assert result.returncode == 0, result.stderr
