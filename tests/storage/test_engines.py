"""The extension stores everything, whatever engine the host has."""

from __future__ import annotations

import gc
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import psycopg2.extensions  # type: ignore[import-untyped]
import psycopg2.extras  # type: ignore[import-untyped]
import pymysql  # type: ignore[import-untyped]
import pytest
from flask import Flask
from sqlalchemy import URL, Engine, QueuePool, StaticPool, create_engine, event, make_url, text
from sqlalchemy.pool import SingletonThreadPool

from flask_imcallback import ConfigError, ImCallback, Relation, Removal, StorageError, upgrade
from flask_imcallback.log import load_feed_query
from flask_imcallback.runtime import build_runtime, get_runtime
from flask_imcallback.storage.engines import Engines, create_private_file, describe_url
from flask_imcallback.storage.marks import database_mark
from flask_imcallback.storage.sqlite import use_wal
from support import engines, servers
from support.apps import DATABASES, close_connections, rows, wait_until
from support.deliveries import ANONYMOUS, DELIVERY, MOMENT, record
from support.servers import Server

REFUSE_COMMITS_THAT_DO_NOT_WAIT = """
CREATE FUNCTION refuse() RETURNS trigger AS $$ BEGIN
    IF current_setting('synchronous_commit') = 'off' THEN RAISE EXCEPTION 'it would not wait';
    END IF;
    RETURN NEW;
END $$ LANGUAGE plpgsql;
CREATE TRIGGER refuse BEFORE INSERT ON imcallback_delivery FOR EACH ROW EXECUTE FUNCTION refuse();
"""


@contextmanager
def read_only(engine: Engine) -> Iterator[None]:
    """Let new connections only read, as an administrator does."""
    if engine.dialect.name == "sqlite":
        path = engine.url.database

        def connect(_: object, __: object, arguments: list[str], options: dict[str, Any]) -> None:
            arguments[0], options["uri"] = f"file:{path}?mode=ro", True

        event.listen(engine, "do_connect", connect)
        yield
        event.remove(engine, "do_connect", connect)
        return
    statement = {
        "postgresql": f"ALTER DATABASE {engine.url.database} SET default_transaction_read_only = ",
        "mysql": "SET GLOBAL tx_read_only = ",
    }[engine.dialect.name]
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(statement + "1")
        try:
            yield
        finally:
            connection.exec_driver_sql(statement + "0")


class HiddenSocket(psycopg2.extensions.connection):  # type: ignore[misc]
    """A connection whose socket nobody can find."""

    @property
    def fileno(self) -> Any:
        raise AttributeError


HAN_AND_EMOJI = "𠮷😀é"
"""Characters that need four bytes, and one that Latin-1 has, too."""

MakeHost = Callable[..., Flask]


@pytest.fixture
def url_of(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], URL]]:
    """Return a function that returns the URL of an empty database of a kind."""
    with ExitStack() as stack:

        def url(kind: str) -> URL:
            if kind == "sqlite":
                return URL.create("sqlite", database=str(tmp_path / "test.db"))
            database_servers: dict[str, Server] = request.getfixturevalue("database_servers")
            return stack.enter_context(servers.database(database_servers[kind]))

        yield url


@pytest.fixture
def make_host(tmp_path: Path) -> Iterator[MakeHost]:
    """Return a function that returns an app on an engine of the host, with our tables."""
    apps: list[Flask] = []

    def make(engine: Engine | Callable[[], Engine], **config: Any) -> Flask:
        app = Flask("host", instance_path=str(tmp_path / "instance"))
        app.config.update(SECRET_KEY="a secret key", IMCALLBACK_SPOOL=None, **config)
        runtime = build_runtime(app, engine=engine, providers=(), history_decorators=())
        app.extensions["imcallback"] = runtime
        apps.append(app)
        with app.app_context():
            upgrade()
        return app

    yield make
    for app in apps:
        close_connections(app)


