"""Scenarios that let something fail under load, over real sockets.

A scenario serves the example app with gunicorn, sends callbacks without a break, and lets something
fail in each round. At the end it compares the acknowledged callbacks with the history and the
spool. `make torture` plays many rounds of each scenario, and `test_faults.py` plays a few.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from flask import Flask
from sqlalchemy import URL

from flask_imcallback import ImCallback, upgrade
from support import faults, servers
from support.apps import close_connections
from support.clusters import Galera, Replicas, ask, galera, postgresql_replicas
from support.faults import Cut
from support.feeds import Follower, stored_ids
from support.load import (
    HEADER,
    SECRET,
    SETTINGS,
    Callback,
    Client,
    Load,
    Outcome,
    Report,
    check,
    openim,
    stored_in,
    tencent,
)
from support.servers import Node
from support.serving import Running, serving

DATABASES = ("sqlite", "postgresql", "mariadb")
SERVERS = ("postgresql", "mariadb")
SMALL = ("postgresql_small", "mariadb_small")
ROUNDS_PER_DATABASE = 200
"""Rounds after which a scenario continues with an empty database."""
DRAIN_TIMEOUT_SECONDS = 300
"""Time for a spool to become empty. Thousands of callbacks may wait on a busy machine."""
FAULT_SECONDS = 2.5
"""Duration of a fault that is longer than the deadline of a callback."""


@dataclass
class Database:
    """An empty database with our tables."""

    kind: str
    url: URL
    node: Node | None = None
    """The server, if it is a single PostgreSQL or MariaDB."""
    replicas: Replicas | None = None
    galera: Galera | None = None
    disk: Path | None = None
    """The small disk that only the database uses, if there is one."""

    @property
    def path(self) -> Path:
        """Return the path of the SQLite file."""
        assert self.url.database
        return Path(self.url.database)


class Lab:
    """A set of database servers. Each kind starts once, when a test first needs it."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._started: dict[str, Any] = {}

    @contextmanager
    def database(self, kind: str, folder: Path) -> Iterator[Database]:
        if kind == "sqlite":
            database = Database(kind, URL.create("sqlite", database=str(folder / "test.db")))
            create_tables(database.url)
            yield database
            return
        if kind in SMALL:
            with faults.on_small_disk(kind.partition("_")[0]) as (node, url, disk):
                create_tables(url)
                yield Database(kind, url, node=node, disk=disk)
            return
        start: dict[str, Callable[[], Any]] = {
            "postgresql": lambda: servers.postgresql(durable=True),
            "mariadb": lambda: servers.mariadb(durable=True),
            "replicas": postgresql_replicas,
            "galera": galera,
        }
        if kind not in self._started:
            self._started[kind] = self._stack.enter_context(start[kind]())
        server = self._started[kind]
        with servers.database(server) as url:
            create_tables(url)
            if kind in SERVERS:
                yield Database(kind, url, node=server.node)
            else:
                yield Database(kind, url, **{kind: server})


def create_tables(url: URL) -> None:
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    app.config["IMCALLBACK_SECRETS"] = [SECRET]
    ImCallback(app)
    with app.app_context():
        upgrade()
    close_connections(app)


@contextmanager
def app_on(url: URL, folder: Path, **options: Any) -> Iterator[Running]:
    """Serve the example app on a database that has the tables."""
    folder.mkdir(exist_ok=True)
    with serving(folder, url=url, upgrade=False, **SETTINGS, **options) as running:
        yield running


def check_history(load: Load, running: Running, url: URL | None = None) -> Report:
    """Wait until the spool is empty, and compare the stopped load with the history and the feed."""
    running.wait_until_drained(DRAIN_TIMEOUT_SECONDS)
    report = check(load.callbacks, url or running.url)
    report.unfollowed = count_unfollowed(url or running.url)
    return report


