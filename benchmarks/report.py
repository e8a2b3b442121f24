"""Write the measurements as Markdown tables, and compare them with the goals."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field

from openim import Outcome
from serving import CONTENDERS
from wrk import Load, Measured

DATABASES = {"sqlite": "SQLite", "postgresql": "PostgreSQL", "mariadb": "MariaDB"}


@dataclass(frozen=True)
class Window:
    """A part of a soak."""

    measured: Measured
    removals: int
    """Removals in the database at the end of the part."""
    memory: float
    """Megabytes of all processes of the server."""


@dataclass
class Results:
    """Measurements on one database."""

    server: str
    loads: dict[Load, dict[str, list[Measured]]] = field(default_factory=dict)
    """Measurements by contender, in the order of the repetitions."""
    commits: list[float] = field(default_factory=list)
    """p50 of a bare commit in each repetition, in milliseconds."""
    queue: dict[str, Outcome] = field(default_factory=dict)
    soak: list[Window] = field(default_factory=list)

    @property
    def keeps_up(self) -> bool:
        """Whether the last part of the soak is about as fast as the first."""
        return self.soak[-1].measured.rate >= (1 - STEADY) * self.soak[0].measured.rate


@dataclass(frozen=True)
class Goal:
    """A bound on the ratio of ours to another contender, or on ours alone."""

    load: Load
    figure: str
    """`rate`, `p50` or `p99`."""
    than: str | None
    bound: float
    """At least this for rates, at most this for times."""
    with_commit: bool = False
    """Whether the time of a bare commit is added to the other contender."""

    def seen(self, results: Results) -> list[float]:
        """Return one value for each repetition. The list is empty without a measurement."""
        found = results.loads.get(self.load, {})
        ours = [getattr(measured, self.figure) for measured in found.get("ours", [])]
        if self.than is None:
            return ours
        theirs = [getattr(measured, self.figure) for measured in found.get(self.than, [])]
        if self.with_commit:
            theirs = [a + b for a, b in zip(theirs, results.commits, strict=False)]
        return [a / b for a, b in zip(ours, theirs, strict=False) if b]

    def is_met(self, value: float) -> bool:
        return value >= self.bound if self.figure == "rate" else value <= self.bound

    def __str__(self) -> str:
        sign = "≥" if self.figure == "rate" else "≤"
        figure = {"rate": "requests/s", "p50": "p50", "p99": "p99"}[self.figure]
        if self.than is None:
            return f"{name_of(self.load)}: {figure} {sign} {self.bound:,.0f} ms"
        other = f"({self.than} + a bare commit)" if self.with_commit else self.than
        times = f"{self.bound:.0%} of" if self.bound < 1 else f"{self.bound:g} x"
        return f"{name_of(self.load)}: {figure} {sign} {times} {other}"


ONE = Load("openim", 1, 32)
THOUSAND = Load("tencent", 1000, 32)
FEW = [Goal(Load("openim", 1, n), "p50", "floor", 1.3, with_commit=True) for n in (1, 2)]
GOALS = {
    "sqlite": [
        Goal(ONE, "rate", "floor", 0.4),
        Goal(ONE, "rate", "naive-default", 20),
        Goal(ONE, "rate", "naive", 3),
        Goal(ONE, "p99", "naive", 0.1),
        *FEW,
        Goal(THOUSAND, "rate", "naive", 7),
        Goal(THOUSAND, "p99", None, 1000),
    ],
    "postgresql": [
        Goal(ONE, "rate", "floor", 0.4),
        Goal(ONE, "rate", "naive", 2),
        Goal(ONE, "rate", "django", 1.5),
        Goal(ONE, "rate", "fastapi", 2.5),
        Goal(ONE, "p99", "naive", 0.5),
        *FEW,
        Goal(THOUSAND, "rate", "naive", 9),
        Goal(THOUSAND, "p99", None, 1000),
    ],
    "mariadb": [],
}
STEADY = 0.2
"""Share by which the last part of a soak may be slower than the first."""


def name_of(load: Load) -> str:
    pairs = "1 pair" if load.pairs == 1 else f"{load.pairs} pairs"
    connections = "1 connection" if load.connections == 1 else f"{load.connections} connections"
    return f"{load.provider}, {pairs}, {connections}"


def report(all_results: dict[str, Results], command: str, machine: Iterable[str]) -> str:
    lines = ["# Results", "", "Made by", "", "```console", f"$ {command}", "```", ""]
    lines += [f"- {line}" for line in machine]
    lines += [f"- {results.server}" for results in all_results.values()]
    lines += [
        "",
        "Each cell has requests/s, then p50 / p99 in ms.",
        "The figures are medians of the repetitions, with the lowest and the highest in brackets.",
        "Only ratios within one run mean anything.",
        "",
        *_summary(all_results),
    ]
    for database, results in all_results.items():
        lines += [f"## {DATABASES[database]}", ""]
        if results.loads:
            lines += [*_loads(results), "", *_goals(database, results), ""]
        if results.queue:
            lines += [*_queue(results), ""]
        if results.soak:
            lines += [*_soak(results), ""]
    return "\n".join(lines)


def _table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _spread(values: list[float], form: str) -> str:
    middle = format(statistics.median(values), form)
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):{form}} to {max(values):{form}})"


def _loads(results: Results) -> list[str]:
    names = list(next(iter(results.loads.values())))
    rows = [
        [name, *(_cell(contenders[name]) for contenders in results.loads.values())]
        for name in names
    ]
    lines = _table(["contender", *map(name_of, results.loads)], rows)
    lines += ["", *(f"- {name}: {CONTENDERS[name].what}" for name in names)]
    if results.commits:
        lines += [f"- a bare durable commit, p50: {_spread(results.commits, '.2f')} ms"]
    return lines


def _cell(measured: list[Measured]) -> str:
    rate = _spread([one.rate for one in measured], ",.0f")
    p50 = statistics.median(one.p50 for one in measured)
    p99 = _spread([one.p99 for one in measured], ",.0f")
    failed = sum(one.failed for one in measured)
    return f"{rate}<br>{p50:,.1f} / {p99}" + (f"<br>**{failed} failed**" if failed else "")


def _summary(all_results: dict[str, Results]) -> list[str]:
    met, missed = 0, []
    for database, results in all_results.items():
        for goal in GOALS[database]:
            if seen := goal.seen(results):
                if goal.is_met(statistics.median(seen)):
                    met += 1
                else:
                    missed.append(f"- {DATABASES[database]}, {goal}")
        if results.soak:
            if results.keeps_up:
                met += 1
            else:
                missed.append(f"- {DATABASES[database]}, lasting load")
    if not met and not missed:
        return []
    line = f"Ours met {met} goals and missed {len(missed)}"
    return [line + (":" if missed else "."), "", *missed, ""]


def _goals(database: str, results: Results) -> list[str]:
    rows = []
    for goal in GOALS[database]:
        if not (seen := goal.seen(results)):
            rows.append([str(goal), "", "not measured"])
            continue
        form = ",.0f" if goal.than is None else ".2f"
        met = goal.is_met(statistics.median(seen))
        rows.append([str(goal), _spread(seen, form), "met" if met else "**missed**"])
    if not rows:
        return []
    lines = ["Ours compared with its goals, repetition by repetition:", ""]
    return lines + _table(["goal", "measured: median (lowest to highest)", ""], rows)


def _queue(results: Results) -> list[str]:
    rows = []
    for name, one in results.queue.items():
        times = f"{one.percentile(50):,.1f} / {one.percentile(99):,.1f}"
        rows.append([name, f"{one.sent:,}", f"{one.dropped:,}", f"{one.failed:,}", times])
    lines = ["An imitation of OpenIM's queue (`openim.py`), one run for each contender:", ""]
    head = ["contender", "answered", "dropped", "failed", "event to answer, p50 / p99 in ms"]
    return lines + _table(head, rows)


def _soak(results: Results) -> list[str]:
    rows = []
    for number, part in enumerate(results.soak, 1):
        load = part.measured
        figures = [f"{load.rate:,.0f}", f"{load.p50:,.1f}", f"{load.p99:,.1f}", f"{load.failed}"]
        rows.append([f"{number}", *figures, f"{part.removals:,}", f"{part.memory:,.0f}"])
    head = ["part", "requests/s", "p50", "p99", "failed", "removals stored", "memory, MB"]
    share = results.soak[-1].measured.rate / results.soak[0].measured.rate
    met = "met" if results.keeps_up else "**missed**"
    return [
        "Ours under lasting load:",
        "",
        *_table(head, rows),
        "",
        f"The last part has {share:.0%} of the requests/s of the first part. "
        f"The goal is at least {1 - STEADY:.0%}: {met}.",
    ]
