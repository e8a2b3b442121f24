"""Measure flask-imcallback under an hour of load, on a database of ten million removals.

Eight connections send a callback as soon as the last one is answered. This keeps two processors
busy, so everything that becomes slower lowers the requests/s. A fixed rate would hide the slowdown
until the rate is too high, and OpenIM's two connections would leave the processors half idle.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))

from sqlalchemy import URL  # noqa: E402

import seed  # noqa: E402
from report import table  # noqa: E402
from run import describe_machine, made_by, say, write  # noqa: E402
from serving import Running, create_tables  # noqa: E402
from stage import DATABASES, stage  # noqa: E402
from wrk import Load, Measured, measure  # noqa: E402

LOAD = Load(connections=8)
MINUTE = 60
WARM_UP_SECONDS = 3
HEAD = ["minute", "requests/s", "p50 ms", "p99 ms", "failed", "app MB", "database MB"]


class Minute(NamedTuple):
    end: float
    """Minutes since the start of the load."""
    measured: Measured
    app_mb: float
    database_mb: float

    def row(self) -> list[str]:
        load = self.measured
        figures = [f"{load.rate:,.0f}", f"{load.p50:.1f}", f"{load.p99:.1f}", f"{load.failed}"]
        return [f"{self.end:.3g}", *figures, f"{self.app_mb:.0f}", f"{self.database_mb:.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--database", choices=list(DATABASES), default="sqlite")
    parser.add_argument("--removals", type=int, default=10_000_000, help="stored before the load")
    parser.add_argument(
        "--seconds", type=int, default=3600, help="a run below six minutes reports six parts"
    )
    parser.add_argument("--output", type=Path, help="a file for the tables, beside stdout")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    lines = ["# Results: an hour of load", "", *made_by()]
    lines += [f"- {line}" for line in describe_machine(ROOT)]
    with stage(given.database) as place, place.database() as url:
        lines += [f"- {place.version}, filled with {given.removals:,} removals", ""]
        fill(url, given.removals)
        with place.serve("ours", url) as running:
            running.measure(LOAD, WARM_UP_SECONDS)
            minutes: list[Minute] = []
            before = running.stored() or 0
            part_seconds = max(1, min(MINUTE, given.seconds // 6))
            for number in range(1, given.seconds // part_seconds + 1):
                minutes.append(measure_minute(running, part_seconds, number))
                say(" | ".join(minutes[-1].row()))
                write([*lines, *table(HEAD, [minute.row() for minute in minutes])], given.output)
            check_stored(running, before, minutes)
    lines += [*table(HEAD, [minute.row() for minute in minutes]), "", *compare(minutes)]
    write(lines, given.output)
    print("\n".join(lines))


def fill(url: URL, removals: int) -> None:
    """Create the tables and fill them. The first callback comes later, so the rows are older."""
    with tempfile.TemporaryDirectory() as folder:
        create_tables("ours", url, Path(folder))
    say(f"Filling in {removals:,} removals")
    seed.fill(url, removals, until=datetime.now(UTC))


def measure_minute(running: Running, seconds: int, number: int) -> Minute:
    measured = measure(running.port, LOAD, seconds)
    return Minute(number * seconds / MINUTE, measured, *running.memory())


def check_stored(running: Running, before: int, minutes: list[Minute]) -> None:
    """Exit if the database has fewer removals than callbacks were answered."""
    running.settle()
    stored = (running.stored() or 0) - before
    answered = sum(minute.measured.answered for minute in minutes)
    if stored < answered:
        sys.exit(f"{answered:,} callbacks were answered, but {stored:,} are stored")


def compare(minutes: list[Minute]) -> list[str]:
    """Compare the last minute with the first."""
    first, last = minutes[0], minutes[-1]
    figures = {
        "requests/s": (first.measured.rate, last.measured.rate),
        "p50 ms": (first.measured.p50, last.measured.p50),
        "p99 ms": (first.measured.p99, last.measured.p99),
        "app MB": (first.app_mb, last.app_mb),
        "database MB": (first.database_mb, last.database_mb),
    }
    rows = [
        [name, f"{start:,.1f}", f"{end:,.1f}", f"{end / start:.2f}"]
        for name, (start, end) in figures.items()
        if start
    ]
    return table(["", "first minute", "last minute", "last / first"], rows)


if __name__ == "__main__":
    main()