def count_unfollowed(url: URL) -> int:
    """Follow the feed, and return the number of removals that it does not show exactly once."""
    app = Flask("follower")
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    app.config["IMCALLBACK_SPOOL"] = None
    ImCallback(app)
    with app.app_context():
        follower = Follower()
        follower.read_all()
    close_connections(app)
    stored = stored_ids(url)
    return sum(abs(follower.seen[key] - stored[key]) for key in follower.seen | stored)


def workers_killed(database: Database, folder: Path, rounds: int) -> Report:
    """A worker is killed, and gunicorn starts another one."""
    with app_on(database.url, folder) as running:
        with Load(running.port).running() as load:
            for _ in range(rounds):
                load.wait_for(20)
                while not (workers := running.workers):
                    time.sleep(0.01)
                with suppress(ProcessLookupError):  # killed in the previous round
                    os.kill(random.choice(workers), signal.SIGKILL)
            load.wait_for(20)
        return check_history(load, running)


def all_killed(database: Database, folder: Path, rounds: int) -> Report:
    """gunicorn and its workers are killed together, and started again."""
    with ExitStack() as stack:
        running = stack.enter_context(app_on(database.url, folder))
        with Load(running.port).running() as load:
            for _ in range(rounds):
                load.wait_for(20)
                running.kill()
                running = stack.enter_context(app_on(database.url, folder))
                load.ports = (running.port,)
            load.wait_for(20)
        return check_history(load, running)


def terminated(database: Database, folder: Path, rounds: int) -> Report:
    """gunicorn shuts down in order: it answers each request that it has read.

    gunicorn closes idle connections and connections that wait to be accepted, even if a request
    arrives at that moment. It never reads such a request, so the callback must not be stored.
    """
    report = Report(rounds=0)
    for _ in range(rounds):
        with app_on(database.url, folder) as running, Load(running.port).running() as load:
            load.wait_for(20)
            running.process.terminate()
            running.process.wait(30)
        report.add(check(load.callbacks, database.url, running.spool))
        stored = stored_in(database.url, running.spool)
        for callback in load.callbacks:
            if callback.owner in stored:
                assert callback.outcome is Outcome.ACKNOWLEDGED, (
                    "a callback is stored, but was not answered"
                )
    return report


def terminated_while_it_waits(database: Database, folder: Path, rounds: int) -> Report:
    """gunicorn shuts down in order while callbacks wait for a locked table, and answers them."""
    report = Report(rounds=0)
    for number in range(rounds):
        with app_on(database.url, folder) as running, ThreadPoolExecutor(8) as clients:
            callbacks = [openim(f"round{number}-{n}") for n in range(8)]
            with faults.locked(database.url):
                sent = [clients.submit(send_once, running.port, c) for c in callbacks]
                time.sleep(0.5)
                running.process.terminate()
                assert [future.result() for future in sent] == [Outcome.ACKNOWLEDGED] * 8
        report.add(check(callbacks, database.url, running.spool))
    return report


def send_once(port: int, callback: Callback) -> Outcome:
    with closing(Client()) as client:
        return client.send(port, callback)


def server_ended(database: Database, folder: Path, rounds: int, *, in_order: bool) -> Report:
    """The database server is down for a while."""
    assert database.node
    with app_on(database.url, folder) as running:
        with Load(running.port, pause=0.01).running() as load:
            for _ in range(rounds):
                load.wait_for(50)
                if in_order:
                    database.node.shut_down()
                else:
                    database.node.kill()
                load.wait_for(50)
                database.node.start()
            load.wait_for(50)
        return check_history(load, running)


def server_restarted(database: Database, folder: Path, rounds: int) -> Report:
    """The database server is shut down and started again."""
    return server_ended(database, folder, rounds, in_order=True)


def server_killed(database: Database, folder: Path, rounds: int) -> Report:
    """The processes of the database server are killed, and started again."""
    return server_ended(database, folder, rounds, in_order=False)


