"""Packets, old seals and accounts go, and what remains is proved by every older checkpoint."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import URL, event, select

from flask_imcallback.log import Retention, names_account, read_acts, retention
from flask_imcallback.log.batches import REMOVAL_BYTES
from flask_imcallback.removals import Cause, Relation, Removal, Status
from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage import Writer
from flask_imcallback.storage.tables import metadata, removal
from support.api import TOKEN
from support.apps import MakeApp, drop_triggers, rows
from support.deliveries import DELIVERY, MOMENT, find, make_delivery, record, store, write
from support.log import check, number, problems, run, seal, write_evidence

pytestmark = pytest.mark.slow

ALICE = "alice-\N{LATIN SMALL LETTER E WITH ACUTE}\N{CJK UNIFIED IDEOGRAPH-4E2D}"
SETTINGS: dict[str, Any] = {"IMCALLBACK_LOG_READING": True, "IMCALLBACK_HISTORY_TOKENS": [TOKEN]}
DAY = timedelta(days=1)
LARGE = 20_000
"""Removals of a large delivery. They need several transactions."""
COMMANDS = {
    "strip": ("strip", "--before", "2026-11-22"),
    "prune": ("prune", "--before", "2026-11-20"),
    "erase": ("erase", ALICE, "--reason", "request 17"),
}


def packet(*accounts: str) -> bytes:
    """Return a packet that names accounts, with escaped letters."""
    return json.dumps({"PairList": [{"To_Account": account} for account in accounts]}).encode()


def fill(app: Flask) -> None:
    """Store and seal deliveries of three days, and acts that name the account."""
    pair = (Removal(Relation.FRIEND, ALICE, "bob"), Removal(Relation.FRIEND, "bob", ALICE))
    for at in (MOMENT - 2 * DAY, MOMENT, MOMENT + DAY):
        changes: dict[str, Any] = {"received_at": at, "body": packet(ALICE, "bob", str(at))}
        record(app, replace(DELIVERY, removals=pair, **changes))
        record(app, replace(DELIVERY, removals=pair, **changes))  # a repetition
        with app.app_context():
            kicked = {"relation": Relation.GROUP, "actor_id": ALICE, "cause": Cause.KICKED}
            store(
                ("team", "dave"), ("team", ALICE), at=at + DAY / 24, body=packet("dave"), **kicked
            )
            store(("carol", "dave"), at=at + DAY / 12, body=packet("carol", "dave"))
            for number, body in enumerate((packet(ALICE, "dave"), f"{{broken {ALICE!r}".encode())):
                at_night = at + DAY / 8 + timedelta(seconds=number)
                status = (Status.IGNORED, Status.UNREADABLE)[number]
                kept = make_delivery(at=at_night, body=body, client_ip="203.0.113.9")
                record(app, replace(kept, status=status, error=f"cannot read {ALICE}"))
            seal()
    run(app, "history", "--owner-id", ALICE)
    url = f"/imcallback/history/export?format=ndjson&account_id={ALICE}"
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert ALICE in app.test_client().get(url, headers=headers).text
    with app.app_context():
        seal()


@pytest.fixture
def app(make_app: MakeApp, database_url: URL) -> Flask:
    """An app whose log is sealed."""
    app = make_app(database_url, **SETTINGS)
    fill(app)
    return app


def everything(app: Flask) -> str:
    """Return the content of all tables as one text."""
    with app.app_context(), get_runtime().engine().connect() as connection:
        number()
        return "\n".join(
            str([tuple(row) for row in connection.execute(select(table))])
            for table in metadata.sorted_tables
        )


def names_alice(text: str) -> bool:
    escaped = json.dumps(ALICE)[1:-1]
    return any(name in text for name in (ALICE, escaped, repr(ALICE.encode())[2:-1]))


def take(app: Flask, name: str) -> str:
    """Run the command, and return what it prints to stdout."""
    result = run(app, *COMMANDS[name], "--yes")
    assert result.exit_code == 0, result.output
    return result.stdout


def assert_proved(app: Flask, file: Path, *kept: str) -> None:
    """Check the database and its evidence against kept checkpoints."""
    result = run(app, "verify")
    assert result.exit_code == 0, result.output
    assert problems(write_evidence(app, file, "--packets"), *kept) == ""


def checkpoint(app: Flask) -> str:
    return run(app, "checkpoint").output


@pytest.mark.parametrize("order", list(itertools.permutations(COMMANDS)), ids="-".join)
def test_each_order_leaves_a_log_that_holds(
    app: Flask, order: tuple[str, ...], tmp_path: Path
) -> None:
    """After each command, all older checkpoints hold, and the account is nowhere in the end."""
    kept = [checkpoint(app)]
    assert names_alice(everything(app))
    for name in order:
        take(app, name)
        assert_proved(app, tmp_path / "evidence", *kept)
        kept.append(checkpoint(app))
    assert not names_alice(everything(app))
    assert not names_alice((tmp_path / "evidence").read_text())
    deliveries, removals = rows(app)
    assert {row["received_at"] for row in deliveries if row["received_at"] < MOMENT - DAY} == set()
    assert all(row["body"] == b"" for row in deliveries)
    assert all(row["client_ip"] == "" for row in [*deliveries, *removals])
    assert {row["remote_addr"] for row in deliveries} == {"192.0.2.1"}
    report = check(tmp_path / "evidence", *kept)
    assert [text.split()[0] for text in report.notes] == list(order)
    assert "0 affected" not in "".join(report.notes)
    with app.app_context():
        seal()
    for name in COMMANDS:
        before = everything(app)
        take(app, name)  # nothing is left to do, so it is no act
        assert everything(app) == before


def test_the_counterpart_keeps_its_removal(app: Flask) -> None:
    """Filters find nothing of the account, and the removals of the others stay."""
    with app.app_context():
        before = find(limit=1000).data
        assert len(find(account_id=ALICE).data) == 9
        assert len(find(actor_id=ALICE).data) == 6
    output = take(app, "erase")
    assert output == "Erased the account from 12 removals, 15 packets and 3 acts\n"
    with app.app_context():
        assert find(account_id=ALICE).data == find(actor_id=ALICE).data == []
        after = find(limit=1000).data
        assert [row.id for row in after] == [row.id for row in before]
        names = ("owner_id", "target_id", "actor_id")
        for row, old in zip(after, before, strict=True):
            assert [getattr(row, name) for name in names] == [
                "" if getattr(old, name) == ALICE else getattr(old, name) for name in names
            ]
        assert len(find(account_id="bob").data) == 6
    untouched = [row for row in rows(app)[0] if row["body"] == packet("carol", "dave")]
    assert len(untouched) == 3
    assert all(row["nonce"] and row["commitment"] is None for row in untouched)


def test_a_second_erasure_of_the_same_delivery(app: Flask, tmp_path: Path) -> None:
    """The commitments of both accounts stay."""
    kept = checkpoint(app)
    take(app, "erase")
    for account in ("bob", "dave"):
        assert run(app, "erase", account, "--reason", "gone", "--yes").exit_code == 0
    assert_proved(app, tmp_path / "evidence", kept)
    with app.app_context():
        left = {x for r in find(limit=1000).data for x in (r.owner_id, r.target_id, r.actor_id)}
    assert left == {"", "team", "carol"}


def test_a_group_with_the_id_of_the_account_stays(
    make_app: MakeApp, database_url: URL, tmp_path: Path
) -> None:
    """A group is no account: the member keeps the group that it left."""
    app = make_app(database_url)
    with app.app_context():
        store(("alice", "bob"), ("alice", "alice"), relation=Relation.GROUP)
        store(("alice", "carol"))
        seal()
    kept = checkpoint(app)
    output = run(app, "erase", "alice", "--reason", "gone", "--yes").stdout
    assert output.startswith("Erased the account from 2 removals")
    with app.app_context():
        left = {(record.owner_id, record.target_id) for record in find().data}
    assert left == {("alice", "bob"), ("alice", ""), ("", "carol")}
    assert_proved(app, tmp_path / "evidence", kept)


def test_two_erasures_of_the_same_deliveries_at_the_same_time(
    make_app: MakeApp, database_url: URL, tmp_path: Path
) -> None:
    """The commitments of both accounts stay."""
    app = make_app(database_url)
    with app.app_context():
        for number in range(40):
            store(("alice", "bob"), at=MOMENT + timedelta(seconds=number))
        seal()
    both_acts_are_sealed = threading.Barrier(2, timeout=30)

    def seal_and_wait() -> None:
        seal()
        both_acts_are_sealed.wait()

    def erase(account: str) -> None:
        with app.app_context():
            engine = get_runtime().process.get().engines.occasional()
            Retention(engine, seal_and_wait, "tests").erase(account, "gone", is_dry_run=False)

    with ThreadPoolExecutor() as threads:
        list(threads.map(erase, ("alice", "bob")))
    assert_proved(app, tmp_path / "evidence")


def test_sqlite_overwrites_what_is_erased(make_app: MakeApp, tmp_path: Path) -> None:
    """The file of the database has no byte of the account any more."""
    path = tmp_path / "test.db"
    app = make_app(URL.create("sqlite", database=str(path)), **SETTINGS)
    fill(app)
    empty_log(app)
    assert ALICE.encode() in path.read_bytes()
    take(app, "erase")
    empty_log(app)
    content = path.read_bytes()
    assert ALICE.encode() not in content
    assert json.dumps(ALICE)[1:-1].encode() not in content


def empty_log(app: Flask) -> None:
    """Copy the log of SQLite into the file, as each process does when it ends."""
    with app.app_context(), get_runtime().writing_engine().connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        busy = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()[0]
        assert busy == 0


def test_an_account_in_an_erased_place_is_found(app: Flask, tmp_path: Path) -> None:
    """Nobody can write another account where one was erased."""
    take(app, "erase")
    assert_proved(app, tmp_path / "evidence")
    with app.app_context(), get_runtime().writing_engine().begin() as connection:
        drop_triggers(connection)
        forged = removal.update().where(removal.c.owner_id == "").values(owner_id="mallory")
        assert connection.execute(forged).rowcount == 3
    result = run(app, "verify")
    assert result.exit_code == 1
    assert "the account 'mallory' does not fit its commitment" in result.output


def test_without_yes_nothing_changes(app: Flask) -> None:
    """Each command says what it would do, and what it cannot reach."""
    before = everything(app)
    for name, output in {
        "strip": "Would take the packets and addresses of 18 deliveries before 2026-11-22 away",
        "prune": "Would delete 1 seals with 6 deliveries, 5 removals and 0 acts, all before "
        "2026-11-20",
        "erase": "Would erase the account from 12 removals, 15 packets and 3 acts",
    }.items():
        result = run(app, *COMMANDS[name])
        assert result.stdout == f"{output}\n"
        assert result.stderr == (
            "Exports, evidence files with packets, backups, replicas and the logs of the app and "
            "of the database are out of reach. Delete them yourself.\n"
            "Nothing was changed. Add --yes to do it.\n"
        )
    assert everything(app) == before


class CrashError(Exception):
    """The end of a process."""


@contextmanager
def crash_after(app: Flask, transactions: int) -> Iterator[None]:
    """Stop before another transaction opens the door."""
    left = [transactions]

    def stop(_: Any, __: Any, statement: str, *___: Any) -> None:
        if statement.startswith("INSERT INTO imcallback_door"):
            left[0] -= 1
            if left[0] < 0:
                raise CrashError

    with app.app_context():
        engine = get_runtime().process.get().engines.occasional()
    event.listen(engine, "before_cursor_execute", stop)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", stop)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_interrupted_command_goes_on(
    app: Flask, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each transaction, all that is left is proved. A repetition ends the work.

    `verify` asks for the repetition of an interrupted prune.
    """
    monkeypatch.setattr(retention, "MAX_ROWS", 4)
    monkeypatch.setattr(retention, "BATCH_BYTES", 4 * REMOVAL_BYTES)
    kept = checkpoint(app)
    crashes = 0
    while True:
        with crash_after(app, 3):
            arguments = ["imcallback", *COMMANDS[name], "--yes"]
            result = app.test_cli_runner().invoke(args=arguments)
        if result.exit_code == 0:
            break
        assert isinstance(result.exception, CrashError)
        crashes += 1
        if name == "prune":  # positions of a pruned seal could also have been inserted
            output = run(app, "verify").output
            assert output.count("TAMPERED") == output.count("If flask imcallback prune was interr")
        else:
            assert_proved(app, tmp_path / "evidence", kept)
    assert crashes > 1
    if name == "erase":
        assert not names_alice(everything(app))
    if name == "prune":
        assert min(row["received_at"] for row in rows(app)[0]) > MOMENT - DAY
    if name == "strip":
        assert [row["body"] for row in rows(app)[0]] == [b""] * 18
    assert_proved(app, tmp_path / "evidence", kept)


