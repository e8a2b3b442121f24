"""What a reader is told when a question is not answered: problems as of RFC 9457."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flask import Blueprint, Response

from ..errors import HistoryQueryError, StorageError, TooWideError

logger = logging.getLogger("flask_imcallback")

PREFIX = "urn:flask-imcallback:problem:"


@dataclass(frozen=True)
class Kind:
    """What problems of a type have in common."""

    name: str
    """The type is this, after `PREFIX`; it stays what it is."""
    status: int
    title: str
    meaning: str

    @property
    def type(self) -> str:
        return PREFIX + self.name


BAD_PARAMETER = Kind(
    "bad-parameter",
    400,
    "Bad Parameter",
    "A parameter is unknown, malformed, given twice, or a cursor of another question; `parameter` "
    "names it.",
)
UNAUTHORIZED = Kind(
    "unauthorized",
    401,
    "Unauthorized",
    "The request has no bearer token, or one that is not known.",
)
CLOSED = Kind(
    "closed",
    403,
    "Closed",
    "Nobody may read: `detail` says which setting opens the history.",
)
NOT_FOUND = Kind("not-found", 404, "Not Found", "Nothing is there.")
METHOD_NOT_ALLOWED = Kind(
    "method-not-allowed", 405, "Method Not Allowed", "The address is read, by GET."
)
TOO_WIDE = Kind(
    "too-wide",
    422,
    "Too Wide",
    "The answer would be too many counts: take larger buckets, or a shorter time.",
)
NOT_INSTALLED = Kind(
    "not-installed", 501, "Not Installed", "The server lacks a package; `detail` names it."
)
UNAVAILABLE = Kind(
    "unavailable",
    503,
    "Service Unavailable",
    "The database is away, or its tables are not at the newest migration.",
)
KINDS = (
    BAD_PARAMETER,
    UNAUTHORIZED,
    CLOSED,
    NOT_FOUND,
    METHOD_NOT_ALLOWED,
    TOO_WIDE,
    NOT_INSTALLED,
    UNAVAILABLE,
)


class ProblemError(Exception):
    """A problem to answer with; `schemes` are those that a reader may authenticate by."""

    def __init__(
        self, kind: Kind, detail: str, *, schemes: Sequence[str] = ("Bearer",), **members: object
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.schemes = schemes
        self.body = {
            "type": kind.type,
            "title": kind.title,
            "status": kind.status,
            "detail": detail,
            **members,
        }


def answer_with_problems(
    blueprint: Blueprint, show: Callable[[ProblemError], Response] | None = None
) -> None:
    """Have the errors that are raised on purpose answered: in JSON, or as `show` does."""
    show = show or _problem_json

    def answer(error: Exception) -> Response:
        problem = _problem_of(error)
        response = show(problem)
        response.status_code = problem.kind.status
        if problem.kind is UNAUTHORIZED:
            for scheme in problem.schemes:
                response.headers.add("WWW-Authenticate", f'{scheme} realm="imcallback"')
        elif problem.kind is METHOD_NOT_ALLOWED:
            response.headers["Allow"] = "GET, HEAD, OPTIONS"
        return response

    for kind in (ProblemError, HistoryQueryError, StorageError):
        blueprint.register_error_handler(kind, answer)


def json_response(body: Any) -> Response:
    """As text that keeps the letters of all languages."""
    text = json.dumps(body, ensure_ascii=False)
    return Response(text + "\n", mimetype="application/json")


def _problem_json(problem: ProblemError) -> Response:
    response = json_response(problem.body)
    response.mimetype = "application/problem+json"
    return response


def _problem_of(error: Exception) -> ProblemError:
    if isinstance(error, ProblemError):
        return error
    if isinstance(error, HistoryQueryError):
        kind = TOO_WIDE if isinstance(error, TooWideError) else BAD_PARAMETER
        return ProblemError(kind, str(error), parameter=error.parameter)
    logger.error("The history cannot be read: %s", error, exc_info=error)
    return ProblemError(UNAVAILABLE, str(error))
