"""The guides name commands that exist, and database users whose rights are enough."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import URL, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError

from flask_imcallback.runtime import get_runtime
from support import ROOT, servers
from support.apps import MakeApp, rows, save_counts
from support.deliveries import DELIVERY, record
from support.doctor import diagnose
from support.log import run, seal

GUIDE = (ROOT / "docs/deleting.md").read_text("utf-8")
GRANTS = dict(
    zip(
        ("postgresql", "mariadb"),
        re.findall(r"```sql\n(GRANT.+?)```", (ROOT / "SECURITY.md").read_text("utf-8"), re.DOTALL),
        strict=True,
    )
)
PASSWORD = "a-pass-word"
USERS = ("imcallback_app", "imcallback_keeper")


def test_the_scheduled_job_runs(make_app: MakeApp) -> None:
    """The days of the job are old enough, and each command of the guide exists."""
    app = make_app()
    record(app, DELIVERY)
    with app.app_context():
        seal()
    (job,) = re.findall(r"```sh\n(.+?)```", GUIDE, re.DOTALL)
    for command, days in re.findall(
        r'imcallback (.+?) --before "\$\(date -u -d \'-(\d+) days', job
    ):
        day = datetime.now(UTC) - timedelta(days=int(days))
        result = run(app, command, "--before", f"{day:%Y-%m-%d}", "--yes")
        assert result.exit_code == 0, result.output
    for command in re.findall(r"flask imcallback ([a-z]+)", GUIDE):
        assert run(app, command, "--help").exit_code == 0


@pytest.fixture(params=GRANTS)
def owner_url(
    request: pytest.FixtureRequest, database_servers: dict[str, servers.Server]
) -> Iterator[URL]:
    """A database on a server with the two users of the guide, without rights."""
    is_postgresql = request.param == "postgresql"
    create = "ROLE {} LOGIN PASSWORD '{}'" if is_postgresql else "USER {} IDENTIFIED BY '{}'"
    with ExitStack() as stack:
        url = stack.enter_context(servers.database(database_servers[request.param]))
        for user in USERS:
            ask(url, f"CREATE {create.format(user, PASSWORD)}")
            drops = [f"DROP OWNED BY {user}", f"DROP ROLE {user}"]
            stack.callback(ask, url, *(drops if is_postgresql else [f"DROP USER {user}"]))
        yield url


def ask(url: URL, *statements: str) -> None:
    engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))


def test_the_database_users_have_the_rights_that_they_need(
    make_app: MakeApp, owner_url: URL
) -> None:
    """The app records, numbers, seals and counts, but only the other user takes data away."""
    make_app(owner_url)
    grants = GRANTS["postgresql" if owner_url.get_backend_name() == "postgresql" else "mariadb"]
    statements = grants.replace("imcallback.", f"{owner_url.database}.").split(";\n")
    ask(owner_url, *[statement for statement in statements if statement.strip()])
    urls = [
        owner_url.set(username=f"imcallback_{user}", password=PASSWORD)
        for user in ("app", "keeper")
    ]
    app, keeper = (make_app(url, migrate=False) for url in urls)
    for _ in range(2):
        record(app, DELIVERY)
    save_counts(app)
    with app.app_context():
        assert seal()
        for statement in (
            "DELETE FROM imcallback_log",
            "UPDATE imcallback_delivery SET error = 'x'",
        ):
            engine = get_runtime().writing_engine()
            with pytest.raises(DBAPIError, match="denied"), engine.begin() as connection:
                connection.execute(text(statement))
    assert "Stored rows" not in diagnose(app).output
    for arguments in (
        ("strip", "--before", "2026-11-22"),
        ("erase", "alice", "--reason", "request 17"),
        ("prune", "--before", "2026-11-22"),
    ):
        result = run(app, *arguments, "--yes")
        assert result.exit_code == 1
        assert "may delete and update" in result.output
        result = run(keeper, *arguments, "--yes")
        assert result.exit_code == 0, result.output
    assert rows(keeper) == ([], [])
    result = run(keeper, "verify")
    assert result.exit_code == 0, result.output
