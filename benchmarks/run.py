"""Measure how fast this extension stores callbacks, compared with other ways to write the same.

Without options this takes about 15 minutes. Run it on a machine that runs nothing else.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import os
import platform
import shlex
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))

from report import Results, Setup, Trial, report  # noqa: E402
from serving import CONTENDERS, Running  # noqa: E402
from stage import DATABASES, Stage, can_slow_down, stage  # noqa: E402
from wrk import Load  # noqa: E402

LOADS = {
    "1": Load(connections=1),
    "2": Load(connections=2),
    "32": Load(connections=32),
    "1000-pairs": Load(connections=32, pairs=1000),
}
SLOW_LOADS = [LOADS["32"]]
SLOW_CONTENDERS = ["ours", "against", "naive"]
"""The slow disk shows only how many callbacks share a commit, so few loads and contenders do."""
WARM_UP = Load(connections=8)
PACKAGES = ["gunicorn", "Flask", "SQLAlchemy", "psycopg", "PyMySQL", "Django"]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def several(name: str, choices: list[str], text: str) -> None:
        parser.add_argument(
            name, nargs="+", choices=choices, default=choices, help=f"{text} (default: all)"
        )

    several("--database", list(DATABASES), "databases")
    several("--disk", ["quick", "slow"], "the disk as it is, or with an fsync of 3 ms")
    several("--contender", [name for name in CONTENDERS if name != "against"], "contenders")
    several("--load", list(LOADS), "connections with one pair, or 32 connections with 1000 pairs")
    parser.add_argument(
        "--against", metavar="COMMIT", help="also measure flask-imcallback at this commit"
    )
    parser.add_argument(
        "--seconds", type=int, default=3, help="for each contender and load (default: 3)"
    )
    parser.add_argument(
        "--repetitions", type=int, default=3, help="each starts all contenders again (default: 3)"
    )
    parser.add_argument("--output", type=Path, help="a file for the tables, beside stdout")
    return parser.parse_args()


def main() -> None:
    given = options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    machine = describe_machine(ROOT)
    disks = given.disk
    if "slow" in disks and not can_slow_down():
        disks = [disk for disk in disks if disk != "slow"]
        machine.append("No slow disk was measured, because that needs Linux and a C compiler (cc)")
    if given.against:
        machine.append(f"`against` is flask-imcallback at {given.against}")
    lines = ["# Results: storing callbacks", "", *made_by()]
    lines += [f"- {line}" for line in machine] + [""]
    all_results: dict[Setup, Results] = {}
    with ExitStack() as stack:
        checkouts = {"against": stack.enter_context(checked_out(given.against))}
        for setup in [Setup(name, disk == "slow") for name in given.database for disk in disks]:
            loads, names = plan(setup, given)
            if not (loads and names):
                continue
            with stage(setup.database, is_slow=setup.is_slow) as place:
                results = all_results[setup] = Results(place.version, {load: [] for load in loads})
                for repetition in range(given.repetitions):
                    say(f"{setup}: repetition {repetition + 1} of {given.repetitions}")
                    first = repetition % len(names)
                    order = names[first:] + names[:first]
                    with started(place, order, checkouts) as running:
                        measure_loads(place, running, results, given.seconds)
            write([*lines, *report(all_results)], given.output)  # a later database may fail
    print("\n".join([*lines, *report(all_results)]))


def plan(setup: Setup, given: argparse.Namespace) -> tuple[list[Load], list[str]]:
    """Return the loads and the contenders to measure."""
    loads = [LOADS[name] for name in given.load]
    names = given.contender + (["against"] if given.against else [])
    if setup.is_slow:
        loads = [load for load in loads if load in SLOW_LOADS]
        names = [name for name in names if name in SLOW_CONTENDERS]
    return loads, names


@contextmanager
def checked_out(commit: str | None) -> Iterator[Path]:
    """Write the files of a commit into a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="imcallback-") as folder:
        if commit:
            command = ["git", "-C", str(ROOT), "archive", "--format=tar", commit]
            done = subprocess.run(command, capture_output=True, check=False)
            if done.returncode != 0:
                sys.exit(done.stderr.decode())
            with tarfile.open(fileobj=io.BytesIO(done.stdout)) as files:
                files.extractall(folder, filter="data")
        yield Path(folder)


@contextmanager
def started(
    place: Stage, names: list[str], checkouts: dict[str, Path]
) -> Iterator[dict[str, Running]]:
    """Start and warm up the contenders, each with an empty database."""
    with ExitStack() as stack:
        running = {}
        for name in names:
            url = stack.enter_context(place.database())
            one = stack.enter_context(place.serve(name, url, checkouts.get(name, ROOT)))
            one.measure(WARM_UP, 1)
            running[name] = one
        yield running


def measure_loads(
    place: Stage, running: dict[str, Running], results: Results, seconds: int
) -> None:
    """Measure each load on one contender after the other, so that a busy minute affects all."""
    commit_ms = place.commit_ms(running["ours"].url) if "ours" in running else float("nan")
    for load, trials in results.trials.items():
        trial = Trial(commit_ms)
        for name, one in running.items():
            trial.measured[name] = one.measure(load, seconds)
        trials.append(trial)


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


def made_by() -> list[str]:
    """Return lines with the command of this run."""
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    return ["Made by", "", "```console", f"$ {command}", "```", ""]


def write(lines: list[str], output: Path | None) -> None:
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text("\n".join(lines) + "\n")


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
