"""Checks that find out why callbacks are lost. `doctor` and the health check use them."""

from .causes import explain
from .database import (
    MAX_CLOCK_DIFFERENCE,
    check_database,
    explain_clock,
    find_database_problem,
)
from .exemptions import exempt_views
from .findings import Finding, Level, failure, guard, note, ok, warning
from .hooks import EXEMPTION, GATE_REMEDY, check_hooks
from .log import check_log
from .seals import check_seals, judge_seals, read_seals
from .server import check_server
from .settings import check_settings
from .spool import check_spool, count_callbacks, find_spool_problem, judge_waiting

__all__ = [
    "EXEMPTION",
    "GATE_REMEDY",
    "MAX_CLOCK_DIFFERENCE",
    "Finding",
    "Level",
    "check_database",
    "check_hooks",
    "check_log",
    "check_seals",
    "check_server",
    "check_settings",
    "check_spool",
    "count_callbacks",
    "exempt_views",
    "explain",
    "explain_clock",
    "failure",
    "find_database_problem",
    "find_spool_problem",
    "guard",
    "judge_seals",
    "judge_waiting",
    "note",
    "ok",
    "read_seals",
    "warning",
]
