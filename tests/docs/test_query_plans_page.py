"""The page on query plans shows the indexes that each database really uses.

`python -m pytest tests/docs/test_query_plans_page.py` with `IMCALLBACK_WRITE_PLANS=1` in the
environment writes the plans into the page.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from sqlalchemy import URL, Connection

from flask_imcallback.history.finder import Finder
from flask_imcallback.history.queries import HistoryQuery
from flask_imcallback.history.resolve import resolve
from flask_imcallback.history.statements import PageSpec
from flask_imcallback.runtime import get_runtime
from support import ROOT, servers
from support.apps import MakeApp
from support.volumes import analyze, insert_removals, insert_sources

PAGE = ROOT / "docs/query-plans.md"

KINDS: dict[str, dict[str, Any]] = {
    "no filter": {},
    "one range": {"owner_id": "alice"},
    "several ranges": {"account_id": "alice"},
    "the narrower of two": {"owner_id": "alice", "target_id": "rare"},
    "deliveries": {"client_ip": "192.0.2.9"},
    "a scan": {"client_ip": ""},
}
"""The name of each kind of plan on the page, and filters that need it."""

EXPLAIN = {"sqlite": "EXPLAIN QUERY PLAN", "postgresql": "EXPLAIN (COSTS OFF)"}
INDEX = re.compile(r"\b(?:pk|ix|uq)_imcallback_\w+|INTEGER PRIMARY KEY")


@pytest.fixture(params=["sqlite", "postgresql"])
def connection(
    request: pytest.FixtureRequest, make_app: MakeApp, tmp_path: Any
) -> Iterator[Connection]:
    """A connection to a database with 20,000 removals."""
    with ExitStack() as stack:
        url = URL.create("sqlite", database=str(tmp_path / "plans.db"))
        if request.param == "postgresql":
            server = request.getfixturevalue("database_servers")["postgresql"]
            url = stack.enter_context(servers.database(server))
        app = make_app(url)
        stack.enter_context(app.app_context())
        engine = get_runtime().engine()
        with engine.begin() as writing:
            insert_sources(writing, 2)
            insert_removals(
                writing,
                20_000,
                owner_id="CASE WHEN n % 3 = 0 THEN 'alice' ELSE 'carol' END",
                target_id="CASE WHEN n % 5000 = 0 THEN 'rare' ELSE 'bob' END",
                client_ip="CASE WHEN n % 1000 = 0 THEN '192.0.2.9' ELSE '203.0.113.7' END",
            )
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as writing:
            analyze(writing)
            if request.param == "postgresql":
                writing.exec_driver_sql("VACUUM ANALYZE imcallback_removal, imcallback_delivery")
        yield stack.enter_context(engine.connect())


def explain(connection: Connection, filters: dict[str, Any]) -> str:
    """Return the plans of all statements that a page runs, as the database explains them."""
    finder = Finder(connection)
    query = resolve(connection, HistoryQuery.from_filters(filters))
    finder.find(query, PageSpec(is_descending=True, limit=101))
    verb = EXPLAIN[connection.dialect.name]
    plans = []
    for sql, values in finder.statements:
        # SQLite has the text in the last column, PostgreSQL has no other.
        lines = (str(row[-1]) for row in connection.exec_driver_sql(f"{verb} {sql}", values))
        plans.append("\n".join(line for line in lines if "Index Cond:" not in line))
    return "\n\n".join(plans)


def block_pattern(dialect: str, kind: str) -> re.Pattern[str]:
    """Return the pattern of the block of the page that has a plan."""
    return re.compile(rf"(<!-- {dialect}: {kind} -->\n\n```text\n)(.*?)(\n```)", re.DOTALL)


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_shows_the_indexes(connection: Connection, kind: str) -> None:
    """Each plan on the page uses the indexes that the database uses now, in the same order."""
    plan = explain(connection, KINDS[kind])
    pattern = block_pattern(connection.dialect.name, kind)
    page = PAGE.read_text("utf-8")
    if os.environ.get("IMCALLBACK_WRITE_PLANS"):
        page = pattern.sub(lambda match: match[1] + plan + match[3], page)
        PAGE.write_text(page, "utf-8")
    block = pattern.search(page)
    assert block, f"docs/query-plans.md has no block {kind}"
    assert set(INDEX.findall(block[2])) == set(INDEX.findall(plan))


def test_no_kind_is_left_out() -> None:
    """The page has each kind once for each database, and no other."""
    blocks = re.findall(r"<!-- (\w+): (.+) -->", PAGE.read_text("utf-8"))
    assert sorted(blocks) == sorted((dialect, kind) for dialect in EXPLAIN for kind in KINDS)
