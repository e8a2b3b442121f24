"""Paths that Flask would not serve by itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from flask import Flask
from werkzeug.routing import PathConverter

from ..runtime import Runtime


class Rest(PathConverter):
    """The rest of a path, without slashes around it.

    Whatever it is: Flask would answer a line end by itself, and redirect where a slash is doubled.
    """

    regex = r"(?:.|\n)+"
    part_isolating = False

    def to_python(self, value: str) -> str:
        return value.strip("/")


def install_middleware(app: Flask, runtime: Runtime) -> None:
    """Do what must be done before routing.

    A callback with doubled slashes is served as one without: Werkzeug would redirect it, and
    OpenIM's client loses its event then. And at its first request an app without a database gets
    ours, because Flask takes no extension any more while it handles one, and what an earlier
    process left in the spool is drained.
    """
    names = "|".join(re.escape(name) for name in runtime.providers)
    address = re.compile(f"{re.escape(runtime.settings.url_prefix)}/({names})(/|$)")
    inner = app.wsgi_app

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if not runtime.is_ready:
            with suppress(Exception), app.app_context():
                runtime.get_ready()  # what is wrong with the database is told when it is used
        path = environ.get("PATH_INFO", "")
        if "//" in path:
            single = re.sub("//+", "/", path)
            if address.match(single):
                environ["PATH_INFO"] = single
        return inner(environ, start_response)

    app.wsgi_app = serve  # type: ignore[method-assign]
