"""Callbacks sent without pause, and what became of them."""

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

from sqlalchemy import URL, NullPool, create_engine, select

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
TIMEOUT = 10


class Outcome(IntEnum):
    """What became of a callback; of several tries the highest counts."""

    UNSENT = 0
    """Nobody took the connection."""
    REFUSED = 1
    """Answered that it could not be stored."""
    UNANSWERED = 2
    """Sent, perhaps in part, and the connection was lost or no answer came in time."""
    ACKNOWLEDGED = 3


@dataclass
class Callback:
    """A callback whose removals nobody else sends: the owner is its own."""

    owner: str
    targets: tuple[str, ...]
    path: str
    body: bytes
    is_repeated: bool = False
    """Whether the IM server sends it again when it gets no answer."""
    outcome: Outcome = Outcome.UNSENT
    sent_at: float = 0.0
    """When it was first sent, on the clock of `time.monotonic`."""
    acknowledged_at: float = 0.0
    seconds: float = 0.0
    """The longest that an answer took."""


def openim(owner: str) -> Callback:
    """One removal; OpenIM's server never repeats it."""
    packet = {"callbackCommand": OPENIM.rpartition("/")[2], "ownerUserID": owner}
    body = json.dumps(packet | {"blackUserID": "t0"}).encode()
    return Callback(owner, ("t0",), OPENIM, body)


def tencent(owner: str, count: int, *, is_repeated: bool) -> Callback:
    """Several removals, with a request id if Tencent may repeat it."""
    targets = tuple(f"t{position}" for position in range(count))
    packet = {
        "CallbackCommand": "Sns.CallbackFriendDelete",
        "PairList": [{"From_Account": owner, "To_Account": target} for target in targets],
    }
    path = f"{TENCENT}&RequestId={owner}" if is_repeated else TENCENT
    return Callback(owner, targets, path, json.dumps(packet).encode(), is_repeated)


class Client:
    """Keeps a connection to each server that it sends to."""

    def __init__(self) -> None:
        self._connections: dict[int, HTTPConnection] = {}

    def send(self, port: int, callback: Callback) -> Outcome:
        """Try once, and note in the callback what came of it."""
        connection = self._connections.get(port)
        if connection is None:
            connection = HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
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
        begun = time.monotonic()
        callback.sent_at = callback.sent_at or begun
        try:
            connection.request("POST", callback.path, callback.body)
            response = connection.getresponse()
            response.read()
        except (OSError, HTTPException):
            return Outcome.UNANSWERED
        answered = time.monotonic()
        callback.seconds = max(callback.seconds, answered - begun)
        if response.status == 503:
            return Outcome.REFUSED
        assert response.status == 200, response.status
        callback.acknowledged_at = callback.acknowledged_at or answered
        return Outcome.ACKNOWLEDGED

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()


class Load:
    """Clients that send callbacks until they are told to stop."""

    def __init__(self, *ports: int, clients: int = 8, pause: float = 0.0) -> None:
        self.ports = ports
        """Of the servers to send to, in turn; may be changed at any time."""
        self.callbacks: list[Callback] = []
        """Those whose fate is known, in no order."""
        self._name = secrets.token_hex(4)
        self._numbers = itertools.count()
        self._pause = pause
        self._ends = threading.Event()
        self._threads = [threading.Thread(target=self._send_all) for _ in range(clients)]

    @contextmanager
    def running(self) -> Iterator[Load]:
        """Send; the end waits for the answers that are due."""
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._ends.set()
            for thread in self._threads:
                thread.join()

    def count(self, outcome: Outcome = Outcome.ACKNOWLEDGED) -> int:
        return sum(callback.outcome is outcome for callback in list(self.callbacks))

    def wait_for(self, number: int, seconds: float = 30) -> None:
        """Until so many more are acknowledged."""
        wanted = self.count() + number
        deadline = time.monotonic() + seconds
        while self.count() < wanted:
            assert time.monotonic() < deadline, f"no {number} callbacks in {seconds} s"
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
            for turn in itertools.count():
                if self._ends.wait(self._pause):
                    return
                callback = self._next()
                self._send(client, callback, turn)
                # An answer that comes too late for the IM server does not keep it from repeating.
                if callback.is_repeated and turn % 4 == 0:
                    client.send(self.ports[(turn + 1) % len(self.ports)], callback)
                self.callbacks.append(callback)

    def _send(self, client: Client, callback: Callback, turn: int) -> None:
        """As often as the IM server would."""
        while True:
            outcome = client.send(self.ports[turn % len(self.ports)], callback)
            if outcome is Outcome.UNSENT:
                self._ends.wait(0.01)
            is_answered = outcome in (Outcome.ACKNOWLEDGED, Outcome.REFUSED)
            if is_answered or not callback.is_repeated or self._ends.is_set():
                return


