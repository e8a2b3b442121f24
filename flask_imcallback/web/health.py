"""Whether callbacks can be recorded: for load balancers and monitors, without a guard."""

from __future__ import annotations

import json
import logging
from typing import Any

from flask import Blueprint, Response

from ..errors import ImCallbackError
from ..migration import is_at_head
from ..schemas import COUNT
from ..state import get_state
from .readers import token_is_known

logger = logging.getLogger("flask_imcallback")


def make_blueprint() -> Blueprint:
    blueprint = Blueprint("imcallback_health", __name__)
    blueprint.add_url_rule("/health", view_func=_health, endpoint="health")
    return blueprint


def _health() -> Response:
    """200 if the database answers and is at the newest migration, else 503.

    Readers also see how many callbacks were accepted and refused, and when the last one.
    """
    body: dict[str, Any] = {}
    try:
        problem = "" if is_at_head(get_state().engine()) else "the tables need flask db upgrade"
        if not problem and token_is_known():
            body["callbacks"] = [COUNT.dump(count) for count in get_state().tally.counts()]
    except ImCallbackError as error:
        logger.error("The database does not answer: %s", error, exc_info=error)
        problem = "the database does not answer"
    body = {"status": "unavailable" if problem else "ok", "problem": problem, **body}
    response = Response(json.dumps(body), 503 if problem else 200, mimetype="application/json")
    response.headers["Cache-Control"] = "no-store"
    return response
