"""Retention: strip packets, prune seals and erase accounts, so that the rest stays provable.

The act is stored and sealed first. So the log explains what is missing at each moment, also if the
work is interrupted. A repetition goes on where the work stopped. Only entries that are sealed and
older than a day are changed, because a repetition of a callback may still arrive.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar
from urllib.parse import unquote

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Dialect,
    Engine,
    Row,
    and_,
    bindparam,
    delete,
    func,
    literal,
    not_,
    or_,
    select,
    update,
)
from sqlalchemy.exc import SQLAlchemyError

from ..errors import StorageError
from ..removals import Relation
from ..storage import (
    Fault,
    classify,
    commit_to_packet,
    file_lock,
    for_reading,
    id_at,
    open_door,
    seed_of,
    sqlite_path,
    storage_errors,
)
from ..storage import act as act_table
from ..storage import delivery as delivery_table
from ..storage import erasure as erasure_table
from ..storage import log as log_table
from ..storage import removal as removal_table
from ..storage import seal as seal_table
from ..storage import source as source_table
from .acts import ActKind, store_act
from .batches import BATCH_BYTES, REMOVAL_BYTES, split_by_weight
from .lines import read_slots
from .mentions import names_account
from .sealer import parse_seal, read_last_seal
from .verifier import (
    ACTS,
    BEFORE,
    DELIVERIES,
    LAST_POSITION,
    SALT_BYTES,
    SLOTS,
    Seal,
    account_commitment,
    encode_slots,
    packet_commitment,
)

MIN_AGE = timedelta(days=1)
MAX_ROWS = 2000
"""Number of rows that one transaction changes, so that callbacks wait only shortly."""
MAX_ATTEMPTS = 20
"""Attempts to run a transaction that loses against other transactions."""
RETRY_PAUSE_SECONDS = 0.05
STRIPPED: dict[str, Any] = {
    **{"client_ip": "", "query": "", "headers": "{}", "error": "", "body": b""},
    "fingerprint": None,
}
"""The columns of a delivery without its packet."""
ACCOUNT_COLUMNS = [removal_table.c[f"{name}_id"] for name in SLOTS]
IS_GROUP = removal_table.c.source_id.in_(
    select(source_table.c.id).where(source_table.c.relation == Relation.GROUP)
)
"""Condition that the owner of a removal is a group."""
removal_delivery_id = removal_table.c.id - removal_table.c.position
CHECK_RIGHTS = (
    "check that the user of the database may delete and update, and run the command again"
)
T = TypeVar("T")


@dataclass
class Retained:
    """The result of a retention, or the plan of one."""

    deliveries: int = 0
    removals: int = 0
    acts: int = 0
    seals: int = 0
    later: int = 0
    """Removals of an account that are not sealed, or not older than a day."""
    later_packets: int = 0
    """Packets that name the account and are not sealed, or not older than a day."""


class Retention:
    """The retention of one log. A dry run changes nothing and returns what would be done.

    `seal_log` numbers and seals the entries of the log. Raises `StorageError`.
    """

    def __init__(self, engine: Engine, seal_log: Callable[[], object], actor: str) -> None:
        self._engine = engine
        self._seal_log = seal_log
        self._actor = actor

    @storage_errors("change the log", CHECK_RIGHTS)
    def strip(self, before: datetime, *, is_dry_run: bool) -> Retained:
        """Take the packets and addresses of all deliveries before a moment away."""
        with self._read() as connection:
            head = _sealed_position(connection)
            conditions = (
                delivery_table.c.commitment.is_(None),
                delivery_table.c.id < id_at(before),
                log_table.c.position <= head,
            )
            count = select(func.count()).select_from(_numbered()).where(*conditions)
            result = Retained(deliveries=connection.scalar(count) or 0)
        if result.deliveries and not is_dry_run:
            detail = {BEFORE: before.isoformat(), LAST_POSITION: head}
            act_id = self._begin(ActKind.STRIP, result.deliveries, detail)
            for ids in self._find_deliveries(*conditions):
                self._run(act_id, partial(_strip_deliveries, ids=ids))
        return result

    @storage_errors("change the log", CHECK_RIGHTS)
    def prune(self, before: datetime, *, is_dry_run: bool) -> Retained:
        """Delete the entries of all seals whose entries are all from before a moment."""
        with self._read() as connection:
            seals = list(_find_old_seals(connection, id_at(before)))
        result = Retained(
            seals=len(seals),
            deliveries=sum(seal.deliveries for seal in seals),
            removals=sum(seal.removals for seal in seals),
            acts=sum(seal.acts for seal in seals),
        )
        if seals and not is_dry_run:
            detail = {
                BEFORE: before.isoformat(),
                "seals": [seals[0].number, seals[-1].number],
                LAST_POSITION: seals[-1].last,
            }
            act_id = self._begin(ActKind.PRUNE, result.deliveries, detail)
            for seal in seals:
                self._prune_seal(act_id, seal)
        return result

    @storage_errors("change the log", CHECK_RIGHTS)
    def erase(self, account_id: str, reason: str, *, is_dry_run: bool) -> Retained:
        """Erase an account from the removals, and erase the packets and acts that name it.

        The reason must not name the account.
        """
        if not is_dry_run:
            self._seal_log()  # somebody has just looked the account up, which is an act
        with self._read() as connection:
            head = _sealed_position(connection)
            is_due = (
                delivery_table.c.id < id_at(datetime.now(UTC) - MIN_AGE),
                log_table.c.position <= head,
            )
            deliveries, removal_count, later = _find_removals(connection, account_id, is_due)
            acts = _find_acts(connection, account_id, head)
        deliveries |= self._find_packets(account_id, and_(*is_due))
        result = Retained(
            deliveries=len(deliveries),
            removals=removal_count,
            acts=len(acts),
            later=later,
            later_packets=len(self._find_packets(account_id, not_(and_(*is_due)))),
        )
        if (deliveries or acts) and not is_dry_run:
            detail = {
                "reason": reason,
                DELIVERIES: result.deliveries,
                ACTS: result.acts,
                LAST_POSITION: head,
            }
            act_id = self._begin(ActKind.ERASE, removal_count, detail)
            for delivery_id in sorted(deliveries):
                erase = partial(_erase_part, delivery_id=delivery_id, account_id=account_id)
                while self._run(act_id, erase):
                    pass
            for ids in split_by_weight(((key, 1) for key in acts), MAX_ROWS):
                self._run(act_id, partial(_erase_acts, ids=ids))
        return result

    # Connections

    def _read(self) -> Connection:
        return for_reading(self._engine).connect()

    def _begin(self, kind: ActKind, affected: int, detail: dict[str, Any]) -> int:
        """Store and seal the act. Return its id."""
        act_id = store_act(self._engine, kind, self._actor, affected, detail)
        self._seal_log()
        with self._read() as connection:
            query = select(log_table.c.position).where(log_table.c.entry_id == -act_id)
            position = connection.scalar(query)
            if position is None or position > _sealed_position(connection):
                raise StorageError(
                    "the act of this command could not be sealed, so nothing was changed: run "
                    "flask imcallback seal, and then this command again"
                )
        return act_id

    def _run(self, act_id: int, transaction: Callable[[Connection], T]) -> T:
        """Run a transaction through the door. Repeat it if it loses against another one.

        Returns what the transaction returns.
        """
        attempt = 0
        while True:
            try:
                with (
                    file_lock(sqlite_path(self._engine)),
                    self._engine.begin() as connection,
                    open_door(connection, act_id),
                ):
                    if connection.dialect.name == "sqlite":
                        # Otherwise the file still has the deleted bytes.
                        connection.exec_driver_sql("PRAGMA secure_delete=ON")
                    return transaction(connection)
            except SQLAlchemyError as error:
                attempt += 1
                if classify(error) is not Fault.RETRY or attempt == MAX_ATTEMPTS:
                    raise
            time.sleep(RETRY_PAUSE_SECONDS)

    # Strip

    def _find_deliveries(self, *conditions: ColumnElement[bool]) -> Iterator[list[int]]:
        """Yield the ids of the deliveries in groups whose packets and removals are few."""
        column, after = delivery_table.c, -1
        size = func.length(column.body)
        query = select(column.id, column.removal_count, size).select_from(_numbered())
        while True:
            with self._read() as connection:
                rows = connection.execute(
                    query.where(*conditions, column.id > after).order_by(column.id).limit(MAX_ROWS)
                ).all()
            if not rows:
                return
            after = rows[-1].id
            weighted = ((id, size + REMOVAL_BYTES * (1 + count)) for id, count, size in rows)
            yield from split_by_weight(weighted, BATCH_BYTES)

    def _removal_spans(self, ids: Sequence[int]) -> Iterator[list[dict[str, int]]]:
        """Yield ranges of the removals of deliveries, in groups of at most `MAX_ROWS` removals."""
        column = delivery_table.c
        query = select(column.id, column.removal_count).where(column.id.in_(ids))
        with self._read() as connection:
            counts = connection.execute(query).all()
        spans = [
            range(first, min(first + MAX_ROWS, start + count))
            for start, count in counts
            for first in range(start, start + count, MAX_ROWS)
        ]
        for batch in split_by_weight(((span, len(span)) for span in spans), MAX_ROWS):
            yield [{"first": span[0], "last": span[-1]} for span in batch]

    # Prune

    def _prune_seal(self, act_id: int, seal: Seal) -> None:
        """Delete the entries of a seal. Without marks, the seal counts as pruned from the start."""
        empty = update(seal_table).where(seal_table.c.number == seal.number).values(marks=b"")
        self._run(act_id, lambda connection: connection.execute(empty))
        column = log_table.c
        is_inside = column.position.between(seal.first, seal.last)
        query = select(column.position, column.entry_id).where(is_inside)
        while True:
            with self._read() as connection:
                rows = connection.execute(
                    query.order_by(column.position).limit(MAX_ROWS // 4)
                ).all()
            if not rows:
                return
            self._prune_entries(act_id, [(row.position, row.entry_id) for row in rows])

    def _prune_entries(self, act_id: int, rows: Sequence[tuple[int, int]]) -> None:
        ids = [entry_id for _, entry_id in rows]
        for spans in self._removal_spans([id for id in ids if id > 0]):
            statement = _in_span(delete(removal_table))
            self._run(act_id, partial(_execute, statement=statement, parameters=spans))

        def delete_entries(connection: Connection) -> None:
            for column, keys in (
                (delivery_table.c.id, ids),
                (erasure_table.c.delivery_id, ids),
                (act_table.c.id, [-entry_id for entry_id in ids]),
                (log_table.c.position, [position for position, _ in rows]),
            ):
                connection.execute(delete(column.table).where(column.in_(keys)))

        self._run(act_id, delete_entries)

    # Erase

    def _find_packets(self, account_id: str, is_chosen: ColumnElement[bool]) -> set[int]:
        """Return the chosen deliveries whose packet names the account."""
        column, dialect = delivery_table.c, self._engine.dialect
        # A backslash may begin an escaped letter of the account.
        may_name = or_(
            _contains(dialect, column.body, account_id.encode()),
            _contains(dialect, column.body, b"\\"),
            *[
                _contains(dialect, text, part)
                for text in (column.query, column.headers, column.error)
                for part in (account_id, "\\", "%")
            ],
        )
        query = select(column.id, column.body, column.query, column.headers, column.error)
        found = set()
        for ids in self._find_deliveries(is_chosen, column.commitment.is_(None), may_name):
            with self._read() as connection:
                rows = connection.execute(query.where(column.id.in_(ids))).all()
            for row in rows:
                coded = (row.query, row.headers, row.error)
                texts = (row.body.decode(errors="replace"), *coded, *map(unquote, coded))
                if any(names_account(text, account_id) for text in texts):
                    found.add(row.id)
        return found


def _sealed_position(connection: Connection) -> int:
    return read_last_seal(connection).last


def _numbered() -> Any:
    """Return the deliveries joined with their log positions."""
    return delivery_table.join(log_table, log_table.c.entry_id == delivery_table.c.id)


def _execute(connection: Connection, statement: Any, parameters: Any) -> None:
    connection.execute(statement, parameters)


def _in_span(statement: Any) -> Any:
    column = removal_table.c
    return statement.where(column.id.between(bindparam("first"), bindparam("last")))


def _strip_deliveries(connection: Connection, ids: Sequence[int]) -> None:
    """Replace the packets by their commitments, and each nonce by the seed of its salts."""
    column = delivery_table.c
    rows = connection.execute(
        # Without this lock, an erasure could replace the same nonces at the same time.
        select(delivery_table)
        .where(column.id.in_(ids), column.commitment.is_(None))
        .with_for_update()
    ).all()
    changes = [
        {
            "of": row.id,
            "commitment": commit_to_packet(row._asdict()),
            "nonce": seed_of(row.nonce or b""),
        }
        for row in rows
    ]
    if changes:
        statement = update(delivery_table).where(column.id == bindparam("of"))
        connection.execute(statement, [STRIPPED | row for row in changes])


def _find_old_seals(connection: Connection, limit: int) -> Iterator[Seal]:
    """Yield the seals that have entries, from the first one up to the first newer one.

    An entry is as old as its arrival or its seal, whichever is earlier, because the clock of
    another host may have been ahead.
    """
    column = log_table.c
    first = connection.scalar(select(func.min(column.position)))
    if first is None:
        return
    after = first - 1
    query = select(seal_table.c.entry).order_by(seal_table.c.last_position).limit(1)
    while entry := connection.scalar(query.where(seal_table.c.last_position > after)):
        seal = parse_seal(entry)
        if seal.last <= after:
            raise StorageError(
                f"cannot prune seal {seal.number}: somebody has changed imcallback_seal. Run flask "
                "imcallback verify"
            )
        newest = connection.scalar(
            select(func.max(func.abs(column.entry_id))).where(
                column.position.between(seal.first, seal.last)
            )
        )
        if min(newest or 0, id_at(datetime.fromisoformat(seal.at))) >= limit:
            return
        yield seal
        after = seal.last


def _find_removals(
    connection: Connection, account_id: str, is_due: Iterable[ColumnElement[bool]]
) -> tuple[set[int], int, int]:
    """Return the deliveries of an account, the number of its removals, and of its later ones."""
    found: set[int] = set()
    of_account: set[int] = set()
    column = removal_table.c
    for account in ACCOUNT_COLUMNS:
        query = (
            select(column.id, delivery_table.c.id.label("delivery_id"))
            .join(delivery_table, delivery_table.c.id == removal_delivery_id)
            .join(log_table, log_table.c.entry_id == removal_delivery_id)
            .where(_has_account(account, account_id), *is_due)
        )
        rows = connection.execute(query).all()
        found |= {row.delivery_id for row in rows}
        of_account |= {row.id for row in rows}
    names = or_(*[_has_account(account, account_id) for account in ACCOUNT_COLUMNS])
    total = connection.scalar(select(func.count()).select_from(removal_table).where(names)) or 0
    return found, len(of_account), total - len(of_account)


def _has_account(column: Column[str], account_id: str) -> ColumnElement[bool]:
    """Return the condition that a removal has an account in a column. A group is no account."""
    if column is removal_table.c.owner_id:
        return and_(column == account_id, ~IS_GROUP)
    return column == account_id


def _find_acts(connection: Connection, account_id: str, head: int) -> list[int]:
    """Return the ids of the sealed acts whose detail names the account."""
    column = act_table.c
    query = (
        select(column.id, column.detail)
        .join(log_table, log_table.c.entry_id == -column.id)
        .where(log_table.c.position <= head, column.commitment.is_(None))
        .where(column.kind.in_([ActKind.READ, ActKind.EXPORT]))
        .where(_contains(connection.dialect, column.detail, json.dumps(account_id)[1:-1]))
    )
    rows = connection.execute(query)
    return [row.id for row in rows if names_account(row.detail, account_id)]


def _erase_acts(connection: Connection, ids: Sequence[int]) -> None:
    """Replace the details of acts by their commitments."""
    column = act_table.c
    for row in connection.execute(select(act_table).where(column.id.in_(ids))).all():
        commitment = packet_commitment(row.nonce or b"", row.detail.encode())
        connection.execute(
            update(act_table)
            .where(column.id == row.id, column.commitment.is_(None))
            .values(detail="", nonce=None, commitment=commitment)
        )


def _contains(dialect: Dialect, column: ColumnElement[Any], part: Any) -> ColumnElement[bool]:
    """Return the condition that a column contains a text or bytes."""
    if dialect.name == "sqlite":
        return func.instr(column, part) > 0
    if dialect.name == "postgresql":
        return func.position(literal(part).op("IN")(column)) > 0
    return func.locate(part, column) > 0


def _read_sound_slots(connection: Connection, row: Row[Any]) -> list[bytes]:
    """Return the slots of a delivery. Raises `StorageError` if somebody has changed them."""
    slots: list[bytes] = []
    with suppress(ValueError, TypeError):
        slots = read_slots(connection, row, row.removal_count)
    if len(slots) != len(SLOTS) * row.removal_count:
        raise StorageError(
            f"cannot erase from the delivery {row.id}: somebody has changed it, or its row in "
            "imcallback_erasure. Run flask imcallback verify"
        )
    return slots


def _erase_part(connection: Connection, *, delivery_id: int, account_id: str) -> bool:
    """Take an account out of some removals of a delivery, and the packet and the nonce away.

    Returns whether the delivery may have more removals of the account.
    """
    # Without this lock, another erasure could replace the same commitments at the same time.
    query = select(delivery_table).where(delivery_table.c.id == delivery_id).with_for_update()
    row = connection.execute(query).one_or_none()
    if row is None:
        return False  # pruned meanwhile
    column = removal_table.c
    removals = connection.execute(
        select(column.id, *[_has_account(account, account_id) for account in ACCOUNT_COLUMNS])
        .where(
            column.id.between(delivery_id, delivery_id + row.removal_count - 1),
            or_(*[_has_account(account, account_id) for account in ACCOUNT_COLUMNS]),
        )
        .limit(MAX_ROWS)
    ).all()
    slots = _read_sound_slots(connection, row)
    for removal_id, *is_erased in removals:
        start = len(SLOTS) * (removal_id - delivery_id)
        for slot, is_slot_erased in enumerate(is_erased, start):
            if is_slot_erased and len(slots[slot]) == SALT_BYTES:
                slots[slot] = account_commitment(slots[slot], account_id)
    connection.execute(delete(erasure_table).where(erasure_table.c.delivery_id == delivery_id))
    values = {"delivery_id": delivery_id, "slots": encode_slots(slots)}
    connection.execute(erasure_table.insert().values(values))
    commitment = row.commitment or commit_to_packet(row._asdict())
    changes = STRIPPED | {"nonce": None, "commitment": commitment}
    connection.execute(
        update(delivery_table).where(delivery_table.c.id == delivery_id).values(changes)
    )
    ids = [removal.id for removal in removals]
    for account in ACCOUNT_COLUMNS:
        connection.execute(
            update(removal_table)
            .where(column.id.in_(ids), _has_account(account, account_id))
            .values({account.name: ""})
        )
    return len(removals) == MAX_ROWS
