"""The history as JSON."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlencode

from flask import Blueprint, Response, request
from werkzeug.datastructures import WWWAuthenticate

from ..errors import HistoryQueryError, StorageError
from ..schemas import DELIVERY, read_query, removal_json
from ..state import get_state
from .readers import token_is_known

logger = logging.getLogger("flask_imcallback")


class ProblemError(Exception):
    """A problem to answer with, as RFC 9457 describes it."""

    def __init__(self, status: int, title: str, detail: str, **members: object) -> None:
        super().__init__(detail)
        self.status = status
        self.body = {"title": title, "status": status, "detail": detail, **members}


def make_blueprint(decorators: tuple[Callable[..., Any], ...]) -> Blueprint:
    blueprint = Blueprint("imcallback_history", __name__)
    for rule, view in (("/history", _history), ("/history/<removal_id>", _removal)):
        blueprint.add_url_rule(
            rule, endpoint=view.__name__[1:], view_func=_guarded(view, decorators)
        )
    blueprint.register_error_handler(ProblemError, _problem)
    blueprint.register_error_handler(HistoryQueryError, _bad_parameter)
    blueprint.register_error_handler(StorageError, _no_database)
    blueprint.after_request(_no_store)
    return blueprint


def _guarded(
    view: Callable[..., Any], decorators: tuple[Callable[..., Any], ...]
) -> Callable[..., Any]:
    """Open the view to a bearer token, or to whom the host's decorators let in."""
    decorated = view
    for decorator in decorators:
        decorated = decorator(decorated)

    def guard(**arguments: Any) -> Any:
        is_known = token_is_known()
        if is_known:
            return view(**arguments)
        if is_known is False:
            raise ProblemError(401, "Unauthorized", "The bearer token is not known.")
        if decorators:
            return decorated(**arguments)
        if get_state().settings.history_tokens:
            raise ProblemError(401, "Unauthorized", "Send a bearer token: Authorization: Bearer …")
        raise ProblemError(
            403,
            "Forbidden",
            "The history is closed. Set IMCALLBACK_HISTORY_TOKENS, or pass history_decorators to "
            "ImCallback, to open it.",
        )

    return guard


def _history() -> Response:
    page = get_state().history.page(read_query(_parameters()))
    response = _json(
        {"data": [removal_json(r) for r in page.data], "next_cursor": page.next_cursor}
    )
    if page.next_cursor is not None:
        response.headers["Link"] = f'<{_next_url(page.next_cursor)}>; rel="next"'
    return response


def _parameters() -> dict[str, list[str]]:
    try:
        query = request.query_string.decode()
        return parse_qs(query, keep_blank_values=True, errors="strict")
    except UnicodeDecodeError as error:
        raise ProblemError(400, "Bad Request", "The query is not UTF-8.") from error


def _next_url(cursor: str) -> str:
    parameters = {**_parameters(), "cursor": [cursor]}
    return f"{request.base_url}?{urlencode(parameters, doseq=True)}"


def _removal(removal_id: str) -> Response:
    for name in _parameters():
        raise HistoryQueryError(name, "is not a parameter of one removal")
    is_id = removal_id.isascii() and removal_id.isdecimal() and len(removal_id) <= 16
    found = get_state().history.get(int(removal_id)) if is_id else None
    if found is None:
        raise ProblemError(404, "Not Found", "There is no such removal.")
    record, delivery = found
    return _json(removal_json(record) | {"delivery": DELIVERY.dump(delivery)})


def _json(body: Any) -> Response:
    text = json.dumps(body, ensure_ascii=False)
    return Response(text + "\n", mimetype="application/json")


def _problem(refusal: ProblemError) -> Response:
    response = _json({"type": "about:blank", **refusal.body})
    response.status_code = refusal.status
    response.mimetype = "application/problem+json"
    if refusal.status == 401:
        response.www_authenticate = WWWAuthenticate("bearer", {"realm": "imcallback"})
    return response


def _bad_parameter(error: HistoryQueryError) -> Response:
    detail = f"{error.parameter} {error}"
    return _problem(ProblemError(400, "Bad Request", detail, parameter=error.parameter))


def _no_database(error: StorageError) -> Response:
    logger.error("The history cannot be read: %s", error, exc_info=error)
    return _problem(ProblemError(503, "Service Unavailable", str(error)))


def _no_store(response: Response) -> Response:
    response.headers["Cache-Control"] = "no-store"
    return response