@pytest.mark.parametrize(("name", "database"), engines.CASES)
def test_the_engine_of_the_host_changes_nothing(
    name: str, database: str, url_of: Callable[[str], URL], make_host: MakeHost
) -> None:
    """With each engine, deliveries of many threads are stored once, and a rollback works."""
    create, _ = engines.HOSTS[name]
    host = create(url_of(database))
    app = make_host(host, IMCALLBACK_DEADLINE=20)
    moments = [MOMENT + timedelta(seconds=number) for number in range(40)]
    deliveries = [replace(ANONYMOUS, received_at=moment) for moment in moments]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda delivery: record(app, delivery), deliveries))
    stored, removals = rows(app)
    assert (len(stored), len(removals)) == (40, 80)
    with app.app_context():
        assert len(get_runtime().history.find().data) == 80
        with get_runtime().engine().connect() as connection:
            connection.execute(text("INSERT INTO imcallback_inbox VALUES (1)"))
            connection.rollback()
            is_stored = text("SELECT COUNT(*) FROM imcallback_inbox WHERE entry_id = 1")
            assert connection.scalar(is_stored) == 0
        assert len(get_runtime().history.find().data) == 80


def test_the_only_connection_of_the_host_may_be_in_use(
    url_of: Callable[[str], URL], make_host: MakeHost
) -> None:
    """A request of the host holds the only connection of its pool, and its callback is stored."""
    host = engines.one_connection(url_of("postgresql"))
    app = make_host(host)
    with host.connect() as connection:
        connection.execute(text("SELECT 1"))
        record(app, DELIVERY)
        assert len(rows(app)[0]) == 1


@pytest.mark.parametrize(
    ("database", "driver"),
    [(database, driver) for database, drivers in engines.DRIVERS.items() for driver in drivers],
)
def test_each_driver_stores_all_of_unicode(
    database: str, driver: str, url_of: Callable[[str], URL], make_host: MakeHost
) -> None:
    """Account ids with rare Han characters and emoji are stored and found by each driver."""
    app = make_host(create_engine(url_of(database).set(drivername=driver)))
    check_unicode(app)
    many = tuple(Removal(Relation.FRIEND, HAN_AND_EMOJI, f"b{n}") for n in range(100))
    later = MOMENT + timedelta(seconds=1)
    record(app, replace(ANONYMOUS, removals=many, received_at=later))
    assert len(rows(app)[1]) == 101


def check_unicode(app: Flask) -> None:
    """Store and find an account id with characters outside the basic plane."""
    removal = Removal(Relation.FRIEND, HAN_AND_EMOJI, "bob")
    record(app, replace(ANONYMOUS, removals=(removal,), error=HAN_AND_EMOJI))
    with app.app_context():
        (found,) = get_runtime().history.find(owner_id=HAN_AND_EMOJI).data
        assert found.owner_id == HAN_AND_EMOJI
    assert rows(app)[0][0]["error"] == HAN_AND_EMOJI


@pytest.mark.parametrize(
    "options",
    [
        {"query": {"charset": "utf8"}},
        {"query": {"charset": "latin1"}},
        {"connect_args": {"init_command": "SET NAMES latin1"}},
    ],
    ids=["utf8", "latin1", "init_command"],
)
def test_a_narrow_character_set_of_the_connection_is_widened(
    options: dict[str, Any], url_of: Callable[[str], URL], make_host: MakeHost
) -> None:
    """`?charset=utf8`, which many tutorials have, loses neither account ids nor searches."""
    url = url_of("mariadb").update_query_dict(options.pop("query", {}))
    check_unicode(make_host(create_engine(url, **options)))


def test_a_narrow_character_set_of_the_database_is_no_problem(
    url_of: Callable[[str], URL], make_host: MakeHost
) -> None:
    """On MariaDB the tables have a character set of their own."""
    url = url_of("mariadb")
    host = create_engine(url)
    with host.begin() as connection:
        connection.execute(text(f"ALTER DATABASE {url.database} CHARACTER SET latin1"))
    check_unicode(make_host(host))


def test_a_narrow_client_encoding_is_widened(
    url_of: Callable[[str], URL], make_host: MakeHost
) -> None:
    """A host whose connections use Latin-1 on PostgreSQL loses nothing."""
    url = url_of("postgresql").update_query_dict({"options": "-c client_encoding=latin1"})
    check_unicode(make_host(create_engine(url)))


