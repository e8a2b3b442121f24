"""The needs of single WSGI servers: a check before the start, and a handler for SIGTERM."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from ..errors import ConfigError


def check_server() -> None:
    """Check the server that runs this process. Raises `ConfigError` with the remedy."""
    _check_eventlet()
    _check_uwsgi()


def _check_eventlet() -> None:
    """Check that eventlet has not replaced the threads and the sockets of Python."""
    eventlet: Any = sys.modules.get("eventlet.patcher")
    if eventlet and any(map(eventlet.is_monkey_patched, ("thread", "socket"))):
        raise ConfigError(
            "eventlet has replaced the threads or the sockets of Python, so a callback that waits "
            "for the database stops all other requests: use gevent, or threads. With "
            'Flask-SocketIO, pass async_mode="gevent" or async_mode="threading"'
        )


def _check_uwsgi() -> None:
    """Check the options of uWSGI.

    No other server shows them: https://uwsgi-docs.readthedocs.io/en/latest/PythonModule.html.
    """
    uwsgi: Any = sys.modules.get("uwsgi")
    if uwsgi is None:
        return
    if not getattr(uwsgi, "has_threads", True):
        raise ConfigError(
            "uWSGI runs without threads, so nothing can move waiting callbacks from the spool to "
            "the database: set enable-threads = true"
        )
    options = {name.decode() if isinstance(name, bytes) else name for name in uwsgi.opt}
    if {"http11-socket", "gevent"} <= options:
        raise ConfigError(
            "uWSGI drops connections of an http11-socket while it runs gevent: "
            "use http-socket with gevent, or threads in place of gevent"
        )


def call_at_sigterm(function: Callable[[], None]) -> None:
    """Call a function before SIGTERM ends a process of waitress.

    waitress has no handler for SIGTERM, so its process would end without the exit functions of
    Python. A handler of the host app is not replaced.
    """
    previous = signal.getsignal(signal.SIGTERM)
    is_replaceable = previous is signal.SIG_DFL or getattr(previous, "__module__", "") == __name__
    is_main_thread = threading.current_thread() is threading.main_thread()
    if "waitress" not in sys.modules or not is_replaceable or not is_main_thread:
        return

    def end(number: int, frame: Any) -> None:
        function()
        if callable(previous):
            previous(number, frame)
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    signal.signal(signal.SIGTERM, end)
