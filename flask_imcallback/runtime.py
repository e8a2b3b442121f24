"""The objects that one app owns, and the functions that build them."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from flask import Flask, current_app, has_app_context
from sqlalchemy import Connection, Engine

from .errors import ConfigError, StorageError
from .history import History
from .host_database import Database
from .log import (
    ActKind,
    Checkpoint,
    Feed,
    Key,
    NotEvidenceError,
    Report,
    Retention,
    Seal,
    Sealer,
    SecretKey,
    Sequencer,
    find_unnumbered,
    read_secret_key,
    store_act,
    stream_evidence,
    verify_database,
)
from .logger import logger
from .providers import Provider
from .receiver import Receiver
from .removals import announce
from .settings import NEW_SECRET, Settings
from .storage import (
    CallbackCounters,
    DatabaseState,
    Drain,
    Engines,
    Inspector,
    LostCallbacks,
    PerProcess,
    Recorder,
    Spool,
    check_write,
    describe,
    describe_url,
    inspect_database,
    run_alembic,
    shares_connection,
    storage_errors,
)

EXTENSION = "imcallback"
"""The key of the `Runtime` in `app.extensions`."""
NUMBERING_SECONDS = 60
"""Time that the numbering of the log may take before everything is sealed."""
RESERVED_NAMES = (
    *("account", "checkpoint", "deliveries", "evidence", "feed", "group", "health", "history"),
    *("page", "removal"),
)
"""Path segments of our own URLs. A provider with such a name would hide one of our URLs."""


class ThreadContext:
    """The app contexts of our threads. A caller that has one keeps its own.

    A function of the host app at the end of a context may need what only a request has. Its error
    must not end our work, so it is only logged, once in a process.
    """

    def __init__(self, app: Flask) -> None:
        self._app = app
        self._is_error_logged = False

    @contextmanager
    def __call__(self) -> Iterator[None]:
        if has_app_context() and current_app._get_current_object() is self._app:  # type: ignore[attr-defined]
            yield  # the context of the caller, who ends it
            return
        context = self._app.app_context()
        try:
            context.push()
        except Exception as error:  # of a receiver of a signal. The context is there all the same
            self._log(error)
        try:
            yield
        finally:
            try:
                context.pop()
            except Exception as error:
                self._log(error)

    def _log(self, error: Exception) -> None:
        if self._is_error_logged:
            return
        self._is_error_logged = True
        logger.warning(
            "A function of the app failed at the end of an app context without a request (%s). "
            "Let the functions of teardown_appcontext check what a request has set.",
            describe(error),
            exc_info=error,
        )


class ProcessState:
    """The objects that one process uses for one app, with their threads and connections."""

    def __init__(
        self,
        app: Flask,
        settings: Settings,
        database: Database,
        secret_keys: Sequence[Any],
        *,
        random_key: str,
        seal_key: SecretKey | None,
    ) -> None:
        self.context = ThreadContext(app)
        self.engines = Engines(database.engine)
        self.sealer = Sealer(
            self.engines.occasional, Path(app.instance_path), seal_key, settings.seal_seconds
        )
        self.sequencer = Sequencer(
            self.engines.numbering,
            self.context,
            self.sealer.seal_if_due if settings.seal_seconds else None,
        )
        self.drain: Drain | None = None
        if settings.spool is not None:
            spool = Spool(Path(app.instance_path, settings.spool), self.engines.mark)
            self.drain = Drain(
                spool,
                self.engines.draining,
                self.context,
                partial(announce, app),
                on_stored=self.sequencer.wake,
            )
        self.lost_callbacks = LostCallbacks(secret_keys or settings.guards)
        self.recorder = Recorder(
            self.engines.writing,
            self.engines.direct,
            context=self.context,
            deadline=settings.deadline,
            drain=self.drain,
            lost_callbacks=self.lost_callbacks,
            on_stored=self.sequencer.wake,
        )
        self.counters = CallbackCounters(
            self.engines.occasional, self.engines.reading, self.context
        )
        self.inspector = Inspector(self.engines.occasional, self.context)
        self.receiver = Receiver(settings, self.recorder, self.counters)
        self.history = History(self.engines.reading, secret_keys, random_key)
        self.feed = Feed(self.engines.reading, self.sequencer)
        self.is_prepared = False

    def close_connections(self) -> None:
        """Close the idle connections of this process."""
        self.recorder.stop_direct_writes()
        self.engines.dispose()


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """The objects that one app owns. They live in `app.extensions` as long as the app.

    Objects with threads, locks or connections belong to one process. They are created at their
    first use in that process, so a fork shares none of them, and gevent may patch Python late.
    """

    settings: Settings
    providers: Mapping[str, Provider]
    """The providers by name."""
    history_decorators: Sequence[Callable[..., Any]]
    process: PerProcess[ProcessState]

    @property
    def has_enabled_provider(self) -> bool:
        return any(provider.is_enabled for provider in self.providers.values())

    @property
    def drain(self) -> Drain | None:
        """The drain of this process, or None if `IMCALLBACK_SPOOL` is None."""
        return self.process.get().drain

    @property
    def recorder(self) -> Recorder:
        return self.process.get().recorder

    @property
    def counters(self) -> CallbackCounters:
        return self.process.get().counters

    @property
    def lost_callbacks(self) -> LostCallbacks:
        return self.process.get().lost_callbacks

    @property
    def receiver(self) -> Receiver:
        return self.process.get().receiver

    @property
    def history(self) -> History:
        return self.process.get().history

    @property
    def sealer(self) -> Sealer:
        return self.process.get().sealer

    @property
    def feed(self) -> Feed:
        return self.process.get().feed

    @property
    def sequencer(self) -> Sequencer:
        """The sequencer of this process, which numbers the log."""
        return self.process.get().sequencer

    @property
    def inspector(self) -> Inspector:
        """The inspector of the database, for health checks."""
        return self.process.get().inspector

    @property
    def context(self) -> ThreadContext:
        """The app contexts of threads that have no request."""
        return self.process.get().context

    def engine(self) -> Engine:
        """Return our own engine for the database of the host app.

        Needs an app context. Raises `ConfigError` if this database is wrong.
        """
        return self.process.get().engines.reading()

    def writing_engine(self) -> Engine:
        """Return our own engine for transactions that write. Needs an app context as `engine`."""
        return self.process.get().engines.writing()

    def read_evidence(self, *, with_packets: bool = False) -> Iterator[bytes]:
        """Yield the lines of the evidence. Needs an app context. Raises `StorageError`."""
        process = self.process.get()
        engine, sealer = process.engines.occasional(), process.sealer
        return stream_evidence(engine, sealer.origin, sealer.key, with_packets=with_packets)

    def verify_database(self, kept: Iterable[Checkpoint], key: Key | None = None) -> Report:
        """Check all that is sealed, with the kept checkpoints and the one beside the app.

        An app that signs must sign with `key`, if there is one. Needs an app context. Raises
        `StorageError` and `NotEvidenceError`.
        """
        process = self.process.get()
        own = process.sealer.read_kept()
        engine, sealer = process.engines.occasional(), process.sealer
        kept = [*kept, *([own] if own else [])]
        return verify_database(engine, sealer.origin, sealer.key, kept, key)

    def seal_log(self) -> list[Seal]:
        """Number and seal all entries. Needs an app context. Raises `StorageError`."""
        before = self._find_unnumbered()
        self.sequencer.catch_up(NUMBERING_SECONDS)
        if before is not None and before == self._find_unnumbered():
            raise StorageError(
                f"the entry {before} has no log position, so it cannot be sealed: check that this "
                "user of the database may write, and read the log of the app"
            )
        return self.sealer.seal()

    def _find_unnumbered(self) -> int | None:
        with storage_errors("read the log"), self.engine().connect() as connection:
            return find_unnumbered(connection)

    def retention(self, actor: str) -> Retention:
        """Return the retention of the log for an actor. Needs an app context."""
        return Retention(self.process.get().engines.occasional(), self.seal_log, actor)

    def store_act(self, kind: ActKind, actor: str, affected: int, detail: Mapping[str, Any]) -> int:
        """Store an act in the log, and return its id. Needs an app context.

        Raises `StorageError`.
        """
        act_id = store_act(self.writing_engine(), kind, actor, affected, detail)
        self.sequencer.wake()
        return act_id

    def log_read(self, actor: str, affected: int, detail: Mapping[str, Any]) -> None:
        """Store that an actor read removals or deliveries, if `IMCALLBACK_LOG_READING` is True.

        An answer that shows nothing is no act. Needs an app context. Raises `StorageError`.
        """
        if self.settings.log_reading and affected:
            self.store_act(ActKind.READ, actor, affected, detail)

    def inspect_database(self, seconds: float | None = None) -> DatabaseState:
        """Return the state of the database, after a write that was rolled back.

        Waits `seconds`, by default the deadline of a callback. Needs an app context. Raises
        `ConfigError` and `StorageError`. The tables of an old migration are not written.
        """

        def inspect(connection: Connection) -> DatabaseState:
            state = inspect_database(connection)
            if state.is_at_head:
                check_write(connection)
            return state

        return self.inspector.ask(inspect, seconds or self.settings.deadline)

    def describe_database(self) -> str:
        """Return the URL of the database without its password.

        Needs an app context. Raises `ConfigError`.
        """
        return describe_url(self.process.get().engines.host().url)

    @property
    def is_prepared(self) -> bool:
        """Whether `prepare_database` has succeeded in this process."""
        return self.process.get().is_prepared

    def prepare_database(self) -> None:
        """Open the database, and finish the work that an earlier process left.

        The drain stores the callbacks in the spool, and the sequencer numbers the log. Needs an app
        context. Raises `ConfigError`.
        """
        state = self.process.get()
        try:
            logger.info("Callbacks are stored in %s", self.describe_database())
        finally:
            if state.drain:
                state.drain.start_if_due()
        if not shares_connection(state.engines.host()):
            # Unlike `wake`, it logs no failure. This process has stored nothing yet.
            state.sequencer.catch_up(0)
        is_open = self.settings.history_tokens or self.history_decorators
        if is_open and not _signing_keys(current_app):
            logger.warning(
                "The app has no SECRET_KEY, so a cursor of the history works only in the process "
                "that made it. Set SECRET_KEY to the same random text on all machines, for example "
                "from %s",
                NEW_SECRET,
            )
        state.is_prepared = True


def build_runtime(
    app: Flask,
    *,
    db: Any = None,
    engine: Engine | Callable[[], Engine] | None = None,
    providers: Iterable[type[Provider] | Provider],
    history_decorators: Iterable[Callable[..., Any]],
) -> Runtime:
    """Read the settings of an app and build its objects, without using the database yet.

    Raises `ConfigError` for a wrong setting, for a wrong database, for a wrong provider name, and
    for a provider that would accept callbacks from anybody.
    """
    settings = Settings.from_config(app.config)
    database = Database(db, engine, settings.bind_key)
    database.check(app)
    # Made before a fork, so that all workers of a server that preloads the app share it.
    random_key = secrets.token_hex(32)
    seal_key = _read_seal_key(settings.seal_key)
    return Runtime(
        settings=settings,
        providers=_build_providers(providers, settings),
        history_decorators=tuple(history_decorators),
        process=PerProcess(
            lambda: ProcessState(
                app,
                settings,
                database,
                _signing_keys(app),
                random_key=random_key,
                seal_key=seal_key,
            )
        ),
    )


def get_runtime() -> Runtime:
    """Return the objects of the current app. Raises `ConfigError` if it has no `ImCallback`."""
    runtime = current_app.extensions.get(EXTENSION)
    if runtime is None:
        raise ConfigError("this app has no ImCallback: call ImCallback(app) or init_app(app)")
    return runtime  # type: ignore[no-any-return]


def upgrade(revision: str = "head") -> None:
    """Upgrade the tables of the current app to a revision, by default the newest.

    Raises `ConfigError` if `IMCALLBACK_BIND_KEY` is not a bind, `StorageError` if the database is
    unavailable, and `CommandError` of Alembic for an unknown revision.
    """
    run_alembic(get_runtime().engine(), "upgrade", revision)


def _read_seal_key(text: str | None) -> SecretKey | None:
    try:
        return read_secret_key(text) if text else None
    except NotEvidenceError as error:
        raise ConfigError(
            f"IMCALLBACK_SEAL_KEY cannot be used ({error}): print a new key with flask imcallback "
            "new-key ORIGIN, or unset the key to sign nothing"
        ) from None


def _build_providers(providers: Iterable[Any], settings: Settings) -> dict[str, Provider]:
    """Return the providers by name. `providers` are provider classes or provider objects."""
    by_name: dict[str, Provider] = {}
    for provider in providers:
        instance: Provider = provider(settings) if isinstance(provider, type) else provider
        name = instance.name
        if not re.fullmatch("[a-z][a-z0-9_]{0,31}", name) or name in RESERVED_NAMES:
            raise ConfigError(
                f"a provider cannot have the name {name!r}: use up to 32 of the characters a to z, "
                f"0 to 9 and '_', but none of {', '.join(RESERVED_NAMES)}"
            )
        if name in by_name:
            raise ConfigError(f"two providers have the name {name!r}: give each its own name")
        by_name[name] = instance
    return by_name


def _signing_keys(app: Flask) -> list[Any]:
    # Like in Flask's sessions, every key verifies a signature, and the last key signs.
    keys = [*(app.config.get("SECRET_KEY_FALLBACKS") or ()), app.config.get("SECRET_KEY")]
    return [key for key in keys if key]
