"""Write the measurements as Markdown tables, and compare them with the goals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from serving import CONTENDERS
from stage import DATABASES
from wrk import Load, Measured


class Setup(NamedTuple):
    """A database, on the disk as it is or on a slow one."""

    database: str
    is_slow: bool = False

    def __str__(self) -> str:
        return DATABASES[self.database] + (", fsync of 3 ms" if self.is_slow else "")


@dataclass
class Trial:
    """A load in a repetition, on one contender after the other."""

    commit_ms: float
    """p50 of a bare durable commit in this repetition."""
    measured: dict[str, Measured] = field(default_factory=dict)


@dataclass
class Results:
    """Measurements of a setup."""

    server: str
    trials: dict[Load, list[Trial]]


class Figure(NamedTuple):
    """A figure of a contender, often compared with another contender in the same trial."""

    title: str
    value: Callable[[Measured, Measured, float], float]
    """The function of the contender, the other contender, and the bare commit."""
    than: str | None = None
    is_cost: bool = True

    def seen(self, trials: list[Trial], name: str) -> list[float]:
        """Return one value for each repetition. The list is empty without a measurement."""
        other = self.than or name
        values = [
            self.value(trial.measured[name], trial.measured[other], trial.commit_ms)
            for trial in trials
            if {name, other} <= trial.measured.keys()
        ]
        return [value for value in values if not math.isnan(value)]


def _ratio(one: float, other: float) -> float:
    return one / other if other else float("nan")


def _rate_than(name: str) -> Figure:
    title = f"requests/s / {name}"
    return Figure(title, lambda one, other, _: _ratio(one.rate, other.rate), name, is_cost=False)


CPU = Figure("CPU ms", lambda one, *_: one.cpu)
DATABASE_CPU = Figure("database CPU ms", lambda one, *_: one.database_cpu)
CPU_ABOVE_FLOOR = Figure("CPU ms - floor", lambda one, floor, _: one.cpu - floor.cpu, "floor")
RATE_NAIVE, RATE_DJANGO, RATE_FLOOR = map(_rate_than, ("naive", "django", "floor"))
P50 = Figure(
    "p50 / (floor + commit)",
    lambda one, floor, commit_ms: _ratio(one.p50, floor.p50 + commit_ms),
    "floor",
)
P99 = Figure("p99 / naive", lambda one, naive, _: _ratio(one.p99, naive.p99), "naive")
FIGURES = [CPU, DATABASE_CPU, CPU_ABOVE_FLOOR, RATE_NAIVE, RATE_DJANGO, RATE_FLOOR, P50, P99]
CHANGES = [
    _rate_than("against"),
    Figure("p50 / against", lambda one, other, _: _ratio(one.p50, other.p50), "against"),
    Figure("p99 / against", lambda one, other, _: _ratio(one.p99, other.p99), "against"),
    Figure("CPU ms - against", lambda one, other, _: one.cpu - other.cpu, "against"),
]


class Goal(NamedTuple):
    load: Load
    figure: Figure
    bound: float
    """At most this for costs, at least this for rates."""

    def is_met(self, value: float) -> bool:
        return value <= self.bound if self.figure.is_cost else value >= self.bound

    def __str__(self) -> str:
        sign = "≤" if self.figure.is_cost else "≥"
        return f"{self.load}: {self.figure.title} {sign} {self.bound:.2f}"


ONE, TWO, MANY, LARGE = Load(1), Load(2), Load(32), Load(32, pairs=1000)
GOALS = {
    Setup("sqlite"): [
        *(Goal(load, RATE_NAIVE, 1.5) for load in (ONE, TWO)),
        *(Goal(load, RATE_DJANGO, 1.2) for load in (ONE, TWO)),
        *(Goal(load, P50, 1.3) for load in (ONE, TWO)),
        Goal(ONE, CPU_ABOVE_FLOOR, 0.3),
        Goal(MANY, RATE_FLOOR, 0.5),
        Goal(MANY, P99, 1 / 20),
        Goal(LARGE, RATE_NAIVE, 7),
    ],
    Setup("sqlite", is_slow=True): [Goal(MANY, RATE_NAIVE, 10)],
    Setup("postgresql"): [
        *(Goal(load, RATE_NAIVE, 1.4) for load in (ONE, TWO)),
        *(Goal(load, RATE_DJANGO, 1.2) for load in (ONE, TWO)),
        *(Goal(load, P50, 1.3) for load in (ONE, TWO)),
        Goal(ONE, CPU_ABOVE_FLOOR, 0.3),
        Goal(MANY, RATE_FLOOR, 0.45),
        Goal(MANY, P99, 1 / 3),
        Goal(LARGE, RATE_NAIVE, 8),
    ],
    Setup("postgresql", is_slow=True): [Goal(MANY, RATE_NAIVE, 4)],
}


def report(all_results: dict[Setup, Results]) -> list[str]:
    lines = [
        "The figures are medians of the repetitions, with the lowest and the highest in brackets.",
        "A ratio is the median of the ratios of the repetitions.",
        "Only ratios within one run mean anything.",
        "",
    ]
    for setup, results in all_results.items():
        commits = [trial.commit_ms for trial in next(iter(results.trials.values()))]
        lines += [f"## {setup}", ""]
        lines += [f"{results.server}. A bare durable commit takes {_spread(commits)} ms (p50)."]
        lines += ["", "Requests/s, then p50 / p99 in ms:", "", *_loads(results), ""]
        lines += ["CPU milliseconds are user and system for a request:", "", *_figures(results), ""]
    names = {name for results in all_results.values() for name in _names(results)}
    lines += ["## Contenders", ""]
    lines += [f"- {name}: {one.what}" for name, one in CONTENDERS.items() if name in names]
    if "against" in names:
        lines += ["", "## Ours compared with the other commit", "", *_changes(all_results)]
    return [*lines, "", *_goals(all_results)]


def table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _spread(values: list[float], form: str = ".2f") -> str:
    middle = format(statistics.median(values), form)
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):{form}} to {max(values):{form}})"


def _names(results: Results) -> list[str]:
    """Return the contenders of a setup in the order of `CONTENDERS`."""
    first = next(iter(results.trials.values()))[0]
    return [name for name in CONTENDERS if name in first.measured]


def _loads(results: Results) -> list[str]:
    rows = []
    for name in _names(results):
        by_load = [[trial.measured[name] for trial in trials] for trials in results.trials.values()]
        rows.append([name, *map(_cell, by_load)])
    return table(["contender", *map(str, results.trials)], rows)


def _cell(measured: list[Measured]) -> str:
    cell = _spread([one.rate for one in measured], ",.0f")
    if timed := [one for one in measured if one.answered]:
        p50 = statistics.median(one.p50 for one in timed)
        cell += f"<br>{p50:,.1f} / {_spread([one.p99 for one in timed], ',.0f')}"
    failed = sum(one.failed for one in measured)
    return cell + (f"<br>**{failed} failed**" if failed else "")


def _figures(results: Results) -> list[str]:
    rows = []
    for load, trials in results.trials.items():
        for name in _names(results):
            seen = [figure.seen(trials, name) for figure in FIGURES]
            values = [f"{statistics.median(one):.2f}" if one else "" for one in seen]
            rows.append([str(load), name, *values])
    return table(["load", "contender", *(figure.title for figure in FIGURES)], rows)


def _changes(all_results: dict[Setup, Results]) -> list[str]:
    rows = []
    for setup, results in all_results.items():
        for load, trials in results.trials.items():
            seen = [figure.seen(trials, "ours") for figure in CHANGES]
            if all(seen):
                rows.append([str(setup), str(load), *map(_spread, seen)])
    return table(["", "load", *(figure.title for figure in CHANGES)], rows)


def _goals(all_results: dict[Setup, Results]) -> list[str]:
    rows = []
    for setup, results in all_results.items():
        for goal in GOALS.get(setup, []):
            verdict = "not measured"
            if seen := goal.figure.seen(results.trials.get(goal.load, []), "ours"):
                verdict = "met" if goal.is_met(statistics.median(seen)) else "missed"
            rows.append([str(setup), str(goal), _spread(seen) if seen else "", verdict])
    if not rows:
        return []
    verdicts = [row[-1] for row in rows]
    summary = f"Ours met {verdicts.count('met')} goals and missed {verdicts.count('missed')}."
    return ["## Goals", "", *table(["", "goal", "measured", ""], rows), "", summary]