# SQLAlchemy 2.0.0 leaves the connection to such a database open.
@pytest.mark.filterwarnings("ignore:connection <psycopg:ResourceWarning")
@pytest.mark.parametrize(
    ("encoding", "driver"),
    [("SQL_ASCII", "psycopg"), ("SQL_ASCII", "psycopg2"), ("LATIN1", "psycopg")],
)
def test_a_database_that_loses_account_ids_is_refused_at_the_upgrade(
    encoding: str, driver: str, database_servers: dict[str, Server], make_host: MakeHost
) -> None:
    """The message names the encoding and what to do."""
    server = database_servers["postgresql"]
    name = f"imcallback_{encoding.lower()}_{driver}"
    url = server.url.set(database=name, drivername=f"postgresql+{driver}")
    administrator = create_engine(server.url, isolation_level="AUTOCOMMIT")
    with administrator.connect() as connection:
        template = "TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
        connection.execute(text(f"CREATE DATABASE {name} ENCODING '{encoding}' {template}"))
    try:
        message = f"^the database has the encoding {encoding}, which cannot store every account id"
        with pytest.raises(ConfigError, match=message):
            make_host(create_engine(url))
    finally:
        with administrator.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        administrator.dispose()
        gc.collect()


@pytest.mark.parametrize("option", ["nolock=1", "vfs=unix-none", "immutable=True"])
def test_a_file_without_locks_is_refused(option: str, tmp_path: Path) -> None:
    """Several connections without locks destroy the file."""
    engine = create_engine(f"sqlite:///file:{tmp_path}/test.db?{option}&uri=true")
    name, _, value = option.partition("=")
    message = f"with {name}={value} they use no locks: remove this option from the URL$"
    with pytest.raises(ConfigError, match=message):
        Engines(lambda: engine).host()
    engine = create_engine(URL.create("sqlite", database=f"file:{tmp_path}/test.db?{option}"))
    with pytest.raises(ConfigError, match=message):
        Engines(lambda: engine).host()


@pytest.mark.parametrize("options", ["mode=memory&cache=shared", "vfs=memdb"])
def test_a_shared_database_in_memory_is_no_file(options: str, make_host: MakeHost) -> None:
    """The name in its URL is no path. It works with a single connection."""
    url = f"sqlite:///file:/shared?{options}&uri=true"
    for pool in (SingletonThreadPool, QueuePool):
        several = create_engine(url, poolclass=pool)
        message = "^sqlite:///file.*shared.* is a database in memory with several connections: "
        with pytest.raises(ConfigError, match=message):
            Engines(lambda engine=several: engine).host()  # type: ignore[misc]
        several.dispose()
    arguments = {"check_same_thread": False}
    engine = create_engine(url, poolclass=StaticPool, connect_args=arguments)
    assert Engines(lambda: engine).mark() == "sqlite:///:memory:"
    app = make_host(engine)
    record(app, DELIVERY)
    assert len(rows(app)[0]) == 1
    assert not Path("/shared").exists()


def test_connections_that_belong_to_a_thread_serve_every_thread(
    tmp_path: Path, make_host: MakeHost
) -> None:
    """A `creator` without `check_same_thread` is enough, because no thread uses another's."""
    engine = create_engine("sqlite://", creator=lambda: sqlite3.connect(tmp_path / "test.db"))
    app = make_host(engine)
    record(app, DELIVERY)

    def search(_: int) -> int:
        with app.app_context():
            return len(get_runtime().history.find().data)

    for _ in range(5):
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(search, range(20))) == [2] * 20


IMPORT_WITHOUT_NEW_NAMES = """
import sqlite3
for name in ("SQLITE_LIMIT_VARIABLE_NUMBER", "LEGACY_TRANSACTION_CONTROL"):
    if hasattr(sqlite3, name):
        delattr(sqlite3, name)
import flask_imcallback.extension
"""


def test_pysqlite3_may_replace_the_module_of_python() -> None:
    """An app may need a newer SQLite, and pysqlite3 lacks some names."""
    subprocess.run([sys.executable, "-c", IMPORT_WITHOUT_NEW_NAMES], check=True)


LEAVE_WITHOUT_A_WORKING_FOLDER = """
import os, sys
from pathlib import Path
from sqlalchemy import create_engine
from flask_imcallback.storage.engines import Engines
kept = Engines(lambda: create_engine(f"sqlite:///{sys.argv[1]}")).writing()
with kept.begin() as connection:
    connection.exec_driver_sql("PRAGMA user_version=1")
    connection.exec_driver_sql("CREATE TABLE t (id INTEGER)")
engines = [Engines(lambda: create_engine(f"sqlite:///{n}.db")).writing() for n in range(5)]
os.rmdir(os.getcwd())
"""