def server_hangs(database: Database, folder: Path, rounds: int) -> Report:
    """The database server accepts connections and data, but does nothing with them."""
    assert database.node
    return play_long_fault(database, folder, rounds, database.node.paused)


def table_locked(database: Database, folder: Path, rounds: int) -> Report:
    """Another process locks the table, or the SQLite file."""
    return play_long_fault(database, folder, rounds, partial(faults.locked, database.url))


def read_only(database: Database, folder: Path, rounds: int) -> Report:
    """The server is read-only. MariaDB refuses writes only to ordinary users."""
    assert database.node
    url = database.url
    if database.kind == "mariadb":
        ask(url, "CREATE OR REPLACE USER ordinary@'127.0.0.1'")
        ask(url, f"GRANT ALL ON {url.database}.* TO ordinary@'127.0.0.1'")
        url = url.set(username="ordinary")
    fault = partial(faults.read_only, database.node.url)
    return play_long_fault(Database(database.kind, url), folder, rounds, fault)


def network_hangs(database: Database, folder: Path, rounds: int) -> Report:
    """The network between app and database delivers nothing."""
    with proxied(database) as (proxy, proxied_database):
        return play_long_fault(proxied_database, folder, rounds, proxy.holding)


def play_long_fault(
    database: Database,
    folder: Path,
    rounds: int,
    fault: Callable[[], Any],
    url: URL | None = None,
) -> Report:
    """A fault lasts longer than the deadline of a callback."""
    with app_on(database.url, folder) as running:
        with Load(running.port, pause=0.05).running() as load:
            for _ in range(rounds):
                load.wait_for(20)
                with fault():
                    time.sleep(FAULT_SECONDS)
                    assert running.waiting() != 0, (
                        "the fault had no effect: no callback waits in the spool"
                    )
                load.wait_for(20)
        return check_history(load, running, url)


@contextmanager
def proxied(database: Database) -> Iterator[tuple[faults.Proxy, Database]]:
    """Run a proxy to the database. Yields the proxy, and the database behind it."""
    assert database.url.port
    with faults.proxy(database.url.port) as proxy:
        yield proxy, Database(database.kind, database.url.set(port=proxy.port))


def connections_cut(database: Database, folder: Path, rounds: int) -> Report:
    """All connections to the database are reset."""
    return play_connection_fault(database, folder, rounds, lambda proxy: proxy.cut())


def cut_before_commit(database: Database, folder: Path, rounds: int) -> Report:
    """A connection is lost before the database sees the COMMIT."""
    return play_connection_fault(
        database,
        folder,
        rounds,
        lambda proxy: proxy.cut_commits(Cut.BEFORE_COMMIT, random.randint(1, 3)),
    )


def cut_after_commit(database: Database, folder: Path, rounds: int) -> Report:
    """A connection is lost after the database has committed, and before it answers."""
    return play_connection_fault(
        database,
        folder,
        rounds,
        lambda proxy: proxy.cut_commits(Cut.AFTER_COMMIT, random.randint(1, 3)),
    )


def play_connection_fault(
    database: Database,
    folder: Path,
    rounds: int,
    fault: Callable[[faults.Proxy], None],
) -> Report:
    with (
        proxied(database) as (proxy, proxied_database),
        app_on(proxied_database.url, folder) as running,
    ):
        with Load(running.port).running() as load:
            for _ in range(rounds):
                load.wait_for(10)
                fault(proxy)
            while proxy.cuts_left:
                load.wait_for(10)
        return check_history(load, running, database.url)


def two_drain_one_spool(database: Database, folder: Path, rounds: int) -> Report:
    """Four processes of two servers drain one spool."""
    spool = {"FLASK_IMCALLBACK_SPOOL": str(folder / "spool.db")}
    with (
        app_on(database.url, folder / "one", **spool) as one,
        app_on(database.url, folder / "two", **spool) as two,
    ):
        with Load(one.port, two.port).running() as load:
            for _ in range(rounds):
                load.wait_for(20)
                with faults.locked(database.url):
                    time.sleep(FAULT_SECONDS)
                load.wait_for(20)
        two.wait_until_drained(DRAIN_TIMEOUT_SECONDS)
        return check_history(load, one)


