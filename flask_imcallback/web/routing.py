"""Paths that Flask alone would not serve, and the work before the first request."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from flask import Flask
from werkzeug.routing import PathConverter

from ..runtime import Runtime


class RestOfPath(PathConverter):
    """URL converter for the rest of a path, without the slashes around it.

    It also matches line breaks and doubled slashes. Without it, Flask would answer such a path
    itself, or redirect it.
    """

    regex = r"(?:.|\n)+"
    part_isolating = False

    def to_python(self, value: str) -> str:
        return value.strip("/")


def install_middleware(app: Flask, runtime: Runtime) -> None:
    """Wrap `app.wsgi_app` with the work that must be done before Flask routes a request.

    1. Before the first request, the database is opened and the drain starts. Flask refuses new
       extensions during a request, so that a missing `SQLAlchemy` object cannot be created later.
    2. Doubled slashes are removed from the paths of callbacks. Werkzeug would redirect them, and
       OpenIM's client loses a redirected event.
    """
    names = "|".join(re.escape(name) for name in runtime.providers)
    callback_path = re.compile(f"{re.escape(runtime.settings.url_prefix)}/({names})(/|$)")
    inner_app = app.wsgi_app

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if not runtime.is_prepared:
            # The first use of the database reports what is wrong with it.
            with suppress(Exception), app.app_context():
                runtime.prepare_database()
        path = environ.get("PATH_INFO", "")
        if "//" in path:
            single_slashes = re.sub("//+", "/", path)
            if callback_path.match(single_slashes):
                environ["PATH_INFO"] = single_slashes
        return inner_app(environ, start_response)

    app.wsgi_app = serve  # type: ignore[method-assign]
