"""Engines, pools and dialects that call no listener of the host app, unless we copy it.

A host app may listen to the classes `Engine`, `Pool` and `Dialect` of SQLAlchemy. Such a listener
may need a request of the host app, or run a statement that another database does not know.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import Dialect, Engine, NullPool, QueuePool


class QuietEngine(Engine):
    """An engine that only its own listeners hear."""

    _sa_propagate_class_events = False


class QuietQueuePool(QueuePool):
    """A pool that keeps connections, and that only its own listeners hear."""

    _sa_propagate_class_events = False


class QuietNullPool(NullPool):
    """A pool that closes each connection after its use, and that only its own listeners hear."""

    _sa_propagate_class_events = False


def quiet_dialect(dialect: Dialect) -> Dialect:
    """Return a dialect that calls no listener. A listener for errors could hide what went wrong.

    The result shares all other attributes with the dialect, because SQLAlchemy sets some of them
    when the host app connects for the first time.
    """
    dialect_class: Any = type(dialect)
    quiet: Dialect = object.__new__(_quiet_class(dialect_class))
    quiet.__dict__ = dialect.__dict__
    return quiet


@cache
def _quiet_class(dialect_class: Any) -> Any:
    """Return a subclass of a dialect class that seems to have no listeners."""
    has_cache = "supports_statement_cache"  # SQLAlchemy does not look for it in a base class
    return type(
        dialect_class.__name__,
        (dialect_class,),
        {
            "_has_events": property(lambda _: False),
            has_cache: dialect_class.__dict__.get(has_cache, False),
        },
    )