def drain_killed(database: Database, folder: Path, rounds: int) -> Report:
    """All processes are killed while they drain the spool."""
    with ExitStack() as stack:
        proxy, proxied_database = stack.enter_context(proxied(database))
        running = stack.enter_context(app_on(proxied_database.url, folder))
        with Load(running.port).running() as load:
            for _ in range(rounds):
                with proxy.holding():
                    load.wait_for(100)
                proxy.delay = 0.02
                time.sleep(random.uniform(0, 1))
                running.kill()
                proxy.delay = 0
                running = stack.enter_context(app_on(proxied_database.url, folder))
                load.ports = (running.port,)
        return check_history(load, running, database.url)


def clock_jumps(database: Database, folder: Path, rounds: int) -> Report:
    """The clock jumps forward and back, although ids are times."""
    clock = faults.Clock(folder)
    app = "support.faults:under_a_clock()"
    with app_on(database.url, folder, app=app, **clock.variables) as running:
        with Load(running.port).running() as load:
            for _ in range(rounds):
                for offset in (-3600, 3600, -1, 0):
                    clock.jump_to(offset)
                    load.wait_for(10)
        (distance,) = ask(database.url, "SELECT max(id) - min(id) FROM imcallback_delivery")
        assert distance > 7_000_000_000, "the clock did not jump"
        return check_history(load, running)


def worker_hangs(database: Database, folder: Path, rounds: int) -> Report:
    """A worker is stopped together with its locks.

    With SQLite it may hold the locks of the database and of the spool. Then the other worker must
    refuse callbacks.
    """
    with app_on(database.url, folder) as running:
        with Load(running.port, clients=16).running() as load:
            for _ in range(rounds):
                load.wait_for(20)
                worker = random.choice(running.workers)
                os.kill(worker, signal.SIGSTOP)
                time.sleep(FAULT_SECONDS)
                os.kill(worker, signal.SIGCONT)
            load.wait_for(20)
        return check_history(load, running)


def file_deleted(database: Database, folder: Path, rounds: int) -> Report:
    """The SQLite file is deleted and created again. The rows of the old file are lost."""
    report = Report(rounds=0)
    with app_on(database.url, folder) as running:
        for _ in range(rounds):
            with Load(running.port).running() as load:
                load.wait_for(20)
                # The database last: a process that finds it missing creates another one, with
                # another WAL, which must not be deleted.
                for suffix in ("-wal", "-shm", ""):
                    database.path.with_name(database.path.name + suffix).unlink(missing_ok=True)
                deleted_at = time.monotonic()
                load.wait_for(20)
                create_tables(database.url)
                load.wait_for(20)
            running.wait_until_drained(DRAIN_TIMEOUT_SECONDS)
            later = [callback for callback in load.callbacks if callback.sent_at > deleted_at]
            report.add(check(later, database.url))
    return report


def power_cut(database: Database, folder: Path, rounds: int) -> Report:
    """The files on disk are intact at any moment, and hold every acknowledged callback.

    The processes are stopped while the files are copied. This shows what the processes have
    written, but not that the disk has it.
    """
    cuts: list[tuple[float, list[Path]]] = []
    report = Report(rounds=0)
    with app_on(database.url, folder) as running, Load(running.port).running() as load:
        for number in range(rounds):
            load.wait_for(random.randint(1, 40))
            with faults.stopped(running.process.pid):
                now = time.monotonic()
                copies = folder / f"cut{number}"
                left = [
                    faults.copy_of_sqlite(path, copies) for path in (database.path, running.spool)
                ]
            cuts.append((now, left))
    for moment, left in cuts:
        for path in filter(Path.exists, left):
            url = URL.create("sqlite", database=str(path))
            assert ask(url, "PRAGMA integrity_check") == ["ok"]
        before = [c for c in load.callbacks if 0 < c.acknowledged_at < moment]
        report.add(check(before, *left))
    return report


