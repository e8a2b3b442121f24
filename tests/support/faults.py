"""Faults between an app and its database, and in the disks and clocks below them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

from sqlalchemy import URL, NullPool, create_engine

from support.clusters import ask
from support.prerequisites import PRIVATE_MOUNTS, mount_problem
from support.servers import (
    Node,
    ServerError,
    mariadb_node,
    postgresql_node,
    private_folder,
    run,
    running,
)

# Both protocols send COMMIT as text. They also send SET AUTOCOMMIT and READ COMMITTED.
COMMIT = re.compile(rb"(?<!AUTO)COMMIT(?!TED)")
LOCKS = {
    "sqlite": ("BEGIN EXCLUSIVE", "ROLLBACK"),
    "postgresql": ("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE", "ROLLBACK"),
    "mysql": ("LOCK TABLES {table} WRITE", "UNLOCK TABLES"),
}
READ_ONLY = {
    "postgresql": (
        "ALTER SYSTEM SET default_transaction_read_only = on",
        "ALTER SYSTEM RESET default_transaction_read_only",
        "SELECT pg_reload_conf()",
    ),
    "mysql": ("SET GLOBAL read_only = 1", "SET GLOBAL read_only = 0", "SELECT 1"),
}


class Cut(Enum):
    """The moment at which a connection that sends a COMMIT is cut."""

    BEFORE_COMMIT = "before"
    """The server never sees the COMMIT."""
    AFTER_COMMIT = "after"
    """The server commits, but its answer does not arrive."""


class Proxy:
    """A TCP proxy to a server on this machine. It delays, holds and cuts connections."""

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._flows = threading.Event()
        self._flows.set()
        self._lock = threading.Lock()
        self._cuts: list[Cut] = []
        self._holds_commits = False
        self._refuses = False
        self._connections: list[tuple[socket.socket, socket.socket]] = []
        self.delay = 0.0
        """Seconds by which all data is delayed."""
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Accept and keep connections, but forward nothing, like a black hole."""
        self._flows.clear()
        try:
            yield
        finally:
            self._flows.set()

    @contextmanager
    def holding_commits(self) -> Iterator[None]:
        """Hold each COMMIT, and deliver it at the end."""
        self._holds_commits = True
        try:
            yield
        finally:
            self._holds_commits = False
            self._flows.set()

    def cut(self) -> None:
        """Reset all connections. New connections work."""
        with self._lock:
            connections, self._connections = self._connections, []
        for pair in connections:
            _reset(*pair)

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Reset all connections, also new ones, like a server that is down."""
        self._refuses = True
        self.cut()
        try:
            yield
        finally:
            self._refuses = False

    def cut_commits(self, cut: Cut, times: int) -> None:
        """Cut the next connections that send a COMMIT."""
        with self._lock:
            self._cuts += [cut] * times

    @property
    def cuts_left(self) -> int:
        return len(self._cuts)

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept()
        self._listening.close()
        self._flows.set()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):  # the proxy was closed
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        self._flows.wait()
        if self._refuses:
            _reset(client)
            return
        try:
            server = socket.create_connection(("127.0.0.1", self._server_port), timeout=5)
        except OSError:
            _reset(client)
            return
        server.settimeout(None)
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._connections.append((client, server))
        answers_are_lost = threading.Event()
        back = threading.Thread(
            target=self._pass_back, args=(server, client, answers_are_lost), daemon=True
        )
        back.start()
        with suppress(OSError):
            while chunk := client.recv(65536):
                if self._holds_commits and COMMIT.search(chunk):
                    self._flows.clear()
                    answers_are_lost.set()  # so that the server gets the COMMIT before a reset
                self._wait()
                cut = self._take_cut() if COMMIT.search(chunk) else None
                if cut is Cut.BEFORE_COMMIT:
                    break
                if cut is Cut.AFTER_COMMIT:
                    answers_are_lost.set()
                server.sendall(chunk)
        if answers_are_lost.is_set():
            back.join(10)
        _reset(client, server)

    def _pass_back(
        self, server: socket.socket, client: socket.socket, is_lost: threading.Event
    ) -> None:
        with suppress(OSError):
            while chunk := server.recv(65536):
                self._wait()
                if is_lost.is_set():
                    break
                client.sendall(chunk)
        _reset(client, server)

    def _wait(self) -> None:
        if self.delay:
            threading.Event().wait(self.delay)
        self._flows.wait()

    def _take_cut(self) -> Cut | None:
        with self._lock:
            return self._cuts.pop(0) if self._cuts else None


def _reset(*ends: socket.socket) -> None:
    """Close the sockets with RST, and wake threads that read from them."""
    for end in ends:
        with suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()


@contextmanager
def proxy(port: int) -> Iterator[Proxy]:
    """Run a proxy to a port of this machine."""
    with closing(Proxy(port)) as running_proxy:
        yield running_proxy


def small_disk(folder: Path, megabytes: int) -> list[str]:
    """Return the start of a command that sees a small, empty disk in the folder.

    Only the command and its children see the disk, and the disk disappears with them. Other
    processes reach the disk by `seen_by`. No root is needed.
    """
    if problem := mount_problem():
        raise ServerError(problem)
    mount = f'mount -t tmpfs -o size={megabytes}m tmpfs "$0" && exec "$@"'
    return [*PRIVATE_MOUNTS, "sh", "-c", mount, str(folder)]


def seen_by(pid: int, path: Path) -> Path:
    """Return the path as the process sees it, including its private disks."""
    return Path(f"/proc/{pid}/root{path}")


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """Fill the disk of the folder, so that no byte is free."""
    filling = folder / "filling"
    command = ["sh", "-c", 'exec cat /dev/zero > "$0"', str(filling)]
    owner: dict[str, Any] = {}
    if os.geteuid() == 0:  # root may be unknown to the disk
        stat = folder.stat()
        owner = {"user": stat.st_uid, "group": stat.st_gid, "extra_groups": []}
    subprocess.run(command, cwd="/", stderr=subprocess.DEVNULL, check=False, **owner)
    try:
        assert os.statvfs(folder).f_bavail == 0
        yield
    finally:
        filling.unlink()


@contextmanager
def on_small_disk(kind: str) -> Iterator[tuple[Node, URL, Path]]:
    """Run a server whose database is on a small disk. Yields the server, its URL and the disk."""
    with private_folder() as folder:
        is_postgresql = kind == "postgresql"
        node = postgresql_node(folder) if is_postgresql else mariadb_node(folder)
        # For MariaDB, a folder among its data is a database.
        disk = folder / ("small" if is_postgresql else "data/small")
        run(folder, ["mkdir", disk])
        node.wrapper = small_disk(disk, 32)
        with running(node):
            if is_postgresql:
                ask(node.url, f"CREATE TABLESPACE small LOCATION '{disk}'")
                ask(node.url, "CREATE DATABASE small TABLESPACE small")
            assert node.process
            yield node, node.url.set(database="small"), seen_by(node.process.pid, disk)


@contextmanager
def locked(url: URL, table: str = "imcallback_delivery") -> Iterator[None]:
    """Lock a table, or the SQLite file, from another connection."""
    lock, unlock = LOCKS[url.get_backend_name()]
    engine = create_engine(url, poolclass=NullPool)
    with closing(engine.raw_connection()) as connection:
        if url.get_backend_name() == "sqlite":
            connection.driver_connection.isolation_level = None  # type: ignore[union-attr]
        cursor = connection.cursor()
        cursor.execute(lock.format(table=table))
        try:
            yield
        finally:
            cursor.execute(unlock)
            cursor.close()


@contextmanager
def read_only(administrator: URL) -> Iterator[None]:
    """Make the server refuse every write. MariaDB still lets its administrators write."""
    begin, end, apply = READ_ONLY[administrator.get_backend_name()]
    ask(administrator, begin)
    ask(administrator, apply)
    try:
        yield
    finally:
        ask(administrator, end)
        ask(administrator, apply)


def fork(function: Callable[[], object]) -> int:
    """Start a process that runs a function, and return its id. Its exit status is 0 or 1."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def in_child(function: Callable[[], object]) -> int:
    """Run a function in a forked process. Returns its exit status, or 99 after 20 seconds."""
    child = fork(function)
    for _ in range(200):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.1)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return 99


