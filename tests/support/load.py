"""A load of callbacks, and a check of how they were answered and stored."""

from __future__ import annotations

import itertools
import json
import secrets
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from enum import IntEnum
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import URL, NullPool, create_engine, inspect, select

from flask_imcallback.storage.entries import Entry
from flask_imcallback.storage.entry_codec import decode_entry
from flask_imcallback.storage.tables import delivery, removal

SECRET = "a-secret-of-16-characters"
APP_ID = "1400000000"
SETTINGS = {
    "FLASK_IMCALLBACK_SECRETS": json.dumps([SECRET]),
    "FLASK_IMCALLBACK_TENCENT_APPS": json.dumps({APP_ID: []}),
}
OPENIM = f"/imcallback/openim/{SECRET}/callbackAfterRemoveBlackCommand"
TENCENT = (
    f"/imcallback/tencent/{SECRET}"
    f"?SdkAppid={APP_ID}&CallbackCommand=Sns.CallbackFriendDelete&contenttype=json"
)
TIMEOUT_SECONDS = 10


class Outcome(IntEnum):
    """The outcome of a callback. The highest outcome of several attempts counts."""

    UNSENT = 0
    """No server accepted the connection."""
    REFUSED = 1
    """The server answered that it could not store the callback."""
    UNANSWERED = 2
    """The callback was sent, perhaps in part, but no answer came in time."""
    ACKNOWLEDGED = 3


@dataclass
class Callback:
    """A callback with an owner that no other callback has."""

    owner: str
    targets: tuple[str, ...]
    path: str
    body: bytes
    is_repeated: bool = False
    """Whether the IM server repeats the callback when no answer comes."""
    outcome: Outcome = Outcome.UNSENT
    sent_at: float = 0.0
    """Time of the first attempt, on the monotonic clock."""
    acknowledged_at: float = 0.0
    seconds: float = 0.0
    """Duration of the slowest answer."""


def openim(owner: str) -> Callback:
    """Return a callback with one removal. OpenIM's server never repeats it."""
    packet = {"callbackCommand": OPENIM.rpartition("/")[2], "ownerUserID": owner}
    body = json.dumps(packet | {"blackUserID": "t0"}).encode()
    return Callback(owner, ("t0",), OPENIM, body)


def tencent(owner: str, count: int, *, is_repeated: bool) -> Callback:
    """Return a callback with `count` removals, and with a request id if it may be repeated."""
    targets = tuple(f"t{position}" for position in range(count))
    packet = {
        "CallbackCommand": "Sns.CallbackFriendDelete",
        "PairList": [{"From_Account": owner, "To_Account": target} for target in targets],
    }
    path = f"{TENCENT}&RequestId={owner}" if is_repeated else TENCENT
    return Callback(owner, targets, path, json.dumps(packet).encode(), is_repeated)


class Client:
    """An HTTP client that keeps a connection to each server."""

    def __init__(self) -> None:
        self._connections: dict[int, HTTPConnection] = {}

    def send(self, port: int, callback: Callback) -> Outcome:
        """Send the callback once, and store the outcome in it."""
        connection = self._connections.get(port)
        if connection is None:
            connection = HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
            self._connections[port] = connection
        outcome = self._try(connection, callback)
        if outcome in (Outcome.UNSENT, Outcome.UNANSWERED):
            connection.close()
        callback.outcome = max(callback.outcome, outcome)
        return outcome

    def _try(self, connection: HTTPConnection, callback: Callback) -> Outcome:
        try:
            if connection.sock is None:
                connection.connect()
        except OSError:
            return Outcome.UNSENT
        started = time.monotonic()
        callback.sent_at = callback.sent_at or started
        try:
            connection.request("POST", callback.path, callback.body)
            response = connection.getresponse()
            response.read()
        except (OSError, HTTPException):
            return Outcome.UNANSWERED
        answered = time.monotonic()
        callback.seconds = max(callback.seconds, answered - started)
        if response.status == 503:
            return Outcome.REFUSED
        assert response.status == 200, response.status
        callback.acknowledged_at = callback.acknowledged_at or answered
        return Outcome.ACKNOWLEDGED

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()


