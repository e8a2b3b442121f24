"""Our own engines, made from the engine of the host app.

The host app chooses the database, the driver and the login. This extension chooses everything else.
Its connections share nothing with the host app, even if the host app uses another pool, isolation
level, event listener or character set.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

from sqlalchemy import URL, Connection, Dialect, Engine, NullPool, QueuePool, StaticPool, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import Pool, SingletonThreadPool

from ..errors import ConfigError, ImCallbackError, StorageError
from .database_errors import describe
from .marks import engine_mark, has_own_creator, names_server_database
from .quiet_engines import QuietEngine, QuietNullPool, QuietQueuePool, quiet_dialect
from .sqlite import set_up_sqlite
from .sqlite_files import resolve_path, sqlite_path, uri_options, watch_file
from .sqlite_forks import GuardedNullPool, GuardedQueuePool, close_before_fork
from .threads import PerProcess

WRITES = "imcallback_writes"
"""Execution option of engines whose transactions write. With it, SQLite takes its write lock at
BEGIN, because it cannot wait for the lock in a transaction that has already read."""

BEGIN_KEY = "imcallback_begin"
"""Key of `Connection.info` with a statement that each transaction begins with."""

UNLOCKED_OPTIONS = {
    *(("nolock", value) for value in ("1", "true", "yes", "on")),
    *(("immutable", value) for value in ("1", "true", "yes", "on")),
    *(("vfs", value) for value in ("unix-none", "win32-none", "win32-longpath-none")),
}
"""Options of a SQLite URI with which connections ignore each other.
See https://sqlite.org/uri.html."""

SETTINGS_OF_MYSQL = (
    "sql_select_limit = 18446744073709551615, sql_safe_updates = 0, sql_big_selects = 1, "
    "completion_type = 0"
)
"""Settings of a session without which reads are cut, or statements are refused."""

UNKNOWN_DATABASE = "unknown"
"""Mark of a database if this process has no engine for it."""


class _ProcessEngines:
    """The engines that one process has created."""

    host: Engine | None = None
    reading: Engine | None = None
    occasional: Engine | None = None
    mark: str | None = None

    def __init__(self) -> None:
        self.of_writers: dict[str, Engine] = {}
        """The engines that each serve a single writer, by name."""


class Engines:
    """The engines of one database. Each process has its own, created at their first use.

    `get_host_engine` returns the engine of the host app. It may need an app context, and may raise
    `ConfigError`.
    """

    def __init__(self, get_host_engine: Callable[[], Engine]) -> None:
        self._get_host_engine = get_host_engine
        self._process = PerProcess(_ProcessEngines)

    def host(self) -> Engine:
        """Return the engine of the host app. Raises `ConfigError` and `StorageError`."""
        engines = self._process.get()
        if engines.host is None:
            try:
                engines.host = _check(self._get_host_engine())
                close_before_fork(engines.host)
            except ImCallbackError:
                raise
            except Exception as error:  # a mistake in the host app
                raise StorageError(
                    f"the app gives no database engine ({describe(error)}): check the engine that "
                    "ImCallback gets"
                ) from error
        return engines.host

    def reading(self) -> Engine:
        """Return an engine for requests, with the pool limits of the host app."""
        engines, host = self._process.get(), self.host()
        if engines.reading is None:
            pool = _reading_pool(host.pool)
            if host.dialect.name != "sqlite":
                pool._pre_ping = True  # no query of a reader fails after a restart of the server
            engines.reading = engines.reading or _derive(host, pool)
        return engines.reading

    def writing(self) -> Engine:
        """Return the engine of the thread that writes new deliveries."""
        return self._for_writer("writing")

    def direct(self) -> Engine:
        """Return the engine of the requests that write by themselves."""
        return self._for_writer("direct")

    def draining(self) -> Engine:
        """Return the engine of the thread that writes deliveries from the spool."""
        return self._for_writer("draining")

    def numbering(self) -> Engine:
        """Return the engine of the thread that numbers the log."""
        return self._for_writer("numbering")

    def _for_writer(self, name: str) -> Engine:
        engines, host = self._process.get(), self.host()
        engine = engines.of_writers.get(name)
        if engine is None:
            # dict.setdefault is atomic, so all threads get the same engine.
            engine = engines.of_writers.setdefault(name, _derive_for_writer(host))
        return engine

    def occasional(self) -> Engine:
        """Return an engine for rare work. Each use opens a connection and closes it."""
        engines, host = self._process.get(), self.host()
        if engines.occasional is None:
            pool = _null_pool(host.pool)
            engines.occasional = engines.occasional or _derive(host, pool, **{WRITES: True})
        return engines.occasional

    def mark(self) -> str:
        """Return the mark of the database, or `UNKNOWN_DATABASE` if there is no engine."""
        engines = self._process.get()
        if engines.mark is None:
            with suppress(Exception):
                # Later, a relative path could lead to another file.
                engines.mark = engine_mark(self.host())
        return engines.mark or UNKNOWN_DATABASE

    def has_clear_mark(self) -> bool:
        """Return False if another database may have the same mark."""
        with suppress(Exception):
            return names_database(self.host())
        return True  # another check explains why there is no engine

    def dispose(self) -> None:
        """Close the idle connections of this process."""
        engines = self._process.get()
        for engine in (engines.reading, engines.occasional, *engines.of_writers.values()):
            if engine is not None and engine is not engines.host:
                engine.dispose()


