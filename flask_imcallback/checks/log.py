"""Checks of the log. It names refused and lost callbacks."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from ..storage import has_handler
from .findings import Finding, note, ok, warning

LOGGER_NAME = "flask_imcallback"
INVISIBLE = "The log shows no refused callback, and lost packets go to stderr without a time."


def check_log() -> Iterator[Finding]:
    """Check that warnings of this extension reach a handler."""
    logger = logging.getLogger(LOGGER_NAME)
    if logger.disabled:
        yield warning(
            f"The logger {LOGGER_NAME} is disabled",
            f"{INVISIBLE} Often fileConfig() of Alembic's env.py disables all loggers.",
            "Call fileConfig(..., disable_existing_loggers=False), or enable the logger after the "
            "upgrade.",
        )
    elif not logger.isEnabledFor(logging.WARNING):
        level = max(logger.getEffectiveLevel(), logger.manager.disable)
        yield warning(
            f"The logger {LOGGER_NAME} has the level {logging.getLevelName(level)}",
            INVISIBLE,
            f'Call logging.getLogger("{LOGGER_NAME}").setLevel("WARNING"), and do not call '
            "logging.disable().",
        )
    elif not logger.hasHandlers():
        yield note(
            f"The logger {LOGGER_NAME} has no handler",
            "Python prints its warnings to stderr without time and level. Call "
            "logging.basicConfig() for both.",
        )
    elif not has_handler(logger, logging.WARNING):
        yield warning(
            f"No handler of the logger {LOGGER_NAME} takes warnings",
            INVISIBLE,
            f"Give the logger {LOGGER_NAME} or the root logger a handler with the level WARNING.",
        )
    else:
        yield ok(f"The logger {LOGGER_NAME} reaches a handler")