class Load:
    """A number of clients that send callbacks without a break until the load ends."""

    def __init__(self, *ports: int, clients: int = 8, pause: float = 0.0) -> None:
        self.ports = ports
        """Ports of the servers, used in turn. A test may change them at any time."""
        self.callbacks: list[Callback] = []
        """The callbacks with a known outcome, in no order."""
        self._name = secrets.token_hex(4)
        self._numbers = itertools.count()
        self._pause = pause
        self._is_ending = threading.Event()
        self._threads = [threading.Thread(target=self._send_all) for _ in range(clients)]

    @contextmanager
    def running(self) -> Iterator[Load]:
        """Send callbacks. At the end, wait for the open answers."""
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._is_ending.set()
            for thread in self._threads:
                thread.join()

    def count(self, outcome: Outcome = Outcome.ACKNOWLEDGED) -> int:
        return sum(callback.outcome is outcome for callback in list(self.callbacks))

    def wait_for(self, number: int, seconds: float = 30) -> None:
        """Wait until `number` more callbacks are acknowledged."""
        target = self.count() + number
        deadline = time.monotonic() + seconds
        while self.count() < target:
            assert time.monotonic() < deadline, (
                f"fewer than {number} callbacks were acknowledged in {seconds} s"
            )
            time.sleep(0.01)

    def _next(self) -> Callback:
        number = next(self._numbers)
        owner = f"{self._name}-{number}"
        if number % 4 == 0:
            return tencent(owner, 3, is_repeated=True)
        if number % 4 == 1:
            return tencent(owner, 30 if number % 16 == 1 else 5, is_repeated=False)
        return openim(owner)

    def _send_all(self) -> None:
        with closing(Client()) as client:
            for attempt in itertools.count():
                if self._is_ending.wait(self._pause):
                    return
                callback = self._next()
                self._send(client, callback, attempt)
                # An IM server repeats a callback also if the answer comes too late.
                if callback.is_repeated and attempt % 4 == 0:
                    client.send(self.ports[(attempt + 1) % len(self.ports)], callback)
                self.callbacks.append(callback)

    def _send(self, client: Client, callback: Callback, attempt: int) -> None:
        """Send the callback as often as the IM server does."""
        while True:
            outcome = client.send(self.ports[attempt % len(self.ports)], callback)
            if outcome is Outcome.UNSENT:
                self._is_ending.wait(0.01)
            is_answered = outcome in (Outcome.ACKNOWLEDGED, Outcome.REFUSED)
            if is_answered or not callback.is_repeated or self._is_ending.is_set():
                return


@dataclass
class Report:
    """The number of callbacks by outcome, and the number of faults."""

    rounds: int = 1
    acknowledged: int = 0
    unanswered: int = 0
    refused: int = 0
    lost: int = 0
    """Acknowledged callbacks that are neither in the history nor in the spool."""
    doubled: int = 0
    """Callbacks with a removal that is stored more than once."""
    half_stored: int = 0
    """Callbacks with missing removals, or with another number than their delivery says."""
    reordered: int = 0
    """Callbacks whose removals have other ids than their position in the packet demands."""
    unfollowed: int = 0
    """Removals that a follower of the feed does not see exactly once."""
    worst: float = 0.0
    """Duration of the slowest answer, in seconds."""

    @property
    def faults(self) -> int:
        return self.lost + self.doubled + self.half_stored + self.reordered + self.unfollowed

    def add(self, other: Report) -> None:
        """Add the report of other rounds of the same scenario."""
        for column in COLUMNS[:-1]:
            setattr(self, column, getattr(self, column) + getattr(other, column))
        self.worst = max(self.worst, other.worst)

    def row(self, name: str) -> str:
        """Return a row of the table that begins with `HEADER`."""
        cells = "".join(f"{getattr(self, column):>13}" for column in COLUMNS[:-1])
        return f"{name:<32}{cells}{self.worst:>13.2f}"


