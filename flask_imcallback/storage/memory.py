"""Databases in memory. Tests of host apps use them.

Such a database has one connection, which the host app uses too. SQLite crashes if two threads use
it at once, and a commit in one thread commits what another thread has begun. So this extension uses
it only in the thread of its caller.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from weakref import WeakKeyDictionary

from sqlalchemy import Engine, StaticPool

from .engines import is_in_memory
from .threads import PerProcess, new_lock

_lock = PerProcess(new_lock)
_known: WeakKeyDictionary[Engine, bool] = WeakKeyDictionary()
"""The answers of `shares_connection`. To find out needs the connection."""


def shares_connection(engine: Engine) -> bool:
    """Return True if the host app uses the only connection of the engine, too."""
    if not isinstance(engine.pool, StaticPool):
        return False
    if engine not in _known:
        with _lock.get():
            _known[engine] = is_in_memory(engine)
    return _known[engine]


def uses_shared_connection(get_engine: Callable[[], Engine]) -> bool:
    """Return as `shares_connection`, or False if the app gives no engine."""
    try:
        return shares_connection(get_engine())
    except Exception:  # the use of the database tells why
        return False


def hold_connection(engine: Engine) -> AbstractContextManager[object]:
    """Keep other threads of this extension from writing by a shared connection."""
    return _lock.get() if shares_connection(engine) else nullcontext()
