"""Check the evidence of flask-imcallback: seals, checkpoints and the commitments in them.

This file works alone. Copy it to any machine with Python 3.11 and run:

    python verifier.py evidence.ndjson --checkpoint kept.txt --key VKEY

It needs only the standard library, and the package `cryptography` if --key is given. The exit
status is 0 if the evidence holds, 1 if it was tampered with, and 2 if it could not be checked.

A line of the evidence is the entry of a seal, a log entry, or the checkpoint. A log entry is a
`sealed` text and an `opened` text with a tab between them:

    ["delivery",7,...,"9f2c...",[["friend","","03d1...","51d0...",""]]]  [["alice","8e11...",...]]

The hash of `sealed` is a leaf of the seal. `opened` holds the personal data, which `sealed` only
commits to: here owner and target of one removal, each with its salt. So `cut -f1` makes evidence
that names nobody.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import hashlib
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TextIO

# Hashes of trees: https://www.rfc-editor.org/rfc/rfc6962#section-2.1


def leaf_hash(leaf: bytes) -> bytes:
    """Return the hash of a leaf."""
    return hashlib.sha256(b"\0" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of a node with two children."""
    return hashlib.sha256(b"\1" + left + right).digest()


def tree_root(leaves: Sequence[bytes]) -> bytes:
    """Return the root of a tree with these leaf hashes."""
    if not leaves:
        return hashlib.sha256().digest()
    sha256, level = hashlib.sha256, leaves
    while len(level) > 1:
        pairs = zip(level[::2], level[1::2], strict=False)
        parents = [sha256(b"\1" + left + right).digest() for left, right in pairs]
        if len(level) % 2:
            parents.append(level[-1])
        level = parents
    return level[0]


class Tree:
    """A tree that grows. It keeps only the peaks: the roots of its largest complete subtrees."""

    def __init__(self, size: int = 0, peaks: Sequence[bytes] = ()) -> None:
        self.size = size
        self._peaks = list(peaks)

    def append(self, leaf: bytes) -> bytes:
        """Add a leaf hash. Returns the root of the largest complete subtree that ends with it."""
        node = leaf
        self.size += 1
        for _ in range((self.size & -self.size).bit_length() - 1):
            node = node_hash(self._peaks.pop(), node)
        self._peaks.append(node)
        return node

    def root(self) -> bytes:
        """Return the root of all leaves."""
        if not self._peaks:
            return tree_root(())
        root = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            root = node_hash(peak, root)
        return root


def peak_ends(size: int) -> list[int]:
    """Return the last leaf of each peak of a tree, counted from 1, in the order of `Tree`."""
    ends = []
    while size:
        ends.append(size)
        size &= size - 1
    return ends[::-1]


# Signed notes and checkpoints: https://c2sp.org/signed-note and https://c2sp.org/tlog-checkpoint

ED25519 = 1
"""The type of a signature in a key of a signed note."""
KEY_BYTES = 32
KEY_PREFIX = "PRIVATE+KEY"
MAX_NOTE_BYTES = 1_000_000
MAX_SIGNATURES = 100


class NotEvidenceError(Exception):
    """A file or key that cannot be checked: it is damaged, or something else."""


class TamperedError(Exception):
    """A proof that something was changed."""


UNREADABLE = (ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError)
"""Errors that JSON with unexpected values causes."""


@dataclass(frozen=True)
class Key:
    """A public key of a signed note. Its name is the origin of the log."""

    name: str
    public: bytes

    @property
    def id(self) -> bytes:
        """Four bytes that tell keys of the same name apart."""
        text = self.name.encode() + b"\n" + bytes([ED25519]) + self.public
        return hashlib.sha256(text).digest()[:4]

    def __str__(self) -> str:
        """Return the text of the key, as `--key` takes it."""
        return f"{self.name}+{self.id.hex()}+{_key_text(self.public)}"

    def verifies(self, text: str, signature: bytes) -> bool:
        """Return True if the signature of the text is from this key."""
        public = _ed25519().Ed25519PublicKey.from_public_bytes(self.public)
        try:
            public.verify(signature, text.encode())
        except Exception:  # InvalidSignature of `cryptography`
            return False
        return True


