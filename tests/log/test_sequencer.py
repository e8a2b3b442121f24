"""The numbering of the log by one process or by several."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import URL, Connection, NullPool, create_engine, event, select, text

from flask_imcallback import ImCallback
from flask_imcallback.log import feed, find_last_position, sequencer
from flask_imcallback.log.sequencer import Sequencer, number_batch, number_entries
from flask_imcallback.runtime import Runtime, get_runtime
from flask_imcallback.storage.tables import act, inbox, log
from support import faults, servers
from support.apps import SERVERS, MakeApp, close_connections, wait_until
from support.clusters import galera
from support.deliveries import ANONYMOUS, make_delivery, make_entries, store, store_all, write
from support.feeds import Follower, check_log, stored_ids
from support.torture import create_tables

pytestmark = pytest.mark.servers


def is_numbered(runtime: Runtime) -> bool:
    with runtime.engine().connect() as connection:
        return connection.scalar(select(inbox.c.entry_id).limit(1)) is None


def test_a_delivery_gets_its_position_within_a_second(database_url: URL, make_app: MakeApp) -> None:
    """Nobody reads the feed meanwhile. The thread ends when the app is idle."""
    with make_app(database_url).app_context():
        for number in range(5):
            store(("a", str(number)))
            began = time.monotonic()
            wait_until(lambda: is_numbered(get_runtime()))
            assert time.monotonic() - began < 1
        assert check_log(database_url) == 5


def test_a_busy_app_needs_few_transactions(make_app: MakeApp) -> None:
    """The thread numbers five times a second at most, however many deliveries are stored."""
    with make_app().app_context():
        commits: list[object] = []
        engine = get_runtime().process.get().engines.numbering()
        event.listen(engine, "commit", commits.append)
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            store(("a", "b"))
        wait_until(lambda: is_numbered(get_runtime()))
        assert 2 <= len(commits) <= 10


def names(threads: Iterable[threading.Thread]) -> list[str]:
    return [thread.name for thread in threads]


def test_an_idle_thread_ends(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next delivery starts another thread."""
    monkeypatch.setattr(sequencer, "MAX_IDLE_SECONDS", 0.1)
    others = threading.enumerate()
    app = make_app()
    with app.app_context():
        runtime = get_runtime()
        for _ in range(3):
            store(("a", "b"))
            wait_until(lambda: is_numbered(runtime))
            wait_until(lambda: not runtime.sequencer.is_running)
    wait_until(lambda: "imcallback-sequencer" not in names({*threading.enumerate()} - {*others}))


def record_for(url: URL, name: str, seconds: float, folder: Path) -> None:
    """Record deliveries for some seconds. Those that a slow disk delays wait in the spool."""
    app = Flask(name, instance_path=str(folder / name))
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    ImCallback(app)
    end = time.monotonic() + seconds
    with app.app_context():
        recorder = get_runtime().recorder
        for number in itertools.count():
            recorder.record(make_delivery((name, str(number)), at=datetime.now(UTC)))
            if time.monotonic() > end:
                break
        wait_until(lambda: is_numbered(get_runtime()))


