"""The health check for load balancers and monitors: can callbacks be recorded?"""

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
from .access import TokenCheck, check_token

logger = logging.getLogger("flask_imcallback")
T = TypeVar("T")


def make_blueprint() -> Blueprint:
    """Return the blueprint of the health check. It is open to everybody."""
    blueprint = Blueprint("imcallback_health", __name__)
    lock = threading.Lock()
    blueprint.add_url_rule(
        "/health", view_func=lambda: _health(lock), endpoint="health", strict_slashes=False
    )
    return blueprint


def _health(lock: threading.Lock) -> Response:
    """Return 200 if the database answers and is at the newest migration, otherwise 503.

    The body says how much waits in the spool. For readers, it also has the counts of callbacks.
    """
    runtime = get_runtime()
    body: dict[str, Any] = {}
    is_reader = check_token() is TokenCheck.VALID
    try:
        body |= _run_in_thread(
            lambda: _check_database(runtime, is_reader), lock, runtime.settings.deadline
        )
        problem = body.pop("problem")
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


def _check_database(runtime: Runtime, is_reader: bool) -> dict[str, Any]:
    if not is_at_head(runtime.engine()):
        return {"problem": "the tables need flask db upgrade"}
    if not is_reader:
        return {"problem": ""}
    return {
        "problem": "",
        "callbacks": [CALLBACK_COUNT.dump(count) for count in runtime.counters.counts()],
    }


def _run_in_thread(function: Callable[[], T], lock: threading.Lock, seconds: float) -> T:
    """Return the result of a function that runs in another thread, one function at a time.

    A hanging database blocks this thread only, however often monitors call. Raises the errors of
    the function, and `StorageError` if there is no result in time.
    """
    results: list[T] = []
    errors: list[Exception] = []
    done = threading.Event()

    def run() -> None:
        try:
            results.append(function())
        except Exception as error:
            errors.append(error)
        finally:
            lock.release()
            done.set()

    if lock.acquire(timeout=seconds):
        threading.Thread(
            target=copy_context().run, args=(run,), name="imcallback-health", daemon=True
        ).start()
        if done.wait(seconds):
            if errors:
                raise errors[0]
            return results[0]
    raise StorageError(f"the health check timed out after {seconds:g} seconds")