@pytest.mark.slow
def test_a_large_delivery(make_app: MakeApp, database_url: URL, tmp_path: Path) -> None:
    """Its owner is erased, then its packet is stripped, then it is pruned."""
    app = make_app(database_url)
    members = tuple(Removal(Relation.FOLLOW, "fan", f"user{n}") for n in range(LARGE))
    body = json.dumps([member.target_id for member in members]).encode()
    delivery = replace(make_delivery(), removals=members, body=body)
    with app.app_context():
        entry = get_runtime().recorder.make_entry(delivery)
        Writer(get_runtime().writing_engine, retry_until_deadline=True).write([entry], 300)
        assert entry.error is None
        seal()
    kept = checkpoint(app)
    for account in (f"user{LARGE - 1}", "fan"):
        assert run(app, "erase", account, "--reason", "gone", "--yes").exit_code == 0
        assert_proved(app, tmp_path / "evidence", kept)
    with app.app_context():
        assert find(owner_id="fan").data == find(target_id=f"user{LARGE - 1}").data == []
    with app.app_context(), get_runtime().engine().connect() as connection:
        assert set(connection.scalars(select(removal.c.owner_id))) == {""}
    assert run(app, "prune", "--before", "2026-11-22", "--yes").exit_code == 0
    assert rows(app) == ([], [])
    assert_proved(app, tmp_path / "evidence", kept)


