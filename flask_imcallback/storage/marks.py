"""The mark of a database: a text that tells apart the databases of several deployments."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Engine

from .sqlite_files import resolve_path

DEFAULT_PORTS: dict[str, int] = {"postgresql": 5432, "mysql": 3306}

ALIASES = {"dbname": "database", "db": "database", "username": "user"}
"""Other names that a driver has for an argument."""

EXTRA_ARGUMENTS = {
    "postgresql": ("hostaddr", "service", "search_path", "role"),
    "mysql": ("unix_socket", "read_default_file", "read_default_group", "option_files"),
}
"""Arguments, beside those in a mark's main part, that lead to another database or schema."""

LIBPQ_VARIABLES = {
    "host": "PGHOST",
    "hostaddr": "PGHOSTADDR",
    "port": "PGPORT",
    "database": "PGDATABASE",
    "user": "PGUSER",
    "service": "PGSERVICE",
    "options": "PGOPTIONS",
}
"""Environment variables of PostgreSQL, by the argument whose default they are.
See https://www.postgresql.org/docs/current/libpq-envars.html."""

POSTGRESQL_SETTING = re.compile(r"(?:-c\s*|--)(search[_-]path|role)\s*=\s*((?:\\.|[^\\\s])*)", re.I)
"""A setting in the `options` of PostgreSQL that leads to another schema."""

MYSQL_USE = re.compile(r"\bUSE\s+`?([^\s`;]+)", re.I)
"""The statement of MySQL that changes to another database."""


def database_mark(url: URL, arguments: Mapping[str, Any] | None = None) -> str:
    """Return a text that identifies a database, without password and driver.

    `arguments` are what the driver gets, because `connect_args` override the URL. The same database
    has the same mark in each process, also while the database is unavailable. A spool keeps the
    mark with each entry.

    The mark of PostgreSQL has the user if its schema depends on it, as it does by default.
    """
    backend = _backend(url)
    if backend == "sqlite":
        return f"sqlite:///{resolve_path(url) or ':memory:'}"
    values = _read_values(url, arguments or {})
    has_own_schema = "$user" in values.get("search_path", "$user") and "role" not in values
    has_user = backend == "postgresql" and "user" in values and has_own_schema
    user = f"{quote(values['user'], safe='')}@" if has_user else ""
    host = quote(values.get("host", "localhost"), safe=":,")
    port = values.get("port", DEFAULT_PORTS.get(backend))
    extras = "&".join(
        f"{name}={quote(values[name], safe='/:,=')}"
        for name in EXTRA_ARGUMENTS.get(backend, ())
        if name in values
    )
    database = quote(values.get("database", ""), safe="")
    return f"{backend}://{user}{host}:{port}/{database}" + (extras and f"?{extras}")


def engine_mark(engine: Engine) -> str:
    """Return the mark of the engine's database. Opens no connection."""
    return database_mark(engine.url, _connect_arguments(engine))


def names_server_database(engine: Engine) -> bool:
    """Return False if the mark of a database server may also stand for another database."""
    values = _read_values(engine.url, _connect_arguments(engine))
    return bool(values.keys() & {"database", "service", "read_default_file", "option_files"})


def has_own_creator(engine: Engine) -> bool:
    """Return True if a function of the host app opens the connections of an engine."""
    return getattr(engine.pool._creator, "__module__", "") != "sqlalchemy.engine.create"


def _backend(url: URL) -> str:
    backend = url.get_backend_name()
    return "mysql" if backend == "mariadb" else backend


def _connect_arguments(engine: Engine) -> dict[str, Any]:
    """Return the arguments for the driver, or nothing if the host app has its own `creator`.

    SQLAlchemy keeps the arguments only in the function that opens the connections.
    """
    if has_own_creator(engine):
        return {}
    with suppress(TypeError):
        return dict(inspect.getclosurevars(engine.pool._creator).nonlocals.get("cparams", {}))
    return {}


def _read_values(url: URL, arguments: Mapping[str, Any]) -> dict[str, str]:
    """Return what leads to the database, by the name of the argument. Later sources win."""
    parts = {"host": url.host, "port": url.port, "database": url.database, "user": url.username}
    values: dict[str, str] = {}
    for source in (parts, url.query, arguments):
        for name, value in source.items():
            if value:
                text = ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
                values[ALIASES.get(name, name)] = text
    if url.get_backend_name() == "postgresql":
        for name, variable in LIBPQ_VARIABLES.items():
            if os.environ.get(variable):
                values.setdefault(name, os.environ[variable])
        if "user" in values:
            values.setdefault("database", values["user"])
        for name, value in POSTGRESQL_SETTING.findall(values.get("options", "")):
            values[name.lower().replace("-", "_")] = value
    elif names := MYSQL_USE.findall(values.get("init_command", "")):
        values["database"] = names[-1]
    return values
