"""The sealer: it seals the entries of the log and publishes a checkpoint of all seals.

Several processes may seal. The primary key of the seals lets only one of them win each number. A
checkpoint is signed after the commit, and depends only on committed rows. So a crash in between
loses nothing: the next process makes the same checkpoint again.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from sqlalchemy import Connection, Engine, func, insert, select

from ..errors import ImCallbackError, StorageError
from ..logger import logger
from ..storage import (
    Fault,
    classify,
    describe,
    engine_mark,
    file_lock,
    for_reading,
    is_read_only,
    sqlite_path,
    storage_errors,
)
from ..storage import log as log_table
from ..storage import seal as seal_table
from .entries import find_last_position, find_unnumbered
from .lines import Line, read_lines
from .verifier import (
    Checkpoint,
    NotEvidenceError,
    Seal,
    SecretKey,
    Tree,
    leaf_hash,
    marks_of,
    peak_ends,
    read_checkpoint,
    tree_root,
)

checkpoint_logger = logging.getLogger("flask_imcallback.checkpoint")

UNSIGNED_ORIGIN = "imcallback"
"""The origin of checkpoints without a key."""
CHECKPOINT_FILE = "imcallback_checkpoint"
"""The start of the name of the file with the newest checkpoint. A hash of the database's address
follows, because an app may change its database, for example to try something."""
MAX_ENTRIES = 5000
MAX_BYTES = 16 * 1024 * 1024
"""Limits of a seal. A single larger entry has a seal of its own."""
SLICE_ENTRIES, SLICE_PAUSE_SECONDS = 50, 0.002
"""In the background, sealing lets the requests of this process run after each slice."""
RETRY_SECONDS = 30
"""Time after which sealing is tried again in the background if it failed."""
DEFAULT_SECONDS = 60
"""Sealing interval from which `OVERDUE` counts if the log is only sealed by command."""
OVERDUE = 10
"""Sealing intervals after which entries without a position or a seal are a problem."""
NO_SEAL = Seal(0, at="", first=1, last=0, deliveries=0, removals=0, acts=0, root=b"")
"""The seal before the first one."""


@dataclass(frozen=True)
class SealState:
    """The state of the seals, for people."""

    sealed_until: str
    """The time of the newest seal. Empty if there is none."""
    problem: str
    """The reason why nothing is sealed, and the remedy. Empty if all is well."""


class Sealer:
    """The seals of one app in one process. Threads may share it.

    `engine` returns an engine for rare work, and may need an app context. `folder` gets the file
    with the newest checkpoint.
    """

    def __init__(
        self, engine: Callable[[], Engine], folder: Path, key: SecretKey | None, seconds: float
    ) -> None:
        self._get_engine = engine
        self.key = key
        self._seconds = seconds
        self._due_at = 0.0
        self._problem = ""
        self._last_seen = (0, 0.0)
        """The number of the newest seal, and since when this process knows it."""
        self._is_behind = False
        """Whether the newest seal was full, so that more entries wait for their seal already."""
        self._waiting: dict[str, tuple[int, float]] = {}
        """The entry that waits for its position and the position that waits for its seal, and since
        when this process knows it."""
        self._folder = folder

    @property
    def origin(self) -> str:
        """The name of the log in its checkpoints."""
        return self.key.key.name if self.key else UNSIGNED_ORIGIN

    @property
    def path(self) -> Path:
        """The file with the newest checkpoint of the database. May need an app context."""
        mark = engine_mark(self._get_engine())
        return self._folder / f"{CHECKPOINT_FILE}_{sha256(mark.encode()).hexdigest()[:8]}"

    def seal_if_due(self) -> float | None:
        """Seal what is due. Returns the seconds after which to call again, or None.

        The thread of the sequencer calls it. One call makes at most one seal. An error is logged.
        """
        now = time.monotonic()
        if now < self._due_at:
            return self._due_at - now
        try:
            wait = self._seal_one_if_due()
            self._problem = ""
        except Exception as error:  # for example values of a wrong type, which SQLite allows
            problem = str(error) if isinstance(error, ImCallbackError) else describe(error)
            # A process that can only read leaves the seals to other processes.
            if problem != self._problem and not is_read_only(error.__cause__):
                logger.error("The log is not sealed: %s", problem)
            self._problem, wait = problem, RETRY_SECONDS
        self._due_at = time.monotonic() + (wait or 0)
        return wait

    def _seal_one_if_due(self) -> float | None:
        with self._connect() as connection:
            kept = self._check_kept(connection)
            last, head = read_last_seal(connection), find_last_position(connection)
            wait: float | None = None
            if last.last < head:
                wait = 0.0 if self._is_behind else self._seconds - self._measure_age(last)
                if wait <= 0:
                    seal = self._add_seal(connection, last, pause=_pause)
                    self._is_behind = seal is not None and seal.last < head
                    wait = 0.0 if seal is None or self._is_behind else None
            self._publish(connection, kept)
        return wait

    def _measure_age(self, seal: Seal) -> float:
        """Return the seconds since a seal. The clock of the host that made it may be ahead."""
        if seal is NO_SEAL:
            return float("inf")
        if self._last_seen[0] != seal.number:
            self._last_seen = (seal.number, time.monotonic())
        by_clock = (datetime.now(UTC) - datetime.fromisoformat(seal.at)).total_seconds()
        return max(by_clock, time.monotonic() - self._last_seen[1])

    def seal(self) -> list[Seal]:
        """Seal all entries that have a log position. Returns the new seals.

        Needs an app context. Raises `StorageError`.
        """
        seals = []
        with self._connect() as connection:
            kept = self._check_kept(connection)
            head = find_last_position(connection)
            while (last := read_last_seal(connection)).last < head:
                if seal := self._add_seal(connection, last):
                    seals.append(seal)
            self._publish(connection, kept)
        return seals

    def read_checkpoint(self) -> str:
        """Return the newest checkpoint, signed if there is a key. Raises `StorageError`."""
        with self._connect() as connection:
            return compute_checkpoint(connection, self.origin).sign(self.key)

    def inspect(self, connection: Connection) -> SealState:
        """Return the state of the seals. Raises the errors of SQLAlchemy."""
        try:
            last = read_last_seal(connection)
        except StorageError as error:
            return SealState("", str(error))
        return SealState(last.at, self._find_problem(connection, last.last))

    def find_seal(self, entry_id: int) -> Seal | None:
        """Return the seal of a delivery, or None if it is not sealed. Raises `StorageError`."""
        with self._connect() as connection:
            position = select(log_table.c.position).where(log_table.c.entry_id == entry_id)
            column = seal_table.c
            query = select(column.entry).where(column.last_position >= position.scalar_subquery())
            entry = connection.scalar(query.order_by(column.last_position).limit(1))
            return None if entry is None else parse_seal(entry)

    def _find_problem(self, connection: Connection, position: int) -> str:
        try:
            self._check_kept(connection)
        except StorageError as error:
            return str(error)
        entry_id = find_unnumbered(connection)
        if self._waits_too_long("entry", entry_id):
            return (
                f"the entry {entry_id} waits for its log position for too long: read the log of "
                "the app"
            )
        is_sealed = not self._seconds or find_last_position(connection) == position
        if self._waits_too_long("position", None if is_sealed else position + 1):
            reason = f" ({self._problem})" if self._problem else ""
            return (
                f"the log position {position + 1} waits for its seal for too long{reason}: run "
                "flask imcallback seal, and read the log of the app"
            )
        return ""

    def _waits_too_long(self, kind: str, number: int | None) -> bool:
        """Return True if the same number has been waiting for too long in this process.

        The time of an entry says nothing, because the entry may come from the spool.
        """
        if number is None:
            self._waiting.pop(kind, None)
            return False
        if self._waiting.get(kind, (None, 0))[0] != number:
            self._waiting[kind] = (number, time.monotonic())
        seconds = self._seconds or DEFAULT_SECONDS
        return time.monotonic() - self._waiting[kind][1] > seconds * OVERDUE

    @contextmanager
    def _connect(self) -> Iterator[Connection]:
        """Yield a connection for reading. Raises `StorageError`."""
        with (
            storage_errors("read or write the seals"),
            # A transaction that may write would lock a SQLite file during the whole seal.
            for_reading(self._get_engine()).connect() as connection,
        ):
            yield connection

    def read_kept(self) -> Checkpoint | None:
        """Return the checkpoint in the file, or None if it is missing or of another origin.

        Raises `StorageError` if it cannot be read.
        """
        try:
            kept = read_checkpoint(self.path.read_text("utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (NotEvidenceError, OSError, ValueError) as error:
            raise StorageError(
                f"cannot read the checkpoint in {self.path} ({error}): make the file readable, or "
                "remove it if it is damaged"
            ) from error
        if kept.origin != self.origin:
            logger.warning(
                "The log of seals has the new origin %s. The last checkpoint of the old origin: %r",
                self.origin,
                kept.text,
            )
            return None
        return kept

    def _check_kept(self, connection: Connection) -> Checkpoint | None:
        """Return the kept checkpoint. Raises `StorageError` if the database does not fit it."""
        kept = self.read_kept()
        if kept and compute_checkpoint(connection, self.origin, kept.size) != kept:
            # MariaDB may show a state from before the file was written.
            connection.rollback()
        if kept and compute_checkpoint(connection, self.origin, kept.size) != kept:
            raise StorageError(
                f"the database does not hold the seals of {self.path}, a checkpoint of "
                f"{kept.size} seals. If somebody has restored a backup or put another database in "
                f"its place, begin a log with a new origin: {self._remedy()}. If not, somebody has "
                "changed the log: run flask imcallback verify"
            )
        return kept

    def _remedy(self) -> str:
        if self.key:
            return f"run flask imcallback new-key {self.origin}/2, and set IMCALLBACK_SEAL_KEY"
        return f"keep a copy of {self.path}, and then remove the file"

    def _add_seal(
        self,
        connection: Connection,
        last: Seal,
        pause: Callable[[], None] | None = None,
    ) -> Seal | None:
        """Seal the next entries. Returns None if another process did it at the same time."""
        first = last.last + 1
        head = find_last_position(connection)
        leaves: list[bytes] = []
        removals = acts = 0
        for line in take_lines(connection, first, head, pause):
            leaves.append(leaf_hash(line.sealed))
            if line.entry:
                removals += len(line.entry.removals)
                acts += line.entry.act is not None
        seal = Seal(
            number=last.number + 1,
            at=datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            first=first,
            last=first + len(leaves) - 1,
            deliveries=len(leaves) - acts,
            removals=removals,
            acts=acts,
            root=tree_root(leaves),
        )
        node = read_tree(connection, last.number).append(leaf_hash(seal.to_json().encode()))
        connection.rollback()
        row = {
            "number": seal.number,
            "last_position": seal.last,
            "entry": seal.to_json(),
            "node": node,
            "marks": marks_of(leaves),
        }
        engine = self._get_engine()
        try:
            with file_lock(sqlite_path(engine)), engine.begin() as writing:
                writing.execute(insert(seal_table).values(row))
        except Exception as error:
            if classify(error) in (Fault.DUPLICATE_KEY, Fault.RETRY):
                return None
            raise
        return seal

    def _publish(self, connection: Connection, kept: Checkpoint | None) -> None:
        """Write the newest checkpoint to the log and to the file, if the file has an older one."""
        connection.rollback()  # to see the newest seals
        checkpoint = compute_checkpoint(connection, self.origin)
        if not checkpoint.size or (kept and kept.size >= checkpoint.size):
            return
        note = checkpoint.sign(self.key)
        checkpoint_logger.info("The newest checkpoint of the log: %r", note)
        unfinished = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with unfinished.open("w", encoding="utf-8") as file:
                file.write(note)
                file.flush()
                os.fsync(file.fileno())  # a power cut must not leave an empty file
            unfinished.replace(self.path)
        except OSError as error:
            with suppress(OSError):
                unfinished.unlink()
            logger.warning(
                "The newest checkpoint cannot be kept in %s (%s). Make the folder writable, or "
                "keep the checkpoints of the log of this app.",
                self.path,
                error,
            )


def take_lines(
    connection: Connection, first: int, head: int, pause: Callable[[], None] | None = None
) -> Iterator[Line]:
    """Yield the lines of the next seal, which begins at the position `first`."""
    total_bytes = 0
    last = min(head, first - 1 + MAX_ENTRIES)
    for number, line in enumerate(read_lines(connection, first - 1, last)):
        total_bytes += len(line.sealed) + line.packet_bytes
        if number and total_bytes > MAX_BYTES:
            return
        yield line
        if pause and number % SLICE_ENTRIES == 0:
            pause()


def read_last_seal(connection: Connection) -> Seal:
    """Return the newest seal, or `NO_SEAL` if nothing is sealed. Raises `StorageError`."""
    query = select(seal_table.c.entry).order_by(seal_table.c.number.desc()).limit(1)
    entry = connection.scalar(query)
    return NO_SEAL if entry is None else parse_seal(entry)


def parse_seal(entry: str) -> Seal:
    """Return the seal with this entry. Raises `StorageError` if somebody has changed it."""
    try:
        return Seal.from_json(entry)
    except ValueError as error:
        raise StorageError(
            f"cannot read a seal ({error}): somebody has changed imcallback_seal. Run flask "
            "imcallback verify"
        ) from error


def read_tree(connection: Connection, size: int) -> Tree:
    """Return the tree of the first seals. Each seal holds the peak that ends with it."""
    ends = peak_ends(size)
    column = seal_table.c
    rows = connection.execute(select(column.number, column.node).where(column.number.in_(ends)))
    nodes = {row.number: row.node for row in rows if isinstance(row.node, bytes)}
    return Tree(size, [nodes.get(end, b"") for end in ends])


def compute_checkpoint(connection: Connection, origin: str, size: int | None = None) -> Checkpoint:
    """Return the checkpoint of the first seals, or of all seals."""
    if size is None:
        size = connection.scalar(select(func.max(seal_table.c.number))) or 0
    return Checkpoint(origin, size, read_tree(connection, size).root())


def _pause() -> None:
    time.sleep(SLICE_PAUSE_SECONDS)
