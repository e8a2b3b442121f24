"""The log of callbacks that neither the database nor the spool has stored."""

from __future__ import annotations

import logging
import sys

logger = logging.getLogger("flask_imcallback")


def log_lost_callback(message: str, *arguments: object) -> None:
    """Log an error with its traceback, or print it to stderr if no handler shows the log.

    `fileConfig()` in the env.py of Alembic disables every existing logger, so a host app may switch
    the log off by mistake. Call this function in an `except` block.
    """
    if is_log_visible():
        logger.exception(message, *arguments)
    else:
        record = logger.makeRecord(
            logger.name, logging.ERROR, "", 0, message, arguments, sys.exc_info()
        )
        print(logging.Formatter().format(record), file=sys.stderr, flush=True)


def is_log_visible() -> bool:
    """Return True if an error of the logger `flask_imcallback` reaches a handler."""
    if logger.disabled or not logger.isEnabledFor(logging.ERROR):
        return False
    if not logger.hasHandlers():
        return logging.lastResort is not None
    source: logging.Logger | None = logger
    while source:
        for handler in source.handlers:
            if handler.level <= logging.ERROR and not isinstance(handler, logging.NullHandler):
                return True
        source = source.parent if source.propagate else None
    return False