def test_a_deleted_working_folder_is_no_problem_at_the_end(tmp_path: Path) -> None:
    """The process leaves a complete file of another database."""
    folder, path = tmp_path / "folder", tmp_path / "test.db"
    folder.mkdir()
    with closing(sqlite3.connect(path)) as driver:
        use_wal(driver)
    command = [sys.executable, "-c", LEAVE_WITHOUT_A_WORKING_FOLDER, str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    assert result.stderr == ""
    assert (
        not path.with_name("test.db-wal").exists()
        or not path.with_name("test.db-wal").stat().st_size
    )


@pytest.mark.parametrize("create", [create_engine, engines.not_durable], ids=["default", "unsafe"])
def test_our_connections_to_sqlite_are_durable(
    create: Callable[[URL], Engine], url_of: Callable[[str], URL], make_host: MakeHost
) -> None:
    """`synchronous` is EXTRA and the journal is in a file, whatever the host does."""
    app = make_host(create(url_of("sqlite")))
    with app.app_context():
        state = get_runtime().process.get().engines
        for engine in (state.reading(), state.writing(), state.draining(), state.occasional()):
            with engine.connect() as connection:
                assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 3
                mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar_one()
                assert mode not in ("memory", "off")


def test_a_new_file_gets_its_log_while_another_process_writes(tmp_path: Path) -> None:
    """SQLite would fail at once, because the other process still uses the old journal."""
    path = tmp_path / "new.db"
    with (
        closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other,
        closing(sqlite3.connect(path)) as driver,
    ):
        other.execute("BEGIN IMMEDIATE")
        timer = threading.Timer(0.3, other.execute, ["COMMIT"])
        timer.start()
        use_wal(driver)
        timer.join()
        assert driver.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_commits_wait_for_the_disk_of_postgresql(
    url_of: Callable[[str], URL], make_host: MakeHost
) -> None:
    """A host that switched `synchronous_commit` off has it on in each of our transactions.

    It stays off in the session, which PgBouncer may give to other programs.
    """
    url = url_of("postgresql").update_query_dict({"options": "-c synchronous_commit=off"})
    host = create_engine(url)
    app = make_host(host)
    with host.begin() as connection:
        connection.exec_driver_sql(REFUSE_COMMITS_THAT_DO_NOT_WAIT)
    record(app, ANONYMOUS)  # by the writer thread
    with app.app_context():
        direct_writer = get_runtime().recorder._direct_writer
    wait_until(lambda: direct_writer._connection is not None)
    record(app, replace(ANONYMOUS, received_at=MOMENT + timedelta(minutes=1)))
    assert direct_writer._connection is not None  # an error would have closed it
    with app.app_context():
        engine = get_runtime().writing_engine().execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        assert connection.scalar(text("SHOW synchronous_commit")) == "off"


@pytest.mark.parametrize("kind", DATABASES)
def test_a_connection_that_may_not_write_is_replaced(
    kind: str, url_of: Callable[[str], URL], make_host: MakeHost
) -> None:
    """The database can be written again, but the connections from before cannot."""
    engine = create_engine(url_of(kind))
    app = make_host(engine, IMCALLBACK_DEADLINE=4)
    record(app, ANONYMOUS)
    with app.app_context():
        runtime = get_runtime()
        runtime.recorder.stop_direct_writes()  # each failure closes their connection
        wait_until(lambda: len(runtime.feed.read_page(load_feed_query({})).data) == 2)
        runtime.process.get().engines.dispose()
        with read_only(engine):
            with pytest.raises(StorageError):
                record(app, replace(ANONYMOUS, received_at=MOMENT + timedelta(minutes=1)))
            runtime.sequencer.catch_up(5)
        record(app, replace(ANONYMOUS, received_at=MOMENT + timedelta(minutes=2)))
        # The second delivery was refused, but its last attempt may have succeeded.
        wait_until(lambda: len(runtime.feed.read_page(load_feed_query({})).data) >= 4)


HOST_SETTINGS = [
    ("mariadb", "SET SESSION sql_select_limit = 1"),
    ("mariadb", "SET SESSION sql_safe_updates = 1"),
    ("mariadb", "SET SESSION completion_type = 'CHAIN'"),
    ("mariadb", "SET SESSION completion_type = 'RELEASE'"),
    ("mariadb", "SET SESSION max_join_size = 1, sql_big_selects = 0"),
    ("mariadb", "SET SESSION sql_mode = 'EMPTY_STRING_IS_NULL'"),
    ("mariadb", "SET SESSION sql_mode = 'ORACLE'"),
    ("mariadb", "SET SESSION sql_mode = ''"),
]
"""Statements with which a host app prepares its connections."""


def check_all_steps(app: Flask) -> None:
    """Store, number, seal, verify and find the removals of several deliveries."""
    many = tuple(Removal(Relation.FRIEND, "", f"b{number}") for number in range(3))
    for minute in range(3):
        moment = MOMENT + timedelta(minutes=minute)
        record(app, replace(ANONYMOUS, removals=many, received_at=moment))
    with app.app_context():
        runtime = get_runtime()
        wait_until(lambda: len(runtime.feed.read_page(load_feed_query({})).data) == 9)
        assert len(runtime.history.find().data) == 9
        runtime.seal_log()
        assert runtime.verify_database([]).problems == []
    assert [len(found) for found in rows(app)] == [3, 9]


@pytest.mark.parametrize(("kind", "statement"), HOST_SETTINGS)
def test_settings_of_the_host_for_its_session_are_not_ours(
    kind: str, statement: str, url_of: Callable[[str], URL], make_host: MakeHost
) -> None:
    """A listener of the host limits, forbids or changes statements, and ours still work."""
    url = url_of(kind)
    engine = create_engine(url)

    @event.listens_for(engine, "connect")
    def prepare(driver: Any, _: object) -> None:
        driver.cursor().execute(statement)
        if kind == "postgresql":
            driver.commit()

    app = make_host(engine)
    check_all_steps(app)
    with app.app_context():
        ours = get_runtime().engine()
    other = create_engine(url)  # without the listener
    with other.connect() as connection, ours.connect() as own:
        for table in ("imcallback_seal", "imcallback_log", "imcallback_removal"):
            query = f"SELECT count(*) FROM {table}"
            assert connection.scalar(text(query)) == own.scalar(text(query)) > 0
    other.dispose()


ROW_CLASSES: list[tuple[str, dict[str, Any]]] = [
    ("postgresql+psycopg", {"row_factory": psycopg.rows.dict_row}),
    ("postgresql+psycopg2", {"cursor_factory": psycopg2.extras.RealDictCursor}),
    ("mysql+pymysql", {"cursorclass": pymysql.cursors.DictCursor}),
    (
        "sqlite",
        {"row_factory": lambda cursor, row: dict(zip(cursor.description, row, strict=True))},
    ),
    ("sqlite", {"text_factory": bytes}),
]
"""Attributes of the host app's connections with which rows are no tuples, or texts no texts."""


@pytest.mark.parametrize(("driver", "attributes"), ROW_CLASSES)
def test_rows_are_tuples_whatever_the_host_prefers(
    driver: str, attributes: dict[str, Any], url_of: Callable[[str], URL], make_host: MakeHost
) -> None:
    """The host lets its connections return rows of another class."""
    kind = driver.partition("+")[0].replace("mysql", "mariadb")
    engine = create_engine(url_of(kind).set(drivername=driver))

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: object) -> None:
        for name, value in attributes.items():
            setattr(connection, name, value)

    check_all_steps(make_host(engine))


