"""`flask imcallback doctor` on databases that cannot store callbacks."""

from __future__ import annotations

import gc
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import time_machine
from sqlalchemy import URL, NullPool, create_engine, text

from flask_imcallback.checks import database as database_checks
from support import ROOT, faults, servers
from support.apps import MakeApp, rows
from support.callbacks import BODY
from support.doctor import diagnose, files_in, has_finding, without_root

WAITING = "Callbacks wait in the spool. Without a spool they are lost."
GUARDS: dict[str, Any] = {
    "IMCALLBACK_SECRETS": ["a-secret-of-16-characters"],
    "IMCALLBACK_HISTORY_TOKENS": ["a-token-of-20-characters"],
}
CHECK_SERVER = (
    "Check the database, and the host, port, user and database name in SQLALCHEMY_DATABASE_URI. "
    "Special characters of the password need percent encoding, such as %40 for @."
)
NO_URL = (
    "SQLALCHEMY_DATABASE_URI is not a database URL",
    WAITING,
    "Write it as dialect+driver://user:password@host/database, such as "
    "postgresql+psycopg://user:password@127.0.0.1/imcallback. The URL of a SQLite file is "
    "sqlite:////folder/file.db, or sqlite:///file.db for a file in the instance folder.",
)
OPTION = "SQLAlchemy or the driver refuses an option of the database"
CHECK_OPTIONS = (
    "Check the port and the part after ? in SQLALCHEMY_DATABASE_URI, and check "
    "SQLALCHEMY_ENGINE_OPTIONS. An environment variable needs JSON with double quotes."
)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that everybody can reach, unlike pytest's folders of root."""
    with tempfile.TemporaryDirectory(prefix="imcallback-") as name:
        path = Path(name).resolve()
        path.chmod(0o755)
        yield path
        for found in path.rglob("*"):
            found.chmod(0o755 if found.is_dir() else 0o644)


def sqlite_url(path: Path) -> URL:
    return URL.create("sqlite", database=str(path))


