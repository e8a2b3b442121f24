"""The hashes, keys and texts of the verifier, against the vectors of their standards."""

from __future__ import annotations

import base64
import hashlib
import json
from itertools import pairwise

import pytest

from flask_imcallback.log import SecretKey
from flask_imcallback.log.verifier import (
    Checkpoint,
    Key,
    NotEvidenceError,
    Seal,
    TamperedError,
    Tree,
    account_commitment,
    decode_slots,
    encode_slots,
    leaf_hash,
    node_hash,
    packet_commitment,
    peak_ends,
    read_checkpoint,
    read_key,
    read_secret_key,
    salts_of,
    tree_root,
)
from flask_imcallback.storage import pack, seed_of
from support.log import SECRET

LEAVES = [
    *("", "00", "10", "2021", "3031", "40414243", "5051525354555657"),
    "606162636465666768696a6b6c6d6e6f",
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
"""The roots of the first n leaves, from the test data of Certificate Transparency (RFC 6962)."""


@pytest.mark.parametrize("size", range(9))
def test_the_tree_is_the_tree_of_rfc_6962(size: int) -> None:
    """The root over a list and the root of a growing tree are those of the standard."""
    leaves = [leaf_hash(bytes.fromhex(leaf)) for leaf in LEAVES[:size]]
    tree = Tree()
    for leaf in leaves:
        tree.append(leaf)
    assert tree_root(leaves).hex() == tree.root().hex() == ROOTS[size]


def split_root(leaves: list[bytes]) -> bytes:
    """Return the root as RFC 6962 defines it: split at the largest power of two."""
    if len(leaves) < 2:
        return leaves[0] if leaves else hashlib.sha256().digest()
    middle = 1 << (len(leaves) - 1).bit_length() - 1
    return node_hash(split_root(leaves[:middle]), split_root(leaves[middle:]))


def test_a_tree_goes_on_from_its_stored_nodes() -> None:
    """Each size has the root of the definition, also from the few nodes that it is loaded from."""
    leaves = [leaf_hash(b"%d" % number) for number in range(300)]
    tree = Tree()
    nodes: list[bytes] = []
    for size, leaf in enumerate(leaves, 1):
        nodes.append(tree.append(leaf))
        loaded = Tree(size, [nodes[end - 1] for end in peak_ends(size)])
        assert tree.root() == loaded.root() == split_root(leaves[:size]) == tree_root(leaves[:size])
    assert all(first < second for first, second in pairwise(peak_ends(299)))


def test_a_key_has_the_texts_of_go() -> None:
    """The texts of a key are read back. They have the form of golang.org/x/mod/sumdb/note."""
    assert read_secret_key(SECRET.text() + "\n") == SECRET
    assert read_key(str(SECRET.key)) == SECRET.key
    # The example of https://pkg.go.dev/golang.org/x/mod/sumdb/note
    go = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    assert str(read_key(go)) == go
    note = (
        "If you think cryptography is the answer to your problem,\n"
        "then you don't know what your problem is.\n"
    )
    raw = base64.b64decode(
        "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
    )
    assert raw[:4] == read_key(go).id
    assert read_key(go).verifies(note, raw[4:])
    assert not read_key(go).verifies(note + "x", raw[4:])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        SECRET.text()[:-4],
        SECRET.text().replace("example", "exbmple"),
        SECRET.text() + "A",
        str(SECRET.key),
    ],
)
def test_a_damaged_secret_key_is_refused_and_never_shown(text: str) -> None:
    """The message says what is wrong without the key."""
    with pytest.raises(NotEvidenceError) as error:
        read_secret_key(text)
    seed = SECRET.text().rpartition("+")[2]
    assert seed[:10] not in str(error.value)


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\nb", "a\u2003b"])
def test_a_wrong_name_of_a_key_is_refused(name: str) -> None:
    """A note could not name such a key."""
    with pytest.raises(NotEvidenceError, match="cannot name a key"):
        SecretKey.from_seed(name, b"s" * 32)


