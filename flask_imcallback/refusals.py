"""Refused callbacks, counted and logged: a flood of them costs neither disk nor memory."""

from __future__ import annotations

import logging
import threading
import time

logger = logging.getLogger("flask_imcallback")

LOG_SECONDS = 60
"""At most one line for a provider and a reason in this time."""
MAX_REASONS = 100
OTHER = "another reason"


class Refusals:
    """Those of one app in this process. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], int] = {}
        self._logged: dict[tuple[str, str], tuple[float, int]] = {}

    def add(self, provider: str, reason: str, detail: str = "") -> None:
        """Count a refusal, and log it unless the same was logged a moment ago.

        `reason` is one of a few texts; what differs from case to case goes into `detail`.
        """
        now = time.time()
        with self._lock:
            key = (provider, reason)
            if key not in self._counts and len(self._counts) >= MAX_REASONS:
                key = (provider, OTHER)
            count = self._counts[key] = self._counts.get(key, 0) + 1
            logged_at, logged = self._logged.get(key, (-LOG_SECONDS, 0))
            if abs(now - logged_at) < LOG_SECONDS:  # also where the clock was put back
                return
            self._logged[key] = now, count
        unlogged = f"; {count - logged - 1} more since this was last logged" if logged else ""
        logger.warning(
            "Refused a callback of %s: %s%s%s",
            provider,
            reason,
            detail and f" ({detail})",
            unlogged,
        )

    def counts(self) -> dict[str, dict[str, int]]:
        """How many since the start of this process, by provider and reason."""
        with self._lock:
            counts: dict[str, dict[str, int]] = {}
            for (provider, reason), count in self._counts.items():
                counts.setdefault(provider, {})[reason] = count
            return counts