WRONG_SETTINGS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "no such file": (
        {"url": "sqlite:///{folder}/no-such-file.db"},
        (
            "The database file does not exist",
            WAITING + " The database file is {folder}/no-such-file.db.",
            "Run flask db upgrade, which creates the file. If the file exists elsewhere, correct "
            "SQLALCHEMY_DATABASE_URI.",
        ),
    ),
    "no such folder": (
        {"url": "sqlite:///{folder}/no-such-folder/test.db"},
        (
            "The folder of the database file does not exist",
            WAITING + " The database file is {folder}/no-such-folder/test.db.",
            "Create the folder, or name another file in SQLALCHEMY_DATABASE_URI.",
        ),
    ),
    "in memory": (
        {"url": "sqlite:///:memory:"},
        (
            "The database is in memory",
            "All removals are lost when the process ends, and each process has its own history.",
            "Set SQLALCHEMY_DATABASE_URI to a file or a server.",
        ),
    ),
    "postgres instead of postgresql": (
        {"url": "postgres://user:pass-word@127.0.0.1/database"},
        (
            "SQLAlchemy does not know the kind of database in SQLALCHEMY_DATABASE_URI",
            f"{WAITING} The error: Can't load plugin: sqlalchemy.dialects:postgres",
            "Begin the URL with postgresql:// or mysql+pymysql:// or sqlite:///. SQLAlchemy does "
            "not know postgres://.",
        ),
    ),
    "no driver": (
        {"url": "mysql+mysqldb://user:pass-word@127.0.0.1/database"},
        (
            "The database driver MySQLdb is not installed",
            WAITING,
            "Install it with pip install mysqlclient. Or name another driver in "
            "SQLALCHEMY_DATABASE_URI, such as postgresql+psycopg:// or mysql+pymysql://.",
        ),
    ),
    "asynchronous driver": (
        {"url": "postgresql+asyncpg://user:pass-word@127.0.0.1/database"},
        (
            "The database driver asyncpg is not installed",
            WAITING,
            "Name another driver in SQLALCHEMY_DATABASE_URI, such as postgresql+psycopg:// or "
            "mysql+pymysql://.",
        ),
    ),
    "mysql without a driver": (
        {"url": "mysql://user:pass-word@127.0.0.1/database"},
        (
            "The database driver MySQLdb is not installed",
            WAITING,
            "Install it with pip install mysqlclient. Or name another driver in "
            "SQLALCHEMY_DATABASE_URI, such as postgresql+psycopg:// or mysql+pymysql://.",
        ),
    ),
    "unknown kind of database": (
        {"url": "mongodb://user:pass-word@127.0.0.1/database"},
        (
            "SQLAlchemy does not know the kind of database in SQLALCHEMY_DATABASE_URI",
            f"{WAITING} The error: Can't load plugin: sqlalchemy.dialects:mongodb",
            "Begin the URL with postgresql:// or mysql+pymysql:// or sqlite:///. SQLAlchemy does "
            "not know postgres://.",
        ),
    ),
    "no URL": ({"url": "user:pass-word@127.0.0.1/database"}, NO_URL),
    "empty": ({"url": ""}, NO_URL),
    "two slashes for a SQLite file": ({"url": "sqlite:/{folder}/test.db"}, NO_URL),
    "one slash for a SQLite file": ({"url": "sqlite:{folder}/test.db"}, NO_URL),
    "quotes": ({"url": "'sqlite:///{folder}/test.db'"}, NO_URL),
    "wrong port": (
        {"url": "postgresql+psycopg://user:half-of-pass@host:pass-word@127.0.0.1/database"},
        (OPTION, WAITING, CHECK_OPTIONS),
    ),
    "wrong option for psycopg": (
        {"url": "postgresql+psycopg://user:pass-word@127.0.0.1:1/database?sslmod=require"},
        (
            "The driver refuses an option of the database",
            f'{WAITING} The error: ProgrammingError: invalid connection option "sslmod"',
            "Correct the part after ? in SQLALCHEMY_DATABASE_URI, or connect_args in "
            "SQLALCHEMY_ENGINE_OPTIONS.",
        ),
    ),
    "wrong option for PyMySQL": (
        {"url": "mysql+pymysql://user:pass-word@127.0.0.1:1/database?sslmod=require"},
        (
            OPTION,
            f"{WAITING} The error: TypeError: Connection.__init__() got an unexpected keyword "
            "argument 'sslmod'",
            CHECK_OPTIONS,
        ),
    ),
    "wrong charset for PyMySQL": (
        {"url": "mysql+pymysql://user:pass-word@127.0.0.1:1/database?charset=utf9"},
        (
            OPTION,
            f"{WAITING} The error: AttributeError: 'NoneType' object has no attribute 'encoding'",
            CHECK_OPTIONS,
        ),
    ),
    "wrong value of an engine option": (
        {"SQLALCHEMY_ENGINE_OPTIONS": {"pool_size": "many"}},
        (OPTION, WAITING, CHECK_OPTIONS),
    ),
    "engine options that are no JSON": (
        {"SQLALCHEMY_ENGINE_OPTIONS": "{'pool_size': 3}"},
        (OPTION, WAITING, CHECK_OPTIONS),
    ),
    "a folder": (
        {"url": "sqlite:///{folder}"},
        (
            "The database file is a folder",
            f"{WAITING} The folder is {{folder}}.",
            "Name a file in SQLALCHEMY_DATABASE_URI.",
        ),
    ),
    "unknown engine option": (
        {"SQLALCHEMY_ENGINE_OPTIONS": {"pool_sise": 3}},
        (
            "SQLALCHEMY_ENGINE_OPTIONS are wrong",
            f"{WAITING} The error: Invalid argument(s) 'pool_sise' sent to create_engine(), using "
            "configuration SQLiteDialect_pysqlite/QueuePool/Engine. Please check that the keyword "
            "arguments are appropriate for this combination of components.",
            "Remove the wrong option, or write it as create_engine() of SQLAlchemy expects it.",
        ),
    ),
    "unknown bind": (
        {"IMCALLBACK_BIND_KEY": "another"},
        (
            "The database is configured wrongly",
            WAITING,
            "The error: IMCALLBACK_BIND_KEY is 'another', but Flask-SQLAlchemy has other binds: "
            "use one of None.",
        ),
    ),
    "nobody listens": (
        {"url": "mysql+pymysql://user:pass-word@127.0.0.1:1/database"},
        (
            "The database does not answer",
            f"{WAITING} The error: OperationalError: (2003, \"Can't connect to MySQL server on "
            "'127.0.0.1' ([Errno 111] Connection refused)\")",
            CHECK_SERVER,
        ),
    ),
}