def test_a_checkpoint_is_signed_and_read_back() -> None:
    """The text of a checkpoint has three lines. Its signature is always the same."""
    checkpoint = Checkpoint("example.com/log", 3, bytes(32))
    note = checkpoint.sign(SECRET)
    assert note == checkpoint.sign(SECRET)
    assert note.startswith(f"example.com/log\n3\n{'A' * 43}=\n\n\N{EM DASH} example.com/log ")
    assert read_checkpoint(note, SECRET.key) == checkpoint
    assert read_checkpoint(note) == checkpoint
    assert read_checkpoint(checkpoint.sign(None)) == checkpoint
    # Witnesses add their own lines.
    assert read_checkpoint(f"{note}\N{EM DASH} witness AAAAAAAA\n", SECRET.key) == checkpoint


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("\n3\n", "\n4\n"),
        ("\n3\n", "\n03\n"),
        ("\n3\n", "\n-3\n"),
        ("AAA=\n", "AAB=\n"),
        ("AAA=\n", "AAA\n"),
        ("example.com/log\n3", "example.com/lag\n3"),
        ("\N{EM DASH} ", "- "),
        ("\n\n\N{EM DASH}", "\n\N{EM DASH}"),
        ("\n3\n", "\n3\x00\n"),
    ],
    ids=repr,
)
def test_a_changed_checkpoint_is_refused(old: str, new: str) -> None:
    """Neither the text nor the signature can be changed."""
    note = Checkpoint("example.com/log", 3, bytes(32)).sign(SECRET)
    assert old in note
    with pytest.raises((NotEvidenceError, TamperedError)):
        read_checkpoint(note.replace(old, new, 1), SECRET.key)


def test_a_key_signs_only_its_own_origin() -> None:
    """A checkpoint of another log proves nothing about this one."""
    note = Checkpoint("example.com/other", 3, bytes(32)).sign(SECRET)
    with pytest.raises(TamperedError, match="has signed the origin"):
        read_checkpoint(note, SECRET.key)
    assert Key("example.com/log", SECRET.key.public) == SECRET.key


def test_commitments_never_change() -> None:
    """The evidence of earlier releases must hold in each later release."""
    nonce = bytes(range(16))
    seed = seed_of(nonce)
    assert seed.hex() == hashlib.sha256(nonce).hexdigest()[:32]
    salts = salts_of(seed, 2)
    assert b"".join(salts) == hashlib.shake_256(seed).digest(96)
    assert account_commitment(salts[0], "Zoë") == hashlib.sha256(salts[0] + "Zoë".encode()).digest()
    assert account_commitment(salts[2], "") == b""
    texts = {"client_ip": "192.0.2.1", "query": "a=b", "headers": "{}", "error": "ö"}
    packet = pack({**texts, "fingerprint": None, "body": b'{"x": "\xff"}'})
    assert packet == b'["192.0.2.1", "a=b", "{}", "\\u00f6", ""]\n{"x": "\xff"}'
    assert packet_commitment(nonce, packet) == hashlib.sha256(nonce + packet).digest()


def test_the_slots_of_an_erasure_are_read_back() -> None:
    """A slot holds a salt or a commitment. Damaged content is an error."""
    slots = [b"s" * 16, b"c" * 32, b"t" * 16]
    assert decode_slots(encode_slots(slots)) == slots
    for content in (b"x", encode_slots(slots)[:-1], b"s"):
        with pytest.raises(ValueError, match="damaged"):
            decode_slots(content)


def test_the_entry_of_a_seal_never_changes() -> None:
    """The entry is the leaf of the log of seals, so its bytes are fixed."""
    seal = Seal(7, "2026-11-26T12:00:00.000001Z", 5, 9, 4, 6, 1, bytes(32))
    assert seal.to_json() == (
        '{"seal":7,"at":"2026-11-26T12:00:00.000001Z","first":5,"last":9,"deliveries":4,'
        f'"removals":6,"acts":1,"root":"{"0" * 64}"}}'
    )
    assert Seal.from_json(seal.to_json()) == seal
    for wrong in ("{}", "[]", "x", json.dumps({"seal": None})):
        with pytest.raises(ValueError, match=r"entry of a seal|Expecting value"):
            Seal.from_json(wrong)