def names_database(engine: Engine) -> bool:
    """Return False if the mark of the engine's database may also stand for another database."""
    if engine.dialect.name == "sqlite":
        return resolve_path(engine.url) is not None or is_in_memory(engine)
    return names_server_database(engine)


def is_in_memory(engine: Engine) -> bool:
    """Return True for a SQLite database that lives in the memory of one process."""
    if engine.dialect.name != "sqlite" or not isinstance(engine.pool, StaticPool):
        return False
    return not has_file(engine)


def for_reading(engine: Engine) -> Engine:
    """Return the engine for transactions that only read. On SQLite they take no write lock."""
    return engine.execution_options(**{WRITES: False})


def drop_idle_connections(engine: Engine) -> None:
    """Let the next connection of a pool be a new one.

    A database in memory keeps its only connection.
    """
    if isinstance(engine.pool, QueuePool):
        engine.dispose()


def has_file(engine: Engine) -> bool:
    """Return True if a SQLite engine opens a file. A `creator` may open one that no URL names."""
    if sqlite_path(engine) is not None:
        return True
    if uri_options(engine.url).get("vfs") == "memdb":  # which reports a path
        return False
    if not has_own_creator(engine):  # a look at the connection could disturb its user
        return False
    with engine.connect() as connection:
        return any(row[2] for row in connection.exec_driver_sql("PRAGMA database_list"))


def _check(engine: Any) -> Engine:
    """Return the engine. Raises `ConfigError` if it cannot serve several threads."""
    if not isinstance(engine, Engine):
        raise ConfigError(
            f"the engine of the database is {engine!r}: pass a SQLAlchemy Engine, or a function "
            "that returns one. An AsyncEngine has it as sync_engine"
        )
    if engine.dialect.name == "sqlite":
        if not isinstance(engine.pool, StaticPool) and not has_file(engine):
            raise ConfigError(
                f"{engine.url!r} is a database in memory with several connections: create the "
                "engine with poolclass=StaticPool and connect_args={'check_same_thread': False}, "
                "or use a file"
            )
        for name, value in uri_options(engine.url).items():
            if (name, value.lower()) in UNLOCKED_OPTIONS:
                raise ConfigError(
                    f"several connections would destroy the file of {engine.url!r}, because with "
                    f"{name}={value} they use no locks: remove this option from the URL"
                )
    return engine


