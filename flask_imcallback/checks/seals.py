"""Checks of the seals: is the log sealed, and does it fit the kept checkpoint?"""

from __future__ import annotations

from collections.abc import Iterator

from ..log import SealState
from ..runtime import Runtime
from .database import find_file_problem
from .findings import Finding, ok, warning


def check_seals(runtime: Runtime) -> Iterator[Finding]:
    """Check the seals of an app."""
    state = read_seals(runtime)
    if state is None:
        return  # the check of the database says why
    if problem := judge_seals(state):
        yield problem
    elif state.sealed_until:
        yield ok(f"The log is sealed until {state.sealed_until}")


def read_seals(runtime: Runtime) -> SealState | None:
    """Return the state of the seals, or None if the database cannot be read.

    Waits at most `IMCALLBACK_DEADLINE`. Needs an app context.
    """
    try:
        if find_file_problem(runtime.engine()):
            return None
        return runtime.inspector.ask(runtime.sealer.inspect, runtime.settings.deadline)
    except Exception:  # also a mistake in the settings. The check of the database explains it
        return None


def judge_seals(state: SealState) -> Finding | None:
    """Return the reason why the log is not sealed, or None."""
    if not state.problem:
        return None
    return warning(
        "The log is not sealed",
        f"Without new seals, nobody can prove later that new rows were not changed. "
        f"{state.problem[0].upper()}{state.problem[1:]}.",
        "Do what the message says.",
    )
