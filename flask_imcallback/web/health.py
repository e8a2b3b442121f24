"""The health check for load balancers and monitors: can callbacks be stored?"""

from __future__ import annotations

import json
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
    judge_seals,
    judge_waiting,
    read_seals,
)
from ..errors import ImCallbackError
from ..history import CALLBACK_COUNT, WAITING
from ..log import SealState
from ..logger import logger
from ..runtime import Runtime, get_runtime
from ..storage import PerProcess, Waiting
from .access import TokenCheck, check_token
from .routing import AnyHostBlueprint

MAX_CHECKS_WITHOUT_PAUSE, CHECKS_PER_SECOND = 20, 5
"""Number of checks of a process that may run without a pause, and the number per second after them.
Further requests get the last answer. So many requests of a stranger cost little."""

LOG_INTERVAL_SECONDS = 60
"""Minimum time between two log lines of a process."""


@dataclass(frozen=True)
class Problems:
    """The problems that a check has found."""

    database: Finding | None
    spool: Finding | None
    seals: SealState | None
    """None if the database cannot be read."""


class HealthCheck:
    """The checks of one process, and the newest result."""

    def __init__(self) -> None:
        self._problems: Problems | None = None
        self._asked_at = time.monotonic()
        self._budget = float(MAX_CHECKS_WITHOUT_PAUSE)
        """The number of checks that may start immediately."""
        self._is_running = False
        self._logged_at: float | None = None

    def run(self, runtime: Runtime) -> Problems:
        """Return the result of a check, or the last result if there are too many checks.

        This takes little longer than `IMCALLBACK_DEADLINE`, even if the database hangs.
        """
        now = time.monotonic()
        refill = (now - self._asked_at) * CHECKS_PER_SECOND
        self._asked_at, self._budget = now, min(MAX_CHECKS_WITHOUT_PAUSE, self._budget + refill)
        if self._problems and (self._is_running or self._budget < 1):
            return self._problems
        self._budget, self._is_running = self._budget - 1, True
        try:
            drain = runtime.drain
            problem = find_database_problem(runtime)
            self._problems = Problems(
                problem,
                find_spool_problem(drain) if drain else None,
                None if problem else read_seals(runtime),
            )
        finally:
            self._is_running = False
        self._log(self._problems.database or self._problems.spool)
        return self._problems

    def _log(self, problem: Finding | None) -> None:
        now = time.monotonic()
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
    blueprint = AnyHostBlueprint("imcallback_health", __name__)
    check = PerProcess(HealthCheck)
    blueprint.add_url_rule(
        "/health",
        view_func=lambda: _health(check.get()),
        endpoint="health",
        strict_slashes=False,
    )
    return blueprint


def _health(check: HealthCheck) -> Response:
    """Return 503 if the database cannot store a callback now, otherwise 200.

    A problem of the spool or of the seals has the status 200, because callbacks are stored.
    Readers also see the counts of callbacks, the database, and the findings about this process.
    """
    runtime = get_runtime()
    problems, waiting = check.run(runtime), _look_into_spool(runtime)
    seals = problems.seals
    problem = (
        problems.database
        or problems.spool
        or _find_waiting_problem(waiting)
        or (judge_seals(seals) if seals else None)
    )
    title = problem.title if problem else ""
    body: dict[str, Any] = {
        "status": "unavailable" if problems.database else "degraded" if problem else "ok",
        "problem": re.sub(r"^[A-Z](?=[a-z ])", lambda first: first[0].lower(), title),
    }
    if waiting is not None:
        body["spool"] = WAITING.dump(waiting)
    if seals and seals.sealed_until:
        body["sealed_until"] = seals.sealed_until
    if check_token() is TokenCheck.VALID:
        body |= _describe_process(runtime, problems)
    response = Response(
        json.dumps(body), 503 if problems.database else 200, mimetype="application/json"
    )
    response.headers["Cache-Control"] = "no-store"
    return response


def _look_into_spool(runtime: Runtime) -> Waiting | None:
    """Return the summary of the spool, or None if there is no spool that can be read."""
    try:
        return runtime.drain.spool.waiting() if runtime.drain else None
    except (ImCallbackError, OSError):
        return None  # the check of the spool says why


def _find_waiting_problem(waiting: Waiting | None) -> Finding | None:
    findings = judge_waiting(waiting) if waiting else ()
    return next((finding for finding in findings if finding.level == "failure"), None)


def _describe_process(runtime: Runtime, problems: Problems) -> dict[str, Any]:
    """Return the part of the answer that only readers see."""
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
        if problems.database is None:
            body["callbacks"] = [CALLBACK_COUNT.dump(count) for count in runtime.counters.counts()]
    return body
