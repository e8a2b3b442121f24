"""The sealer: each log entry is sealed once, whatever happens to processes, clocks and backups."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import time_machine
from flask import Flask
from sqlalchemy import URL, delete, insert, select

from flask_imcallback.errors import ConfigError, StorageError
from flask_imcallback.log import Sealer, SealState, SecretKey, sealer, verifier
from flask_imcallback.log.lines import read_lines
from flask_imcallback.removals import Cause, Relation
from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage import act, delivery, inbox, log, removal, source
from flask_imcallback.storage import seal as seal_table
from support.apps import MakeApp, drop_triggers, wait_until
from support.deliveries import MOMENT, make_delivery, store, store_all
from support.log import SECRET, check, number, run, seal, write_evidence

SECOND = timedelta(seconds=1)


@pytest.fixture
def app(make_app: MakeApp, database_url: URL) -> Iterator[Flask]:
    app = make_app(database_url, IMCALLBACK_SEAL_KEY=SECRET.text())
    with app.app_context():
        yield app


def store_many(count: int, at: datetime = MOMENT) -> None:
    """Store deliveries of one removal each."""
    store_all(
        [
            make_delivery((f"owner{n}", f"target{n}"), at=at + n * timedelta(milliseconds=1))
            for n in range(count)
        ]
    )


def stored_seals() -> list[verifier.Seal]:
    with get_runtime().engine().connect() as connection:
        query = select(seal_table.c.entry).order_by(seal_table.c.number)
        return [verifier.Seal.from_json(entry) for entry in connection.scalars(query)]


def kept_size() -> int:
    """Return the number of seals in the checkpoint beside the app."""
    return verifier.read_checkpoint(get_runtime().sealer.path.read_text()).size


def state(own: Sealer) -> SealState:
    with get_runtime().engine().connect() as connection:
        return own.inspect(connection)


def test_seals_cover_the_log_without_gaps(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """A seal has a limit, so many entries need several seals. Each begins where the last ended."""
    monkeypatch.setattr(sealer, "MAX_ENTRIES", 4)
    assert seal() == []
    store_many(9)
    new = seal()
    assert [(s.number, s.first, s.last, s.deliveries, s.removals, s.acts) for s in new] == [
        (1, 1, 4, 4, 4, 0),
        (2, 5, 8, 4, 4, 0),
        (3, 9, 9, 1, 1, 0),
    ]
    assert seal() == []
    assert (stored_seals(), kept_size()) == (new, 3)
    with get_runtime().engine().connect() as connection:
        ids = connection.scalars(select(log.c.entry_id).order_by(log.c.position)).all()
    found = [get_runtime().sealer.find_seal(entry_id) for entry_id in ids]
    assert [s and s.number for s in found] == [1, 1, 1, 1, 2, 2, 2, 2, 3]
    assert get_runtime().sealer.find_seal(5) is None
    assert run(app, "verify").exit_code == 0


def test_a_large_body_ends_a_seal(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """A seal holds a limited number of bytes, and a single entry may be larger."""
    monkeypatch.setattr(sealer, "MAX_BYTES", 5000)
    for length in (10, 4000, 4000, 9000, 10):
        store(("a", "b"), body=b"x" * length)
    assert [(s.first, s.last) for s in seal()] == [(1, 2), (3, 3), (4, 4), (5, 5)]


def test_two_sealers_at_once_seal_each_entry_once(
    app: Flask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The primary key of the seals lets one of them win. The other one goes on."""
    monkeypatch.setattr(sealer, "MAX_ENTRIES", 5)
    store_many(200)
    number()
    engine = get_runtime().process.get().engines.occasional()
    barrier, errors = threading.Barrier(2), []

    def work(folder: Path) -> None:
        own = Sealer(lambda: engine, folder, SECRET, 60)
        barrier.wait()
        try:
            own.seal()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(tmp_path / name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    seals = stored_seals()
    assert [s.number for s in seals] == list(range(1, 41))
    assert [position for s in seals for position in range(s.first, s.last + 1)] == list(
        range(1, 201)
    )
    assert run(app, "verify").exit_code == 0
    texts = {
        file.read_text()
        for name in ("one", "two")
        for file in (tmp_path / name).glob(f"{sealer.CHECKPOINT_FILE}_*")
    }
    assert texts == {run(app, "checkpoint").output}


def test_a_crash_after_the_commit_loses_no_checkpoint(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    """The checkpoint depends only on committed rows, so the next process makes it again."""
    file = get_runtime().sealer.path
    store_many(1)
    seal()
    before = file.read_text()
    store_many(1, MOMENT + SECOND)
    seal()
    after = file.read_text()
    file.write_text(before)  # as if the process had ended between the commit and the file
    caplog.clear()
    with caplog.at_level(logging.INFO, "flask_imcallback.checkpoint"):
        assert seal() == []
    assert file.read_text() == after
    assert repr(after) in caplog.text


def test_a_clock_that_jumps_seals_all_the_same(app: Flask) -> None:
    """Positions decide what is sealed, and not times."""
    own = make_sealer(app, 0.2)
    for count, days in enumerate((0, 3, -3), 1):
        with time_machine.travel(datetime.now(UTC) + timedelta(days=days)):
            store_many(1, MOMENT + timedelta(days=days))
            number()
            wait_until(lambda: own.seal_if_due() is None)
            assert len(stored_seals()) == count
    assert [(s.number, s.first, s.last) for s in stored_seals()] == [
        (1, 1, 1),
        (2, 2, 2),
        (3, 3, 3),
    ]
    assert run(app, "verify").exit_code == 0


def test_an_entry_that_gets_no_position_is_a_problem(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Health and `seal` say so, because such an entry can never be sealed."""
    monkeypatch.setattr(sealer, "OVERDUE", 0.0001)
    runtime = get_runtime()
    runtime.sequencer.stop()
    with runtime.writing_engine().begin() as connection:
        connection.execute(inbox.insert().values(entry_id=5))
    state(runtime.sealer)
    time.sleep(0.1)
    assert "the entry 5 waits for its log position for too long" in state(runtime.sealer).problem
    result = run(app, "seal")
    assert (result.exit_code, "the entry 5 has no log position" in result.output) == (1, True)


def test_many_entries_are_sealed_without_a_pause(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full seal is followed by the next one. Otherwise a busy app would never be sealed."""
    monkeypatch.setattr(sealer, "MAX_ENTRIES", 4)
    store_many(9, MOMENT)
    number()
    own = make_sealer(app, 60)
    assert [own.seal_if_due() for _ in range(3)] == [0, 0, None]
    assert [seal.last for seal in stored_seals()] == [4, 8, 9]


def test_a_host_whose_clock_is_behind_seals_no_more_often(app: Flask) -> None:
    """The other host has made the newest seal a minute ahead, as its clock says."""
    with time_machine.travel(datetime.now(UTC) + timedelta(minutes=1)):
        store_many(1, MOMENT)
        seal()
    store_many(1, MOMENT + SECOND)
    number()
    own = make_sealer(app, 60)
    assert 59 < (own.seal_if_due() or 0) <= 60
    assert len(stored_seals()) == 1


def make_sealer(app: Flask, seconds: float) -> Sealer:
    engine = get_runtime().process.get().engines.occasional
    return Sealer(engine, Path(app.instance_path), SECRET, seconds)


def restore_backup() -> None:
    """Bring back the state of the first seal, as a restored backup does."""
    with get_runtime().writing_engine().begin() as connection:
        drop_triggers(connection)
        connection.execute(delete(seal_table).where(seal_table.c.number > 1))
        ids = connection.scalars(select(log.c.entry_id).where(log.c.position > 1)).all()
        connection.execute(delete(log).where(log.c.position > 1))
        connection.execute(delete(delivery).where(delivery.c.id.in_(ids)))
        connection.execute(delete(removal).where((removal.c.id - removal.c.position).in_(ids)))


def test_sealing_refuses_a_restored_backup_and_says_what_to_do(
    app: Flask, make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """A log that goes back in time would contradict its own checkpoints. A new origin goes on."""
    for second in range(3):
        store_many(1, MOMENT + second * SECOND)
        seal()
    kept = get_runtime().sealer.path.read_text()
    restore_backup()
    store_many(1, MOMENT + 9 * SECOND)
    with pytest.raises(StorageError) as error:
        seal()
    for words in (
        f"the database does not hold the seals of {get_runtime().sealer.path}, a checkpoint of 3",
        "run flask imcallback new-key example.com/log/2, and set IMCALLBACK_SEAL_KEY",
        "run flask imcallback verify",
    ):
        assert words in str(error.value)
    assert run(app, "seal").exit_code == 1
    assert state(get_runtime().sealer).problem == str(error.value)
    result = run(app, "verify")
    assert (result.exit_code, "a kept checkpoint has 3" in result.output) == (1, True)
    new = make_app(
        get_runtime().process.get().engines.host().url,
        IMCALLBACK_SEAL_KEY=SecretKey.from_seed("example.com/log/2", b"2" * 32).text(),
    )
    with new.app_context():
        assert [s.number for s in get_runtime().sealer.seal()] == [2]
        assert state(get_runtime().sealer).problem == ""
        assert kept.splitlines()[2] in caplog.text
        assert run(new, "verify").exit_code == 0


def test_the_background_seals_when_it_is_due(app: Flask, tmp_path: Path) -> None:
    """One call makes one seal, and returns when to call again."""
    engines = get_runtime().process.get().engines
    own = Sealer(engines.occasional, tmp_path / "own", SECRET, 60)
    assert own.seal_if_due() is None
    store_many(3)
    number()
    own._due_at = 0
    assert own.seal_if_due() is None
    assert [s.last for s in stored_seals()] == [3]
    store_many(1, MOMENT + SECOND)
    number()
    own._due_at = 0
    wait = own.seal_if_due()
    assert wait is not None
    assert 50 < wait <= 60
    assert own.seal_if_due() == pytest.approx(wait, abs=5)
    with time_machine.travel(datetime.now(UTC) + timedelta(seconds=61)):
        own._due_at = 0
        assert own.seal_if_due() is None
    assert [s.last for s in stored_seals()] == [3, 4]


def test_an_app_seals_by_itself(make_app: MakeApp, database_url: URL) -> None:
    """The thread that numbers the log seals it soon after the first entry."""
    app = make_app(database_url, IMCALLBACK_SEAL_SECONDS=60)
    with app.app_context():
        store_many(2)
        get_runtime().sequencer.wake()
        wait_until(get_runtime().sealer.path.exists)  # written after the commit
        assert [s.last for s in stored_seals()] == [2]
        assert kept_size() == 1
        assert get_runtime().sealer.read_checkpoint().startswith("imcallback\n1\n")


def test_an_app_without_an_interval_is_sealed_by_command(app: Flask) -> None:
    """The setting `IMCALLBACK_SEAL_SECONDS` is 0, so the numbering is followed by no seal."""
    store_many(1)
    number()
    number()
    assert stored_seals() == []
    assert len(seal()) == 1


def test_the_background_logs_each_problem_once(
    app: Flask, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A problem does not fill the log. After it, sealing goes on."""
    own = Sealer(get_runtime().process.get().engines.occasional, tmp_path, SECRET, 60)
    file = own.path
    file.write_text("damaged")
    store_many(1)
    number()
    for _ in range(2):
        own._due_at = 0
        assert own.seal_if_due() == sealer.RETRY_SECONDS
    assert caplog.text.count("The log is not sealed: cannot read the checkpoint in") == 1
    file.unlink()
    own._due_at = 0
    assert own.seal_if_due() is None
    assert [s.last for s in stored_seals()] == [1]


def test_entries_that_nobody_seals_are_a_problem(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If sealing has stopped, health must say so. An entry may be old and may have just arrived."""
    monkeypatch.setattr(sealer, "OVERDUE", 0.01)
    engines = get_runtime().process.get().engines
    own = Sealer(engines.occasional, Path(app.instance_path), SECRET, 10)
    store_many(1)  # at a time long ago
    number()
    assert state(own).problem == ""
    time.sleep(0.2)
    assert state(own).problem.startswith("the log position 1 waits for its seal for too long")
    seal()
    assert state(own).problem == ""


def test_a_folder_that_cannot_be_written_does_not_stop_the_seals(
    app: Flask, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The checkpoint still goes to the log of the app."""
    (tmp_path / "file").touch()
    engines = get_runtime().process.get().engines
    own = Sealer(engines.occasional, tmp_path / "file" / "folder", SECRET, 60)
    store_many(1)
    number()
    with caplog.at_level(logging.INFO, "flask_imcallback.checkpoint"):
        assert len(own.seal()) == 1
    assert "cannot be kept in" in caplog.text
    assert "example.com/log\\n1\\n" in caplog.text


def test_a_delivery_with_very_many_removals(app: Flask, tmp_path: Path) -> None:
    """A dismissed group of 20,000 members is one line of the evidence."""
    store_all(
        [
            make_delivery(
                *[("group", f"member{n}") for n in range(20_000)],
                relation=Relation.GROUP,
                cause=Cause.DISMISSED,
            )
        ]
    )
    (new,) = seal()
    assert (new.deliveries, new.removals) == (1, 20_000)
    report = check(write_evidence(app, tmp_path / "evidence"), run(app, "checkpoint").output)
    assert (report.problems, report.opened) == ([], 20_000)
    assert run(app, "verify").exit_code == 0


GOLDEN = Path(__file__).with_name("golden_lines.ndjson")


def test_the_lines_of_the_evidence_never_change(app: Flask) -> None:
    """A changed byte would make the evidence of all users wrong."""
    row: dict[str, Any] = {
        "id": 1795197900123456,
        "command": "",
        "status": "recorded",
        "error": "",
        "removal_count": 2,
        "remote_addr": "192.0.2.1",
        "authenticated_by": "signature",
        "client_ip": "203.0.113.7",
        "platform": "",
        "request_id": "\U0001f600\t",
        "query": "a=b",
        "headers": '{"host": "example.com"}',
        "body": b'{"x": "\xff"}',
        "fingerprint": b"f" * 16,
        "nonce": bytes(range(16)),
    }
    texts = {"command": "Group.CallbackAfterMemberExit", "platform": 'i"OS\u00e9'}
    app_of = {"provider": "tencent", "app_id": "1400000000"}
    nothing = {"command": "", "platform": "", "relation": "", "cause": ""}
    sources = [app_of | texts | {"relation": "group", "cause": "kicked"}, app_of | nothing]
    stripped = row | {
        **texts,
        "id": 1795197900200000,
        "status": "duplicate",
        "duplicate_of": 1795197900123456,
        "removal_count": 0,
        "fingerprint": None,
        "commitment": b"p" * 32,
    }
    erased = stripped | {"id": 1795197900300000, "duplicate_of": None, "nonce": None}
    act_row: dict[str, Any] = {
        "id": 1795197900400000,
        "kind": "export",
        "actor": "cli:\u00e9ve",
        "affected": 3,
        "detail": "{}",
        "nonce": bytes(16),
    }
    with get_runtime().writing_engine().begin() as connection:
        connection.execute(insert(source), sources)
        is_bare = source.c.command == ""
        of_nothing = connection.scalar(select(source.c.id).where(is_bare))
        of_removals = connection.scalar(select(source.c.id).where(~is_bare))
        for values in (row, stripped, erased):
            source_id = of_removals if values["removal_count"] else of_nothing
            connection.execute(insert(delivery).values(source_id=source_id, **values))
        for index, target in enumerate(("m\u00fcller", "bob")):
            connection.execute(
                insert(removal).values(
                    id=row["id"] + index,
                    source_id=of_removals,
                    position=index,
                    owner_id="group",
                    target_id=target,
                    actor_id="boss" if index else "",
                )
            )
        connection.execute(insert(act).values(act_row))
        for position, entry_id in enumerate(
            (row["id"], stripped["id"], erased["id"], -act_row["id"], 77), 1
        ):
            connection.execute(insert(log).values(position=position, entry_id=entry_id))
    with get_runtime().engine().connect() as connection:
        lines = [line.to_bytes() for line in read_lines(connection, 0, 6, with_packets=True)]
    assert b"".join(lines) == GOLDEN.read_bytes()


def test_a_wrong_key_stops_the_start_and_is_not_shown(make_app: MakeApp) -> None:
    """The message names the setting and the remedy, and never the key."""
    for wrong in (SECRET.text()[:-5], "x" * 30, 5, SECRET.text().replace("log", "lag")):
        with pytest.raises(ConfigError) as error:
            make_app(IMCALLBACK_SEAL_KEY=wrong)
        message = str(error.value)
        assert "IMCALLBACK_SEAL_KEY" in message
        assert "flask imcallback new-key ORIGIN" in message
        assert str(wrong)[-20:] not in message or wrong == 5