@pytest.mark.parametrize(("settings", "lines"), WRONG_SETTINGS.values(), ids=WRONG_SETTINGS)
def test_doctor_names_a_wrong_setting_of_the_database(
    make_app: MakeApp, tmp_path: Path, settings: dict[str, Any], lines: tuple[str, ...]
) -> None:
    """It goes on with the other checks, shows no password, and creates no file."""
    if "url" in settings:
        settings = {**settings, "url": settings["url"].replace("{folder}", str(tmp_path))}
    app = make_app(migrate=False, **GUARDS, **settings)
    before = files_in(tmp_path)
    result = diagnose(app)
    lines = tuple(line.replace("{folder}", str(tmp_path.resolve())) for line in lines)
    assert has_finding(result, "FAILURE", *lines), result.output
    assert "The spool" in result.output
    assert "pass-word" not in result.output
    assert result.exit_code == 1
    assert files_in(tmp_path) == before
    assert not list(Path("/tmp").glob("imcallback-no-such-f*"))


def lock(path: Path) -> Any:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    return closing(connection)


@contextmanager
def execute(path: Path, *statements: str) -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)
    yield


@contextmanager
def write_garbage(path: Path) -> Iterator[None]:
    path.write_bytes(b"this is not a database" * 1000)
    yield


@contextmanager
def make_file_read_only(path: Path) -> Iterator[None]:
    path.parent.chmod(0o755)
    path.chmod(0o444)
    with without_root():
        yield


@contextmanager
def make_folder_read_only(path: Path) -> Iterator[None]:
    path.chmod(0o666)
    path.parent.chmod(0o555)
    with without_root():
        yield


@contextmanager
def hide_file(path: Path) -> Iterator[None]:
    path.chmod(0o600)
    with without_root():
        yield


READ_ONLY = (
    "The database is read-only",
    f"{WAITING} The error: OperationalError: attempt to write a readonly database",
    "Let the user of the app write the database file and its folder. A standby of a cluster is "
    "read-only, too: connect to the primary.",
)
CANNOT_OPEN = (
    "The database file cannot be opened",
    f"{WAITING} The error: OperationalError: unable to open database file",
    "Check that the folder exists, and that the user of the app may read and write the folder and "
    "the file.",
)
UPGRADE = (
    "The tables need flask db upgrade",
    WAITING,
    "Run flask db upgrade, or flask imcallback upgrade for the tables of this extension alone.",
)
BROKEN_FILES: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "locked": (
        lock,
        (
            "The database is locked",
            f"{WAITING} The error: OperationalError: database is locked",
            "Find the program that holds a lock, for example a backup or a migration, and end its "
            "transaction. On SQLite, `fuser` and the path of the database file list such programs.",
        ),
    ),
    "read-only file": (make_file_read_only, READ_ONLY),
    "read-only folder": (make_folder_read_only, READ_ONLY),
    "another owner": (hide_file, CANNOT_OPEN),
    "not a database": (
        write_garbage,
        (
            "The database file is damaged, or is not a SQLite database",
            f"{WAITING} The error: DatabaseError: file is not a database",
            "Restore the file from a backup, or name another file in SQLALCHEMY_DATABASE_URI.",
        ),
    ),
    "no tables": (
        lambda path: execute(path, "DROP TABLE alembic_version_imcallback"),
        UPGRADE,
    ),
    "a table was dropped": (
        lambda path: execute(path, "DROP TABLE imcallback_counter"),
        (
            "A table or a column of the extension is missing",
            f"{WAITING} The error: OperationalError: no such table: imcallback_counter",
            "Restore the tables from a backup. If there is none, run flask imcallback downgrade "
            "base and flask imcallback upgrade, which delete what is left of the history.",
        ),
    ),
    "a trigger refuses rows": (
        lambda path: execute(
            path,
            "CREATE TRIGGER refuse BEFORE INSERT ON imcallback_counter "
            "BEGIN SELECT raise(ABORT, 'on purpose'); END",
        ),
        (
            "The database refuses to store anything",
            f"{WAITING} The error: IntegrityError: on purpose",
            "Read the error. Perhaps somebody has added a trigger or a constraint to the tables.",
        ),
    ),
}