def test_young_and_unsealed_rows_stay(make_app: MakeApp, database_url: URL) -> None:
    """The command says how many removals are left for later."""
    app = make_app(database_url)
    with app.app_context():
        now = datetime.now(UTC)
        store((ALICE, "bob"), at=MOMENT, body=packet(ALICE))
        store((ALICE, "bob"), at=now, body=packet(ALICE))
        seal()
        store((ALICE, "bob"), at=MOMENT + DAY, body=packet(ALICE))
        number()
    result = run(app, *COMMANDS["erase"])
    assert result.stdout == "Would erase the account from 1 removals, 1 packets and 0 acts\n"
    assert result.stderr.startswith(
        "2 removals and 2 packets with the account are not sealed, or not older than a day. Run "
        "the command again after a day.\n"
    )
    # The command seals first, so only the removal of today is left.
    assert take(app, "erase").startswith("Erased the account from 2 removals, 2 packets")
    assert [row["commitment"] is None for row in rows(app)[0]] == [False, False, True]


def test_an_erasure_finds_the_act_that_has_just_looked_the_account_up(app: Flask) -> None:
    """The act was not sealed yet when the command began."""
    run(app, "history", "--owner-id", ALICE)
    take(app, "erase")
    with app.app_context():
        assert not any(
            names_account(str(a.detail), ALICE) for a in read_acts(get_runtime().engine(), 99)
        )


