"""The addresses: callbacks in, history out."""

from werkzeug.routing import PathConverter


class Rest(PathConverter):
    """The rest of a path, without slashes around it.

    Whatever it is: Flask would answer a line end by itself, and redirect where a slash is doubled.
    """

    regex = r"(?:.|\n)+"
    part_isolating = False

    def to_python(self, value: str) -> str:
        return value.strip("/")