def disk_full(database: Database, folder: Path, rounds: int) -> Report:
    """The disk of the database is full. The spool is on another disk."""
    disk = folder / "disk"
    disk.mkdir()
    url = URL.create("sqlite", database=str(disk / "test.db"))
    with app_on(url, folder, wrapper=faults.small_disk(disk, 32)) as running:
        inside = faults.seen_by(running.process.pid, disk)
        faults.copy_of_sqlite(database.path, inside)
        with Load(running.port, pause=0.02).running() as load:
            for _ in range(rounds):
                load.wait_for(30)
                with faults.full(inside):
                    load.wait_for(30)
                load.wait_for(30)
        running.wait_until_drained(DRAIN_TIMEOUT_SECONDS)
        with faults.stopped(running.process.pid):
            left = faults.copy_of_sqlite(inside / "test.db", folder / "copy")
    return check(load.callbacks, left)


def server_disk_full(database: Database, folder: Path, rounds: int) -> Report:
    """The disk of the database server is full."""
    assert database.disk
    return play_long_fault(database, folder, rounds, partial(faults.full, database.disk))


def primary_killed(database: Database, folder: Path, rounds: int) -> Report:
    """The primary is killed, and a standby is promoted after a while."""
    assert database.replicas
    with app_on(database.url, folder) as running:
        with Load(running.port, pause=0.01).running() as load:
            for _ in range(rounds):
                load.wait_for(30)
                old = database.replicas.primary
                database.replicas.kill_primary()
                load.wait_for(10)
                database.replicas.promote()
                load.wait_for(30)
                database.replicas.rejoin(old)
        return check_history(load, running)


def standbys_hang(database: Database, folder: Path, rounds: int) -> Report:
    """Each COMMIT waits, because no standby confirms it."""
    assert database.replicas
    first, second = database.replicas.standbys

    @contextmanager
    def both() -> Iterator[None]:
        with first.paused(), second.paused():
            yield

    return play_long_fault(database, folder, rounds, both)


def galera_node_killed(database: Database, folder: Path, rounds: int) -> Report:
    """Another node of the cluster is killed. All writes wait until the cluster excludes it."""
    assert database.galera
    with app_on(database.url, folder) as running:
        with Load(running.port, pause=0.02).running() as load:
            for _ in range(rounds):
                load.wait_for(30)
                node = random.choice(database.galera.nodes[1:])
                node.kill()
                load.wait_for(100)
                database.galera.join(node)
        return check_history(load, running)


def galera_minority(database: Database, folder: Path, rounds: int) -> Report:
    """Two of three nodes hang, and the third refuses everything."""
    assert database.galera
    _, second, third = database.galera.nodes

    @contextmanager
    def both() -> Iterator[None]:
        with second.paused(), third.paused():
            time.sleep(FAULT_SECONDS)  # the third node needs time to exclude the others
            yield

    report = play_long_fault(database, folder, rounds, both)
    database.galera.wait(*database.galera.nodes)
    return report


def galera_killed(database: Database, folder: Path, rounds: int) -> Report:
    """All nodes are killed. The cluster starts again from the node that committed the most."""
    assert database.galera
    with app_on(database.url, folder) as running:
        with Load(running.port, pause=0.05).running() as load:
            for _ in range(rounds):
                load.wait_for(20)
                for node in database.galera.nodes:
                    node.kill()
                load.wait_for(20)
                database.galera.bootstrap()
        return check_history(load, running)


