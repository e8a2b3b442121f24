"""Acknowledged callbacks are stored completely and once, whatever fails.

The tests play a few rounds of each scenario in `support/torture.py`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from sqlalchemy import URL, create_engine, text

from support import faults, torture
from support.apps import MakeApp, drop_triggers, long_if
from support.load import (
    APP_ID,
    HEADER,
    SECRET,
    Client,
    Load,
    Outcome,
    Report,
    check,
    openim,
    tencent,
)
from support.torture import DATABASES, SERVERS, SMALL, Database, Lab, Scenario, app_on

pytestmark = pytest.mark.slow

MAX_ANSWER_SECONDS = 2.5
"""An IM server waits 2 seconds for an answer. The rest is for a busy test machine."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Servers that tests may kill. Each server starts once."""
    with ExitStack() as stack:
        yield Lab(stack)


@pytest.fixture
def database(request: pytest.FixtureRequest, lab: Lab, tmp_path: Path) -> Iterator[Database]:
    """An empty database of the kind in the test's parameters."""
    with lab.database(request.param, tmp_path) as database:
        yield database


def run_on(*kinds: str) -> pytest.MarkDecorator:
    """Run a test on these kinds of databases. It is long on all of them except the first."""
    parameters = [pytest.param(kind, marks=long_if(kind != kinds[0])) for kind in kinds]
    return pytest.mark.parametrize("database", parameters, indirect=True)


def play(scenario: Scenario, database: Database, folder: Path, rounds: int) -> Report:
    report = scenario(database, folder, rounds)
    table = f"\n{HEADER}\n{report.row(scenario.__name__)}"
    print(table)
    assert report.acknowledged, table
    assert not report.faults, table
    return report


def assert_answered_in_time(report: Report) -> None:
    """Check that each callback was stored and answered before the IM server timed out."""
    assert report.refused == report.unanswered == 0
    assert report.worst < MAX_ANSWER_SECONDS


def test_the_check_finds_each_fault(make_app: MakeApp, tmp_path: Path) -> None:
    """Lost, doubled, half-stored and reordered removals are counted as such."""
    callbacks = [tencent(f"owner{number}", 3, is_repeated=False) for number in range(10)]
    for callback in callbacks:
        callback.outcome = Outcome.ACKNOWLEDGED
    urls = [URL.create("sqlite", database=str(tmp_path / f"{n}.db")) for n in range(2)]
    settings = {
        "IMCALLBACK_SECRETS": [SECRET],
        "IMCALLBACK_TENCENT_APPS": {APP_ID: []},
    }
    history, spool = (make_app(url, **settings).test_client() for url in urls)
    for callback in callbacks:
        client = spool if callback is callbacks[9] else history
        assert client.post(callback.path, data=callback.body).status_code == 200
    databases = (urls[0], tmp_path / "1.db")
    assert check(callbacks, *databases) == Report(acknowledged=10)

    engine = create_engine(urls[0])
    with engine.begin() as connection:
        drop_triggers(connection)
        ids_of = "(SELECT id - position FROM imcallback_removal WHERE owner_id = 'owner{}')"
        for statement in (
            f"DELETE FROM imcallback_delivery WHERE id IN {ids_of.format(0)}",
            "DELETE FROM imcallback_removal WHERE owner_id = 'owner0'",
            "DELETE FROM imcallback_removal WHERE owner_id = 'owner2' AND position = 1",
            f"DELETE FROM imcallback_delivery WHERE id IN {ids_of.format(3)}",
            "DELETE FROM imcallback_removal WHERE owner_id = 'owner4'",
            "UPDATE imcallback_removal SET target_id = CASE target_id WHEN 't0' THEN 't1' "
            "WHEN 't1' THEN 't0' ELSE target_id END WHERE owner_id = 'owner5'",
        ):
            connection.execute(text(statement))
    engine.dispose()
    for callback in (
        callbacks[1],
        callbacks[9],
    ):  # without a request id, a repetition is another callback
        assert history.post(callback.path, data=callback.body).status_code == 200
    expected = {"lost": 2, "doubled": 2, "half_stored": 3, "reordered": 1}
    report = check(callbacks, *databases)
    assert report == Report(acknowledged=10, **expected)
    callbacks[0].outcome = callbacks[4].outcome = Outcome.UNANSWERED
    report = check(callbacks, *databases)
    assert report == Report(acknowledged=8, unanswered=2, **expected | {"lost": 0})


