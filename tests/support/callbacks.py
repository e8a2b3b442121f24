"""Callbacks to post, and apps that receive them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from click.testing import Result
from flask import Flask
from sqlalchemy import URL
from werkzeug.serving import WSGIRequestHandler, make_server

from flask_imcallback import ImCallback, OpenIMProvider, Origin, PacketError, Reply, upgrade
from flask_imcallback.providers import Callback, CallbackRequest
from flask_imcallback.runtime import get_runtime
from support.apps import close_connections, delete_deliveries, join

SECRET = "a-secret-of-16-characters"

UNANSWERABLE = "the provider fails to answer this problem"

BODY = {
    "callbackCommand": "callbackAfterRemoveBlackCommand",
    "ownerUserID": "a",
    "blackUserID": "b",
}


class BrokenProvider(OpenIMProvider):
    """A provider of a host app. Its methods fail for some requests."""

    name = "mine"

    def verify(self, request: CallbackRequest) -> str:
        if request.query.get("fail"):
            raise KeyError("on purpose")
        return super().verify(request)

    def origin(self, request: CallbackRequest) -> Origin:
        if request.query.get("fail_origin"):
            raise KeyError("on purpose")
        return super().origin(request)

    def parse(self, request: CallbackRequest, body: bytes) -> Callback:
        if body == b'{"fail": 1}':
            raise KeyError("on purpose")
        if body == b'{"fail": 2}':
            raise PacketError(UNANSWERABLE)
        return super().parse(request, body)

    def refuse(self, status: int, problem: str) -> Reply:
        if status == 400 and problem == UNANSWERABLE:
            raise KeyError("on purpose")
        return super().refuse(status, problem)


class SharedApps:
    """Apps on one database: one app for all packets with the same settings."""

    def __init__(self, url: URL, folder: Path) -> None:
        self._url = url
        self._folder = folder
        self._apps: dict[str, Flask] = {}

    def empty_app(self, settings: dict[str, Any]) -> Flask:
        """Return the app with these settings. The tables are empty."""
        app = self._apps.get(repr(settings)) or self._make(settings)
        with app.app_context(), get_runtime().writing_engine().begin() as connection:
            delete_deliveries(connection)
        return app

    def _make(self, settings: dict[str, Any]) -> Flask:
        app = Flask("host", instance_path=str(self._folder / "instance"))
        app.config.update(settings, SQLALCHEMY_DATABASE_URI=self._url)
        app.config["IMCALLBACK_DEADLINE"] = 30  # on a slow machine, no callback waits in the spool
        app.config["IMCALLBACK_SEAL_SECONDS"] = 0
        ImCallback(app)
        with app.app_context():
            upgrade()
        self._apps[repr(settings)] = app
        return app

    def close(self) -> None:
        """Close all connections to the database."""
        join("imcallback-drain")
        for app in self._apps.values():
            close_connections(app)


@contextmanager
def shared_apps(url: URL, folder: Path) -> Iterator[SharedApps]:
    """Give apps that share a database, and close their connections at the end."""
    apps = SharedApps(url, folder)
    try:
        yield apps
    finally:
        apps.close()


Wsgi = Callable[[dict[str, Any], Any], Any]


class QuietHandler(WSGIRequestHandler):
    """A handler that closes each connection with its answer, and logs nothing."""

    def log(self, type: str, message: str, *args: Any) -> None:
        pass


@contextmanager
def served(app: Wsgi) -> Iterator[str]:
    """Serve the app on a free port, and give the URL."""
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=QuietHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/imcallback"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def run_command(app: Flask, *arguments: str) -> Result:
    """Run `flask imcallback` with these arguments."""
    return app.test_cli_runner().invoke(args=["imcallback", *arguments])
