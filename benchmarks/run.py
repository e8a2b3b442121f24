"""Measure how fast this extension stores callbacks, compared with other ways to write the same.

Without options this takes about 20 minutes. Run it on a machine that runs nothing else.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from sqlite3 import sqlite_version
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))

from sqlalchemy import URL  # noqa: E402

import commit  # noqa: E402
import openim  # noqa: E402
from report import DATABASES, Results, Window, name_of, report  # noqa: E402
from serving import CONTENDERS, ON, Running, serving  # noqa: E402
from support import servers  # noqa: E402
from wrk import Load, measure  # noqa: E402

COMMITS = 200
PACKAGES = ["gunicorn", "Flask", "SQLAlchemy", "psycopg", "PyMySQL", "Django", "fastapi", "uvicorn"]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def several(name: str, default: list[Any], text: str, **arguments: Any) -> None:
        text = f"{text} (default: {' '.join(map(str, default)) or 'none'})"
        parser.add_argument(name, nargs="*", action="extend", help=text, **arguments)
        defaults[name.strip("-")] = default

    def one(name: str, default: Any, text: str, kind: Any = float) -> None:
        parser.add_argument(name, default=default, type=kind, help=f"{text} (default: {default})")

    defaults: dict[str, list[Any]] = {}
    measures = ["load", "queue", "soak"]
    several("--database", list(DATABASES), "databases", choices=list(DATABASES))
    several("--contender", list(CONTENDERS), "contenders", choices=list(CONTENDERS))
    several("--measure", measures, "measurements", choices=measures)
    several(
        "--connections",
        [1, 2, 8, 32],
        "load: connections for OpenIM callbacks of one removal",
        type=int,
    )
    several("--pairs", [1000], "load: pairs in a Tencent callback, with 32 connections", type=int)
    one("--seconds", 2, "load: seconds for each contender and load", int)
    one("--repetitions", 3, "load: repetitions, each starts all contenders again", int)
    one("--queue-rate", 300, "queue: events a second")
    one("--queue-seconds", 10, "queue: seconds for each contender")
    one("--soak-parts", 3, "soak: parts. The last is compared with the first", int)
    one("--soak-seconds", 10, "soak: seconds in a part", int)
    one("--soak-rows", 0, "soak: end early at this number of stored removals, 0 for never", int)
    one("--fill", 0, "soak: removals to put into the database before, each in a delivery", int)
    one("--checkout", ROOT, "the folder of the extension to measure", Path)
    parser.add_argument(
        "--output", type=Path, help="a file for the tables, which also go to stdout"
    )
    given = parser.parse_args()
    for name, default in defaults.items():
        if getattr(given, name) is None:
            setattr(given, name, default)
    return given


def main() -> None:
    given = options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    machine = describe_machine(given.checkout.resolve())
    command = shlex.join(["python", "benchmarks/run.py", *sys.argv[1:]])
    all_results: dict[str, Results] = {}
    text = ""
    for database in given.database:
        with server(database) as (version, stage):
            results = all_results[database] = Results(version)
            stage.checkout = given.checkout.resolve()
            names = [name for name in ON[database] if name in given.contender]
            if not names:
                sys.exit(f"{database} has only the contenders {', '.join(ON[database])}")
            if "load" in given.measure:
                measure_loads(given, stage, names, results)
            if "queue" in given.measure:
                measure_queue(given, stage, names, results)
            if "soak" in given.measure and "ours" in names:
                measure_soak(given, stage, results)
        text = report(all_results, command, machine)
        if given.output:  # a later database may fail, after many minutes
            given.output.parent.mkdir(parents=True, exist_ok=True)
            given.output.write_text(text)
    print(text)


class Stage:
    """A database server on which contenders start, each with an empty database."""

    def __init__(self, server: servers.Server | None, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.checkout = ROOT

    @contextmanager
    def start(self, name: str) -> Iterator[Running]:
        with ExitStack() as stack:
            if self.server is None:
                folder = stack.enter_context(tempfile.TemporaryDirectory(dir=self.folder))
                url = URL.create("sqlite", database=f"{folder}/{name}.db")
            else:
                url = stack.enter_context(servers.database(self.server))
            yield stack.enter_context(serving(name, url, self.folder, self.checkout))


@contextmanager
def server(database: str) -> Iterator[tuple[str, Stage]]:
    """Start a private, durable server, or none for SQLite, and yield its version and a stage."""
    start = {"postgresql": servers.postgresql, "mariadb": servers.mariadb}.get(database)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="imcallback-")))
        if start is None:
            yield f"SQLite {sqlite_version}", Stage(None, folder)
        else:
            running = stack.enter_context(start(durable=True))
            version = running.version.partition(" on ")[0]
            yield version if version[0] == "P" else f"MariaDB {version}", Stage(running, folder)


def measure_loads(
    given: argparse.Namespace, stage: Stage, names: list[str], results: Results
) -> None:
    """Measure each load on all contenders in turn, so that a busy minute affects all of them."""
    loads = [Load("openim", 1, connections) for connections in given.connections]
    loads += [Load("tencent", pairs, 32) for pairs in given.pairs]
    results.loads = {load: {name: [] for name in names} for load in loads}
    for repetition in range(given.repetitions):
        with ExitStack() as stack:
            first = repetition % len(names)
            order = names[first:] + names[:first]
            running = [stack.enter_context(stage.start(name)) for name in order]
            for one in running:
                if one.name == "ours":
                    results.commits.append(commit.p50(one.url, COMMITS))
                one.measure(Load("openim", 1, 8), 1)  # warm up
            for load in loads:
                for one in running:
                    say(f"repetition {repetition + 1}: {name_of(load)}, {one.name}")
                    results.loads[load][one.name].append(one.measure(load, given.seconds))


def measure_queue(
    given: argparse.Namespace, stage: Stage, names: list[str], results: Results
) -> None:
    for name in names:
        if name in ("floor", "ours", "naive", "naive-default"):
            say(f"queue, {name}")
            with stage.start(name) as running:
                results.queue[name] = openim.imitate(
                    running.port, given.queue_rate, given.queue_seconds
                )


def measure_soak(given: argparse.Namespace, stage: Stage, results: Results) -> None:
    with stage.start("ours") as running:
        if given.fill:
            say(f"soak: filling in {given.fill} removals")
            commit.fill(running.url, given.fill)
        running.measure(Load("openim", 1, 8), 1)
        stored = 0
        for part in range(given.soak_parts):
            if given.soak_rows and stored >= given.soak_rows:
                break
            say(f"soak: part {part + 1} of {given.soak_parts}")
            measured = measure(running.port, Load("openim", 1, 32), given.soak_seconds)
            stored = running.stored() or 0
            results.soak.append(Window(measured, stored, running.memory()))


def describe_machine(checkout: Path) -> list[str]:
    folder = Path(tempfile.gettempdir())
    kind = subprocess.check_output(["stat", "-f", "-c", "%T", folder], text=True).strip()
    if kind in ("tmpfs", "ramfs"):
        sys.exit(
            f"{folder} is in memory, so a commit costs nothing: set TMPDIR to a folder on a disk"
        )
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = [f"{package} {importlib.metadata.version(package)}" for package in PACKAGES]
    describe = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    described = subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip()
    return [
        f"{(names or [platform.machine()])[0]}, {os.cpu_count()} processors, {memory:.0f} GiB, "
        f"Linux {platform.release()}, {kind} with an fsync of {fsync(folder):.2f} ms (p50), "
        f"load {os.getloadavg()[0]:.1f} at the start",
        f"{time.strftime('%Y-%m-%d')}, commit {described or 'unknown'}",
        f"Python {platform.python_version()}, {', '.join(versions)}",
    ]


def fsync(folder: Path) -> float:
    """Return the milliseconds that an fsync of a written page takes."""
    taken = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(100):
            file.write(b"x" * 4096)
            file.flush()
            start = time.perf_counter()
            os.fsync(file.fileno())
            taken.append(time.perf_counter() - start)
    return statistics.median(taken) * 1000


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