@pytest.mark.parametrize(("break_file", "lines"), BROKEN_FILES.values(), ids=BROKEN_FILES)
def test_doctor_names_the_fault_of_a_sqlite_file(
    make_app: MakeApp,
    folder: Path,
    break_file: Callable[[Path], Any],
    lines: tuple[str, ...],
) -> None:
    """It also exits with 1, and leaves no file behind."""
    path = folder / "test.db"
    app = make_app(sqlite_url(path), IMCALLBACK_SPOOL=str(folder / "spool.db"), **GUARDS)
    diagnose(app)  # imports what nobody may import
    with break_file(path):
        before = files_in(folder)
        result = diagnose(app)
        assert files_in(folder) == before
    assert has_finding(result, "FAILURE", *lines), result.output
    assert result.exit_code == 1


FILL_THE_DISK = """
flask imcallback upgrade && flask imcallback doctor || exit 2
cat /dev/zero > "$0/filling"
flask imcallback doctor
"""


@pytest.mark.slow
def test_doctor_names_a_full_disk(folder: Path) -> None:
    """SQLite would notice it only at the next commit."""
    env = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "FLASK_APP": "hosts.bare",
        "PYTHONPATH": str(ROOT / "tests"),
        "FLASK_SQLALCHEMY_DATABASE_URI": f"sqlite:///{folder}/test.db",
        "FLASK_IMCALLBACK_SPOOL": f"{folder}/spool.db",
        "FLASK_IMCALLBACK_SECRETS": '["a-secret-of-16-characters"]',
    }
    command = [*faults.small_disk(folder, 4), "sh", "-c", FILL_THE_DISK, str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    output = done.stdout.rpartition("The settings are well formed")[2]
    for lines in (
        f"The disk of the database is full\n        {WAITING} The database file is "
        f"{folder}/test.db.\n        Free space on the disk of the database.\n",
        "The disk of the spool is full\n        While the database is unavailable, callbacks get "
        f"503, and only the log keeps them. The spool is {folder}/spool.db.\n        Free space "
        "on the disk, or set IMCALLBACK_SPOOL to a file on another disk.\n",
    ):
        assert f"FAILURE {lines}" in output, output


def test_doctor_warns_of_tables_of_a_newer_release(make_app: MakeApp, tmp_path: Path) -> None:
    """Both releases work during an upgrade."""
    path = tmp_path / "test.db"
    app = make_app(sqlite_url(path), **GUARDS)
    with execute(path, "UPDATE alembic_version_imcallback SET version_num = '9999_new'"):
        result = diagnose(app)
    assert has_finding(
        result,
        "WARNING",
        "The tables belong to a newer release of flask-imcallback",
        "Their revision is 9999_new. This release works with it during an upgrade.",
        "Install the newer release on this machine, too.",
    ), result.output
    assert result.exit_code == 0


def test_doctor_says_which_database_is_used(make_app: MakeApp, tmp_path: Path) -> None:
    """A file that the extension chose by itself is explained."""
    result = diagnose(make_app(**GUARDS))
    path = (tmp_path / "instance" / "imcallback.db").resolve()
    assert has_finding(
        result,
        "note",
        f"The database is sqlite:///{path}",
        "The extension chose this file. To use your own database, set "
        "SQLALCHEMY_DATABASE_URI, or pass db= or engine= to ImCallback.",
    ), result.output
    result = diagnose(make_app(sqlite_url(tmp_path / "own.db"), **GUARDS))
    assert has_finding(result, "note", f"The database is sqlite:///{tmp_path.resolve()}/own.db")


def test_doctor_notes_the_isolation_level_autocommit(make_app: MakeApp, tmp_path: Path) -> None:
    """It is harmless, because the extension has its own connections."""
    options = {"isolation_level": "AUTOCOMMIT"}
    app = make_app(sqlite_url(tmp_path / "a.db"), SQLALCHEMY_ENGINE_OPTIONS=options, **GUARDS)
    result = diagnose(app)
    assert has_finding(
        result,
        "note",
        "The engine of the app has the isolation level AUTOCOMMIT",
        "The extension does not use this level: it stores each callback in a transaction, on "
        "its own connections.",
    ), result.output
    assert result.exit_code == 0


def ask(url: URL, *statements: str) -> None:
    engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))


