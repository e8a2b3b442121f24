"""The format of an entry in a spool: JSON with a version number."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Any

from ..removals import Cause, Relation, Removal
from .ids import moment_of

if TYPE_CHECKING:
    from .entries import Entry

VERSION = 1
"""A release that changes the format takes the next number, and still reads version 1."""

BYTES_COLUMNS = ("body", "fingerprint", "nonce")


class UnknownVersionError(ValueError):
    """An entry that a newer release wrote."""


def encode_entry(entry: Entry) -> bytes:
    """Return the entry as bytes."""
    row: dict[str, Any] = {
        name: b64encode(value).decode() if name in BYTES_COLUMNS and value is not None else value
        for name, value in entry.row.items()
    }
    removals = [
        (
            removal.relation.value,
            removal.owner_id,
            removal.target_id,
            removal.actor_id,
            removal.cause.value,
        )
        for removal in entry.removals
    ]
    return json.dumps({"version": VERSION, "row": row, "removals": removals}).encode()


def decode_entry(encoded: bytes) -> tuple[dict[str, Any], list[Removal]]:
    """Return the row and the removals of an entry.

    Raises `UnknownVersionError`, and `ValueError`, `TypeError` or `LookupError` for damaged bytes.
    """
    content = json.loads(encoded)
    if content["version"] != VERSION:
        raise UnknownVersionError(
            f"a newer release of flask-imcallback wrote this entry (version {content['version']}): "
            "install that release again"
        )
    row = content["row"]
    for name in BYTES_COLUMNS:
        row[name] = None if row[name] is None else b64decode(row[name], validate=True)
    moment_of(row["id"])  # raises for an id that is no time
    removals = [
        Removal(Relation(relation), owner_id, target_id, actor_id, Cause(cause))
        for relation, owner_id, target_id, actor_id, cause in content["removals"]
    ]
    return row, removals