def _reading_pool(pool: Pool) -> Pool:
    """Return a pool with the limits of the given pool."""
    if _is_bound_to_threads(pool):
        return _null_pool(pool)
    if isinstance(pool, QueuePool):
        return _queue_pool(pool, pool.size(), pool._max_overflow, timeout=pool._timeout)
    return _queue_pool(pool)


def _is_bound_to_threads(pool: Pool) -> bool:
    """Return True if no other thread may use a connection of the pool.

    SQLite refuses another thread, unless the host app has set `check_same_thread` to False.
    """
    return isinstance(pool, NullPool | SingletonThreadPool)


def _queue_pool(pool: Pool, pool_size: int = 1, max_overflow: int = -1, **limits: Any) -> QueuePool:
    """Return a pool that keeps some connections, with the options of the given pool."""
    pool_class = GuardedQueuePool if _is_sqlite(pool) else QuietQueuePool
    return pool_class(
        pool._creator,
        pool_size=pool_size,
        max_overflow=max_overflow,
        recycle=pool._recycle,
        **limits,
        **_common_options(pool),
    )


def _null_pool(pool: Pool) -> NullPool:
    pool_class = GuardedNullPool if _is_sqlite(pool) else QuietNullPool
    return pool_class(pool._creator, **_common_options(pool))


def _is_sqlite(pool: Pool) -> bool:
    return cast(Dialect, pool._dialect).name == "sqlite"


def _common_options(pool: Pool) -> dict[str, Any]:
    """Return the options of a new pool, with the listeners that prepare a new connection.

    Other listeners of the host app may need its request: they may set the tenant of a connection.
    """
    names = ("connect", "first_connect")
    return {
        "pre_ping": pool._pre_ping,
        "dialect": quiet_dialect(cast(Dialect, pool._dialect)),
        # Iteration also yields the listeners of the classes. They may choose a schema.
        "events": [(listener, name) for name in names for listener in getattr(pool.dispatch, name)],
    }


def _derive_for_writer(host: Engine) -> Engine:
    """Return an engine for a single thread.

    The thread uses one connection. It needs another one only after it gave up a connection that
    hangs, so the pool has no upper limit.
    """
    is_bound = _is_bound_to_threads(host.pool)
    pool = _null_pool(host.pool) if is_bound else _queue_pool(host.pool)
    return _derive(host, pool, **{WRITES: True})


def _derive(host: Engine, pool: Pool, **options: Any) -> Engine:
    """Return an engine with this pool, or the engine of the host app for a database in memory."""
    if is_in_memory(host):
        return host
    dialect = cast(Dialect, pool._dialect)
    engine = QuietEngine(
        pool,
        dialect,
        host.url,
        echo=host.echo,
        # An error message would hold the packets.
        hide_parameters=True,
        execution_options=options,
    )
    # Our listener runs after the copied listeners of the host app, and overrides them.
    event.listen(
        *(engine, "connect"),
        lambda driver, record: set_up_connection(driver, dialect, record.info),
    )
    if dialect.name == "sqlite":
        event.listen(engine, "begin", begin_sqlite)
        watch_file(engine)
    elif dialect.name == "postgresql":
        event.listen(engine, "begin", begin_postgresql)
    return engine


def begin_sqlite(connection: Connection) -> None:
    """Begin a transaction. After `set_up_sqlite`, the sqlite3 driver does not begin it."""
    driver: Any = connection.connection.driver_connection
    options = connection.get_execution_options()
    if driver.in_transaction or options.get("isolation_level") == "AUTOCOMMIT":
        return
    statement = "BEGIN IMMEDIATE" if options.get(WRITES) else "BEGIN"
    try:
        driver.execute(statement)  # takes a fifth of the time of `exec_driver_sql`
    except sqlite3.Error as error:
        dialect = connection.dialect
        raise DBAPIError.instance(statement, None, error, sqlite3.Error, dialect=dialect) from error


