"""The log notes who exports and who reads, before they see anything."""

from __future__ import annotations

import hashlib
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import time_machine
from flask import Flask
from sqlalchemy import URL, create_engine, select, text

from flask_imcallback import ImCallback, upgrade
from flask_imcallback.log import (
    ActKind,
    FileActs,
    count_deliveries,
    read_acts,
    store_act,
    user_actor,
)
from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage import id_at
from flask_imcallback.storage.tables import act, delivery, log
from support.api import HISTORY, TOKEN, assert_problem, get, login_required, open_history
from support.apps import MakeApp, close_connections
from support.deliveries import store
from support.log import number

READER = f"token:{hashlib.sha256(TOKEN.encode()).hexdigest()[:8]}"


@pytest.fixture
def app(make_app: MakeApp, database_url: URL) -> Flask:
    """An app with one removal, whose log notes each read."""
    app = open_history(make_app, database_url, IMCALLBACK_LOG_READING=True)
    with app.app_context():
        store(("alice", "bob"))
    return app


def acts(app: Flask) -> list[tuple[str, str, int, Any]]:
    """Return all acts as kind, actor, number and detail, the oldest first."""
    with app.app_context():
        found = read_acts(get_runtime().engine(), 1000)
    return [(a.kind, a.actor, a.affected, a.detail) for a in reversed(found)]


def run(app: Flask, *arguments: str) -> Any:
    return app.test_cli_runner().invoke(args=["imcallback", *arguments], catch_exceptions=False)


def test_each_export_is_an_act_and_an_entry_of_the_log(app: Flask) -> None:
    """An export over HTTP is stored with the hash of the token and its filters."""
    response = get(app, f"{HISTORY}/export?owner_id=alice&format=csv")
    assert b"alice" in response.data
    detail = {"path": f"{HISTORY}/export", "filters": {"owner_id": ["alice"], "format": ["csv"]}}
    with app.app_context(), get_runtime().engine().connect() as connection:
        number()
        act_ids = connection.scalars(select(act.c.id).order_by(act.c.id)).all()
        delivery_id = connection.scalar(select(delivery.c.id))
        entries = set(connection.scalars(select(log.c.entry_id)))
        stored = str(connection.execute(select(act)).all())
    assert entries == {delivery_id, *(-act_id for act_id in act_ids)}
    assert acts(app) == [
        ("export", READER, 0, detail),
        ("export", READER, 1, detail | {"begun": act_ids[0]}),
    ]
    assert TOKEN not in stored


@pytest.mark.parametrize(
    ("path", "count"),
    [
        (HISTORY, 1),
        ("/imcallback/deliveries", 1),
        ("/imcallback/", 1),
        ("/imcallback/account?account_id=alice", 1),
        ("/imcallback/feed", 1),
        ("/imcallback/feed?after=1000", 0),
        (f"{HISTORY}?owner_id=nobody", 0),
        (f"{HISTORY}/stats?account_id=alice", 1),
        (f"{HISTORY}/stats?owner_id=nobody", 0),
        (f"{HISTORY}/1", 0),
    ],
)
def test_an_answer_that_shows_something_is_an_act(app: Flask, path: str, count: int) -> None:
    """An answer that shows or counts removals or deliveries is noted, an empty answer is not."""
    get(app, path)
    get(app, path, method="HEAD")
    expected_path, _, query = path.partition("?")
    filters = {"account_id": ["alice"]} if "account_id" in query else {}
    detail = {"path": expected_path, "filters": filters}
    assert acts(app) == [("read", READER, 1, detail)] * count


def test_one_removal_and_one_delivery_are_acts(app: Flask) -> None:
    """The path of the act says which removal or delivery was shown."""
    (removal,) = get(app).get_json()["data"]
    for path in (
        f"{HISTORY}/{removal['id']}",
        f"/imcallback/deliveries/{removal['delivery_id']}",
        f"/imcallback/removal/{removal['id']}",
    ):
        get(app, path)
        assert acts(app)[-1] == ("read", READER, 1, {"path": path, "filters": {}})


def test_commands_are_acts_of_their_user(app: Flask) -> None:
    """The command line notes the user, and the Python API notes nothing."""
    with app.app_context():
        get_runtime().history.find()
    run(app, "history", "--owner-id", "alice")
    run(app, "deliveries")
    run(app, "export", "-", "--format", "ndjson")
    run(app, "stats", "--bucket", "day")
    export = {"command": "export", "filters": {"format": ["ndjson"]}}
    found = acts(app)
    begun = found[3][3].pop("begun")
    with app.app_context():
        assert begun in [one.id for one in read_acts(get_runtime().engine(), 10)]
    assert found == [
        ("read", user_actor(), 1, {"command": "history", "filters": {"owner_id": ["alice"]}}),
        ("read", user_actor(), 1, {"command": "deliveries", "filters": {}}),
        ("export", user_actor(), 0, export),
        ("export", user_actor(), 1, export),
        ("read", user_actor(), 1, {"command": "stats", "filters": {"bucket": ["day"]}}),
    ]


