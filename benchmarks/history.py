"""Measure the history: pages, filters, exports, counts, and the cost of indexes.

The benchmark first fills a new database. 10 million removals take some minutes.
Run it on a machine that does nothing else. Most goals are ratios of two figures of one run.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import random
import shlex
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))

import psycopg  # noqa: E402
from flask import Flask  # noqa: E402
from sqlalchemy import URL, make_url, text  # noqa: E402

import seed  # noqa: E402
from flask_imcallback import ImCallback, upgrade  # noqa: E402
from flask_imcallback.history.export import COLUMNS, FileOptions, encode  # noqa: E402
from flask_imcallback.history.finder import Finder  # noqa: E402
from flask_imcallback.history.queries import HistoryQuery  # noqa: E402
from flask_imcallback.history.resolve import NO_MATCH, resolve  # noqa: E402
from flask_imcallback.history.statements import PageSpec  # noqa: E402
from flask_imcallback.runtime import get_runtime  # noqa: E402
from flask_imcallback.storage.append_only import revision  # noqa: E402
from flask_imcallback.storage.ids import id_at, moment_of  # noqa: E402
from flask_imcallback.storage.tables import delivery, removal  # noqa: E402
from run import describe_machine, say  # noqa: E402
from serving import serving  # noqa: E402
from support import servers  # noqa: E402
from wrk import SECRET  # noqa: E402

JOINED = (
    "SELECT r.id, s.provider, s.app_id, s.command, s.relation, r.owner_id, r.target_id, "
    "r.actor_id, s.cause, r.position, r.id - r.position, d.client_ip, s.platform, d.request_id, "
    "d.id FROM imcallback_removal r JOIN imcallback_source s ON s.id = r.source_id "
    "JOIN imcallback_delivery d ON d.id = r.id - r.position"
)
NEWEST = f"{JOINED} ORDER BY r.id DESC LIMIT 100"
SOURCE_FILTERS = ("provider", "app_id", "command", "relation", "platform")
"""Filters by values of the source table."""
FILTER_NAMES = (
    *SOURCE_FILTERS,
    "owner_id",
    "target_id",
    "account_id",
    "client_ip",
    "request_id",
    "delivery_id",
)


@dataclass
class Goal:
    """A goal, and the measured figure."""

    text: str
    value: float
    limit: float
    is_at_least: bool = False

    @property
    def is_met(self) -> bool:
        return self.value >= self.limit if self.is_at_least else self.value <= self.limit


@dataclass
class Report:
    """The goals and the tables of one database."""

    title: str
    goals: list[Goal] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        self.lines += [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
        self.lines += [f"| {' | '.join(map(str, row))} |" for row in rows] + [""]


class Bench:
    """A filled database, an app that uses it, and the measurements."""

    def __init__(self, app: Flask, url: URL, removals: int, repetitions: int) -> None:
        self.app, self.url, self.removals, self.repetitions = app, url, removals, repetitions
        self.history = get_runtime().history
        self.is_sqlite = url.get_backend_name() == "sqlite"
        self.report = Report("SQLite" if self.is_sqlite else "PostgreSQL")
        self.draw = random.Random(20261120)

    def fill(self) -> None:
        say(f"{self.report.title}: filling in {self.removals:,} removals")
        start = time.perf_counter()
        seed.fill(self.url, self.removals, until=datetime.now(UTC))
        rate = self.removals / (time.perf_counter() - start)
        self.report.lines += [f"Filled by `benchmarks/seed.py` with {rate:,.0f} removals/s.", ""]

    def scalar(self, sql: str, **values: Any) -> Any:
        with get_runtime().engine().connect() as connection:
            return connection.scalar(text(sql), values)

    def question(self, **filters: Any) -> Callable[[], Any]:
        """Return a function that reads a page."""
        return lambda: self.history.find(**filters)

    def cursor(self, removal_id: int, **filters: Any) -> str:
        """Return the cursor of a page that ends at this id."""
        query = HistoryQuery.from_filters(filters)
        # This app has no SECRET_KEY, so that only the codec of the history has its key.
        return self.history._cursors.encode(removal_id, query.digest)

    def medians(self, questions: dict[str, Callable[[], Any]]) -> dict[str, float]:
        """Return the median milliseconds of each question. The questions take turns."""
        taken: dict[str, list[float]] = {name: [] for name in questions}
        for number in range(self.repetitions + 3):
            for name, read in questions.items():
                start = time.perf_counter()
                read()
                if number >= 3:
                    taken[name].append(time.perf_counter() - start)
        return {name: statistics.median(times) * 1000 for name, times in taken.items()}

    def pages(self) -> None:
        """Measure pages at the start, in the middle and at the end of results."""
        middle = self.scalar(
            "SELECT id FROM imcallback_removal ORDER BY id LIMIT 1 OFFSET :n", n=self.removals // 2
        )
        hot = self.hot("owner_id")
        mark = self.scalar(
            "SELECT id FROM imcallback_removal WHERE owner_id = :o "
            "ORDER BY id DESC LIMIT 1 OFFSET :n",
            o=hot,
            n=self.share("owner_id", hot) // 2,
        )
        target = self.scalar(
            "SELECT target_id FROM imcallback_removal WHERE owner_id = :o LIMIT 1 OFFSET 500", o=hot
        )
        bare = self.bare()
        questions = {
            "newest": self.question(),
            "oldest": self.question(order="asc"),
            f"at depth {self.removals // 2:,}": self.question(cursor=self.cursor(middle)),
            "an account as owner, newest": self.question(owner_id=hot),
            "an account as owner, half way": self.question(
                owner_id=hot, cursor=self.cursor(mark, owner_id=hot)
            ),
            "an account as target": self.question(target_id=hot),
            "an account on either side": self.question(account_id=hot),
            "either side, half way": self.question(
                account_id=hot, cursor=self.cursor(mark, account_id=hot)
            ),
            "between two accounts": self.question(account_id=hot, peer_id=target),
            "bare SQL of the newest, and json.dumps": bare,
        }
        took = self.medians(questions)
        newest = took["newest"]
        self.report.lines += ["### Pages of 100, by `History` in Python", ""]
        self.report.table(
            ["page", "ms", "of the newest"],
            [[name, f"{ms:.2f}", f"{ms / newest:.2f}"] for name, ms in took.items()],
        )
        deep = took[f"at depth {self.removals // 2:,}"]
        self.goal("a page at half depth / the newest", deep / newest, 1.5)
        for name in ("newest", "half way"):
            own = took[f"an account as owner, {name}"]
            self.goal(f"an account's page, {name} / the newest", own / newest, 1.5)
        one = max(took["an account as owner, newest"], took["an account as target"])
        self.goal("either side / one side", took["an account on either side"] / one, 2)
        self.http(bare)

    def bare(self) -> Callable[[], Any]:
        """Return a function that reads the newest page with the driver and `json.dumps`."""
        driver = self.driver()

        def question() -> str:
            cursor = driver.execute(NEWEST)
            text = json.dumps([dict(zip(COLUMNS, row, strict=True)) for row in cursor.fetchall()])
            if not self.is_sqlite:
                driver.rollback()
            return text

        return question

    def driver(self) -> Any:
        if self.is_sqlite:
            return sqlite3.connect(str(self.url.database))
        login = {"host": self.url.host, "port": self.url.port, "user": self.url.username}
        return psycopg.connect(**login, dbname=self.url.database)  # type: ignore[arg-type]

    def http(self, bare: Callable[[], Any]) -> None:
        """Measure the newest page over a socket, served by gunicorn."""
        with (
            tempfile.TemporaryDirectory() as folder,
            serving("ours", self.url, Path(folder), ROOT) as running,
        ):
            connection = http.client.HTTPConnection("127.0.0.1", running.port)
            headers = {"Authorization": f"Bearer {SECRET}"}

            def question() -> None:
                connection.request("GET", "/imcallback/history", headers=headers)
                response = connection.getresponse()
                body = response.read()
                assert response.status == 200, body

            took = self.medians({"HTTP": question, "bare": bare})
            connection.close()
        self.report.lines += [
            f"The newest page by HTTP: {took['HTTP']:.2f} ms. The bare SQL of it in the driver, "
            f"and json.dumps of its rows: {took['bare']:.2f} ms.",
            "",
        ]
        self.goal(
            "the newest page by HTTP / bare SQL and json.dumps", took["HTTP"] / took["bare"], 3
        )

    def hot(self, name: str, rank: int = 0) -> Any:
        """Return one of the most frequent values of the newest removals."""
        with get_runtime().engine().connect() as connection:
            table = "delivery" if name == "client_ip" else "removal"
            sql = (
                f"SELECT {name} FROM (SELECT {name} FROM imcallback_{table} WHERE {name} <> '' "
                f"ORDER BY id DESC LIMIT 100000) AS n GROUP BY {name} "
                f"ORDER BY COUNT(*) DESC LIMIT 1 OFFSET {rank}"
            )
            return connection.scalar(text(sql))

    def share(self, name: str, value: Any) -> int:
        return int(
            self.scalar(f"SELECT COUNT(*) FROM imcallback_removal WHERE {name} = :v", v=value)
        )

    def combinations(self) -> None:
        """Measure all sets of up to three filters, with values that match together or do not."""
        rows = self.samples()
        hot = {
            name: [self.hot(name, rank) for rank in (0, 1, 7)]
            for name in ("owner_id", "target_id", "client_ip")
        }
        hot["account_id"] = hot["owner_id"]
        newest = statistics.median(self.times(self.question(), 30))
        found: list[tuple[float, dict[str, Any], int]] = []
        partial = 0
        names = [*FILTER_NAMES, "peer_id", "period"]
        sets = [c for size in (1, 2, 3) for c in itertools.combinations(names, size)]
        for chosen in sets:
            if "peer_id" in chosen and "account_id" not in chosen:
                continue
            for kind in ("of one removal", "of several", "frequent"):
                filters = self.filters(chosen, kind, rows, hot)
                for order in ("desc", "asc"):
                    read = self.question(**filters, order=order)
                    read()
                    took = min(self.times(read, 3))
                    page = read()
                    partial += page.next_cursor is not None and len(page.data) < 100
                    found.append((took, {**filters, "order": order}, len(page.data)))
        times = [took for took, _, _ in found]
        found.sort(key=lambda one: -one[0])
        self.report.lines += [
            "### Combinations of up to three filters",
            "",
            f"{len(found):,} questions, each for 100 removals: median "
            f"{statistics.median(times):.2f} ms, 99 of 100 below "
            f"{statistics.quantiles(times, n=100)[98]:.1f} ms, the slowest {max(times):.1f} ms. "
            f"The newest page takes {newest:.2f} ms. {partial:,} pages have fewer than 100 and a "
            "cursor, because the search had read as much as a page may. The slowest:",
            "",
        ]
        self.report.table(
            ["ms", "found", "filters"],
            [[f"{took:.1f}", n, f"`{_said(filters)}`"] for took, filters, n in found[:8]],
        )
        self.goal(
            "median of all combinations / the newest page", statistics.median(times) / newest, 10
        )
        self.goal("the slowest combination, ms", max(times), 100)

    def filters(
        self,
        chosen: Sequence[str],
        kind: str,
        rows: list[dict[str, Any]],
        hot: dict[str, list[Any]],
    ) -> dict[str, Any]:
        draw, one = self.draw, self.draw.choice(rows)
        filters: dict[str, Any] = {}
        for name in chosen:
            of = one if kind == "of one removal" else draw.choice(rows)
            if name == "period":
                start = moment_of(of["delivery_id"])
                filters["since"] = start - timedelta(days=draw.choice([0, 1, 30]))
                filters["until"] = start + timedelta(days=draw.choice([1, 30]))
            elif name == "peer_id":
                filters[name] = (
                    of["target_id"] if kind == "of one removal" else draw.choice(hot["owner_id"])
                )
            elif kind == "frequent" and name in hot:
                filters[name] = draw.choice(hot[name])
            else:
                filters[name] = of["owner_id" if name == "account_id" else name]
        return filters

    def samples(self) -> list[dict[str, Any]]:
        """Return removals of all times, including rare ones, as dictionaries."""
        first, last = (
            self.scalar(f"SELECT {what}(id) FROM imcallback_removal") for what in ("MIN", "MAX")
        )
        rows: list[dict[str, Any]] = []
        while len(rows) < 300:
            moment = moment_of(self.draw.randrange(first, last))
            rows += [record._asdict() for record in self.history.find(until=moment, limit=1).data]
        rare = self.history.find(platform="Mini", limit=50).data
        return rows + [record._asdict() for record in rare]

    def times(self, read: Callable[[], Any], count: int) -> list[float]:
        taken = []
        for _ in range(count):
            start = time.perf_counter()
            read()
            taken.append((time.perf_counter() - start) * 1000)
        return taken

    def exports(self) -> None:
        """Measure exports next to a bare cursor with `json.dumps`, and their memory."""
        count = min(self.removals, 1_000_000)
        until = moment_of(
            self.scalar(
                "SELECT id - position FROM imcallback_removal ORDER BY id LIMIT 1 OFFSET :n",
                n=count - 1,
            )
        )
        query = HistoryQuery(until=until, order="asc")
        rates: dict[str, list[float]] = {"ours": [], "raw": [], "csv": []}
        for _ in range(3):
            for name, measured in rates.items():
                start = time.perf_counter()
                rows = self.raw(id_at(until)) if name == "raw" else self.ours(query, name)
                measured.append(rows / (time.perf_counter() - start))
        best = {name: statistics.median(values) for name, values in rates.items()}
        self.report.lines += ["### Exports", ""]
        self.report.table(
            ["of", "thousand removals/s", "of raw"],
            [
                [name, f"{rate / 1000:.0f}", f"{rate / best['raw']:.2f}"]
                for name, rate in best.items()
            ],
        )
        share = best["ours"] / best["raw"]
        self.goal("NDJSON / raw cursor and json.dumps, removals/s", share, 0.6, is_at_least=True)
        self.memory()

    def ours(self, query: HistoryQuery, name: str) -> int:
        options = FileOptions(format="csv" if name == "csv" else "ndjson")
        lines = -1 if name == "csv" else 0  # CSV has a line of column names.
        for part in encode(options, self.history.read_chunks(query)):
            lines += part.count(b"\n")
        return lines

    def raw(self, until: int) -> int:
        driver = self.driver()
        sql = f"{JOINED} WHERE r.id < {until} ORDER BY r.id"
        lines = 0
        if self.is_sqlite:
            cursor = driver.execute(sql)
        else:
            cursor = driver.cursor(name="raw")
            cursor.itersize = 2000
            cursor.execute(sql)
        for row in cursor:
            lines += bool(json.dumps(dict(zip(COLUMNS, row, strict=True)), ensure_ascii=False))
        driver.close()
        return lines

    def memory(self) -> None:
        """Measure the peak memory of `flask imcallback export` for few removals and for all."""
        peaks = []
        for count in (10_000, self.removals):
            since = self.scalar(
                "SELECT id - position FROM imcallback_removal ORDER BY id DESC LIMIT 1 OFFSET :n",
                n=count - 1,
            )
            code = (
                "import pathlib, sys; from flask.cli import main; sys.argv[0] = 'flask'\n"
                "try: main()\n"
                "finally: print(pathlib.Path('/proc/self/status').read_text(), file=sys.stderr)"
            )
            command = [
                sys.executable,
                "-c",
                code,
                "--app",
                "example_app",
                "imcallback",
                "export",
                os.devnull + "x",
            ]
            with tempfile.TemporaryDirectory() as folder:
                command[-1] = f"{folder}/export.ndjson"
                command += ["--since", moment_of(since).isoformat()]
                start = time.perf_counter()
                done = subprocess.run(
                    command,
                    cwd=ROOT,
                    env=self.environment(folder),
                    capture_output=True,
                    text=True,
                    check=True,
                )
                seconds = time.perf_counter() - start
                size = Path(command[-3]).stat().st_size
            peaks.append(int(done.stderr.partition("VmHWM:")[2].split()[0]) / 1024)
            self.report.lines.append(
                f"- `flask imcallback export` of {count:,}: {seconds:.1f} s, {size / 1e6:.0f} MB, "
                f"peak {peaks[-1]:.1f} MiB"
            )
        self.report.lines.append("")
        self.goal(f"peak memory, {self.removals:,} removals - 10,000, MiB", peaks[1] - peaks[0], 32)

    def environment(self, folder: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("FLASK_")}
        return kept | {
            "FLASK_SQLALCHEMY_DATABASE_URI": self.url.render_as_string(hide_password=False),
            "FLASK_IMCALLBACK_HISTORY_TOKENS": json.dumps([SECRET]),
            "FLASK_IMCALLBACK_SPOOL": "null",
        }

    def stats(self) -> None:
        """Measure counts over 30 days next to a bare GROUP BY."""
        last = self.scalar("SELECT MAX(id) FROM imcallback_delivery")
        day = 86_400_000_000
        until = (last // day) * day
        since = until - 30 * day
        driver = self.driver()
        sql = (
            f"SELECT (id - position) / {day} AS bucket, COUNT(*) FROM imcallback_removal "
            f"WHERE id >= {since} AND id < {until} GROUP BY bucket"
        )

        def bare() -> None:
            driver.execute(sql).fetchall()
            if not self.is_sqlite:
                driver.rollback()

        period: dict[str, Any] = {"since": moment_of(since), "until": moment_of(until)}
        account = period | {"account_id": self.hot("owner_id")}
        count = self.history.stats
        questions: dict[str, Callable[[], Any]] = {
            "bare GROUP BY": bare,
            "per day": lambda: count(**period),
            "per day and relation": lambda: count(group_by="relation", **period),
            "per day in Asia/Kolkata": lambda: count(tz="Asia/Kolkata", **period),
            "per hour": lambda: count(bucket="hour", **period),
            "per day, of the most frequent account": lambda: count(**account),
        }
        repetitions, self.repetitions = self.repetitions, 7
        took = self.medians(questions)
        self.repetitions = repetitions
        self.report.lines += ["### Counts over 30 days", ""]
        self.report.table(
            ["", "ms", "of bare"],
            [[name, f"{ms:.1f}", f"{ms / took['bare GROUP BY']:.2f}"] for name, ms in took.items()],
        )
        self.goal("counts per day / bare GROUP BY", took["per day"] / took["bare GROUP BY"], 1.2)

    def screen(self) -> None:
        """Measure the first HTML page, without a socket."""
        client, headers = self.app.test_client(), {"Authorization": f"Bearer {SECRET}"}
        month = datetime.now(UTC) - timedelta(days=30)

        def view() -> None:
            response = client.get("/imcallback/", headers=headers)
            assert response.status_code == 200, response.text

        questions = {
            "the page": view,
            "the newest removals": self.question(limit=50),
            "30 days by relation": lambda: self.history.stats(since=month, group_by="relation"),
        }
        repetitions, self.repetitions = self.repetitions, 7
        took = self.medians(questions)
        self.repetitions = repetitions
        self.report.lines += ["### The page for people", ""]
        self.report.table(["", "ms"], [[name, f"{ms:.1f}"] for name, ms in took.items()])
        both = took["the newest removals"] + took["30 days by relation"]
        self.goal("the page / newest removals and 30 days", took["the page"] / both, 5)

    def indexes(self) -> None:
        """Measure the size of each index, and the time it adds to inserts."""
        names = ["imcallback_removal", *sorted(str(index.name) for index in removal.indexes)]
        of_deliveries = sorted(str(index.name) for index in delivery.indexes)
        names += ["imcallback_delivery", *of_deliveries]
        if self.is_sqlite:
            sizes = {
                n: self.scalar("SELECT SUM(pgsize) FROM dbstat WHERE name = :n", n=n) for n in names
            }
        else:
            names += ["pk_imcallback_removal", "pk_imcallback_delivery"]
            sizes = {
                n: self.scalar("SELECT pg_relation_size(CAST(:n AS regclass))", n=n) for n in names
            }
        costs = self.write_costs()
        self.report.lines += [
            "### Indexes",
            "",
            "What each takes, and how much longer it takes to insert removals of random accounts, "
            "in transactions of 100, than without that index.",
            "",
        ]
        self.report.table(
            ["", "bytes a removal", "insert with / without"],
            [[f"`{n}`", f"{sizes[n] / self.removals:.0f}", costs.get(n, "")] for n in names],
        )

    def write_costs(self) -> dict[str, str]:
        driver = self.driver()
        mark = "?" if self.is_sqlite else "%s"
        sql = f"INSERT INTO imcallback_removal VALUES ({', '.join([mark] * 6)})"
        last = self.scalar("SELECT MAX(id) FROM imcallback_removal")
        draw = random.Random(1)
        number = itertools.count(last + 1_000_000)

        def seconds() -> float:
            taken = 0.0
            for _ in range(20):
                rows = []
                for _ in range(100):
                    one = next(number)
                    owner, target = (f"user{draw.randrange(1_000_000):06}" for _ in range(2))
                    rows.append((one, 1 + draw.randrange(8), 0, owner, target, ""))
                start = time.perf_counter()
                driver.cursor().executemany(sql, rows)
                driver.commit()
                taken += time.perf_counter() - start
            return taken

        seconds()
        costs = {}
        for index in sorted(removal.indexes, key=lambda index: str(index.name)):
            say(f"{self.report.title}: inserting with and without {index.name}")
            before = [seconds() for _ in range(3)]
            index.drop(get_runtime().engine())
            seconds()
            without = [seconds() for _ in range(3)]
            index.create(get_runtime().engine())
            costs[str(index.name)] = f"{statistics.median(before) / statistics.median(without):.2f}"
        for statement in revision().drop_statements("sqlite"):
            driver.execute(statement)
        driver.execute(f"DELETE FROM imcallback_removal WHERE id > {last}")
        driver.commit()
        driver.close()
        return costs

    def plans(self) -> None:
        """Report the query plans of the database."""
        hot, other = self.hot("owner_id"), self.hot("owner_id", 1)
        address = self.hot("client_ip", 7)
        questions: dict[str, dict[str, Any]] = {
            "an account as owner": {"owner_id": hot},
            "an account on either side": {"account_id": hot},
            "between two frequent accounts": {"account_id": hot, "peer_id": other},
            "a platform of a thousandth of all": {"platform": "Mini"},
            "two that match much each, and nothing together": {
                "provider": "openim",
                "app_id": seed_app(),
            },
            "two that match much each, and nothing together, again": {
                "provider": "tencent",
                "client_ip": "",
            },
            "a frequent account and a rare platform": {"owner_id": hot, "platform": "Mini"},
            "a frequent account and an address": {"owner_id": hot, "client_ip": address},
        }
        self.report.lines += ["### Plans", ""]
        engine = get_runtime().engine()
        explain = (
            "EXPLAIN QUERY PLAN"
            if self.is_sqlite
            else "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF, BUFFERS OFF)"
        )
        for name, filters in questions.items():
            query = HistoryQuery.from_filters(filters)
            with engine.connect() as connection:
                finder = Finder(connection)
                resolved = resolve(connection, query)
                found = finder.find(resolved, PageSpec(is_descending=True, limit=101))
                self.report.lines += [
                    f"{name}, `{_said(filters)}`: {len(found.rows)} found",
                    "",
                    "```",
                ]
                if resolved is NO_MATCH:
                    self.report.lines.append("(no statement: no source matches)")
                for sql, values in finder.statements:
                    for row in connection.exec_driver_sql(f"{explain} {sql}", values):
                        self.report.lines.append(str(row[-1])[:160])
                self.report.lines += ["```", ""]

    def goal(self, text: str, value: float, limit: float, *, is_at_least: bool = False) -> None:
        self.report.goals.append(Goal(f"{self.report.title}: {text}", value, limit, is_at_least))


def seed_app() -> str:
    return next(iter(seed.APPS))


def _said(filters: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in filters.items())


def databases(names: Sequence[str]) -> Iterator[URL]:
    for name in names:
        with ExitStack() as stack:
            if name == "sqlite":
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="imcallback-"))
                yield URL.create("sqlite", database=f"{folder}/history.db")
            elif name == "postgresql":
                server = stack.enter_context(servers.postgresql(durable=True))
                yield stack.enter_context(servers.database(server))
            else:
                yield make_url(name)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    measures = ["pages", "combinations", "exports", "stats", "screen", "plans", "indexes"]
    parser.add_argument(
        "--database",
        nargs="*",
        default=["sqlite", "postgresql"],
        help="sqlite, postgresql, or the URL of a database that seed.py has filled",
    )
    parser.add_argument("--measure", nargs="*", default=measures, choices=measures)
    parser.add_argument("--removals", type=int, default=10_000_000)
    parser.add_argument("--repetitions", type=int, default=200, help="of each page")
    parser.add_argument("--output", type=Path, help="a file for the tables, beside stdout")
    given = parser.parse_args()
    command = shlex.join(["python", "benchmarks/history.py", *sys.argv[1:]])
    lines = ["Made by", "", "```console", f"$ {command}", "```", ""]
    lines += [f"- {line}" for line in describe_machine(ROOT)] + [""]
    reports: list[Report] = []
    for url in databases(given.database):
        app = Flask("benchmark")
        app.config.update(SQLALCHEMY_DATABASE_URI=url, IMCALLBACK_SPOOL=None)
        app.config["IMCALLBACK_HISTORY_TOKENS"] = [SECRET]
        ImCallback(app)
        with app.app_context():
            upgrade()
            bench = Bench(app, url, given.removals, given.repetitions)
            if bench.scalar("SELECT MAX(id) FROM imcallback_removal") is None:
                bench.fill()
            for measure in given.measure:
                say(f"{url.get_backend_name()}: {measure}")
                getattr(bench, measure)()
                reports = [*[r for r in reports if r is not bench.report], bench.report]
                text = "\n".join([*lines, *told(reports)])
                if given.output:
                    given.output.parent.mkdir(parents=True, exist_ok=True)
                    given.output.write_text(text)
            for engine in app.extensions["sqlalchemy"].engines.values():
                engine.dispose()
    print(text)


def told(reports: Sequence[Report]) -> list[str]:
    goals = [goal for report in reports for goal in report.goals]
    met = sum(goal.is_met for goal in goals)
    lines = [f"Of what was wanted, {met} met, {len(goals) - met} missed.", ""]
    lines += ["| wanted | measured | |", "| --- | --- | --- |"]
    for goal in goals:
        sign = "≥" if goal.is_at_least else "≤"
        end = "met" if goal.is_met else "**missed**"
        lines.append(f"| {goal.text} {sign} {goal.limit:g} | {goal.value:.2f} | {end} |")
    lines.append("")
    for report in reports:
        lines += [f"## The history on {report.title}", "", *report.lines]
    return lines


if __name__ == "__main__":
    main()
