"""The health check for load balancers and monitors: can callbacks be stored?"""

from __future__ import annotations

import json
import logging
import re
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from flask import Blueprint, Response, current_app, request

from ..checks import (
    Finding,
    check_log,
    check_server,
    find_database_problem,
    find_spool_problem,
    guard,
    judge_waiting,
)
from ..errors import ImCallbackError
from ..history import CALLBACK_COUNT, WAITING
from ..runtime import Runtime, get_runtime
from ..storage import PerProcess
from .access import TokenCheck, check_token

logger = logging.getLogger("flask_imcallback")

MAX_CHECKS_AT_ONCE, CHECKS_PER_SECOND = 20, 5
"""Checks of a process that may follow each other at once, and checks per second after them. Further
requests get the last answer, so that a stranger who asks often costs little."""

LOG_INTERVAL_SECONDS = 60
"""Minimum time between two log lines of a process."""


@dataclass(frozen=True)
class Health:
    """The result of a check."""

    database_problem: Finding | None
    spool_problem: Finding | None
    spool: dict[str, Any] | None
    """What waits in the spool. None if there is no spool, or if the spool cannot be read."""

    @property
    def status(self) -> str:
        if self.database_problem:
            return "unavailable"
        return "degraded" if self.spool_problem else "ok"

    @property
    def problem(self) -> Finding | None:
        return self.database_problem or self.spool_problem


class HealthCheck:
    """The checks of one process, and the newest result."""

    def __init__(self) -> None:
        self._health: Health | None = None
        self._asked_at = time.monotonic()
        self._budget = float(MAX_CHECKS_AT_ONCE)
        """The number of checks that may start at once."""
        self._is_running = False
        self._logged_at: float | None = None

    def run(self, runtime: Runtime) -> Health:
        """Return the result of a check, or the last result if there are too many checks.

        Takes little longer than `IMCALLBACK_DEADLINE`, even if the database hangs.
        """
        now = time.monotonic()
        refill = (now - self._asked_at) * CHECKS_PER_SECOND
        self._asked_at, self._budget = now, min(MAX_CHECKS_AT_ONCE, self._budget + refill)
        if self._health and (self._is_running or self._budget < 1):
            return self._health
        self._budget, self._is_running = self._budget - 1, True
        try:
            self._health = _check(runtime)
        finally:
            self._is_running = False
        self._log(self._health)
        return self._health

    def _log(self, health: Health) -> None:
        now, problem = time.monotonic(), health.problem
        if problem is None:
            return
        if self._logged_at is not None and now - self._logged_at < LOG_INTERVAL_SECONDS:
            return
        self._logged_at = now
        logger.error(
            "The health check finds a problem. %s. %s %s",
            problem.title,
            problem.why,
            problem.remedy,
        )


def make_blueprint() -> Blueprint:
    """Return the blueprint of the health check. It is open to everybody."""
    blueprint = Blueprint("imcallback_health", __name__)
    check = PerProcess(HealthCheck)
    blueprint.add_url_rule("/health", view_func=lambda: _health(check.get()), endpoint="health")
    return blueprint


def _health(check: HealthCheck) -> Response:
    """Return 503 if the database cannot store a callback now, otherwise 200.

    A problem of the spool alone is 200, because callbacks are stored without the spool. Readers
    also see the counts of callbacks, the database, and what is wrong with this process.
    """
    runtime = get_runtime()
    health = check.run(runtime)
    problem = health.problem.title if health.problem else ""
    body: dict[str, Any] = {
        "status": health.status,
        "problem": re.sub(r"^[A-Z](?=[a-z ])", lambda first: first[0].lower(), problem),
    }
    if health.spool is not None:
        body["spool"] = health.spool
    if check_token() is TokenCheck.VALID:
        body |= _describe_process(runtime, health)
    response = Response(
        json.dumps(body), 503 if health.database_problem else 200, mimetype="application/json"
    )
    response.headers["Cache-Control"] = "no-store"
    return response


def _check(runtime: Runtime) -> Health:
    database_problem = find_database_problem(runtime)
    if runtime.drain is None:
        return Health(database_problem, None, None)
    spool = runtime.drain.spool
    spool_problem = find_spool_problem(spool)
    try:
        waiting = spool.waiting()
    except (ImCallbackError, OSError):
        return Health(database_problem, spool_problem, None)
    failures = (finding for finding in judge_waiting(waiting) if finding.level == "failure")
    return Health(database_problem, spool_problem or next(failures, None), WAITING.dump(waiting))


def _describe_process(runtime: Runtime, health: Health) -> dict[str, Any]:
    """Return what only readers see."""
    app = current_app._get_current_object()  # type: ignore[attr-defined]
    findings = [
        *guard("the log", check_log),
        *guard("the server", lambda: check_server(app, runtime, request)),
    ]
    body: dict[str, Any] = {
        "findings": [asdict(finding) for finding in findings if finding.level != "ok"],
        "database": "",
    }
    with suppress(Exception):  # the problem says what is wrong
        body["database"] = runtime.describe_database()
        if health.database_problem is None:
            body["callbacks"] = [CALLBACK_COUNT.dump(count) for count in runtime.counters.counts()]
    return body
