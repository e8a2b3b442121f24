"""The explanations of database errors: the cause in plain words, and the remedy."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from ..errors import ConfigError
from ..storage import DeadlineError, Fault, classify, describe
from .findings import Finding, failure

WAITING = "Callbacks wait in the spool. Without a spool they are lost."
CHECK_SERVER = (
    "Check the database, and the host, port, user and database name in SQLALCHEMY_DATABASE_URI. "
    "Special characters of the password need percent encoding, such as %40 for @."
)
PACKAGES = {
    "MySQLdb": "mysqlclient",
    "mariadb": "mariadb",
    "mysql": "mysql-connector-python",
    "pg8000": "pg8000",
    "psycopg": "'psycopg[binary]'",
    "psycopg2": "psycopg2-binary",
    "pymysql": "PyMySQL",
}
"""Module of a driver -> package to install. The extension cannot use an asynchronous driver."""


@dataclass(frozen=True)
class Cause:
    """A known cause of errors, with the codes and texts that identify it."""

    title: str
    remedy: str
    states: frozenset[str] = frozenset()
    """SQLSTATEs of PostgreSQL."""
    numbers: frozenset[int] = frozenset()
    """Error numbers of MySQL and MariaDB."""
    texts: tuple[str, ...] = ()
    """Parts of the message, in lower case."""


CAUSES = [
    Cause(
        "The database is locked",
        "Find the program that holds a lock, for example a backup or a migration, and end its "
        "transaction. On SQLite, `fuser` and the path of the database file list such programs.",
        frozenset({"55P03"}),
        frozenset({1205}),
        ("database is locked", "database table is locked"),
    ),
    Cause(
        "The database is read-only",
        "Let the user of the app write the database file and its folder. A standby of a cluster "
        "is read-only, too: connect to the primary.",
        frozenset({"25006"}),
        frozenset({1290, 1792, 1836}),
        ("readonly database",),
    ),
    Cause(
        "The disk of the database is full",
        "Free space on the disk of the database.",
        frozenset({"53100"}),
        frozenset({1021, 1114}),
        ("database or disk is full", "no space left"),
    ),
    Cause(
        "The database file cannot be opened",
        "Check that the folder exists, and that the user of the app may read and write the folder "
        "and the file.",
        texts=("unable to open database file",),
    ),
    Cause(
        "The database file is damaged, or is not a SQLite database",
        "Restore the file from a backup, or name another file in SQLALCHEMY_DATABASE_URI.",
        texts=("file is not a database", "malformed"),
    ),
    Cause(
        "The disk of the database fails",
        "Check the disk and the log of the system.",
        texts=("disk i/o error",),
    ),
    Cause(
        "The database user may not use the tables",
        "Grant SELECT and INSERT on the tables imcallback_..., UPDATE on imcallback_counter and "
        "DELETE on imcallback_inbox to the user of the app.",
        frozenset({"42501"}),
        frozenset({1142, 1143}),
    ),
    Cause(
        "The database refuses the user or the password",
        "Correct the user and the password in SQLALCHEMY_DATABASE_URI. Write special characters "
        "in percent encoding, such as %40 for @.",
        frozenset({"28000", "28P01"}),
        frozenset({1044, 1045, 1698}),
        ("password authentication failed", "no password supplied"),
    ),
    Cause(
        "The database does not exist",
        "Create the database, or correct its name in SQLALCHEMY_DATABASE_URI.",
        frozenset({"3D000"}),
        frozenset({1049}),
        ('" does not exist',),
    ),
    Cause(
        "The driver refuses an option of the database",
        "Correct the part after ? in SQLALCHEMY_DATABASE_URI, or connect_args in "
        "SQLALCHEMY_ENGINE_OPTIONS.",
        texts=("invalid connection option",),
    ),
    Cause(
        "A table or a column of the extension is missing",
        "Restore the tables from a backup. If there is none, run flask imcallback downgrade base "
        "and flask imcallback upgrade, which delete what is left of the history.",
        frozenset({"42P01", "42703"}),
        frozenset({1054, 1146}),
        ("no such table", "no such column", "has no column named"),
    ),
    Cause(
        "The database has no connection left",
        "Raise max_connections of the server, or make the pools of the apps smaller.",
        frozenset({"53300"}),
        frozenset({1040, 1203}),
        ("too many clients", "remaining connection slots", "queuepool limit"),
    ),
]
"""The known causes. The first cause that fits is reported."""


def explain(error: BaseException) -> Finding:
    """Return the finding for an error of the database, of its driver or of its settings."""
    cause = error.__cause__ or error
    if isinstance(cause, DeadlineError):
        return failure(
            "The database does not answer in time",
            f"{WAITING} The error: {cause}",
            "Check the load and the locks of the server, the network and the firewall.",
        )
    return _explain_settings_error(cause) or _explain_database_error(cause)


def _explain_settings_error(cause: BaseException) -> Finding | None:
    """Return the finding for an error before a connection is made, or None for another error."""
    if isinstance(cause, ConfigError):
        return failure("The database is configured wrongly", WAITING, f"The error: {cause}.")
    if isinstance(cause, ModuleNotFoundError):
        package = PACKAGES.get(cause.name or "")
        install = f"Install it with pip install {package}. Or name" if package else "Name"
        return failure(
            f"The database driver {cause.name} is not installed",
            WAITING,
            f"{install} another driver in SQLALCHEMY_DATABASE_URI, such as postgresql+psycopg:// "
            "or mysql+pymysql://.",
        )
    if isinstance(cause, NoSuchModuleError):
        return failure(
            "SQLAlchemy does not know the kind of database in SQLALCHEMY_DATABASE_URI",
            f"{WAITING} The error: {cause}",
            "Begin the URL with postgresql:// or mysql+pymysql:// or sqlite:///. SQLAlchemy does "
            "not know postgres://.",
        )
    if isinstance(cause, TypeError) and "bytes-like" in str(cause):
        # psycopg returns bytes instead of text, and SQLAlchemy fails at the first connection.
        return failure(
            "The database cannot store every account id",
            f"The encoding is SQL_ASCII. {WAITING}",
            "Create a database with the encoding UTF8 (CREATE DATABASE name ENCODING 'UTF8' "
            "TEMPLATE template0), and set its URL.",
        )
    if isinstance(cause, ArgumentError | ValueError | TypeError | AttributeError):
        return _explain_engine_error(cause)
    return None


def _explain_engine_error(cause: BaseException) -> Finding:
    if isinstance(cause, ArgumentError) and "URL" in str(cause):
        # Some releases of SQLAlchemy show the URL with its password.
        return failure(
            "SQLALCHEMY_DATABASE_URI is not a database URL",
            WAITING,
            "Write it as dialect+driver://user:password@host/database, such as "
            "postgresql+psycopg://user:password@127.0.0.1/imcallback. The URL of a SQLite file is "
            "sqlite:////folder/file.db, or sqlite:///file.db for a file in the instance folder.",
        )
    if not isinstance(cause, ArgumentError) and "create_engine()" not in str(cause):
        # The text of a ValueError may be a part of the password.
        shown = "" if isinstance(cause, ValueError) else f" The error: {describe(cause)}"
        return failure(
            "SQLAlchemy or the driver refuses an option of the database",
            f"{WAITING}{shown}",
            "Check the port and the part after ? in SQLALCHEMY_DATABASE_URI, and check "
            "SQLALCHEMY_ENGINE_OPTIONS. An environment variable needs JSON with double quotes.",
        )
    return failure(
        "SQLALCHEMY_ENGINE_OPTIONS are wrong",
        f"{WAITING} The error: {cause}",
        "Remove the wrong option, or write it as create_engine() of SQLAlchemy expects it.",
    )


def _explain_database_error(cause: BaseException) -> Finding:
    message = describe(cause)
    original = cause.orig if isinstance(cause, DBAPIError) and cause.orig else cause
    state = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
    number = original.args[0] if original.args else None
    for known in CAUSES:
        if (
            state in known.states
            or (isinstance(number, int) and number in known.numbers)
            or any(text in message.lower() for text in known.texts)
        ):
            return failure(known.title, f"{WAITING} The error: {message}", known.remedy)
    if isinstance(cause, DBAPIError) and classify(cause) is not Fault.DISCONNECTED:
        return failure(
            "The database refuses to store anything",
            f"{WAITING} The error: {message}",
            "Read the error. Perhaps somebody has added a trigger or a constraint to the tables.",
        )
    return failure("The database does not answer", f"{WAITING} The error: {message}", CHECK_SERVER)
