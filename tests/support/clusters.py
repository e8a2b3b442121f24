"""Private database clusters for tests: PostgreSQL with replicas, and MariaDB Galera.

All nodes run on 127.0.0.1 and stop with their context. `servers` finds the programs.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import URL, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError

from support.servers import (
    START_SECONDS,
    Node,
    ServerError,
    copy_postgresql,
    free_port,
    log_of,
    mariadb_node,
    postgresql_node,
    private_folder,
    run,
)


def ask(url: URL, statement: str) -> list[Any]:
    """Execute the statement with autocommit, and return the first column of the result."""
    arguments: dict[str, Any] = {}
    if url.get_backend_name() != "sqlite":
        arguments |= {"connect_timeout": 5}
    if url.get_backend_name() == "mysql":
        arguments |= {"read_timeout": 5, "write_timeout": 5}
    engine = create_engine(
        url,
        poolclass=NullPool,
        isolation_level="AUTOCOMMIT",
        connect_args=arguments,
    )
    with engine.connect() as connection:
        result = connection.execute(text(statement))
        return list(result.scalars()) if result.returns_rows else []


def wait_until(
    condition: Callable[[], bool], description: str, seconds: float = START_SECONDS
) -> None:
    """Wait until the condition is true. A database that does not answer counts as false."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(DBAPIError):
            if condition():
                return
        time.sleep(0.05)
    raise ServerError(f"the test waited {seconds} seconds in vain until {description}")


@dataclass
class Replicas:
    """A primary and two standbys. Each commit needs the primary and one of the standbys."""

    nodes: list[Node]
    primary: Node

    @property
    def standbys(self) -> list[Node]:
        return [node for node in self.nodes if node is not self.primary and node.process]

    @property
    def url(self) -> URL:
        """Return a URL that leads to the current primary."""
        return URL.create(
            "postgresql+psycopg",
            "postgres",
            database="postgres",
            query={
                "host": tuple(f"127.0.0.1:{node.url.port}" for node in self.nodes),
                "target_session_attrs": "read-write",
                "connect_timeout": "2",
            },
        )

    def kill_primary(self) -> None:
        self.primary.kill()

    def promote(self) -> None:
        """Promote the standby that has received the most, as a cluster manager does."""
        self.primary = max(self.standbys, key=_received)
        ask(self.primary.url, "SELECT pg_promote()")
        self.follow()

    def rejoin(self, node: Node) -> None:
        """Start a killed node again with a new copy of the primary."""
        shutil.rmtree(node.folder / "data")
        copy_postgresql(node.folder, Path(node.command[0]), self.primary.url)
        node.start()
        self.follow()

    def follow(self) -> None:
        """Let the standbys follow the primary, and let its commits wait for one of them."""
        port = self.primary.url.port
        for node in self.standbys:
            where = f"host=127.0.0.1 port={port} user=postgres"
            ask(node.url, f"ALTER SYSTEM SET primary_conninfo = '{where}'")
            ask(node.url, "SELECT pg_reload_conf()")
        names = ", ".join(f"s{self.nodes.index(node)}" for node in self.standbys)
        ask(self.primary.url, f"ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 ({names})'")
        ask(self.primary.url, "SELECT pg_reload_conf()")
        in_step = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'quorum'"
        wait_until(
            lambda: ask(self.primary.url, in_step) == [len(self.standbys)],
            "all standbys follow the primary",
        )


def _received(standby: Node) -> int:
    (position,) = ask(standby.url, "SELECT pg_last_wal_receive_lsn() - '0/0'::pg_lsn")
    return int(position)


@contextmanager
def postgresql_replicas(*, durable: bool = False) -> Iterator[Replicas]:
    """Run a PostgreSQL primary with two synchronous standbys."""
    options = [] if durable else ["--fsync=off"]
    with ExitStack() as stack:
        nodes: list[Node] = []
        for number in range(3):
            folder = stack.enter_context(private_folder())
            # A standby uses its cluster name as the name for its primary.
            arguments = [
                *options,
                f"--cluster_name=s{number}",
                "--wal_retrieve_retry_interval=100ms",
            ]
            nodes.append(
                postgresql_node(folder, *arguments, copy_of=nodes[0].url if nodes else None)
            )
            stack.callback(nodes[-1].close)
            nodes[-1].start()
        replicas = Replicas(nodes, nodes[0])
        replicas.follow()
        yield replicas


@dataclass
class Galera:
    """Three MariaDB nodes. Each node accepts writes."""

    nodes: list[Node]
    addresses: list[str] = field(default_factory=list)
    """Address at which each node listens to the other nodes."""

    @property
    def url(self) -> URL:
        """Return the URL of the first node."""
        return self.nodes[0].url

    def bootstrap(self) -> None:
        """Start the cluster, beginning with the node that has committed the most."""
        first = max(self.nodes, key=_recovered)
        state = first.folder / "data/grastate.dat"
        if state.exists():
            safe = re.sub("safe_to_bootstrap: 0", "safe_to_bootstrap: 1", state.read_text())
            state.write_text(safe)
        first.start("--wsrep-cluster-address=gcomm://")
        for node in self.nodes:
            if node is not first:
                self.join(node)

    def join(self, node: Node) -> None:
        """Start a node, and let it join the running cluster."""
        node.start(f"--wsrep-cluster-address=gcomm://{','.join(self.addresses)}")
        self.wait(node)

    def wait(self, *nodes: Node) -> None:
        """Wait until these nodes accept writes."""
        for node in nodes:
            wait_until(
                partial(_is_synced, node), f"the node at port {node.url.port} accepts writes"
            )


def _is_synced(node: Node) -> bool:
    return ask(
        node.url,
        "SELECT variable_value FROM information_schema.global_status"
        " WHERE variable_name IN ('wsrep_local_state_comment', 'wsrep_ready')",
    ) in (["Synced", "ON"], ["ON", "Synced"])


def _recovered(node: Node) -> int:
    """Return the last commit of a stopped node, or -1 if the node never ran."""
    if not (node.folder / "data/grastate.dat").exists():
        return -1
    run(node.folder, [*node.command, "--wsrep-cluster-address=gcomm://", "--wsrep-recover"])
    positions: list[str] = re.findall(r"Recovered position:.*:(-?\d+)", log_of(node.folder))
    return int(positions[-1])


@contextmanager
def galera() -> Iterator[Galera]:
    """Run a MariaDB Galera cluster of three nodes. The start takes more than ten seconds."""
    with ExitStack() as stack:
        cluster = Galera([])
        for _ in range(3):
            folder = stack.enter_context(private_folder())
            address = f"127.0.0.1:{free_port()}"
            # Commits survive the end of the process, but not a power failure.
            node = mariadb_node(
                folder,
                "--innodb-flush-log-at-trx-commit=2",
                "--innodb-autoinc-lock-mode=2",
                "--binlog-format=ROW",
                "--wsrep-on=ON",
                "--wsrep-cluster-name=imcallback",
                f"--wsrep-node-address={address}",
                "--wsrep-sst-method=rsync",
                f"--wsrep-sst-receive-address=127.0.0.1:{free_port()}",
                "--wsrep-provider-options=gcache.size=16M;"
                f"gmcast.listen_addr=tcp://{address};ist.recv_addr=127.0.0.1:{free_port()};"
                "evs.suspect_timeout=PT2S;evs.inactive_timeout=PT5S;evs.keepalive_period=PT0.5S",
                galera=True,
                is_empty=bool(cluster.nodes),
            )
            stack.callback(node.close)
            cluster.nodes.append(node)
            cluster.addresses.append(address)
        cluster.bootstrap()
        yield cluster