Server = servers.Server
DIALECTS = pytest.mark.parametrize("dialect", ["postgresql", "mariadb"])
REFUSED = {
    "postgresql": "ReadOnlySqlTransaction: cannot execute INSERT in a read-only transaction",
    "mariadb": "OperationalError: (1290, 'The MariaDB server is running with the --read-only "
    "option so it cannot execute this statement')",
}
FORBIDDEN = {
    "postgresql": "InsufficientPrivilege: permission denied for table imcallback_counter",
    "mariadb": "OperationalError: (1142, \"INSERT command denied to user 'reader'@'127.0.0.1' for "
    'table `{database}`.`imcallback_counter`")',
}


@pytest.fixture
def reader_url(dialect: str, database_servers: dict[str, Server]) -> Iterator[URL]:
    """The URL of a database for a user who may read it, but not write."""
    with servers.database(database_servers[dialect]) as url:
        password = "reader-pass-word"
        if dialect == "postgresql":
            ask(url, f"CREATE ROLE reader LOGIN PASSWORD '{password}'")
            ask(url, "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO reader")
        else:
            ask(url, f"CREATE USER reader IDENTIFIED BY '{password}'")
            ask(url, f"GRANT SELECT ON {url.database}.* TO reader")
        try:
            yield url
        finally:
            if dialect == "postgresql":
                ask(url, "DROP OWNED BY reader", "DROP ROLE reader")
            else:
                ask(url, "DROP USER reader")


@DIALECTS
def test_doctor_names_a_user_who_may_not_write(
    make_app: MakeApp, dialect: str, reader_url: URL
) -> None:
    """Reading works, so that only a real write finds it."""
    make_app(reader_url)
    url = reader_url.set(username="reader", password="reader-pass-word")
    result = diagnose(make_app(url, migrate=False, **GUARDS))
    assert has_finding(
        result,
        "FAILURE",
        "The database user may not use the tables",
        f"{WAITING} The error: {FORBIDDEN[dialect].format(database=url.database)}",
        "Grant SELECT and INSERT on the tables imcallback_..., UPDATE on imcallback_counter and "
        "DELETE on imcallback_inbox to the user of the app.",
    ), result.output
    assert "reader-pass-word" not in result.output
    assert result.exit_code == 1


def test_doctor_names_a_wrong_password(
    make_app: MakeApp, database_servers: dict[str, Server]
) -> None:
    """The message of the server is shown, and the password is not."""
    with servers.database(database_servers["mariadb"]) as url:
        ask(url, "CREATE USER locked_out IDENTIFIED BY 'right'")
        try:
            wrong = url.set(username="locked_out", password="wrong-pass-word")
            result = diagnose(make_app(wrong, migrate=False, **GUARDS))
        finally:
            ask(url, "DROP USER locked_out")
    assert has_finding(
        result,
        "FAILURE",
        "The database refuses the user or the password",
        f'{WAITING} The error: OperationalError: (1045, "Access denied for user '
        "'locked_out'@'127.0.0.1' (using password: YES)\")",
        "Correct the user and the password in SQLALCHEMY_DATABASE_URI. Write special characters "
        "in percent encoding, such as %40 for @.",
    ), result.output
    assert "wrong-pass-word" not in result.output