def galera_duplicates(database: Database, folder: Path, rounds: int) -> Report:
    """The same callbacks arrive at two nodes at the same moment."""
    assert database.galera
    urls = [node.url.set(database=database.url.database) for node in database.galera.nodes]
    with (
        app_on(urls[0], folder / "one") as one,
        app_on(urls[1], folder / "two") as two,
        ThreadPoolExecutor(8) as clients,
    ):
        callbacks = [tencent(f"owner{n}", 3, is_repeated=True) for n in range(rounds)]
        ports = (one.port, two.port)
        sent = [(port, callback) for callback in callbacks for port in ports]
        for future in [clients.submit(send_once, *pair) for pair in sent]:
            future.result()
        two.wait_until_drained(DRAIN_TIMEOUT_SECONDS)
        one.wait_until_drained(DRAIN_TIMEOUT_SECONDS)
    # With this setting, a node waits until it shows the commits of the other nodes.
    synced = urls[0].update_query_dict({"init_command": "SET SESSION wsrep_sync_wait = 1"})
    report = check(callbacks, synced)
    report.rounds = rounds
    return report


Scenario = Callable[[Database, Path, int], Report]
SCENARIOS: list[tuple[Scenario, tuple[str, ...]]] = [
    (workers_killed, DATABASES),
    (all_killed, DATABASES),
    (terminated, DATABASES),
    (terminated_while_it_waits, DATABASES),
    (server_restarted, SERVERS),
    (server_killed, SERVERS),
    (server_hangs, SERVERS),
    (network_hangs, SERVERS),
    (table_locked, DATABASES),
    (read_only, SERVERS),
    (connections_cut, SERVERS),
    (cut_before_commit, SERVERS),
    (cut_after_commit, SERVERS),
    (two_drain_one_spool, DATABASES),
    (drain_killed, SERVERS),
    (clock_jumps, DATABASES),
    (worker_hangs, DATABASES),
    (file_deleted, ("sqlite",)),
    (power_cut, ("sqlite",)),
    (disk_full, ("sqlite",)),
    (server_disk_full, SMALL),
    (primary_killed, ("replicas",)),
    (standbys_hang, ("replicas",)),
    (galera_node_killed, ("galera",)),
    (galera_minority, ("galera",)),
    (galera_killed, ("galera",)),
    (galera_duplicates, ("galera",)),
]


def main() -> int:
    """Play the scenarios, and print a table of the callbacks by outcome and fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = [scenario.__name__ for scenario, _ in SCENARIOS]
    parser.add_argument("scenarios", nargs="*", metavar="scenario", help=", ".join(names))
    parser.add_argument(
        "--rounds",
        type=int,
        default=100,
        help="rounds of each scenario on each database (default: %(default)s)",
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.scenarios) - set(names):
        parser.error(
            f"unknown scenarios: {', '.join(sorted(unknown))}. Choose from {', '.join(names)}."
        )
    print(HEADER, flush=True)
    is_passed = True
    with ExitStack() as stack:
        lab = Lab(stack)
        for scenario, kinds in SCENARIOS:
            if scenario.__name__ in (arguments.scenarios or names):
                for kind in kinds:
                    is_passed &= play(lab, scenario, kind, arguments.rounds)
    return 0 if is_passed else 1


def play(lab: Lab, scenario: Scenario, kind: str, rounds: int) -> bool:
    """Play a scenario in batches with an empty database each, and print a row of the table."""
    total = Report(rounds=0)
    is_passed = True
    while total.rounds < rounds and is_passed:
        batch = min(ROUNDS_PER_DATABASE, rounds - total.rounds)
        with tempfile.TemporaryDirectory(prefix="imcallback-", dir="/tmp") as folder:
            try:
                with lab.database(kind, Path(folder)) as database:
                    report = scenario(database, Path(folder), batch)
            except Exception:
                traceback.print_exc()
                is_passed = False
                break
        report.rounds = batch
        total.add(report)
        is_passed = not total.faults
    print(total.row(f"{scenario.__name__} {kind}"), flush=True)
    return is_passed


if __name__ == "__main__":
    sys.exit(main())