@run_on(*DATABASES)
def test_workers_are_killed(database: Database, tmp_path: Path) -> None:
    """Workers are killed one after the other, while the other workers continue."""
    play(torture.workers_killed, database, tmp_path, 8)


@run_on(*DATABASES)
def test_all_processes_are_killed(database: Database, tmp_path: Path) -> None:
    """All processes of gunicorn are killed together and started again."""
    play(torture.all_killed, database, tmp_path, 2)


@run_on("sqlite", "postgresql")
def test_a_shutdown_under_load(database: Database, tmp_path: Path) -> None:
    """After SIGTERM, each request that was read is answered, and no other request is stored."""
    report = play(torture.terminated, database, tmp_path, 1)
    assert report.refused == 0


@run_on("sqlite", "postgresql")
def test_a_shutdown_while_callbacks_wait(database: Database, tmp_path: Path) -> None:
    """After SIGTERM during a table lock, the callbacks that wait are answered."""
    play(torture.terminated_while_it_waits, database, tmp_path, 1)


@run_on(*SERVERS)
def test_the_database_is_restarted(database: Database, tmp_path: Path) -> None:
    """During an orderly restart, callbacks wait in the spool."""
    assert_answered_in_time(play(torture.server_restarted, database, tmp_path, 1))


@run_on(*SERVERS)
def test_the_database_is_killed(database: Database, tmp_path: Path) -> None:
    """After a kill of all its processes, the server recovers, and nothing is lost."""
    assert_answered_in_time(play(torture.server_killed, database, tmp_path, 1))


@run_on(*SERVERS)
def test_the_database_hangs(database: Database, tmp_path: Path) -> None:
    """The server accepts connections and data but does nothing, which no driver notices."""
    assert_answered_in_time(play(torture.server_hangs, database, tmp_path, 1))


@run_on("postgresql")
def test_the_network_hangs(database: Database, tmp_path: Path) -> None:
    """The network holds all data between app and database, and delivers it later."""
    assert_answered_in_time(play(torture.network_hangs, database, tmp_path, 1))


@run_on(*DATABASES)
def test_the_table_is_locked(database: Database, tmp_path: Path) -> None:
    """Another process locks the table for longer than an answer may take."""
    assert_answered_in_time(play(torture.table_locked, database, tmp_path, 1))


@run_on(*SERVERS)
def test_the_server_is_read_only(database: Database, tmp_path: Path) -> None:
    """A standby, or a server that was just demoted, refuses writes."""
    assert_answered_in_time(play(torture.read_only, database, tmp_path, 1))


@run_on("sqlite")
def test_the_file_is_read_only(database: Database, tmp_path: Path) -> None:
    """Callbacks wait in the spool until an app may write the file."""
    url = database.url.set(database=f"file:{database.path}")
    callbacks = [openim(f"owner{number}") for number in range(20)]
    read_only = url.update_query_dict({"mode": "ro", "uri": "true"})
    with app_on(read_only, tmp_path) as running, closing(Client()) as client:
        for callback in callbacks:
            client.send(running.port, callback)
    with app_on(database.url, tmp_path) as running:
        running.wait_until_drained()
    report = check(callbacks, database.url)
    assert (report.acknowledged, report.faults) == (20, 0)
    assert_answered_in_time(report)


@run_on(*SERVERS)
def test_connections_are_reset(database: Database, tmp_path: Path) -> None:
    """All connections are reset at a random moment."""
    assert_answered_in_time(play(torture.connections_cut, database, tmp_path, 5))


@run_on(*SERVERS)
def test_connections_are_cut_before_a_commit(database: Database, tmp_path: Path) -> None:
    """The database did not commit, so the transaction is repeated."""
    assert_answered_in_time(play(torture.cut_before_commit, database, tmp_path, 5))


@run_on(*SERVERS)
def test_connections_are_cut_after_a_commit(database: Database, tmp_path: Path) -> None:
    """The database did commit, but the app cannot know, and nothing is stored twice."""
    assert_answered_in_time(play(torture.cut_after_commit, database, tmp_path, 5))