@DIALECTS
def test_doctor_names_a_missing_database(
    make_app: MakeApp, dialect: str, database_servers: dict[str, Server]
) -> None:
    """The name is probably wrong."""
    url = database_servers[dialect].url.set(database="missing")
    result = diagnose(make_app(url, migrate=False, **GUARDS))
    assert "FAILURE The database does not exist\n" in result.output, result.output
    assert "Create the database, or correct its name in SQLALCHEMY_DATABASE_URI." in result.output


def test_doctor_names_a_standby(make_app: MakeApp, database_servers: dict[str, Server]) -> None:
    """A read-only server answers every question, and stores nothing."""
    with servers.database(database_servers["postgresql"]) as url:
        app = make_app(url, **GUARDS)
        ask(url, f"ALTER DATABASE {url.database} SET default_transaction_read_only = on")
        result = diagnose(app)
    assert has_finding(
        result,
        "FAILURE",
        READ_ONLY[0],
        f"{WAITING} The error: {REFUSED['postgresql']}",
        *READ_ONLY[2:],
    ), result.output
    assert result.exit_code == 1


WRONG_ENCODINGS = {
    "SQL_ASCII": "Create a database with the encoding UTF8 (CREATE DATABASE name ENCODING 'UTF8' "
    "TEMPLATE template0), and set its URL.",
    "LATIN1": "The problem: the database has the encoding LATIN1, which cannot store every account "
    "id: create a database with the encoding UTF8 (on PostgreSQL: CREATE DATABASE name ENCODING "
    "'UTF8' TEMPLATE template0) and set its URL.",
}


# SQLAlchemy 2.0.0 leaves the connection to such a database open.
@pytest.mark.filterwarnings("ignore:connection <psycopg:ResourceWarning")
@pytest.mark.parametrize(("encoding", "remedy"), WRONG_ENCODINGS.items(), ids=WRONG_ENCODINGS)
def test_doctor_names_a_wrong_encoding(
    make_app: MakeApp, database_servers: dict[str, Server], encoding: str, remedy: str
) -> None:
    """PostgreSQL cannot store every account id in another encoding than UTF8."""
    administrator = database_servers["postgresql"].url
    name = f"imcallback_{encoding.lower()}"
    ask(
        administrator,
        f"CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' "
        "TEMPLATE template0",
    )
    try:
        app = make_app(administrator.set(database=name), migrate=False, **GUARDS)
        result = diagnose(app)
        assert app.test_client().get("/imcallback/health").get_json()["problem"] == (
            "the database cannot store every account id"
        )
    finally:
        ask(administrator, f"DROP DATABASE {name} WITH (FORCE)")
        gc.collect()
    assert has_finding(
        result,
        "FAILURE",
        "The database cannot store every account id",
        f"The encoding is {encoding}. {WAITING}",
        remedy,
    ), result.output
    assert result.exit_code == 1


def test_a_wrong_charset_of_the_host_is_harmless(
    make_app: MakeApp, database_servers: dict[str, Server]
) -> None:
    """The connections of the extension use utf8mb4, whatever the URL says."""
    with servers.database(database_servers["mariadb"]) as url:
        result = diagnose(make_app(url.update_query_dict({"charset": "latin1"}), **GUARDS))
    assert result.exit_code == 0, result.output