def test_a_driver_that_hides_its_socket_has_no_direct_writes(
    url_of: Callable[[str], URL], make_host: MakeHost
) -> None:
    """Nobody could interrupt a request that writes by itself, so the writer thread writes."""
    url = url_of("postgresql").set(drivername="postgresql+psycopg2")
    app = make_host(create_engine(url, connect_args={"connection_factory": HiddenSocket}))
    for minute in range(3):
        record(app, replace(ANONYMOUS, received_at=MOMENT + timedelta(minutes=minute)))
        time.sleep(0.1)
    with app.app_context():
        assert get_runtime().recorder._direct_writer._connection is None
    assert len(rows(app)[0]) == 3


def test_the_tables_of_mariadb_have_transactions(
    url_of: Callable[[str], URL], make_host: MakeHost
) -> None:
    """They are InnoDB tables, whatever engine the server prefers."""
    init = {"init_command": "SET default_storage_engine = MyISAM"}
    engine = create_engine(url_of("mariadb"), connect_args=init)
    make_host(engine)
    query = "SELECT DISTINCT engine FROM information_schema.tables WHERE table_schema = database()"
    with engine.connect() as connection:
        own_tables = f"{query} AND table_name LIKE 'imcallback%'"
        assert connection.scalars(text(own_tables)).all() == ["InnoDB"]
    engine.dispose()


