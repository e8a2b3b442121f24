"""Checks of the process that serves requests. A command line has no such process."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from typing import Any

from flask import Flask, Request

from ..errors import VerificationError
from ..runtime import Runtime
from .findings import Finding, failure, warning

ACCESS_LOGGERS = ("gunicorn.access", "uvicorn.access", "hypercorn.access", "waitress.access")

PROXY_FIX_KEY = "werkzeug.proxy_fix.orig"
"""Key of the WSGI environment that ProxyFix sets."""


def check_server(app: Flask, runtime: Runtime, request: Request) -> Iterator[Finding]:
    """Check the server that runs this request."""
    yield from _check_uwsgi_log()
    yield from _check_gevent()
    yield from _check_access_log()
    yield from _check_remote_address(runtime, request)
    if app.debug:
        yield warning(
            "Debug mode is on",
            "After an error, anybody can run Python code in the app.",
            "Turn debug mode off, and unset FLASK_DEBUG.",
        )
    if request.environ.get("SERVER_SOFTWARE", "").startswith("Werkzeug/"):
        yield warning(
            "The development server of Flask runs the app",
            "It closes each connection, and it prints the paths of callbacks, which hold secrets.",
            "Run the app with gunicorn or another server for production.",
        )


def _check_uwsgi_log() -> Iterator[Finding]:
    options: dict[Any, Any] = getattr(sys.modules.get("uwsgi"), "opt", None) or {}
    names = {name.decode() if isinstance(name, bytes) else name for name in options}
    if options and not names & {"disable-logging", "log-format"}:
        yield _access_log("uWSGI", "Start uWSGI with --disable-logging.")


def _check_gevent() -> Iterator[Finding]:
    gevent, monkey = sys.modules.get("gevent"), sys.modules.get("gevent.monkey")
    if gevent is None or not isinstance(gevent.getcurrent(), gevent.Greenlet):
        return
    if monkey is None or not monkey.is_module_patched("socket"):
        yield warning(
            "gevent runs the app, but has not patched Python's modules",
            "A slow query of the history stops all requests of the process.",
            "Call gevent.monkey.patch_all() before everything else, or start uWSGI with "
            "--gevent-monkey-patch.",
        )


def _check_access_log() -> Iterator[Finding]:
    for name in ACCESS_LOGGERS:
        logger = logging.getLogger(name)
        if logger.handlers and logger.isEnabledFor(logging.INFO):
            yield _access_log(name, "Switch the access log off, or leave the path out of it.")


def _access_log(name: str, remedy: str) -> Finding:
    return warning(
        f"{name} writes the paths of callbacks into a log",
        "The paths may hold a secret path segment, and the query holds the Sign of Tencent.",
        remedy,
    )


def _check_remote_address(runtime: Runtime, request: Request) -> Iterator[Finding]:
    """Check that the app sees the IP address of the sender, and not the address of a proxy."""
    address = request.remote_addr or ""
    try:
        runtime.settings.check_address(address)
    except VerificationError as error:
        if "cannot be read" in error.reason:
            yield failure(
                f"The app cannot read the IP address {address!r} of its clients",
                "IMCALLBACK_ALLOWED_NETWORKS refuses every callback.",
                "Behind a proxy, use ProxyFix of Werkzeug with x_for set to the number of proxies.",
            )
            return
    else:
        return
    if "X-Forwarded-For" in request.headers and PROXY_FIX_KEY not in request.environ:
        yield failure(
            f"The app takes the proxy {address} for the sender of callbacks",
            "IMCALLBACK_ALLOWED_NETWORKS refuses every callback.",
            "Use ProxyFix of Werkzeug with x_for set to the number of proxies.",
        )