@run_on("sqlite")
def test_the_disk_is_full(database: Database, tmp_path: Path) -> None:
    """Callbacks wait in the spool on another disk, and are stored later."""
    assert_answered_in_time(play(torture.disk_full, database, tmp_path, 1))


@run_on(*SMALL)
def test_the_disk_of_the_server_is_full(database: Database, tmp_path: Path) -> None:
    """The server reports that its disk is full, and callbacks wait in the spool."""
    assert_answered_in_time(play(torture.server_disk_full, database, tmp_path, 1))


@run_on("sqlite")
def test_the_disk_of_the_spool_is_full_too(database: Database, tmp_path: Path) -> None:
    """The callback is refused, its packet is in the log, and later callbacks are stored."""
    disk = tmp_path / "disk"
    disk.mkdir()
    url = URL.create("sqlite", database=str(disk / "test.db"))
    spool = {"FLASK_IMCALLBACK_SPOOL": str(disk / "spool.db")}
    with app_on(url, tmp_path, wrapper=faults.small_disk(disk, 4), **spool) as running:
        inside = faults.seen_by(running.process.pid, disk)
        faults.copy_of_sqlite(database.path, inside)
        with Load(running.port, pause=0.05).running() as load:
            load.wait_for(10)
            with faults.full(inside):
                while load.count(Outcome.REFUSED) < 10:
                    time.sleep(0.01)
            load.wait_for(10, seconds=60)
        running.wait_until_drained()
        with faults.stopped(running.process.pid):
            left = faults.copy_of_sqlite(inside / "test.db", tmp_path / "copy")
        report = check(load.callbacks, left)
        assert not report.faults, f"\n{HEADER}\n{report.row('')}"
        log = running.log()
        for callback in load.callbacks:
            if callback.outcome is Outcome.REFUSED:
                assert json.dumps(callback.body.decode()) in log


@run_on("postgresql")
def test_two_servers_drain_one_spool(database: Database, tmp_path: Path) -> None:
    """Four processes drain one spool, and each delivery is stored once."""
    play(torture.two_drain_one_spool, database, tmp_path, 1)


@run_on("postgresql")
def test_draining_is_killed(database: Database, tmp_path: Path) -> None:
    """A drain is killed half-way, and stored deliveries are not stored again."""
    play(torture.drain_killed, database, tmp_path, 2)


@run_on("sqlite", "postgresql")
def test_the_clock_jumps(database: Database, tmp_path: Path) -> None:
    """The clock jumps an hour forward and back, although ids are times."""
    assert_answered_in_time(play(torture.clock_jumps, database, tmp_path, 2))


@run_on("sqlite", "postgresql")
def test_a_worker_hangs(database: Database, tmp_path: Path) -> None:
    """A worker stops with its locks, and every answer of the other worker is true."""
    play(torture.worker_hangs, database, tmp_path, 1)


@run_on("sqlite")
def test_the_file_is_deleted(database: Database, tmp_path: Path) -> None:
    """Callbacks that arrive after the deletion are in the new file."""
    play(torture.file_deleted, database, tmp_path, 3)


@run_on("sqlite")
def test_the_power_is_cut(database: Database, tmp_path: Path) -> None:
    """The file is intact at any moment, and holds every acknowledged callback."""
    play(torture.power_cut, database, tmp_path, 10)


@run_on("replicas")
def test_the_primary_is_killed(database: Database, tmp_path: Path) -> None:
    """The promoted standby holds every acknowledged callback."""
    assert_answered_in_time(play(torture.primary_killed, database, tmp_path, 1))


@run_on("replicas")
def test_no_standby_answers(database: Database, tmp_path: Path) -> None:
    """Each COMMIT waits, and completes when a standby is back."""
    assert_answered_in_time(play(torture.standbys_hang, database, tmp_path, 1))


@pytest.mark.long
def test_galera(subtests: pytest.Subtests, lab: Lab, tmp_path: Path) -> None:
    """Nodes are killed, hang, and get the same callback twice.

    The scenarios share one test, because the cluster takes long to start.
    """
    for scenario, rounds in (
        (torture.galera_duplicates, 40),
        (torture.galera_node_killed, 1),
        (torture.galera_minority, 1),
    ):
        folder = tmp_path / scenario.__name__
        folder.mkdir()
        with subtests.test(scenario.__name__), lab.database("galera", folder) as database:
            assert_answered_in_time(play(scenario, database, folder, rounds))
