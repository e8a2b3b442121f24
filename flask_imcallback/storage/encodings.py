"""The encoding of a database, which must be able to store every account id."""

from __future__ import annotations

from sqlalchemy import Connection, Engine, text

from ..errors import ConfigError

ENCODING_SQL = {
    "postgresql": "SHOW server_encoding",
    "mysql": "SELECT @@character_set_connection",
    "mariadb": "SELECT @@character_set_connection",
    "sqlite": "PRAGMA encoding",
}
"""Dialect -> the query of its encoding. The tables on MariaDB and MySQL name their own."""

COMPLETE_ENCODINGS = {"UTF8", "utf8mb4", "UTF-8", "UTF-16le", "UTF-16be"}
"""Encodings that can store all of Unicode. MySQL's utf8mb3 has no emoji and no rare Han
characters."""


def read_encoding(connection: Connection) -> str:
    """Return the name that the database gives its encoding, or an empty text."""
    query = ENCODING_SQL.get(connection.dialect.name)
    return str(connection.scalar(text(query))) if query else ""


def encoding_problem(encoding: str) -> str:
    """Return the problem of an encoding that loses account ids and its remedy, or an empty text."""
    if not encoding or encoding in COMPLETE_ENCODINGS:
        return ""
    return (
        f"the database has the encoding {encoding}, which cannot store every account id: create a "
        "database with the encoding UTF8 (on PostgreSQL: CREATE DATABASE name ENCODING 'UTF8' "
        "TEMPLATE template0) and set its URL"
    )


def check_encoding(engine: Engine) -> None:
    """Raise `ConfigError` if the database cannot store every account id."""
    try:
        with engine.connect() as connection:
            encoding = read_encoding(connection)
    except TypeError as error:
        # psycopg returns bytes from such a database, and SQLAlchemy fails to read them.
        if engine.dialect.name != "postgresql":
            raise
        raise ConfigError(encoding_problem("SQL_ASCII")) from error
    if problem := encoding_problem(encoding):
        raise ConfigError(problem)
