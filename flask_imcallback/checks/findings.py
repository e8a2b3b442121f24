"""Findings: the result of a check, the reason why it matters, and the remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """The weight of a finding."""

    OK = "ok"
    NOTE = "note"
    """Information. Nobody has to act."""
    WARNING = "warning"
    """Needs attention, but loses no callbacks."""
    FAILURE = "failure"
    """Callbacks are lost, or will be lost."""


@dataclass(frozen=True)
class Finding:
    """The result of a check. Its texts never hold a password, a token or a secret path segment."""

    level: Level
    title: str
    """The fact or the problem. The health check shows titles to everybody."""
    why: str = ""
    remedy: str = ""


def ok(title: str) -> Finding:
    """Return a finding without a problem."""
    return Finding(Level.OK, title)


def note(title: str, why: str = "") -> Finding:
    """Return a finding with information."""
    return Finding(Level.NOTE, title, why)


def warning(title: str, why: str, remedy: str) -> Finding:
    """Return a finding that needs attention, but does not lose callbacks."""
    return Finding(Level.WARNING, title, why, remedy)


def failure(title: str, why: str, remedy: str) -> Finding:
    """Return a finding about a problem that loses callbacks."""
    return Finding(Level.FAILURE, title, why, remedy)


def guard(subject: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Yield the findings of a check. An unexpected error becomes a finding, too.

    `subject` is a noun with its article, such as "the spool".
    """
    try:
        yield from check()
    except Exception as error:
        yield failure(
            f"The check of {subject} failed",
            f"Nobody knows whether callbacks are lost. The error: {type(error).__name__}: {error}",
            "Read the error. If it does not help, report it as a bug of flask-imcallback.",
        )
