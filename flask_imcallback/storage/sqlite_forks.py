"""Forks of a process that uses SQLite: the child inherits no connection and no lock of SQLite."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Protocol
from weakref import WeakSet

from sqlalchemy import Engine, NullPool, Pool, QueuePool
from sqlalchemy.pool import ConnectionPoolEntry

from .quiet_engines import QuietNullPool, QuietQueuePool

FORK_DELAY_SECONDS, FORK_POLL_SECONDS = 2.0, 0.005
"""Maximum time for which a fork waits for the transactions of other threads."""

MAX_GATE_SECONDS = 1.0
"""Maximum time for which a transaction waits for a fork. It must end before its deadline."""

_closed_before_fork: WeakSet[Engine] = WeakSet()
_given_up_before_fork: WeakSet[ConnectionOwner] = WeakSet()


class _ForkGate:
    """Keeps the threads of this process out of SQLite while the process forks.

    The child would inherit the locks inside the library, and no thread that releases them.
    """

    def __init__(self) -> None:
        self.is_shut = False
        self._in_use: set[object] = set()

    def enter(self, key: object) -> None:
        """Note that a connection is opened or used. Waits while the process forks."""
        self._in_use.add(key)
        if not self.is_shut:
            return
        deadline = time.monotonic() + MAX_GATE_SECONDS
        while self.is_shut and time.monotonic() < deadline:
            self._in_use.discard(key)
            time.sleep(FORK_POLL_SECONDS)
            self._in_use.add(key)

    def stay(self, key: object) -> None:
        """Note another key. The caller is inside with a first key, so a fork waits for it."""
        self._in_use.add(key)

    def leave(self, key: object) -> None:
        """Note that the connection rests in its pool, or is closed."""
        self._in_use.discard(key)

    @property
    def is_free(self) -> bool:
        """Whether no connection is in use."""
        return not self._in_use

    def open(self) -> None:
        self.is_shut = False

    def open_in_child(self) -> None:
        self.is_shut = False
        self._in_use.clear()


_gate = _ForkGate()


def _continue_in_child() -> None:
    _given_up_before_fork.clear()
    _gate.open_in_child()


class ConnectionOwner(Protocol):
    """An object that keeps a connection of a pool while nobody uses the connection."""

    def give_up_connection(self) -> None:
        """Close the connection, unless a transaction uses it. Returns immediately."""


def give_up_before_fork(owner: ConnectionOwner) -> None:
    """Close the connection of the owner before this process forks. See `close_before_fork`."""
    _given_up_before_fork.add(owner)


def close_before_fork(engine: Engine) -> None:
    """Close the idle connections of an engine before this process forks, if they open a file.

    SQLite remembers the locks of a process. A child would believe in locks that only its parent
    has. See https://sqlite.org/howtocorrupt.html, section 2.6.
    """
    if engine.dialect.name == "sqlite" and isinstance(engine.pool, QueuePool | NullPool):
        _closed_before_fork.add(engine)


def _close_idle_connections() -> None:
    """Wait a moment for the transactions that run, and close all connections."""
    _gate.is_shut = True
    deadline = time.monotonic() + FORK_DELAY_SECONDS
    while True:
        for owner in list(_given_up_before_fork):
            owner.give_up_connection()
        if _gate.is_free or time.monotonic() > deadline:
            break
        time.sleep(FORK_POLL_SECONDS)
    for engine in list(_closed_before_fork):
        with suppress(Exception):  # whatever the error is, the fork goes on
            engine.dispose()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(
        before=_close_idle_connections,
        after_in_parent=_gate.open,
        after_in_child=_continue_in_child,
    )


class _GuardedPool(Pool):
    """A pool that opens, lends and closes no connection while this process forks."""

    _is_disposed = False

    def dispose(self) -> None:
        self._is_disposed = True
        super().dispose()

    def _do_get(self) -> ConnectionPoolEntry:
        opening = object()
        _gate.enter(opening)
        try:
            record = super()._do_get()
            _gate.stay(record)
            return record
        finally:
            _gate.leave(opening)

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        try:
            super()._do_return_conn(record)
            if self._is_disposed:  # while the connection was in use. The engine has a new pool
                super().dispose()
        finally:
            _gate.leave(record)


class GuardedQueuePool(_GuardedPool, QuietQueuePool):
    """A pool that keeps connections of SQLite."""


class GuardedNullPool(_GuardedPool, QuietNullPool):
    """A pool that closes each connection of SQLite after its use."""