def begin_postgresql(connection: Connection) -> None:
    """Make the transaction durable, if the server or the user has `synchronous_commit = off`.

    PgBouncer can give each transaction another server connection, so a setting of the session would
    not last.
    """
    statement = connection.info.get(BEGIN_KEY)
    if statement and connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
        connection.exec_driver_sql(statement)


def set_up_connection(driver: Any, dialect: Dialect, info: dict[str, Any]) -> None:
    """Configure a new connection of the driver for durable transactions.

    `info` is the dictionary of SQLAlchemy for the connection.
    """
    if dialect.name == "sqlite":
        set_up_sqlite(driver)
    elif dialect.name == "postgresql":
        _set_up_postgresql(driver, dialect, info)
    elif dialect.name in ("mysql", "mariadb"):
        _set_up_mysql(driver, dialect)


def _set_up_postgresql(driver: Any, dialect: Dialect, info: dict[str, Any]) -> None:
    # The driver refuses these changes in a transaction that a listener of the host app left open.
    driver.commit()
    dialect.set_isolation_level(driver, "READ COMMITTED")
    if hasattr(driver, "set_client_encoding"):  # psycopg2 does not notice a SET
        driver.set_client_encoding("UTF8")
    _use_tuples(driver, dialect)
    cursor = driver.cursor()
    cursor.execute("SET client_encoding = 'UTF8'")
    cursor.execute("SELECT 1 WHERE current_setting('synchronous_commit') = 'off'")
    if cursor.fetchall():
        info[BEGIN_KEY] = "SET LOCAL synchronous_commit = on"
    else:  # the session keeps its value, even if the server gets another one
        cursor.execute(
            "SELECT set_config('synchronous_commit', current_setting('synchronous_commit'), false)"
        )
        cursor.fetchall()
    cursor.close()
    driver.commit()


def _use_tuples(driver: Any, dialect: Dialect) -> None:
    """Let the cursors of a driver return tuples, whatever class the host app has chosen."""
    module: Any = dialect.loaded_dbapi
    if hasattr(driver, "row_factory"):  # psycopg
        driver.row_factory = module.rows.tuple_row
    if hasattr(driver, "cursor_factory") and hasattr(module, "extensions"):  # psycopg2
        driver.cursor_factory = module.extensions.cursor
    if hasattr(driver, "cursorclass"):  # PyMySQL and mysqlclient
        driver.cursorclass = module.cursors.Cursor


def _set_up_mysql(driver: Any, dialect: Any) -> None:
    # Each driver also encodes texts by the character set that its own method sets.
    for name in ("set_character_set", "set_charset", "set_charset_collation"):
        if hasattr(driver, name):
            getattr(driver, name)("utf8mb4")
            break
    else:
        cursor = driver.cursor()
        cursor.execute("SET NAMES utf8mb4")
        cursor.close()
    _use_tuples(driver, dialect)
    # SQLAlchemy quotes as the mode was when the host app connected for the first time.
    modes = ["STRICT_ALL_TABLES"]
    modes += ["ANSI_QUOTES"] if dialect._server_ansiquotes else []
    modes += [] if dialect._backslash_escapes else ["NO_BACKSLASH_ESCAPES"]
    cursor = driver.cursor()
    # A session that the host app makes read-only stays so: the host may only want to read.
    cursor.execute(f"SET sql_mode = '{','.join(modes)}', {SETTINGS_OF_MYSQL}")
    cursor.close()
    dialect.set_isolation_level(driver, "REPEATABLE READ")


def describe_url(url: URL) -> str:
    """Return the URL without its password, with the full path of a SQLite file."""
    if url.get_backend_name() == "sqlite" and (path := resolve_path(url)):
        return f"sqlite:///{path}"
    return url.render_as_string(hide_password=True)


def create_private_file(path: str | os.PathLike[str]) -> None:
    """Create the file and its folder if they are missing. Only the owner may read the file.

    An existing file is not opened: closing it would drop all locks that this process has on it.
    See https://sqlite.org/howtocorrupt.html, section 2.2.
    """
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_CLOEXEC, 0o600))
