"""The parameters and ids in the requests of readers."""

from __future__ import annotations

from urllib.parse import parse_qs

from flask import request

from ..errors import HistoryQueryError
from ..history import shorten


def read_parameters() -> dict[str, list[str]]:
    """Return the query parameters, each with all its values. Raises `HistoryQueryError`."""
    # Latin-1 keeps each byte, so an error can name the parameter.
    query = request.query_string.decode("latin-1")
    parameters = parse_qs(query, keep_blank_values=True, encoding="latin-1")
    return {
        _decode(name, name): [_decode(name, value) for value in values]
        for name, values in parameters.items()
    }


def _decode(name: str, text: str) -> str:
    try:
        return text.encode("latin-1").decode()
    except UnicodeDecodeError:
        readable = name.encode("latin-1").decode(errors="replace")
        raise HistoryQueryError(shorten(readable), "is not UTF-8") from None


def parse_id(text: str) -> int:
    """Return the id that a URL contains, or -1, which no row has, if the text is not an id."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 16 else -1
