"""What is left of a packet that was taken away: a commitment to it, and the seed of the salts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from json.encoder import encode_basestring_ascii as quote
from typing import Any

SEED_BYTES = 16
PACKET_TEXTS = ("client_ip", "query", "headers", "error")
"""Columns of a delivery that its packet commitment covers, beside fingerprint and body."""


def seed_of(nonce: bytes) -> bytes:
    """Return the seed of the salts of a delivery. The nonce cannot be computed from it."""
    return hashlib.sha256(nonce).digest()[:SEED_BYTES]


def pack(row: Mapping[str, Any]) -> bytes:
    """Return the bytes of a delivery that its packet commitment covers.

    They are a line of JSON, and the body.
    """
    texts = [quote(row[name]) for name in PACKET_TEXTS]
    texts.append(f'"{(row["fingerprint"] or b"").hex()}"')
    body: bytes = row["body"]
    return f"[{', '.join(texts)}]\n".encode() + body


def commit_to_packet(row: Mapping[str, Any]) -> bytes:
    """Return the commitment to the packet of a delivery: SHA-256 of its nonce and its bytes."""
    return hashlib.sha256((row["nonce"] or b"") + pack(row)).digest()