@dataclass(frozen=True)
class SecretKey:
    """A key that signs notes."""

    key: Key
    seed: bytes = field(repr=False)

    @classmethod
    def from_seed(cls, name: str, seed: bytes) -> SecretKey:
        """Return the key that belongs to 32 random bytes. Raises `NotEvidenceError`."""
        if not is_key_name(name):
            raise NotEvidenceError(
                f"{name!r} cannot name a key: use a text without spaces and without '+', such as "
                "example.com/imcallback"
            )
        private = _ed25519().Ed25519PrivateKey.from_private_bytes(seed)
        return cls(Key(name, private.public_key().public_bytes_raw()), seed)

    def text(self) -> str:
        """Return the text of the key, as the setting `IMCALLBACK_SEAL_KEY` takes it."""
        return f"{KEY_PREFIX}+{self.key.name}+{self.key.id.hex()}+{_key_text(self.seed)}"

    def sign(self, text: str) -> str:
        """Return a note: the text and its signature. The text ends with a newline."""
        private = _ed25519().Ed25519PrivateKey.from_private_bytes(self.seed)
        signature = base64.b64encode(self.key.id + private.sign(text.encode())).decode()
        return f"{text}\n\N{EM DASH} {self.key.name} {signature}\n"


def is_key_name(name: str) -> bool:
    """Return True if a key of a signed note may have this name."""
    return bool(name) and name.isprintable() and "+" not in name and not any(map(str.isspace, name))


def read_secret_key(text: str) -> SecretKey:
    """Return the key with this text. Raises `NotEvidenceError`, which never shows the text."""
    parts = text.strip().split("+", 4)
    if len(parts) != 5 or "+".join(parts[:2]) != KEY_PREFIX:
        raise NotEvidenceError(f"a secret key begins with {KEY_PREFIX}+")
    secret = SecretKey.from_seed(parts[2], _read_key_text(parts[4]))
    if parts[3] != secret.key.id.hex():
        raise NotEvidenceError("the secret key has a typing error: its key id does not fit")
    return secret


def read_key(text: str) -> Key:
    """Return the public key with this text. Raises `NotEvidenceError`."""
    if text.strip().startswith(KEY_PREFIX):
        raise NotEvidenceError("the key is a secret key: use the public key, and keep the other")
    name, _, rest = text.strip().partition("+")
    key_id, _, data = rest.partition("+")
    if not is_key_name(name):
        raise NotEvidenceError(f"{text!r} is not a public key: it looks like NAME+ID+KEY")
    key = Key(name, _read_key_text(data))
    if key_id != key.id.hex():
        raise NotEvidenceError(f"the public key {text!r} has a typing error: its id does not fit")
    return key