@DIALECTS
def test_doctor_names_a_database_that_hangs(
    make_app: MakeApp,
    dialect: str,
    database_servers: dict[str, Server],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A black hole in the network takes both questions and answers."""
    monkeypatch.setattr(database_checks, "ASK_SECONDS", 0.5)
    server = database_servers[dialect]
    with servers.database(server) as url, faults.proxy(url.port or 0) as proxy:
        app = make_app(url.set(port=proxy.port), **GUARDS)
        with proxy.holding():
            result = diagnose(app)
    assert has_finding(
        result,
        "FAILURE",
        "The database does not answer in time",
        f"{WAITING} The error: the database did not answer within 0.5 seconds",
        "Check the load and the locks of the server, the network and the firewall.",
    ), result.output


@DIALECTS
def test_doctor_compares_the_clocks_of_host_and_database(
    make_app: MakeApp, dialect: str, database_servers: dict[str, Server]
) -> None:
    """A wrong clock is a failure, because signatures are refused with it."""
    with servers.database(database_servers[dialect]) as url:
        app = make_app(url, **GUARDS)
        assert diagnose(app).exit_code == 0
        with time_machine.travel(time.time() + 3600, tick=True):
            result = diagnose(app)
    assert has_finding(
        result,
        "FAILURE",
        "The clocks of this machine and of the database differ by 3600 seconds",
        "With a wrong clock, signatures are refused and the history has wrong times.",
        "Set both clocks by NTP.",
    ), result.output
    assert result.exit_code == 1


def test_doctor_warns_of_a_server_that_syncs_no_commit(
    make_app: MakeApp, database_servers: dict[str, Server]
) -> None:
    """The servers of the tests trade durability for speed."""
    with servers.database(database_servers["postgresql"]) as url:
        result = diagnose(make_app(url, **GUARDS))
    assert has_finding(
        result,
        "WARNING",
        "A power cut of the database server loses callbacks",
        "In the database, the setting fsync of PostgreSQL is off: set it to on.",
        "Change the setting, unless a cluster makes up for it.",
    ), result.output


LARGEST_BODY_BYTES = 8_126_464
"""The largest body for which the default of MariaDB, 16 MiB, is enough."""


def test_doctor_names_a_server_that_refuses_large_callbacks(
    make_app: MakeApp, database_servers: dict[str, Server]
) -> None:
    """The setting of MariaDB must fit the setting of the app. The remedy is rounded up."""
    with servers.database(database_servers["mariadb"]) as url:
        app = make_app(url, **GUARDS, IMCALLBACK_MAX_BODY=LARGEST_BODY_BYTES + 1)
        result = diagnose(app)
    assert has_finding(
        result,
        "FAILURE",
        "The database server refuses large callbacks",
        "Its setting max_allowed_packet is 16777216. A callback of 8126465 bytes, which "
        "IMCALLBACK_MAX_BODY allows, needs 16777218. The server breaks the connection of a larger "
        f"one, as if it were down. {WAITING}",
        "Set max_allowed_packet = 17M in the section [mysqld] of the server's configuration, and "
        "restart the server. Or lower IMCALLBACK_MAX_BODY.",
    ), result.output
    assert result.exit_code == 1


def test_the_largest_callback_that_doctor_accepts_is_stored(
    make_app: MakeApp, database_servers: dict[str, Server]
) -> None:
    """The driver needs two bytes of the statement for each byte of this body."""
    body = json.dumps(BODY | {"pad": ""})[:-2] + '\\"' * (LARGEST_BODY_BYTES // 2)
    body = body[: LARGEST_BODY_BYTES - 4].rstrip("\\") + '\\""}'
    body += " " * (LARGEST_BODY_BYTES - len(body))
    with servers.database(database_servers["mariadb"]) as url:
        app = make_app(
            url,
            **GUARDS,
            IMCALLBACK_MAX_BODY=LARGEST_BODY_BYTES,
            IMCALLBACK_SPOOL=None,
            IMCALLBACK_DEADLINE=30,
        )
        result = diagnose(app)
        assert "max_allowed_packet" not in result.output
        path = f"/imcallback/openim/{GUARDS['IMCALLBACK_SECRETS'][0]}"
        assert app.test_client().post(path, data=body).status_code == 200
        (delivery,), _ = rows(app)
    assert len(delivery["body"]) == LARGEST_BODY_BYTES
