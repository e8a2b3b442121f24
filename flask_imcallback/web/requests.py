"""The parameters and ids in the requests of readers."""

from __future__ import annotations

from urllib.parse import parse_qs

from flask import request

from .problems import BAD_PARAMETER, ProblemError


def read_parameters() -> dict[str, list[str]]:
    """Return the query parameters, each with all its values. Raises `ProblemError`."""
    try:
        query = request.query_string.decode()
        return parse_qs(query, keep_blank_values=True, errors="strict")
    except (UnicodeDecodeError, ValueError) as error:
        raise ProblemError(BAD_PARAMETER, "The query is not UTF-8.") from error


def parse_id(text: str) -> int:
    """Return the id that a URL contains, or -1, which no row has, if the text is not an id."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 16 else -1
