"""Threads, locks and signals that work in every server, and values that each process owns.

gevent replaces the threads of Python with greenlets, perhaps after this module was imported.
SQLite, psycopg2 and `flock` would then stop all requests of a process while they wait. So the
threads of this extension are always real threads, its locks are real locks, and only a waiting
request is a greenlet.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")


class PerProcess(Generic[T]):
    """A value that each process creates at its first use.

    After a fork, the child creates a new value. It uses neither the sockets of its parent, nor a
    lock that another thread of its parent held. `create` must be quick and without side effects,
    because two threads may call it at the same time.
    """

    def __init__(self, create: Callable[[], T]) -> None:
        self._create = create
        # The values of parent processes stay here, because freeing a value would close its sockets.
        self._values: dict[int, T] = {}

    def get(self) -> T:
        """Return the value of this process."""
        process_id = os.getpid()
        value = self._values.get(process_id)
        if value is None:
            # dict.setdefault is atomic, so all threads get the same value.
            value = self._values.setdefault(process_id, self._create())
        return value


class Signal(Protocol):
    """An event. One thread or greenlet waits for it, and another thread sets it."""

    def set(self) -> None:
        """Wake the waiter."""

    def is_set(self) -> bool:
        """Return True after `set`."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait at most `timeout` seconds. Returns whether the signal is set."""


class _GreenletSignal:
    """A signal whose waiter is a greenlet. Other greenlets run while it waits."""

    def __init__(self) -> None:
        from gevent import get_hub
        from gevent.event import Event

        self._is_set = False
        self._event = Event()
        # An async watcher is the only object of gevent that another thread may touch.
        self._watcher = get_hub().loop.async_()

    def set(self) -> None:
        self._is_set = True
        self._watcher.send()

    def is_set(self) -> bool:
        return self._is_set

    def wait(self, timeout: float | None = None) -> bool:
        self._watcher.start(self._event.set)
        try:
            if not self._is_set:  # a call of `set` before `start` wakes nobody
                self._event.wait(timeout)
            return self._is_set
        finally:
            self._watcher.stop()


def new_signal() -> Signal:
    """Return a signal for the calling thread or greenlet."""
    return _GreenletSignal() if runs_in_gevent() else threading.Event()


def new_lock() -> threading.Lock:
    """Return a real lock. Its holder must never wait for anything."""
    lock: threading.Lock = _original("_thread", "allocate_lock")()
    return lock


def new_queue() -> Any:
    """Return a `SimpleQueue` from which a real thread reads."""
    return _original("queue", "SimpleQueue")()


def start_thread(name: str, function: Callable[[], None]) -> None:
    """Run a function in a real thread that does not keep the process alive."""
    if _is_patched():
        _original("_thread", "start_new_thread")(_run_beside_gevent, (function,))
    else:
        threading.Thread(target=function, name=name, daemon=True).start()


def _run_beside_gevent(function: Callable[[], None]) -> None:
    from gevent import get_hub

    try:
        function()
    finally:
        # Drivers in Python use patched sockets, which create an event loop in this thread.
        get_hub().destroy(destroy_loop=True)


def _original(module: str, name: str) -> Any:
    """Return an object of a standard module as it was before gevent replaced it."""
    if monkey := sys.modules.get("gevent.monkey"):
        return monkey.get_original(module, name)
    return getattr(importlib.import_module(module), name)


def _is_patched() -> bool:
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


def runs_in_gevent() -> bool:
    """Return True in a greenlet, even if uWSGI started it and no module is patched."""
    if _is_patched():
        return True
    gevent = sys.modules.get("gevent")
    return gevent is not None and isinstance(gevent.getcurrent(), gevent.Greenlet)