def test_reads_are_no_acts_unless_the_setting_says_so(make_app: MakeApp) -> None:
    """Without the setting, only the export is noted."""
    app = open_history(make_app)
    with app.app_context():
        store(("alice", "bob"))
    get(app)
    run(app, "history")
    get(app, f"{HISTORY}/export?format=ndjson")
    assert [kind for kind, *_ in acts(app)] == ["export", "export"]


def test_an_export_that_is_cut_off_has_its_number(app: Flask) -> None:
    """The act counts what was read until the client went away."""
    with app.app_context():
        store(*((f"owner{number}", "target") for number in range(3)))
    client = app.test_client()
    headers = {"Authorization": f"Bearer {TOKEN}"}
    response = client.get(f"{HISTORY}/export?format=ndjson", headers=headers, buffered=False)
    next(response.iter_encoded())
    response.close()
    assert [affected for _, _, affected, _ in acts(app)] == [0, 4]


def test_evidence_that_is_cut_off_does_not_lock_the_file(tmp_path: Path) -> None:
    """Without a WAL, SQLite cannot store the second act while the evidence is being read."""
    engine = create_engine(f"sqlite:///{tmp_path / 'host.db'}")
    app = Flask("host", instance_path=str(tmp_path / "instance"))
    ImCallback(app, engine=engine)
    with app.app_context():
        upgrade()
        store(("alice", "bob"))
        runtime = get_runtime()
        runtime.seal_log()
        file = FileActs(runtime.store_act, ActKind.EVIDENCE, "app", {})
        file.begin()
        lines = file.count(runtime.read_evidence(), count_deliveries)
        next(lines)
        next(lines)
        began = time.monotonic()
        lines.close()
        assert time.monotonic() - began < 4  # SQLite would wait for five seconds
    assert [affected for *_, affected, _ in acts(app)] == [0, 1]
    close_connections(app)
    engine.dispose()


def test_the_acts_of_evidence_count_its_deliveries(app: Flask) -> None:
    """Evidence has the deliveries that are sealed, also if it is written by the command."""
    assert get(app, "/imcallback/evidence").data
    run(app, "seal")
    assert get(app, "/imcallback/evidence").data
    run(app, "evidence", "-")
    assert {kind for kind, *_ in acts(app)} == {"evidence"}
    assert [affected for *_, affected, _ in acts(app)] == [0, 0, 0, 1, 0, 1]


def test_an_export_that_cannot_be_noted_is_refused(app: Flask) -> None:
    """Nobody gets an export whose act cannot be stored."""
    with app.app_context(), get_runtime().writing_engine().begin() as connection:
        connection.execute(text("DROP TABLE imcallback_act"))
    problem = assert_problem(get(app, f"{HISTORY}/export?format=csv"), 503)
    assert "cannot note in the log who does this" in problem["detail"]
    assert_problem(get(app), 503)
    assert run(app, "export", "-", "--format", "csv").exit_code == 1


def test_readers_of_the_host_are_the_app(make_app: MakeApp) -> None:
    """The extension does not know the users of the host app."""
    app = open_history(make_app, history_decorators=[login_required])
    response = app.test_client().get(f"{HISTORY}/export?format=csv", headers={"X-User": "carol"})
    assert response.status_code == 200
    assert [(kind, actor) for kind, actor, *_ in acts(app)] == [("export", "app")] * 2


def test_acts_of_one_microsecond_get_different_ids(app: Flask) -> None:
    """An act moves if another process used its id."""
    with app.app_context(), time_machine.travel("2026-11-20T18:05:00Z", tick=False):
        engine = get_runtime().writing_engine()
        ids = [store_act(engine, ActKind.READ, "app", number, {}) for number in range(3)]
        assert len(set(ids)) == 3
        assert ids[0] == id_at(datetime.now(UTC))
    assert sorted(affected for *_, affected, _ in acts(app)) == [0, 1, 2]


def test_the_command_lists_the_newest_acts_first(app: Flask) -> None:
    """`acts` shows the time, the kind, the actor, the number and the filters."""
    run(app, "history", "--owner-id", "alice")
    get(app, f"{HISTORY}/export?format=ndjson")
    header, export, _, read = run(app, "acts").output.splitlines()
    assert header.split() == ["at", "kind", "actor", "affected", "detail"]
    assert export.split()[1:4] == ["export", READER, "1"]
    assert read.split(maxsplit=4)[1:4] == ["read", user_actor(), "1"]
    assert json.loads(read.split(maxsplit=4)[4])["filters"] == {"owner_id": ["alice"]}
    assert len(run(app, "acts", "--limit", "1").output.splitlines()) == 2
