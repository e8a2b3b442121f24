"""The database that the host app uses, however the host app has configured it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from flask import Flask, current_app
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Engine, event

from .errors import ConfigError
from .storage import PerProcess, create_private_file, describe, new_lock, use_wal

LITE_DEFAULT_BIND = "default"
"""The bind of Flask-SQLAlchemy-Lite that is used without `IMCALLBACK_BIND_KEY`."""


class Database:
    """The database that the host app uses: a Flask-SQLAlchemy object with a bind, or an engine.

    `db` is an object of Flask-SQLAlchemy or Flask-SQLAlchemy-Lite. `engine` is a SQLAlchemy engine
    or a function that returns one. Raises `ConfigError` for other objects.
    """

    def __init__(
        self,
        db: Any = None,
        engine: Engine | Callable[[], Engine] | None = None,
        bind_key: str | None = None,
    ) -> None:
        if db is not None and engine is not None:
            raise ConfigError("ImCallback has both db and engine: pass only one of them")
        if engine is not None and bind_key is not None:
            raise ConfigError(
                f"IMCALLBACK_BIND_KEY is {bind_key!r}, but ImCallback has an engine: unset the key"
            )
        is_function = callable(engine) and not isinstance(engine, type)
        if engine is not None and not isinstance(engine, Engine) and not is_function:
            raise ConfigError(
                f"engine is {_describe_type(engine)}: pass a SQLAlchemy Engine, for example "
                "create_engine(url), or a function that returns one"
            )
        if db is not None and not hasattr(type(db), "engines"):
            remedy = (
                "pass it as engine"
                if isinstance(db, Engine)
                else "pass the SQLAlchemy object of Flask-SQLAlchemy, or pass an engine as engine"
            )
            raise ConfigError(f"db is {_describe_type(db)}: {remedy}")
        self._db = db
        self._engine = engine
        self._bind_key = bind_key
        self._lock = PerProcess(new_lock)
        self._error: Exception | None = None

    def engine(self) -> Engine:
        """Return the engine of the host app. Needs an app context. Raises `ConfigError`."""
        if isinstance(self._engine, Engine):
            return self._engine
        if self._engine is not None:
            return self._engine()
        db = self._open()
        with _config_errors("db is not initialized for this app ({}): call db.init_app(app)"):
            engines = db.engines
        keys = [self._bind_key] if self._bind_key is not None else [None, LITE_DEFAULT_BIND]
        for key in keys:
            if key in engines:
                engine: Engine = engines[key]
                return engine
        binds = ", ".join(repr(bind) for bind in engines) or "none"
        raise ConfigError(
            f"IMCALLBACK_BIND_KEY is {self._bind_key!r}, "
            f"but Flask-SQLAlchemy has other binds: use one of {binds}"
        )

    def check(self, app: Flask) -> None:
        """Check `db` and the bind at the start, if the host app has its database already.

        Raises `ConfigError`.
        """
        if "sqlalchemy" in app.extensions and self._engine is None:
            with app.app_context():
                self.engine()

    def _open(self) -> Any:
        """Return the `SQLAlchemy` object of the host app, or create one.

        The object is created at the first call and not earlier: the host app may initialize its own
        `SQLAlchemy` after this extension, and an app can have only one.
        """
        if self._db is None:
            with self._lock.get():
                self._db = self._db or self._find_or_create_db()
        return self._db

    def _find_or_create_db(self) -> Any:
        if self._error is not None:
            # The first call has left an incomplete Flask-SQLAlchemy object in the app.
            raise self._error.with_traceback(None)
        try:
            with _config_errors(
                "cannot create an engine ({}): check SQLALCHEMY_DATABASE_URI, or run flask "
                "imcallback doctor"
            ):
                return current_app.extensions.get("sqlalchemy") or _create_db()
        except Exception as error:
            self._error = error
            raise


def _describe_type(value: object) -> str:
    """Return the type of a wrong argument, because its text may hold a password."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"an object of the type {type(value).__name__}"


@contextmanager
def _config_errors(message: str) -> Iterator[None]:
    """Raise `ConfigError` for every error in the host app. `{}` in the message is the error."""
    try:
        yield
    except Exception as error:
        raise ConfigError(message.format(describe(error))) from error


def _create_db() -> SQLAlchemy:
    """Create a `SQLAlchemy` object. Its default is a SQLite file in the instance folder."""
    app = current_app._get_current_object()  # type: ignore[attr-defined]
    # An empty URL is a mistake, for example an unset variable in a Compose file.
    url = app.config.get("SQLALCHEMY_DATABASE_URI")
    is_own_file = url is None and not app.config.get("SQLALCHEMY_BINDS")
    if is_own_file:
        app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///imcallback.db"
    db = SQLAlchemy(app)
    for engine in db.engines.values():
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", use_wal)
    if is_own_file:
        path = db.engines[None].url.database or ""
        event.listen(db.engines[None], "do_connect", lambda *_: create_private_file(path))
    return db