def record_in_processes(urls: Sequence[URL], seconds: float, folder: Path) -> None:
    """Record deliveries in one process for each URL. Followers see the same order."""
    children = [
        faults.fork(partial(record_for, url, f"p{number}", seconds, folder))
        for number, url in enumerate(urls)
    ]
    orders = []
    app = Flask("reader", instance_path=str(folder / "reader"))
    app.config["SQLALCHEMY_DATABASE_URI"] = urls[0]
    ImCallback(app)
    with app.app_context():
        early = Follower()
        while children:
            early.read(50)
            ended, status = os.waitpid(children[-1], os.WNOHANG)
            if ended:
                assert os.waitstatus_to_exitcode(status) == 0
                children.pop()
        late = Follower()
        for follower in (early, late):
            follower.read_all()
            orders.append(follower.order)
    close_connections(app)
    assert orders[0] == orders[1]
    assert early.seen == stored_ids(urls[0])
    assert check_log(urls[0]) == len(early.seen)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_number_at_the_same_time(
    database_url: URL, tmp_path: Path, processes: int
) -> None:
    """Each delivery has one position, there are no gaps, and all followers see one order."""
    create_tables(database_url)
    record_in_processes([database_url] * processes, 3, tmp_path)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_galera_nodes_number_at_the_same_time(tmp_path: Path) -> None:
    """Processes record and number on all three nodes of a cluster."""
    with galera() as cluster, servers.database(cluster) as url:
        create_tables(url)
        urls = [url.set(port=node.url.port) for node in cluster.nodes]
        cluster.wait(*cluster.nodes)
        record_in_processes([*urls, urls[0]], 4, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_recorder_is_killed_again_and_again(database_url: URL, tmp_path: Path) -> None:
    """A follower sees each stored removal once, although processes die while they number."""
    create_tables(database_url)
    app = Flask("reader", instance_path=str(tmp_path / "reader"))
    app.config["SQLALCHEMY_DATABASE_URI"] = database_url
    ImCallback(app)
    with app.app_context():
        follower = Follower()
        for number in range(6):
            name, before = f"p{number}", stored_ids(database_url)
            child = faults.fork(partial(record_for, database_url, name, 30, tmp_path))
            while len(stored_ids(database_url)) < len(before) + 2:
                time.sleep(0.05)
            time.sleep(number / 30)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            follower.read(7)
        follower.read_all()
    close_connections(app)
    assert follower.seen == stored_ids(database_url)
    assert check_log(database_url) == len(follower.seen) > 6


def test_the_start_of_a_process_numbers_what_an_earlier_one_left(
    database_url: URL, make_app: MakeApp
) -> None:
    """The first request of a new process is enough."""
    app = make_app(database_url)
    write(app, *make_entries(app, 5))  # this writer wakes no sequencer
    assert app.test_client().get("/imcallback/health").status_code == 200
    with app.app_context():
        wait_until(lambda: is_numbered(get_runtime()))
    assert check_log(database_url) == 5


@pytest.fixture
def numbering(make_app: MakeApp, database_url: URL) -> Iterator[Sequencer]:
    """The sequencer of an app on each database."""
    with make_app(database_url).app_context():
        yield get_runtime().sequencer


def test_an_act_gets_a_position_too(numbering: Sequencer, database_url: URL) -> None:
    """The id of an act is negative in the inbox and in the log."""
    with get_runtime().writing_engine().begin() as connection:
        values = {"kind": "export", "actor": "", "affected": 0, "detail": "", "nonce": None}
        connection.execute(act.insert().values(id=5, commitment=None, **values))
        connection.execute(inbox.insert().values(entry_id=-5))
    store_all([ANONYMOUS])
    numbering.catch_up(10)
    with get_runtime().engine().connect() as connection:
        entry_ids = connection.scalars(select(log.c.entry_id).order_by(log.c.position)).all()
    assert entry_ids[0] == -5
    assert len(entry_ids) == 2


def test_a_large_inbox_is_numbered_in_batches(
    numbering: Sequencer, database_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The positions follow the ids, over several transactions."""
    monkeypatch.setattr(sequencer, "BATCH_ENTRIES", 7)
    records = store_all([make_delivery(("a", str(number))) for number in range(50)])
    numbering.catch_up(10)
    assert check_log(database_url) == 50
    with get_runtime().engine().connect() as connection:
        entry_ids = connection.scalars(select(log.c.entry_id).order_by(log.c.position)).all()
    assert entry_ids == sorted(record.delivery_id for record in records)


@pytest.mark.parametrize("database_url", SERVERS, indirect=True)
def test_a_transaction_that_another_process_overtakes(
    numbering: Sequencer, database_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process numbers between the reading and the insertion. No position is given twice."""
    store_all([ANONYMOUS, make_delivery(("a", "b"))])
    engine = get_runtime().process.get().engines.numbering()

    def overtake(connection: Connection) -> int:
        last = find_last_position(connection)
        monkeypatch.setattr(sequencer, "find_last_position", find_last_position)
        with engine.connect() as other:
            assert number_batch(other) == 2
        return last

    monkeypatch.setattr(sequencer, "find_last_position", overtake)
    with pytest.raises(sequencer.NumberedElsewhereError):
        number_entries(engine)
    number_entries(engine)
    assert check_log(database_url) == 2


def test_an_entry_that_is_numbered_already_stops_nothing(
    make_app: MakeApp, database_url: URL
) -> None:
    """A restore of only some tables can bring an old id back into the inbox."""
    app = make_app(database_url)
    with app.app_context():
        (first,) = store(("a", "b"))
        wait_until(lambda: is_numbered(get_runtime()))
        with get_runtime().writing_engine().begin() as connection:
            connection.execute(inbox.insert().values(entry_id=first.delivery_id))
        store(("a", "c"))
        wait_until(lambda: is_numbered(get_runtime()))
    assert check_log(database_url) == 2


@pytest.mark.parametrize("database_url", SERVERS, indirect=True)
def test_a_sequencer_that_hangs_delays_no_request(
    make_app: MakeApp, database_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another transaction locks the log. Callbacks are stored, and the feed answers in time."""
    monkeypatch.setattr(feed, "NUMBERING_SECONDS", 1.0)
    app = make_app(database_url)
    with app.app_context():
        store(("a", "b"))
        wait_until(lambda: is_numbered(get_runtime()))
        other = create_engine(database_url, poolclass=NullPool)
        with other.begin() as connection:
            for position in (2, 3):
                row = {"position": position, "entry_id": -position}
                connection.execute(log.insert().values(row))
            for number in range(5):
                began = time.monotonic()
                store(("a", str(number)))
                assert time.monotonic() - began < 1
                time.sleep(0.1)
            began = time.monotonic()
            page = get_runtime().feed.read()
            assert time.monotonic() - began < 5
            assert (len(page.data), page.head) == (1, 1)
            connection.rollback()
        wait_until(lambda: is_numbered(get_runtime()))
    assert check_log(database_url) == 6


@pytest.mark.parametrize("database_url", SERVERS, indirect=True)
def test_writers_do_not_wait_for_the_numbering(make_app: MakeApp, database_url: URL) -> None:
    """While a transaction numbers the inbox, other transactions add to it, at its end or within."""
    app = make_app(database_url)
    first, *others, between, last = make_entries(app, 40)
    write(app, first, *others)
    with app.app_context():
        engine = get_runtime().process.get().engines.numbering()
        with engine.connect() as connection:
            event.listen(engine, "commit", lambda _: write(app, between, last, seconds=3))
            assert number_batch(connection) == 38
    assert between.error is None
    assert last.error is None


def test_a_failure_is_logged_once(
    make_app: MakeApp, database_url: URL, caplog: pytest.LogCaptureFixture
) -> None:
    """Callbacks are stored without the table of the log. Later, they get their positions."""
    app = make_app(database_url, IMCALLBACK_SEAL_SECONDS=0)
    with app.app_context(), get_runtime().writing_engine().connect() as connection:
        connection.execute(text("ALTER TABLE imcallback_log RENAME TO hidden"))
        connection.commit()
        for number in range(3):
            store(("a", str(number)))
            time.sleep(0.3)
        connection.execute(text("ALTER TABLE hidden RENAME TO imcallback_log"))
        connection.commit()
        wait_until(lambda: is_numbered(get_runtime()))
    lines = [line for line in caplog.messages if "imcallback_log" in line]
    assert len(lines) == 1
    assert "run `flask db upgrade` if a table is missing" in lines[0]
    assert check_log(database_url) == 3


def test_work_follows_the_numbering(make_app: MakeApp) -> None:
    """The work is done after the numbering, and again when it asks for it, not more often."""
    app = make_app()
    calls: list[bool] = []

    def follow_up() -> float | None:
        calls.append(is_numbered(get_runtime()))
        return 0.5 if len(calls) < 3 else None

    with app.app_context():
        engines = get_runtime().process.get().engines
        numbering = Sequencer(engines.numbering, app.app_context, follow_up)
        began = time.monotonic()
        write(app, *make_entries(app, 3))
        numbering.wake()
        wait_until(lambda: len(calls) == 3)
        assert 1.9 < time.monotonic() - began < 6
        numbering.wake()
        time.sleep(0.5)
        assert calls == [True] * 3
        wait_until(lambda: len(calls) == 4)
        numbering.catch_up(5)


def test_a_database_in_memory_is_numbered_by_its_readers(make_app: MakeApp) -> None:
    """Its only connection may be in a transaction of the writer, so no thread numbers by itself."""
    app = make_app(URL.create("sqlite"))
    with app.app_context():
        for number in range(3):
            store(("a", str(number)))
            time.sleep(0.3)
        assert not is_numbered(get_runtime())
        follower = Follower()
        follower.read_all()
        assert len(follower.seen) == 3
