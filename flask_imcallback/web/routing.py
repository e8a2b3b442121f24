"""The URL converter for paths that Flask would not serve without it."""

from __future__ import annotations

from werkzeug.routing import PathConverter


class RestOfPath(PathConverter):
    """URL converter for the rest of a path, without the slashes around it.

    It also matches line breaks and doubled slashes. Without it, Flask would answer such a path
    itself, or redirect it.
    """

    regex = r"(?:.|\n)+"
    part_isolating = False

    def to_python(self, value: str) -> str:
        return value.strip("/")
