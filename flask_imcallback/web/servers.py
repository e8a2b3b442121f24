"""The check for servers that would lose callbacks."""

from __future__ import annotations

import sys
from typing import Any

from ..errors import ConfigError


def check_server() -> None:
    """Check the server that runs this process. Raises `ConfigError` with the remedy.

    Only uWSGI shows its options: https://uwsgi-docs.readthedocs.io/en/latest/PythonModule.html.
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
