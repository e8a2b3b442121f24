"""Servers that cannot keep the promise, and what the start says."""

from __future__ import annotations

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