@dataclass
class Report:
    """What became of callbacks, and how much of it is wrong."""

    rounds: int = 1
    acknowledged: int = 0
    unanswered: int = 0
    refused: int = 0
    lost: int = 0
    """Acknowledged, and in neither the history nor the spool."""
    doubled: int = 0
    """A removal is there more than once, whether or not its callback was acknowledged."""
    half_stored: int = 0
    """Some of a callback's removals are there, or not those that their delivery counts."""
    reordered: int = 0
    """Positions are not those in the packet, or ids do not follow that of the delivery."""
    worst: float = 0.0
    """The longest answer, in seconds."""

    @property
    def faults(self) -> int:
        return self.lost + self.doubled + self.half_stored + self.reordered

    def add(self, other: Report) -> None:
        """Count other rounds of the same scenario too."""
        for column in COLUMNS[:-1]:
            setattr(self, column, getattr(self, column) + getattr(other, column))
        self.worst = max(self.worst, other.worst)

    def row(self, name: str) -> str:
        """Of a table that begins with `HEADER`."""
        cells = "".join(f"{getattr(self, column):>13}" for column in COLUMNS[:-1])
        return f"{name:<32}{cells}{self.worst:>13.2f}"


COLUMNS = [column.name for column in fields(Report)]
HEADER = f"{'scenario':<32}" + "".join(f"{column:>13}" for column in COLUMNS)


class Stored(NamedTuple):
    """A row of a removal."""

    id: int
    delivery_id: int
    target: str


def check(callbacks: Iterable[Callback], *databases: URL | Path) -> Report:
    """Compare callbacks with what is in the databases: the history, and spools by their paths.

    While a spool is emptied, the history has the same rows too; those are counted once.
    """
    rows, counts = _read(databases)
    stored = Counter(row.delivery_id for found in rows.values() for row in found)
    miscounted = {key for key in counts.keys() | stored if counts.get(key) != stored[key]}
    report = Report(rounds=0, half_stored=len(miscounted - stored.keys()))
    for callback in callbacks:
        report.add(_judge(callback, rows[callback.owner], miscounted))
    report.rounds = 1
    return report


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
    """The owners of all removals that are there."""
    return set(_read(databases)[0])


def _read(databases: Iterable[URL | Path]) -> tuple[dict[str, set[Stored]], dict[int, int]]:
    """The removals by owner, and how many each delivery has."""
    rows: dict[str, set[Stored]] = defaultdict(set)
    counts: dict[int, int] = {}
    row = removal.c
    for database in databases:
        if isinstance(database, URL):
            url = database
        elif database.exists():
            url = URL.create("sqlite", database=str(database))
        else:
            continue
        engine = create_engine(url, poolclass=NullPool)
        with engine.connect() as connection:
            columns = (row.owner_id, row.id, row.delivery_id, row.target_id)
            for owner, *values in connection.execute(select(*columns)):
                rows[owner].add(Stored(*values))
            deliveries = select(delivery.c.id, delivery.c.removal_count)
            counts |= {row.id: row.removal_count for row in connection.execute(deliveries)}
    return rows, counts
