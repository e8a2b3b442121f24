"""Whether callbacks can be recorded: for load balancers and monitors, without a guard."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, TypeVar

from flask import Blueprint, Response

from ..errors import ImCallbackError, StorageError
from ..history import CALLBACK_COUNT, WAITING
from ..runtime import Runtime, get_runtime
from ..storage import is_at_head
from .access import token_is_known

logger = logging.getLogger("flask_imcallback")
T = TypeVar("T")


def make_blueprint() -> Blueprint:
    blueprint = Blueprint("imcallback_health", __name__)
    asking = threading.Lock()
    blueprint.add_url_rule("/health", view_func=lambda: _health(asking), endpoint="health")
    return blueprint


def _health(asking: threading.Lock) -> Response:
    """200 if the database answers and is at the newest migration, else 503.

    Also what waits in the spool; readers see how many callbacks were accepted and refused, too.
    """
    runtime = get_runtime()
    body: dict[str, Any] = {}
    try:
        is_reader = bool(token_is_known())
        found = _within(runtime.settings.deadline, asking, lambda: _ask(runtime, is_reader))
        problem = found.pop("problem")
        body |= found
    except ImCallbackError as error:
        logger.error("The database does not answer: %s", error, exc_info=error)
        problem = "the database does not answer"
    if runtime.drain:
        try:
            body["spool"] = WAITING.dump(runtime.drain.spool.waiting())
        except StorageError as error:
            logger.error("The spool cannot be read: %s", error, exc_info=error)
            problem = problem or "the spool cannot be read"
    body = {"status": "unavailable" if problem else "ok", "problem": problem, **body}
    response = Response(json.dumps(body), 503 if problem else 200, mimetype="application/json")
    response.headers["Cache-Control"] = "no-store"
    return response


def _ask(runtime: Runtime, is_reader: bool) -> dict[str, Any]:
    if not is_at_head(runtime.engine()):
        return {"problem": "the tables need flask db upgrade"}
    if not is_reader:
        return {"problem": ""}
    return {
        "problem": "",
        "callbacks": [CALLBACK_COUNT.dump(count) for count in runtime.counters.counts()],
    }


def _within(seconds: float, asking: threading.Lock, question: Callable[[], T]) -> T:
    """The answer to a question that is asked in a thread of its own, one at a time.

    A database that hangs keeps that thread, and no more, however often monitors ask. Raises what
    the question raises, and `StorageError` if no answer comes in time.
    """
    answers: list[T] = []
    errors: list[Exception] = []
    done = threading.Event()

    def ask() -> None:
        try:
            answers.append(question())
        except Exception as error:
            errors.append(error)
        finally:
            asking.release()
            done.set()

    if asking.acquire(timeout=seconds):
        threading.Thread(
            target=copy_context().run, args=(ask,), name="imcallback-health", daemon=True
        ).start()
        if done.wait(seconds):
            if errors:
                raise errors[0]
            return answers[0]
    raise StorageError(f"no answer in {seconds:g} seconds")
