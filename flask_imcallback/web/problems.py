"""The error responses for readers: problem documents (RFC 9457)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flask import Blueprint, Response

from ..errors import HistoryQueryError, StorageError, TooWideError
from ..logger import logger

ALLOWED_METHODS = "GET, HEAD, OPTIONS"
"""The header `Allow` of the URLs for readers."""
SCHEMES = ("Basic", "Bearer")
"""The schemes of HTTP authentication that readers may use."""
PREFIX = "urn:flask-imcallback:problem:"


@dataclass(frozen=True)
class ProblemType:
    """A kind of problem. Clients recognize it by `uri`, so a `name` never changes."""

    name: str
    status: int
    title: str

    @property
    def uri(self) -> str:
        """The member `type` of the problem document."""
        return PREFIX + self.name


BAD_PARAMETER = ProblemType("bad-parameter", 400, "Bad Parameter")
UNAUTHORIZED = ProblemType("unauthorized", 401, "Unauthorized")
CLOSED = ProblemType("closed", 403, "Closed")
NOT_FOUND = ProblemType("not-found", 404, "Not Found")
METHOD_NOT_ALLOWED = ProblemType("method-not-allowed", 405, "Method Not Allowed")
TOO_WIDE = ProblemType("too-wide", 422, "Too Wide")
NOT_INSTALLED = ProblemType("not-installed", 501, "Not Installed")
UNAVAILABLE = ProblemType("unavailable", 503, "Service Unavailable")
PROBLEM_TYPES = (
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
    """A problem that ends a request."""

    def __init__(self, type: ProblemType, detail: str, **members: object) -> None:
        super().__init__(detail)
        self.type = type
        self.document = {
            "type": type.uri,
            "title": type.title,
            "status": type.status,
            "detail": detail,
            **members,
        }


def answer_with_problems(
    blueprint: Blueprint, render: Callable[[ProblemError], Response] | None = None
) -> None:
    """Answer the errors that a blueprint raises on purpose, as JSON or as `render` does."""
    render = render or _render_json

    def answer(error: Exception) -> Response:
        problem = _make_problem(error)
        response = render(problem)
        response.status_code = problem.type.status
        if problem.type is UNAUTHORIZED:
            for scheme in SCHEMES:
                response.headers.add("WWW-Authenticate", f'{scheme} realm="imcallback"')
        elif problem.type is METHOD_NOT_ALLOWED:
            response.headers["Allow"] = ALLOWED_METHODS
        return response

    for error_class in (ProblemError, HistoryQueryError, StorageError):
        blueprint.register_error_handler(error_class, answer)


def json_response(body: Any) -> Response:
    """Return a response with `body` as JSON, in which non-ASCII letters stay readable."""
    text = json.dumps(body, ensure_ascii=False)
    return Response(text + "\n", mimetype="application/json")


def _render_json(problem: ProblemError) -> Response:
    response = json_response(problem.document)
    response.mimetype = "application/problem+json"
    return response


def _make_problem(error: Exception) -> ProblemError:
    if isinstance(error, ProblemError):
        return error
    if isinstance(error, HistoryQueryError):
        type = TOO_WIDE if isinstance(error, TooWideError) else BAD_PARAMETER
        return ProblemError(type, str(error), parameter=error.parameter)
    logger.error("The history cannot be read: %s", error, exc_info=error)
    return ProblemError(UNAVAILABLE, str(error))