class Clock:
    """A clock that jumps, for servers that run `support.faults:under_a_clock()`.

    The servers need its environment `variables`. Only the time of day jumps, as it does when a
    clock is corrected. Timers go on.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"
        self.jump_to(0)
        here = str(Path(__file__).parents[1])
        self.variables = {"PYTHONPATH": here, "IMCALLBACK_TEST_CLOCK": str(self._file)}

    def jump_to(self, seconds: float) -> None:
        """Set the difference to the real time."""
        new = self._file.with_suffix(".new")
        new.write_text(str(seconds))
        new.replace(self._file)  # a reader never sees a half-written file


def under_a_clock() -> Callable[..., Iterable[bytes]]:
    """Return the example app. Each request first sets the clock of its process."""
    import time_machine

    from example_app import app

    file = Path(os.environ["IMCALLBACK_TEST_CLOCK"])
    clock = time_machine.travel(datetime.now(UTC), tick=True).start()

    def serve(*arguments: Any) -> Iterable[bytes]:
        clock.move_to(time_machine.escape_hatch.time.time() + float(file.read_text()))
        return app.wsgi_app(*arguments)

    return serve


@contextmanager
def stopped(group: int) -> Iterator[None]:
    """Stop all processes of the group, even within a system call."""
    os.killpg(group, signal.SIGSTOP)
    try:
        while not all(state in "TZ" for state in _states(group)):
            time.sleep(0.001)
        yield
    finally:
        os.killpg(group, signal.SIGCONT)


def _states(group: int) -> Iterator[str]:
    """Yield the state of each thread of the group."""
    for stat in Path("/proc").glob("[0-9]*/task/[0-9]*/stat"):
        with suppress(OSError):  # the process may have ended
            state, _, group_of_thread = stat.read_text().rpartition(")")[2].split()[:3]
            if int(group_of_thread) == group:
                yield state


def copy_of_sqlite(database: Path, folder: Path) -> Path:
    """Copy the files that survive a power cut. The writers must be stopped."""
    folder.mkdir(exist_ok=True)
    for name in (database.name, f"{database.name}-wal", f"{database.name}-journal"):
        with suppress(FileNotFoundError):
            shutil.copy(database.with_name(name), folder)
    return folder / database.name
