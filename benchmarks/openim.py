"""Imitate OpenIM's queue, and count the callbacks that it loses if the receiver is slow.

OpenIM puts its callbacks into a queue in memory with room for 100. Two workers send them one after
the other, each over a connection that it keeps. A worker waits three seconds for an answer.
OpenIM drops a callback if the queue is full, and never sends a callback again.
"""

from __future__ import annotations

import json
import queue
import secrets
import statistics
import threading
import time
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException

from serving import PACKET, PATH

PLACES = 100
WORKERS = 2
PATIENCE = 3


@dataclass
class Outcome:
    sent: int = 0
    dropped: int = 0
    """Callbacks that were dropped because the queue was full."""
    failed: int = 0
    """Callbacks that timed out or got an error."""
    taken: list[float] = field(default_factory=list)
    """Milliseconds from the event to its answer, including the time in the queue."""

    def percentile(self, percent: int) -> float:
        if len(self.taken) < 2:
            return float("nan")
        return statistics.quantiles(self.taken, n=100, method="inclusive")[percent - 1]


def imitate(port: int, rate: float, seconds: float) -> Outcome:
    """Create events at a steady rate, and return the outcome of their callbacks."""
    outcome = Outcome()
    events: queue.Queue[tuple[float, int] | None] = queue.Queue(PLACES)
    lock = threading.Lock()
    workers = [
        threading.Thread(target=_work, args=(port, events, outcome, lock)) for _ in range(WORKERS)
    ]
    for worker in workers:
        worker.start()
    start = time.perf_counter()
    for number in range(round(rate * seconds)):
        due = start + number / rate
        time.sleep(max(0.0, due - time.perf_counter()))
        try:
            events.put_nowait((time.perf_counter(), number))
        except queue.Full:
            outcome.dropped += 1
    for _ in workers:
        events.put(None)
    for worker in workers:
        worker.join()
    return outcome


def _work(
    port: int,
    events: queue.Queue[tuple[float, int] | None],
    outcome: Outcome,
    lock: threading.Lock,
) -> None:
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    run = secrets.token_hex(4)
    while event := events.get():
        happened, number = event
        body = json.dumps({**PACKET, "blackUserID": f"{run}-{number}"}).encode()
        headers = {"Content-Type": "application/json; charset=utf-8", "operationID": f"{number}"}
        try:
            connection.request("POST", PATH, body, headers)
            response = connection.getresponse()
            response.read()
            is_answered = response.status == 200
        except (OSError, HTTPException):
            connection.close()
            is_answered = False
        with lock:
            if is_answered:
                outcome.sent += 1
                outcome.taken.append((time.perf_counter() - happened) * 1000)
            else:
                outcome.failed += 1
    connection.close()