def test_an_old_sqlite_stores_a_large_packet(
    url_of: Callable[[str], URL], make_host: MakeHost
) -> None:
    """SQLite before 3.32 takes at most 999 parameters in a statement."""
    engine = create_engine(url_of("sqlite"))

    @event.listens_for(engine, "connect")
    def limit(driver: sqlite3.Connection, _: object) -> None:
        driver.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 999)

    app = make_host(engine)
    many = tuple(Removal(Relation.FRIEND, "alice", f"b{number}") for number in range(1200))
    record(app, replace(ANONYMOUS, removals=many))
    assert len(rows(app)[1]) == 1200
    with app.app_context():
        runtime = get_runtime()
        assert len(runtime.history.find(limit=1000).data) == 1000
        wait_until(lambda: len(runtime.feed.read_page(load_feed_query({})).data) == 1200)
        runtime.seal_log()
        assert runtime.verify_database([]).problems == []


def test_the_host_may_give_the_password_late(
    url_of: Callable[[str], URL], make_host: MakeHost
) -> None:
    """A `do_connect` listener of the host, for example for tokens of a cloud, works for us."""
    url = url_of("postgresql")
    host = create_engine(url.set(username="nobody", port=1))

    @event.listens_for(host, "do_connect")
    def provide(_dialect: object, _record: object, _arguments: object, options: Any) -> None:
        options.update(user=url.username, port=url.port)

    app = make_host(lambda: host)
    record(app, DELIVERY)
    assert len(rows(app)[0]) == 1


@pytest.mark.parametrize(
    ("url", "mark"),
    [
        ("postgresql+psycopg://u:p@db.example/app", "postgresql://u@db.example:5432/app"),
        ("postgresql+psycopg2://u@db.example:5432/app", "postgresql://u@db.example:5432/app"),
        ("postgresql://db.example:6432/app", "postgresql://db.example:6432/app"),
        ("postgresql:///app?host=/run/pg", "postgresql://%2Frun%2Fpg:5432/app"),
        ("postgresql:///app?host=a:1&host=b:2", "postgresql://a:1,b:2:5432/app"),
        (
            "postgresql://db/app?options=-csearch_path=tenant -cx.key=pass&sslmode=require",
            "postgresql://db:5432/app?search_path=tenant",
        ),
        ("postgresql://db/app?options=--search-path=a", "postgresql://db:5432/app?search_path=a"),
        ("postgresql://db/app?options=-c role=a", "postgresql://db:5432/app?role=a"),
        ("mysql+pymysql://u:p@db/app?charset=utf8", "mysql://db:3306/app"),
        ("mariadb+pymysql://db/app", "mysql://db:3306/app"),
        ("sqlite:////srv/app.db", "sqlite:////srv/app.db"),
        ("sqlite:///file:/srv/app.db?uri=true&mode=ro", "sqlite:////srv/app.db"),
        ("mysql://db/?db=app", "mysql://db:3306/app"),
        ("mysql:///?read_default_file=/a", "mysql://localhost:3306/?read_default_file=/a"),
        ("postgresql:///?dbname=app", "postgresql://localhost:5432/app"),
        ("postgresql://u@db", "postgresql://u@db:5432/u"),
        ("sqlite://", "sqlite:///:memory:"),
    ],
)
def test_a_mark_names_a_database_without_password_and_driver(url: str, mark: str) -> None:
    """Another driver leads to the same database, another schema or PostgreSQL user may not."""
    assert database_mark(make_url(url)) == mark