COLUMNS = [column.name for column in fields(Report)]
HEADER = f"{'scenario':<32}" + "".join(f"{column:>13}" for column in COLUMNS)


class Stored(NamedTuple):
    """A stored removal."""

    id: int
    delivery_id: int
    target: str


def check(callbacks: Iterable[Callback], *databases: URL | Path) -> Report:
    """Compare the callbacks with the history, given by URL, and with spools, given by path.

    During a drain, spool and history may hold the same rows. These rows count once.
    """
    rows, counts = _read(databases)
    stored = Counter(row.delivery_id for stored_rows in rows.values() for row in stored_rows)
    miscounted = {key for key in counts.keys() | stored if counts.get(key) != stored[key]}
    report = Report(rounds=0, half_stored=len(miscounted - stored.keys()))
    for callback in callbacks:
        report.add(_judge(callback, rows[callback.owner], miscounted))
    report.rounds = 1
    return report


def sqlite_url(path: Path) -> URL:
    return URL.create("sqlite", database=str(path))


def has_spool(url: URL) -> bool:
    """Return whether the database is a spool."""
    engine = create_engine(url, poolclass=NullPool)
    return inspect(engine).has_table("imcallback_spool")


def entries_in(url: URL) -> list[Entry]:
    """Return all entries in a spool, also of other databases and ones set aside."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        encoded = connection.exec_driver_sql("SELECT entry FROM imcallback_spool ORDER BY id")
        return [Entry(*decode_entry(entry)) for entry in encoded.scalars()]


def _judge(callback: Callback, rows: set[Stored], miscounted: set[int]) -> Report:
    copies = Counter(row.target for row in rows)
    is_whole = copies.keys() == set(callback.targets)
    return Report(
        acknowledged=callback.outcome is Outcome.ACKNOWLEDGED,
        unanswered=callback.outcome is Outcome.UNANSWERED,
        refused=callback.outcome is Outcome.REFUSED,
        lost=callback.outcome is Outcome.ACKNOWLEDGED and not rows,
        doubled=any(count > 1 for count in copies.values()),
        half_stored=bool(rows)
        and not (is_whole and miscounted.isdisjoint(row.delivery_id for row in rows)),
        reordered=any(
            row.target != dict(enumerate(callback.targets)).get(row.id - row.delivery_id)
            for row in rows
        ),
        worst=callback.seconds,
    )


def stored_in(*databases: URL | Path) -> set[str]:
    """Return the owners of all stored removals."""
    return set(_read(databases)[0])


def _read(databases: Iterable[URL | Path]) -> tuple[dict[str, set[Stored]], dict[int, int]]:
    """Return the removals by owner, and the removal count of each delivery."""
    rows: dict[str, set[Stored]] = defaultdict(set)
    counts: dict[int, int] = {}
    row = removal.c
    for database in databases:
        if isinstance(database, Path) and not database.exists():
            continue
        url = database if isinstance(database, URL) else sqlite_url(database)
        if has_spool(url):
            for entry in entries_in(url):
                counts[entry.row["id"]] = entry.row["removal_count"]
                for position, pair in enumerate(entry.removals):
                    stored = Stored(entry.row["id"] + position, entry.row["id"], pair.target_id)
                    rows[pair.owner_id].add(stored)
            continue
        engine = create_engine(url, poolclass=NullPool)
        with engine.connect() as connection:
            columns = (row.owner_id, row.id, row.id - row.position, row.target_id)
            for owner, *values in connection.execute(select(*columns)):
                rows[owner].add(Stored(*values))
            deliveries = select(delivery.c.id, delivery.c.removal_count)
            counts |= {row.id: row.removal_count for row in connection.execute(deliveries)}
    return rows, counts