@pytest.mark.parametrize(("query", "error"), [("a=%61lice", ""), ("", "cannot read alice")])
def test_an_account_beside_the_body_is_erased(
    make_app: MakeApp, database_url: URL, query: str, error: str
) -> None:
    """The query and the error of a delivery can name the account, too."""
    app = make_app(database_url)
    delivery = replace(make_delivery(body=b"{}"), status=Status.IGNORED)
    record(app, replace(delivery, query=query, error=error))
    with app.app_context():
        seal()
    output = run(app, "erase", "alice", "--reason", "gone", "--yes").stdout
    assert output.startswith("Erased the account from 0 removals, 1 packets")
    assert all(row["query"] == row["error"] == "" for row in rows(app)[0])


@pytest.mark.parametrize("command", [("strip", "--before", "2026-11-22"), COMMANDS["erase"]])
def test_a_delivery_without_its_packet_is_not_stored_again(
    make_app: MakeApp, database_url: URL, command: tuple[str, ...]
) -> None:
    """A late copy, for example in a log of lost callbacks, is recognized by its commitment."""
    app = make_app(database_url)
    delivery = make_delivery((ALICE, "bob"), body=packet(ALICE), request_id="r")
    with app.app_context():
        entry = get_runtime().recorder.make_entry(delivery)
        copy = entry.copy()
        write(app, entry)
        seal()
    assert run(app, *command, "--yes").exit_code == 0
    write(app, copy)
    assert copy.error is None
    assert copy.row["id"] == entry.row["id"]
    assert [len(stored) for stored in rows(app)] == [1, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("strip", "--before", "tomorrow"), "'tomorrow' is not a day"),
        (("prune", "--before", "2999-01-01"), "2999-01-01 is too new"),
        (("erase", "alice", "--reason", " "), "the reason is empty"),
        (("erase", "", "--reason", "x"), "the account is empty"),
        (("erase", "alice", "--reason", "alice asked"), "the reason names the account"),
    ],
)
def test_wrong_options(make_app: MakeApp, arguments: tuple[str, ...], message: str) -> None:
    """The message says what is wrong."""
    result = run(make_app(), *arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_the_command_names_the_callbacks_in_the_spool(make_app: MakeApp) -> None:
    """Callbacks that wait for another database are not changed."""
    app = make_app()
    with app.app_context():
        runtime = get_runtime()
        entry = runtime.recorder.make_entry(make_delivery((ALICE, "bob")))
        assert runtime.drain
        runtime.drain.spool.put(entry)
        result = run(app, *COMMANDS["erase"])
    assert "The spool of this machine holds callbacks, which are not changed." in result.stderr


@pytest.mark.parametrize(
    ("text", "account_id", "expected"),
    [
        ('{"To_Account": "alice"}', "alice", True),
        ('{"To_Account": "alice2"}', "alice", False),
        ('{"To_Account": "my-alice"}', "alice", False),
        (r'{"To_Account": "\u0061lice"}', "alice", True),
        (r'{"ex": "{\"To_Account\": \"\\u0061lice\"}"}', "alice", True),
        ('{"alice": 1}', "alice", True),
        ('{"a": 1, "a": 2}', "1", False),
        ('{"a": "alice", "a": "bob"}', "alice", True),
        ('{"From_Account": 12345678}', "12345678", True),
        ('{"text": "alice has left"}', "alice", True),
        ('{"broken": "alice"', "alice", True),
        (r'{"broken": "\u0061lice"', "alice", True),
        ('{"broken": "alice2"', "alice", False),
        (r'{"a": "\ud83d\ude00"}', "\N{GRINNING FACE}", True),
        (r'{"a": "\ud83d\ude00"', "\N{GRINNING FACE}", True),
        ("[" * 100_000, "alice", False),
        (r'{"Nick": "carol\\"}', "alice", False),
        (r'{"Nick": "\\u005cu005cu005cu005cu005cu005cu005c"}', "alice", False),
        (r'{"broken": "hi\nalice"', "alice", True),
        (r'{"ex": "{\"text\": \"hi\\nalice\"}"}', "alice", True),
        ("1" * 5000, "12345678", False),
        ("", "alice", False),
    ],
)
def test_a_text_names_an_account(text: str, account_id: str, expected: bool) -> None:
    """An account is found in each notation, and not in the name of another account."""
    assert names_account(text, account_id) is expected