@dataclass(frozen=True)
class Checkpoint:
    """The size and the root of the log of seals."""

    origin: str
    size: int
    """The number of seals."""
    root: bytes

    @property
    def text(self) -> str:
        """The text that is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    def sign(self, key: SecretKey | None) -> str:
        """Return the signed text, or the text alone if there is no key."""
        return key.sign(self.text) if key else self.text


def read_checkpoint(note: str, key: Key | None = None) -> Checkpoint:
    """Return the checkpoint in a text, with or without signatures.

    With a key, raises `TamperedError` if the key has not signed the checkpoint. Raises
    `NotEvidenceError` if the text is no checkpoint.
    """
    text, signatures = _split_note(note)
    lines = text.split("\n")
    try:
        origin, size, root = lines[0], int(lines[1]), base64.b64decode(lines[2], validate=True)
    except (IndexError, ValueError):
        raise NotEvidenceError(f"this is not a checkpoint: {note[:100]!r}") from None
    if not origin or size < 0 or lines[1] != str(size) or len(root) != KEY_BYTES:
        raise NotEvidenceError(f"this is not a checkpoint: {note[:100]!r}")
    if key:
        _check_signature(text, signatures, key)
        if origin != key.name:
            raise TamperedError(f"the key {key.name} has signed the origin {origin!r}")
    return Checkpoint(origin, size, root)


def _split_note(note: str) -> tuple[str, list[tuple[str, bytes]]]:
    """Return the text of a note, and the name and the data of each signature."""
    if len(note) > MAX_NOTE_BYTES or any(c < " " and c != "\n" for c in note):
        raise NotEvidenceError("this is not a checkpoint: it has control characters, or is long")
    text, gap, rest = note.rpartition("\n\n")
    if not gap:
        return note, []
    signatures = []
    for line in rest.removesuffix("\n").split("\n"):
        mark, _, signature = line.partition(" ")
        name, _, data = signature.partition(" ")
        try:
            raw = base64.b64decode(data, validate=True)
        except binascii.Error:
            raw = b""
        if mark != "\N{EM DASH}" or not is_key_name(name) or len(raw) < 5:
            raise NotEvidenceError(f"this is not a signature: {line[:100]!r}")
        signatures.append((name, raw))
    if len(signatures) > MAX_SIGNATURES or not rest.endswith("\n"):
        raise NotEvidenceError("the signatures of the checkpoint are cut off, or too many")
    return text + "\n", signatures


def _check_signature(text: str, signatures: list[tuple[str, bytes]], key: Key) -> None:
    ours = [raw[4:] for name, raw in signatures if name == key.name and raw[:4] == key.id]
    if not ours:
        names = ", ".join(name for name, _ in signatures) or "nobody"
        raise TamperedError(
            f"the checkpoint is not signed by the key {key.name}+{key.id.hex()}, but by {names}"
        )
    if not key.verifies(text, ours[0]):
        raise TamperedError(f"the signature by {key.name} does not fit the checkpoint")


def _key_text(data: bytes) -> str:
    return base64.b64encode(bytes([ED25519]) + data).decode()


def _read_key_text(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error:
        data = b""
    if data[:1] != bytes([ED25519]) or len(data) != 1 + KEY_BYTES:
        raise NotEvidenceError("the key is damaged, or not of the type Ed25519")
    return data[1:]


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise NotEvidenceError(
            "signatures need the package cryptography: pip install 'flask-imcallback[seal]'"
        ) from None
    return ed25519


# Commitments: a hash of a value and of a random salt. Without the salt, nobody can guess the value.

SALT_BYTES = NONCE_BYTES = 16
COMMITMENT_BYTES = 32
SLOTS = ("owner", "target", "actor")
"""The accounts of a removal that have a salt each."""


def salts_of(seed: bytes, removal_count: int) -> list[bytes]:
    """Return a salt for owner, target and actor of each removal, in this order."""
    slot_count = len(SLOTS) * removal_count
    stream = hashlib.shake_256(seed).digest(SALT_BYTES * slot_count)
    return [stream[at : at + SALT_BYTES] for at in range(0, len(stream), SALT_BYTES)]


def account_commitment(salt: bytes, account_id: str) -> bytes:
    """Return the commitment to an account id. It is empty for an empty id: an unknown actor."""
    return hashlib.sha256(salt + account_id.encode()).digest() if account_id else b""


def packet_commitment(nonce: bytes, packet: bytes) -> bytes:
    """Return the commitment to a packet of a delivery, or to the detail of an act.

    The packet is a line of JSON with the texts client_ip, query, headers, error and fingerprint,
    and then the body.
    """
    return hashlib.sha256(nonce + packet).digest()


def encode_slots(slots: Sequence[bytes]) -> bytes:
    """Return the content of a row of the table of erasures.

    A slot is the salt of an account that remains, or the commitment to an account that was erased.
    """
    kinds = {SALT_BYTES: b"s", COMMITMENT_BYTES: b"c"}
    return b"".join(kinds[len(slot)] + slot for slot in slots)


def decode_slots(content: bytes) -> list[bytes]:
    """Return the slots in a row of the table of erasures. Raises `ValueError`."""
    sizes = {b"s": SALT_BYTES, b"c": COMMITMENT_BYTES}
    slots, at = [], 0
    while at < len(content):
        size = sizes.get(content[at : at + 1], 0)
        slots.append(content[at + 1 : at + 1 + size])
        if not size or len(slots[-1]) != size:
            raise ValueError("the row of the erasure is damaged")
        at += 1 + size
    return slots


# The evidence

ERASE, STRIP, PRUNE = "erase", "strip", "prune"
MISSING = {
    ERASE: "accounts are erased",
    STRIP: "packets are missing",
    PRUNE: "log entries are missing",
}
"""Kind of an act that takes data away -> what is missing after it."""
LAST_POSITION = "last_position"
"""Member of the detail of such an act: the last log position that it covers."""
DELIVERY_ENTRY = b'["delivery"'
"""The start of a delivery."""
MISSING_ENTRY = b'["missing"'
"""The start of a log entry whose row was missing."""
LINE_STARTS = (b'{"seal":', b'{"checkpoint":', DELIVERY_ENTRY, MISSING_ENTRY, b'["act"')
BEFORE = "before"
"""Member of the detail of a strip: its end in time, as RFC 3339."""
REMOVALS, DELIVERIES, ACTS = COUNTED = ("removals", "deliveries", "acts")
"""What an erasure counts. Its act has the numbers: of removals, and of changed entries."""
PACKET_TEXTS = 5
"""Texts of a delivery before its body: client_ip, query, headers, error, fingerprint."""
MARK_BYTES = 2
"""Bytes of the hash of each log entry that name a changed entry."""
MAX_PROBLEMS = 100
"""Problems that are kept as texts. Further problems are only counted."""


@dataclass(frozen=True)
class Seal:
    """The entry of a seal: a leaf of the log of seals."""

    number: int
    at: str
    first: int
    """The first log position that the seal covers."""
    last: int
    deliveries: int
    removals: int
    acts: int
    root: bytes

    def to_json(self) -> str:
        """Return the text of the entry."""
        return json.dumps(
            {
                "seal": self.number,
                "at": self.at,
                "first": self.first,
                "last": self.last,
                "deliveries": self.deliveries,
                "removals": self.removals,
                "acts": self.acts,
                "root": self.root.hex(),
            },
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: bytes | str) -> Seal:
        """Return the seal with this entry. Raises `ValueError`."""
        try:
            members = json.loads(text)
            numbers = [
                members[n] for n in ("seal", "first", "last", "deliveries", "removals", "acts")
            ]
            number, first, last, deliveries, removals, acts = map(int, numbers)
            at, root = str(members["at"]), bytes.fromhex(members["root"])
            if datetime.fromisoformat(at).tzinfo is None:
                raise ValueError("its time has no offset")
        except UNREADABLE as error:
            raise ValueError(f"the entry of a seal has a wrong member: {error}") from None
        return cls(number, at, first, last, deliveries, removals, acts, root)


def marks_of(leaves: Sequence[bytes]) -> bytes:
    """Return the marks of log entries with these leaf hashes."""
    return b"".join([leaf[:MARK_BYTES] for leaf in leaves])


@dataclass
class Report:
    """The result of a verification."""

    problems: list[str] = field(default_factory=list)
    """What was tampered with. Empty: the evidence holds."""
    problem_count: int = 0
    seals: int = 0
    deliveries: int = 0
    removals: int = 0
    acts: int = 0
    pruned_seals: int = 0
    erased: int = 0
    """The deliveries and acts that an erasure has changed."""
    opened: int = 0
    """The removals whose accounts were checked."""
    packets: int = 0
    """The packets that were checked."""
    sealed_until: str = ""
    notes: list[str] = field(default_factory=list)
    """What the reader must know: for example the acts that took data away."""

    def add(self, problem: str) -> None:
        """Note a problem."""
        self.problem_count += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)


def verify(
    lines: Iterable[bytes], kept: Iterable[Checkpoint] = (), key: Key | None = None
) -> Report:
    """Check the lines of evidence in one pass, and each kept checkpoint at its size.

    The caller has checked the signatures of the kept checkpoints. Raises `NotEvidenceError` if
    signatures cannot be checked here.
    """
    if key:
        _ed25519()
    verification = _Verification(kept, key)
    try:
        verification.read(lines)
    except TamperedError as error:
        verification.report.add(str(error))
    return verification.report


class _Verification:
    """One pass over the lines of evidence."""

    def __init__(self, kept: Iterable[Checkpoint], key: Key | None) -> None:
        self.report = Report()
        self._key = key
        self._tree = Tree()
        self._kept: dict[int, list[Checkpoint]] = {}
        for checkpoint in kept:
            self._kept.setdefault(checkpoint.size, []).append(checkpoint)
        if not self._kept and key is None:
            self.report.notes.append(
                "without a kept checkpoint and without a key, this shows only that the parts fit "
                "each other"
            )
        self._last_position = 0
        self._missing = dict.fromkeys(MISSING, 0)
        """The last position at which data is missing, by the kind of act that explains it."""
        self._explained = dict.fromkeys(MISSING, 0)
        """The last position whose missing data an act explains."""
        self._stripped: list[tuple[int, int]] = []
        """Position and id of stripped deliveries that no act explains. A delivery is left out if a
        later one has a larger id, because an act that explains the later one explains both."""
        self._erased = dict.fromkeys(COUNTED, 0)
        self._explained_erasures = dict.fromkeys(COUNTED, 0)

    def read(self, lines: Iterable[bytes]) -> None:
        """Check all lines."""
        iterator = iter(lines)
        self._check_kept()
        line = next(iterator, b"")
        while line.startswith(b'{"seal":'):
            line = self._read_seal(line, iterator)
        self._check_missing()
        self._check_end(line)
        if next(iterator, None) is not None:
            raise TamperedError("there is more after the checkpoint at the end of the evidence")

    def _read_seal(self, line: bytes, lines: Iterator[bytes]) -> bytes:
        """Check a seal and its log entries. Return the line after them."""
        entry, _, hex_marks = line.rstrip(b"\n").partition(b"\t")
        self._tree.append(leaf_hash(entry))
        number = self._tree.size
        try:
            seal, marks = Seal.from_json(entry), bytes.fromhex(hex_marks.decode())
        except ValueError as error:
            raise TamperedError(f"the entry of seal {number} cannot be read: {error}") from None
        count = seal.last - seal.first + 1
        if seal.number != number or seal.first != self._last_position + 1 or count < 1:
            raise TamperedError(
                f"seal {number} (positions {self._last_position + 1} and up) is missing or out of "
                f"order: seal {seal.number} with the positions {seal.first} to {seal.last} is here"
            )
        self._last_position = seal.last
        self._check_kept()
        entries = []
        line = b""
        for line in lines:
            if not line.startswith(b"["):
                break
            sealed, _, opened = line.rstrip(b"\n").partition(b"\t")
            entries.append((sealed, opened))
            if len(entries) > count:
                raise TamperedError(f"seal {number} has more log entries than positions")
        else:
            line = b""
        self.report.seals, self.report.sealed_until = number, seal.at
        if entries:
            self._check_entries(seal, entries, marks)
        else:
            self.report.pruned_seals += 1
            self._missing[PRUNE] = seal.last
        return line

    def _check_entries(self, seal: Seal, entries: list[tuple[bytes, bytes]], marks: bytes) -> None:
        """Check the log entries of a seal: the sealed and the opened part of each."""
        self.report.deliveries += seal.deliveries
        self.report.removals += seal.removals
        self.report.acts += seal.acts
        sha256 = hashlib.sha256
        leaves = [sha256(b"\0" + sealed).digest() for sealed, _ in entries]
        if len(leaves) != seal.last - seal.first + 1 or tree_root(leaves) != seal.root:
            self._explain(seal, [sealed for sealed, _ in entries], leaves, marks)
            entries = [entry for entry in entries if not entry[0].startswith(MISSING_ENTRY)]
        elif marks and marks != marks_of(leaves):
            self.report.add(f"the marks of seal {seal.number} were changed")
        decode = json.JSONDecoder().raw_decode  # json.loads takes twice as long
        for sealed, opened in entries:
            try:
                if opened:
                    text = opened.decode()
                    values, end = decode(text)
                    if end != len(text):
                        raise ValueError("it has more than one value")
                    if sealed.startswith(DELIVERY_ENTRY):
                        self._open_delivery(sealed, *values)
                        continue
                elif sealed.startswith(DELIVERY_ENTRY):
                    continue
                if sealed.startswith(MISSING_ENTRY):
                    self.report.add(f"{_name(sealed)} was missing already when it was sealed")
                else:
                    self._open_act(json.loads(sealed), values if opened else None)
            except UNREADABLE as error:
                self.report.add(f"{_name(sealed)}: its opened part is wrong: {error}")

    def _explain(self, seal: Seal, entries: list[bytes], leaves: list[bytes], marks: bytes) -> None:
        """Note which log entries of a seal are missing or changed."""
        found = {
            _position(sealed): number
            for number, sealed in enumerate(entries)
            if not sealed.startswith(MISSING_ENTRY)
        }
        label = f"seal {seal.number} of {seal.at}"
        # A changed seal may claim any number of positions.
        count = max(len(entries), len(marks) // MARK_BYTES)
        for position in range(seal.first, min(seal.last + 1, seal.first + count)):
            at = MARK_BYTES * (position - seal.first)
            number = found.get(position)
            if number is None:
                self.report.add(f"{label}: the log position {position} is missing")
            elif marks and leaves[number][:MARK_BYTES] != marks[at : at + MARK_BYTES]:
                self.report.add(f"{label}: {_name(entries[number])} was changed")
        self.report.add(
            f"{label}: its root does not fit the log positions {seal.first} to {seal.last}"
        )

    def _open_act(self, act: list[Any], values: list[str] | None) -> None:
        """Check the detail of an act, and note which missing data the act explains."""
        _, position, act_id, kind, actor, affected, commitment = act
        detail = {}
        if values:
            nonce, text = values
            if packet_commitment(_read_nonce(nonce), text.encode()).hex() != commitment:
                raise ValueError("its detail does not fit the commitment")
            detail = json.loads(text)
        elif values is not None:  # an erasure took the detail away
            self.report.erased += 1
            self._erased[ACTS] += 1
            self._missing[ERASE] = position
        if kind in self._explained:
            # Evidence that names nobody has no details, and nothing that an act must explain.
            last = int(detail.get(LAST_POSITION, position))
            self._explained[kind] = max(self._explained[kind], last)
            if kind == STRIP and detail:
                end_id = _id_at(detail[BEFORE])
                self._stripped = [(p, i) for p, i in self._stripped if p > last or i >= end_id]
            elif kind == ERASE and detail:
                self._explained_erasures[REMOVALS] += affected
                for name in (DELIVERIES, ACTS):
                    self._explained_erasures[name] += int(detail[name])
            self.report.notes.append(f"{kind} by {actor}: {affected} affected, act {act_id}")

    def _open_delivery(
        self, sealed: bytes, accounts: list[str | None], packet: list[str] | bool | None = True
    ) -> None:
        """Check the accounts and the packet of a delivery.

        `accounts` holds owner, salt, target, salt, actor and salt of each removal. An account that
        was erased is None. `packet` is True if the evidence has no packets, False if this packet
        was stripped, and None if an erasure took it away.
        """
        count, rest = divmod(len(accounts), 2 * len(SLOTS))
        # Each removal has five texts in quotes: relation, cause, and three commitments. To cut the
        # line at its quotes takes a sixth of the time of reading it as JSON.
        texts = sealed.rsplit(b'"', 10 * count)
        if rest or not texts[0].endswith(b",[[" if count else b",[]]"):
            raise ValueError("it has another number of accounts")
        sha256, from_hex, is_erased = hashlib.sha256, bytes.fromhex, packet is None
        place, pairs = 5, iter(accounts)
        for account, salt_hex in zip(pairs, pairs, strict=True):
            if account:
                salt = from_hex(salt_hex or "")
                digest = sha256(salt + account.encode()).hexdigest()
                # A longer salt could end with the start of the account.
                if len(salt) != SALT_BYTES or digest.encode() != texts[place]:
                    raise ValueError(f"the account {account!r} does not fit its commitment")
            elif account is None:
                is_erased = True
            elif texts[place]:
                raise ValueError("an account is missing")
            place += 6 if place % 10 == 9 else 2
        self.report.opened += count
        if is_erased:
            erased = zip(accounts[::6], accounts[2::6], accounts[4::6], strict=True)
            self._erased[REMOVALS] += sum(None in triple for triple in erased)
            self._erased[DELIVERIES] += 1
            self.report.erased += 1
            self._missing[ERASE] = _position(sealed)
        if packet is False:
            delivery_id = int(sealed.split(b",", 3)[2])
            while self._stripped and self._stripped[-1][1] <= delivery_id:
                self._stripped.pop()
            self._stripped.append((_position(sealed), delivery_id))
        elif isinstance(packet, list):
            self._open_packet(texts[0].rsplit(b'"', 2)[1].decode(), *packet)

    def _open_packet(self, commitment: str, nonce: str, texts: str, body: str) -> None:
        if "\n" in texts or len(json.loads(texts)) != PACKET_TEXTS:
            raise ValueError("the texts of the packet are damaged")
        content = texts.encode() + b"\n" + base64.b64decode(body, validate=True)
        if packet_commitment(_read_nonce(nonce), content).hex() != commitment:
            raise ValueError("the packet does not fit its commitment")
        self.report.packets += 1

    def _check_missing(self) -> None:
        """Check that an act explains all data that is missing."""
        if self._stripped:
            self._missing[STRIP], self._explained[STRIP] = self._stripped[-1][0], 0
        for kind, what in MISSING.items():
            if self._missing[kind] > self._explained[kind]:
                self.report.add(
                    f"{what} up to the log position {self._missing[kind]}, and no act of the kind "
                    f"{kind} says so"
                )
        for name, count in self._erased.items():
            if count > self._explained_erasures[name]:
                self.report.add(
                    f"accounts are erased from {count} {name}, but the acts of the kind {ERASE} "
                    f"say {self._explained_erasures[name]}"
                )

    def _check_kept(self) -> None:
        """Compare the tree with the kept checkpoints of this size."""
        for checkpoint in self._kept.pop(self._tree.size, ()):
            if checkpoint.root != self._tree.root():
                self.report.add(
                    f"the seals differ from the kept checkpoint of {checkpoint.origin} with the "
                    f"size {checkpoint.size}: somebody has rewritten the log"
                )

    def _check_end(self, line: bytes) -> None:
        """Check the checkpoint at the end of the evidence, and the sizes of the kept ones."""
        for size in self._kept:
            if size > self._tree.size:
                self.report.add(
                    f"the log has {self._tree.size} seals, but a kept checkpoint has {size}: the "
                    "end was cut off, or the database is an older backup"
                )
        if not line:
            raise TamperedError("the evidence ends without a checkpoint: its end was cut off")
        try:
            note = json.loads(line)["checkpoint"]
            checkpoint = read_checkpoint(note, self._key)
        except (*UNREADABLE, NotEvidenceError) as error:
            raise TamperedError(
                f"a line is neither a seal nor a checkpoint ({error}): {line[:80]!r}"
            ) from None
        if (checkpoint.size, checkpoint.root) != (self._tree.size, self._tree.root()):
            self.report.add("the checkpoint at the end does not fit the seals before it")


def _read_nonce(text: str) -> bytes:
    nonce = bytes.fromhex(text)
    if len(nonce) != NONCE_BYTES:  # the nonce could end with a part of the value
        raise ValueError("a nonce has a wrong length")
    return nonce


def _id_at(moment: str) -> int:
    """Return the first id of a moment, which is RFC 3339: its microsecond since 1970."""
    since_1970 = datetime.fromisoformat(moment) - datetime(1970, 1, 1, tzinfo=UTC)
    return since_1970 // timedelta(microseconds=1)


def _position(sealed: bytes) -> int:
    """Return the log position in the sealed part of a log entry, or 0 if it cannot be read."""
    try:
        return int(sealed.split(b",", 2)[1])
    except (IndexError, ValueError):
        return 0


def _name(sealed: bytes) -> str:
    """Return the name of a log entry for messages."""
    kind, position, entry_id = [*sealed.decode(errors="replace").split(",", 3), "", ""][:3]
    name = kind.strip('["')
    return f"the {name} {entry_id} (log position {position})"


# The command


def read_kept(path: str, key: Key | None) -> Checkpoint:
    """Return the checkpoint in a file. Raises as `read_checkpoint` does."""
    with open(path, encoding="utf-8-sig") as file:
        try:
            return read_checkpoint(file.read(), key)
        except (NotEvidenceError, TamperedError) as error:
            raise type(error)(f"{path}: {error}") from None


def describe_report(report: Report) -> list[str]:
    """Return the report as lines of text."""
    lines = [
        f"{report.seals} seals until {report.sealed_until or 'now'}: "
        f"{report.deliveries} deliveries, {report.removals} removals, {report.acts} acts",
        f"{report.opened} removals with their accounts, {report.packets} packets checked",
    ]
    if report.pruned_seals:
        lines.append(f"{report.pruned_seals} seals were pruned")
    if report.erased:
        lines.append(f"{report.erased} entries were changed by an erasure")
    lines += [f"note: {note}" for note in report.notes]
    lines += [f"TAMPERED: {problem}" for problem in report.problems]
    if report.problem_count > len(report.problems):
        lines.append(f"TAMPERED: {report.problem_count - len(report.problems)} more problems")
    if not report.problem_count:
        lines.append("All of it holds.")
    return lines


def parse_age(text: str) -> timedelta:
    """Return a period such as 90m, 12h or 7d. Raises `ValueError`."""
    units = {"m": "minutes", "h": "hours", "d": "days"}
    if text[-1:] not in units or not text[:-1].isdecimal():
        raise ValueError(f"{text!r} is not a period such as 90m, 12h or 7d")
    try:
        return timedelta(**{units[text[-1]]: int(text[:-1])})
    except OverflowError:
        raise ValueError(f"{text!r} is too long") from None


def check_age(report: Report, oldest: timedelta) -> None:
    """Note a problem if the newest seal is older than a period."""
    at = datetime.fromisoformat(report.sealed_until) if report.sealed_until else None
    if at is None or datetime.now(UTC) - at > oldest:
        report.add(
            f"the newest seal is of {report.sealed_until or 'never'}, which is older than asked: "
            "this may be an old state, or sealing has stopped"
        )


def run(
    check: Callable[[list[Checkpoint], Key | None], Report],
    *,
    checkpoints: Iterable[str] = (),
    key: str | None = None,
    newer_than: str | None = None,
) -> int:
    """Print the report of a check, and return the exit status.

    `check` gets the kept checkpoints of the files `checkpoints`, and the public key.
    """
    try:
        public = read_key(key) if key else None
        oldest = parse_age(newer_than) if newer_than else None
        report = check([read_kept(path, public) for path in checkpoints], public)
        if oldest is not None:
            check_age(report, oldest)
    except TamperedError as error:
        _print(f"TAMPERED: {error}")
        return 1
    except (NotEvidenceError, OSError, ValueError) as error:
        _print(f"Could not check: {error}", sys.stderr)
        return 2
    for line in describe_report(report):
        _print(line)
    return 1 if report.problem_count else 0


def _print(line: str, file: TextIO | None = None) -> None:
    """Print a line. Characters that a terminal executes or that it does not have are escaped."""
    file = file or sys.stdout
    printable = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    encoding = file.encoding or "utf-8"
    print(printable.encode(encoding, "backslashreplace").decode(encoding), file=file, flush=True)


def verify_file(path: str, kept: Iterable[Checkpoint] = (), key: Key | None = None) -> Report:
    """Check an evidence file, or stdin if `path` is -.

    Raises `NotEvidenceError` if the file is no evidence, and `OSError`.
    """
    with nullcontext(sys.stdin.buffer) if path == "-" else open(path, "rb") as file:
        start = file.readline()
        if not start.startswith(LINE_STARTS):
            raise NotEvidenceError("this is not evidence of flask-imcallback")
        if start.endswith(b"\r\n"):
            raise NotEvidenceError(
                "the lines end as on Windows: copy the evidence again, without changing it"
            )
        return verify(itertools.chain([start], file), kept, key)


CHECKPOINT_HELP = "A file with a checkpoint that you kept. Can be repeated."
KEY_HELP = "The public key that signs the checkpoints."
NEWER_THAN_HELP = "The largest age of the newest seal, such as 90m, 12h or 7d."


def main(arguments: Sequence[str] | None = None) -> int:
    """Check an evidence file. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Check an evidence file of flask-imcallback.")
    parser.add_argument("file", help="The evidence file, or - for stdin.")
    parser.add_argument(
        "--checkpoint", action="append", default=[], metavar="FILE", help=CHECKPOINT_HELP
    )
    parser.add_argument("--key", metavar="VKEY", help=KEY_HELP)
    parser.add_argument("--newer-than", metavar="AGE", help=NEWER_THAN_HELP)
    options = parser.parse_args(arguments)
    return run(
        lambda kept, key: verify_file(options.file, kept, key),
        checkpoints=options.checkpoint,
        key=options.key,
        newer_than=options.newer_than,
    )


if __name__ == "__main__":
    sys.exit(main())