def test_a_mark_names_the_variables_of_postgresql(monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL takes what it does not say from the environment."""
    monkeypatch.setenv("PGHOST", "db.example")
    monkeypatch.setenv("PGDATABASE", "app")
    monkeypatch.setenv("PGOPTIONS", "-c search_path=tenant")
    mark = "postgresql://db.example:5432/app?search_path=tenant"
    assert database_mark(make_url("postgresql://")) == mark
    mark = "postgresql://db:5432/other?search_path=tenant"
    assert database_mark(make_url("postgresql://db/other")) == mark


CONNECT_ARGUMENTS: list[tuple[str, dict[str, Any]]] = [
    ("postgresql", {"options": "-csearch_path=other"}),
    ("postgresql+psycopg2", {"options": "-c search_path=other"}),
    ("postgresql", {"dbname": "OTHER"}),
    ("postgresql", {"user": "OTHER"}),
    ("mariadb", {"database": "OTHER"}),
    ("mariadb", {"init_command": "USE `OTHER`"}),
]
"""Arguments that lead to another database or schema than the URL, for a kind or a driver."""


@pytest.mark.parametrize(("driver", "arguments"), CONNECT_ARGUMENTS)
def test_a_mark_sees_the_arguments_that_override_the_url(
    driver: str, arguments: dict[str, Any], url_of: Callable[[str], URL]
) -> None:
    """Two deployments in one folder have the same URL and other tables, so their marks differ."""
    kind, _, has_driver = driver.partition("+")
    url, other = url_of(kind), str(url_of(kind).database)
    url = url.set(drivername=driver) if has_driver else url
    where = "current_database() || current_schemas(false)::text"
    where = "database()" if kind == "mariadb" else where
    first = create_engine(url)
    with first.begin() as connection:
        if kind == "postgresql":
            for statement in ("CREATE SCHEMA other", f"CREATE ROLE {other} SUPERUSER LOGIN"):
                connection.exec_driver_sql(statement)
            connection.exec_driver_sql(f"CREATE SCHEMA {other} AUTHORIZATION {other}")
        places = [connection.exec_driver_sql(f"SELECT {where}").scalar()]
    arguments = {name: value.replace("OTHER", other) for name, value in arguments.items()}
    second = create_engine(url, connect_args=arguments)
    with second.connect() as connection:
        places.append(connection.exec_driver_sql(f"SELECT {where}").scalar())
    marks = [Engines(lambda: first).mark(), Engines(lambda: second).mark()]
    second.dispose()
    if kind == "postgresql":
        with first.begin() as connection:
            connection.exec_driver_sql(f"DROP OWNED BY {other}")
            connection.exec_driver_sql(f"DROP ROLE {other}")
    first.dispose()
    assert places[0] != places[1]
    assert marks[0] != marks[1]


def test_a_mark_has_no_password_of_an_argument() -> None:
    """The spool and the log show marks."""
    arguments = {"password": "pass-word", "init_command": "SET @key = 'pass-word'"}
    engine = create_engine("mysql+pymysql://u:pass-word@db/app", connect_args=arguments)
    assert Engines(lambda: engine).mark() == "mysql://db:3306/app"


def test_a_described_database_has_no_password() -> None:
    """The start of the app logs the URL, with the full path of a SQLite file."""
    assert describe_url(make_url("postgresql://u:p@db/app")) == "postgresql://u:***@db/app"
    assert describe_url(make_url("sqlite:////srv/app.db")) == "sqlite:////srv/app.db"


def test_our_own_database_file_is_private(tmp_path: Path) -> None:
    """Other users of the machine cannot read the file that the extension creates."""
    app = Flask("host", instance_path=str(tmp_path / "instance"))
    ImCallback(app)
    with app.app_context():
        upgrade()
    record(app, DELIVERY)
    files = list((tmp_path / "instance").glob("imcallback.db*"))
    assert len(files) >= 3
    assert [file.name for file in files if file.stat().st_mode & 0o077] == []
    close_connections(app)


TRY_TO_LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
"""


def test_a_new_connection_keeps_the_locks_of_the_process(tmp_path: Path) -> None:
    """The file of a spool exists already. Opening and closing it would drop all locks on it."""
    path = tmp_path / "spool.db"
    create_private_file(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        create_private_file(path)
        command = [sys.executable, "-c", TRY_TO_LOCK, str(path)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "database is locked" in result.stderr
