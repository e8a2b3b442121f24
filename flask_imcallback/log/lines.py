"""The lines of the evidence, made from the entries of the log.

A line must never change between releases: its hash is in the seals of the users.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from json.encoder import encode_basestring_ascii as quote
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, select

from ..storage import commit_to_packet, pack, seed_of
from ..storage import erasure as erasure_table
from .entries import LogEntry, StoredAct, StoredDelivery, read_entries
from .verifier import (
    SALT_BYTES,
    SLOTS,
    account_commitment,
    decode_slots,
    packet_commitment,
    salts_of,
)


class Line(NamedTuple):
    """A line of the evidence."""

    position: int
    sealed: bytes
    """The bytes that are hashed. They name nobody."""
    open: Callable[[], bytes]
    """Returns the accounts and salts to which the sealed part commits. The sealer needs none."""
    entry: LogEntry | None = None
    """The rows. None if they are missing."""

    @property
    def packet_bytes(self) -> int:
        """The size of the body of a delivery."""
        delivery = self.entry and self.entry.delivery
        return len(delivery.body) if delivery else 0

    def to_bytes(self) -> bytes:
        """Return the line as it stands in a file."""
        opened = self.open()
        return self.sealed + (b"\t" + opened if opened else b"") + b"\n"


def read_lines(
    connection: Connection, after: int, last: int, *, with_packets: bool = False
) -> Iterator[Line]:
    """Yield a line for each log position from `after` + 1 to `last`, also for missing rows.

    Raises the errors of SQLAlchemy, and `StorageError` as `read_entries` does.
    """
    position = after
    for entry in read_entries(connection, after, last):
        while (position := position + 1) < entry.position:
            yield _missing_line(position, 0)
        if entry.act is not None:
            yield _act_line(entry, entry.act)
        elif entry.delivery is not None:
            yield _delivery_line(connection, entry, entry.delivery, with_packets)
        else:
            yield _missing_line(position, entry.entry_id)
    while (position := position + 1) <= last:
        yield _missing_line(position, 0)


def _missing_line(position: int, entry_id: int) -> Line:
    sealed = f'["missing",{position},{entry_id}]'.encode()
    return Line(position, sealed, bytes)


def _act_line(entry: LogEntry, act: StoredAct) -> Line:
    detail, opened = act.detail.encode(), b"[]"
    commitment = act.commitment
    if commitment is None:
        nonce = act.nonce or b""
        commitment = packet_commitment(nonce, detail)
        opened = f"[{quote(nonce.hex())},{quote(act.detail)}]".encode()
    sealed = (
        f'["act",{entry.position},{act.id},{quote(act.kind)},{quote(act.actor)},'
        f'{act.affected},"{commitment.hex()}"]'
    )
    return Line(entry.position, sealed.encode(), lambda: opened, entry)


def _delivery_line(
    connection: Connection, entry: LogEntry, row: StoredDelivery, with_packets: bool
) -> Line:
    records = entry.removals
    slots = _fill_slots(connection, row, len(records))
    accounts = [account for record in records for account in record[5:8]]
    commitments = [
        (account_commitment(slot, account) if len(slot) == SALT_BYTES else slot).hex()
        for slot, account in zip(slots, accounts, strict=True)
    ]
    triples = zip(commitments[::3], commitments[1::3], commitments[2::3], strict=True)
    removals = ",".join(
        [
            f'[{quote(record.relation)},{quote(record.cause)},"{owner}","{target}","{actor}"]'
            for record, (owner, target, actor) in zip(records, triples, strict=True)
        ]
    )
    commitment = row.commitment or commit_to_packet(row._asdict())
    duplicate_of = "null" if row.duplicate_of is None else row.duplicate_of
    sealed = (
        f'["delivery",{entry.position},{row.id},{quote(row.provider)},{quote(row.app_id)},'
        f"{quote(row.command)},{quote(row.status)},{duplicate_of},{quote(row.remote_addr)},"
        f"{quote(row.authenticated_by)},{quote(row.platform)},{quote(row.request_id)},"
        f'"{commitment.hex()}",[{removals}]]'
    )
    open_line = partial(_open_delivery, row, slots, accounts, with_packets)
    return Line(entry.position, sealed.encode(), open_line, entry)


def _open_delivery(
    row: StoredDelivery, slots: Sequence[bytes], accounts: Sequence[str], with_packets: bool
) -> bytes:
    pairs = [
        # An account that somebody has written into an erased place does not fit.
        f'{quote(account)},"{slot.hex() if account and len(slot) == SALT_BYTES else ""}"'
        if account or len(slot) == SALT_BYTES
        else 'null,""'
        for slot, account in zip(slots, accounts, strict=True)
    ]
    packet = ""
    if row.commitment is not None:
        packet = ",null" if row.nonce is None else ",false"
    elif with_packets:
        content, body = pack(row._asdict()), base64.b64encode(row.body).decode()
        head = content[: len(content) - len(row.body) - 1].decode()
        packet = f',["{(row.nonce or b"").hex()}",{quote(head)},"{body}"]'
    return f"[[{','.join(pairs)}]{packet}]".encode()


def read_slots(connection: Connection, row: StoredDelivery | Row[Any], count: int) -> list[bytes]:
    """Return the salt of each account, or the commitment to an account that was erased.

    `count` is the number of removals. Raises `ValueError` if the row of an erasure is damaged.
    """
    if row.nonce is None:
        query = select(erasure_table.c.slots).where(erasure_table.c.delivery_id == row.id)
        return decode_slots(connection.scalar(query) or b"")
    # After a strip, the column holds the seed.
    return salts_of(seed_of(row.nonce) if row.commitment is None else row.nonce, count)


def _fill_slots(connection: Connection, row: StoredDelivery, count: int) -> list[bytes]:
    """Return a slot for each account, also if the slots of the delivery are damaged."""
    slots: list[bytes] = []
    with suppress(ValueError, TypeError):  # the hash of the line shows the damage
        slots = read_slots(connection, row, count)
    # Somebody has deleted rows if these numbers differ. The verifier then finds another hash.
    wanted = len(SLOTS) * count
    return [*slots[:wanted], *[b"\0" * SALT_BYTES] * (wanted - len(slots))]
