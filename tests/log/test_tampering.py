"""Each change of a sealed log is found, in the database and in evidence made after the change."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import time_machine
from flask import Flask
from sqlalchemy import URL, delete, insert, select, text, update

from flask_imcallback import storage
from flask_imcallback.log import ActKind, SecretKey, store_act, verifier
from flask_imcallback.log.retention import STRIPPED
from flask_imcallback.removals import Cause, Relation, Status
from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage import (
    act,
    commit_to_packet,
    delivery,
    door,
    erasure,
    inbox,
    log,
    removal,
    source,
)
from flask_imcallback.storage import seal as seal_table
from support.apps import DATABASES, SOURCE_TEXTS, MakeApp, drop_triggers, long_if
from support.deliveries import DELIVERY, MOMENT, make_delivery, record, store
from support.log import SECRET, problems, run, seal, write_evidence

pytestmark = pytest.mark.slow

KEY = str(SECRET.key)
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Sealed:
    """A sealed log of three seals, and what a tampering needs to know of it."""

    app: Flask
    kept: Path
    """The checkpoint of all three seals."""
    single: int
    """The id of a delivery with two removals, at the log position 1."""
    group: int
    """The id of a delivery with five removals, at the log position 2."""
    unreadable: int
    """The id of a delivery without removals, at the log position 3."""
    act: int
    last: int
    """The id of a delivery with one removal, at the log position 6."""

    def change(self, *statements: Any) -> None:
        """Change the database behind the back of the app."""
        with get_runtime().writing_engine().begin() as connection:
            drop_triggers(connection)
            for statement in statements:
                connection.execute(statement)

    def verify(self, *options: str | Path) -> tuple[int, str]:
        """Return the exit status and the output of the verification of the database."""
        result = run(self.app, "verify", "--checkpoint", self.kept, "--key", KEY, *options)
        return result.exit_code, result.output


def first_on_servers(names: Iterable[str]) -> list[Any]:
    """Return the parameters of a test: all on SQLite, and the first one on each server.

    The others are long.
    """
    return [
        pytest.param(
            database,
            name,
            id=f"{database}-{name}",
            marks=long_if(database != "sqlite" and number > 0),
        )
        for database in DATABASES
        for number, name in enumerate(names)
    ]


@pytest.fixture
def sealed(make_app: MakeApp, database_url: URL, tmp_path: Path) -> Iterator[Sealed]:
    app = make_app(database_url, IMCALLBACK_SEAL_KEY=SECRET.text())
    with app.app_context():
        yield fill(app, tmp_path)


def fill(app: Flask, folder: Path) -> Sealed:
    """Store and seal deliveries of each status and an act, and keep the checkpoint."""
    single = record(app, DELIVERY)[0].delivery_id
    group = store(
        *[("g", f"m{number}") for number in range(5)],
        at=MOMENT + timedelta(seconds=1),
        relation=Relation.GROUP,
        cause=Cause.KICKED,
        actor_id="boss",
        request_id="r",
        client_ip="203.0.113.8",
        platform="Web",
    )[0].delivery_id
    seal()
    unreadable = replace(
        make_delivery(at=MOMENT + timedelta(seconds=2)), status=Status.UNREADABLE, error="no JSON"
    )
    get_runtime().recorder.record(unreadable)
    record(app, replace(DELIVERY, received_at=MOMENT + timedelta(seconds=3)))  # a duplicate
    seal()
    engine = get_runtime().writing_engine()
    act_id = store_act(engine, ActKind.EXPORT, "cli:eve", 0, {"filters": {"owner_id": ["alice"]}})
    last = store(("carol", "dave"), at=MOMENT + timedelta(seconds=4))[0].delivery_id
    seal()
    kept = folder / "kept.txt"
    kept.write_text(run(app, "checkpoint").output)
    with engine.connect() as connection:
        ids = connection.scalars(select(delivery.c.id).order_by(delivery.c.id)).all()
    return Sealed(app, kept, single, group, ids[2], act_id, last)


def test_an_untouched_log_holds(sealed: Sealed, tmp_path: Path) -> None:
    """Before any change, the database and the evidence hold, with and without packets."""
    assert sealed.verify() == (
        0,
        f"3 seals until {newest_seal().at}: 5 deliveries, 8 removals, 1 acts\n"
        "8 removals with their accounts, 0 packets checked\n"
        "All of it holds.\n",
    )
    file = write_evidence(sealed.app, tmp_path / "evidence.ndjson")
    report = verifier.verify_file(str(file), [verifier.read_checkpoint(sealed.kept.read_text())])
    assert (report.problems, report.opened, report.packets) == ([], 8, 0)
    file = write_evidence(sealed.app, tmp_path / "packets.ndjson", "--packets")
    report = verifier.verify_file(str(file), [], SECRET.key)
    assert (report.problems, report.opened, report.packets) == ([], 8, 5)
    nameless = tmp_path / "nameless.ndjson"
    nameless.write_bytes(b"".join(line.split(b"\t")[0].rstrip() + b"\n" for line in lines_of(file)))
    assert b"alice" not in nameless.read_bytes()
    assert b"boss" not in nameless.read_bytes()
    report = verifier.verify_file(str(nameless), [], SECRET.key)
    assert (report.problems, report.opened, report.deliveries) == ([], 0, 5)


def newest_seal() -> verifier.Seal:
    with get_runtime().engine().connect() as connection:
        query = select(seal_table.c.entry).order_by(seal_table.c.number.desc()).limit(1)
        return verifier.Seal.from_json(connection.scalar(query) or "")


def lines_of(file: Path) -> list[bytes]:
    return file.read_bytes().splitlines(keepends=True)


Change = Callable[[Sealed], Any]
DELIVERY_VALUES: dict[str, Any] = {
    "status": "ignored",
    "duplicate_of": 5,
    "error": "x",
    "removal_count": 1,
    "remote_addr": "x",
    "authenticated_by": "x",
    "client_ip": "x",
    "request_id": "x",
    "query": "x",
    "headers": '{"a":"b"}',
    "body": b"x",
    "fingerprint": b"f" * 16,
    "nonce": b"n" * 16,
    "commitment": b"p" * 32,
}
"""Another value for each sealed column of a delivery."""


def delete_seal(number: int) -> Change:
    return lambda _: delete(seal_table).where(seal_table.c.number == number)


def of_single(sealed: Sealed) -> Any:
    return delivery.c.id == sealed.single


def source_id_of(delivery_id: int) -> Any:
    """Return the id of the source of a delivery."""
    query = select(delivery.c.source_id).where(delivery.c.id == delivery_id)
    with get_runtime().engine().connect() as connection:
        return connection.scalar(query)


def set_column(column: str, value: Any, *, of: str = "single") -> Change:
    return lambda s: update(delivery).where(delivery.c.id == getattr(s, of)).values({column: value})


def set_source(column: str, *, of: str) -> Change:
    """Return the change of a column of the source of a delivery."""
    return lambda s: (
        update(source).where(source.c.id == source_id_of(getattr(s, of))).values({column: "x"})
    )


def set_entry(number: int, entry: str) -> Change:
    return lambda _: update(seal_table).where(seal_table.c.number == number).values(entry=entry)


CHANGES: dict[str, tuple[Change, str, str]] = {
    **{
        f"delivery.{column}": (
            set_column(column, value),
            r"the delivery \d+ \(log position 1\) was changed",
            "its root does not fit",
        )
        for column, value in DELIVERY_VALUES.items()
    },
    "delivery.id": (
        lambda s: update(delivery).where(of_single(s)).values(id=s.single - 7),
        "the log position 1 is missing(.|\n)*deliveries that are not in the log",
        "the log position 1 is missing",
    ),
    "delivery.removal_count": (
        set_column("removal_count", 3),
        "it has 2 of 3 removals",
        "",
    ),
    "delivery.source_id": (
        lambda s: update(delivery).where(of_single(s)).values(source_id=source_id_of(s.group)),
        r"the delivery \d+ \(log position 1\) was changed",
        "its root does not fit",
    ),
    "delivery.source_id of a removal": (
        lambda s: (
            update(delivery)
            .where(delivery.c.id == s.last)
            .values(source_id=source_id_of(s.unreadable))
        ),
        r"deliveries whose source does not fit: \d+",
        "",
    ),
    "delivery.source_id without removals": (
        lambda s: (
            update(delivery)
            .where(delivery.c.id == s.unreadable)
            .values(source_id=source_id_of(s.last))
        ),
        r"deliveries whose source does not fit: \d+",
        "",
    ),
    **{
        f"delivery.{column}": (
            set_column(column, "x"),
            r"deliveries whose source does not fit: \d+",
            "",
        )
        for column in SOURCE_TEXTS
    },
    **{
        f"delivery.{column} without removals": (
            set_column(column, "x", of="unreadable"),
            r"the delivery \d+ \(log position 3\) was changed",
            "its root does not fit",
        )
        for column in SOURCE_TEXTS
    },
    "removal.owner_id": (
        lambda s: update(removal).where(removal.c.id == s.group + 2).values(owner_id="x"),
        r"the delivery \d+ \(log position 2\) was changed",
        "its root does not fit",
    ),
    "removal.target_id": (
        lambda s: update(removal).where(removal.c.id == s.group + 2).values(target_id="x"),
        r"the delivery \d+ \(log position 2\) was changed",
        "its root does not fit",
    ),
    "removal.actor_id": (
        lambda s: update(removal).where(removal.c.id == s.group + 2).values(actor_id=""),
        r"the delivery \d+ \(log position 2\) was changed",
        "its root does not fit",
    ),
    "removal.position": (
        lambda s: update(removal).where(removal.c.id == s.group + 2).values(position=1),
        r"its removal \d+ has the position 1",
        "",
    ),
    "removal.source_id": (
        lambda s: (
            update(removal)
            .where(removal.c.id == s.group + 2)
            .values(source_id=source_id_of(s.single))
        ),
        r"the delivery \d+ \(log position 2\) was changed",
        "its root does not fit",
    ),
    "removal.source_id of the same relation": (
        lambda s: (
            update(removal)
            .where(removal.c.id == s.single + 1)
            .values(source_id=source_id_of(s.last))
        ),
        "has another provider(.|\n)*has another platform",
        "",
    ),
    "removal.id": (
        lambda s: update(removal).where(removal.c.id == s.group + 4).values(id=s.group + 90),
        r"(.|\n)*removals that belong to no delivery",
        "its root does not fit",
    ),
    "source.relation": (
        lambda s: update(source).where(source.c.relation == "group").values(relation="friend"),
        r"\(log position 2\) was changed",
        "its root does not fit",
    ),
    **{
        f"source.{column}": (
            set_source(column, of="group"),
            r"\(log position 2\) was changed",
            "its root does not fit",
        )
        for column in ("provider", "app_id", "command", "platform", "cause")
    },
    **{
        f"source.{column} without removals": (
            set_source(column, of="unreadable"),
            r"deliveries whose source does not fit: \d+",
            "",
        )
        for column in ("command", "relation", "cause", "platform")
    },
    "a deleted removal": (
        lambda s: delete(removal).where(removal.c.id == s.group + 2),
        "it has 4 of 5 removals",
        "its root does not fit",
    ),
    "a deleted delivery": (
        lambda s: delete(delivery).where(of_single(s)),
        "the log position 1 is missing",
        "the log position 1 is missing",
    ),
    "a deleted log position": (
        lambda s: delete(log).where(log.c.position == 2),
        "the log position 2 is missing",
        "the log position 2 is missing",
    ),
    "an act": (
        lambda s: update(act).where(act.c.id == s.act).values(actor="cli:bob"),
        r"the act \d+ \(log position 5\) was changed",
        "its root does not fit",
    ),
    "the detail of an act": (
        lambda s: update(act).where(act.c.id == s.act).values(detail="{}"),
        r"the act \d+ \(log position 5\) was changed",
        "its root does not fit",
    ),
    "a deleted act": (
        lambda s: delete(act).where(act.c.id == s.act),
        "the log position 5 is missing",
        "the log position 5 is missing",
    ),
    **{
        f"the deleted seal {number}": (
            delete_seal(number),
            f"seal {number} .* is missing or out of order",
            f"seal {number} .* is missing or out of order",
        )
        for number in (1, 2)
    },
    "the last seal": (
        lambda s: delete(seal_table).where(seal_table.c.number == 3),
        "the log has 2 seals, but a kept checkpoint has 3",
        "the log has 2 seals, but a kept checkpoint has 3",
    ),
    "the entry of a seal": (
        lambda s: (
            update(seal_table)
            .where(seal_table.c.number == 3)
            .values(entry=newest_seal().to_json().replace('"acts":1', '"acts":0'))
        ),
        "seal 3",
        "the checkpoint at the end does not fit|seal 3",
    ),
    **{
        f"an unreadable seal {number}": (
            set_entry(number, '{"seal":0}'),
            f"the entry of seal {number} cannot be read",
            f"the entry of seal {number} cannot be read",
        )
        for number in (1, 2, 3)
    },
    "the node of a seal": (
        lambda s: update(seal_table).where(seal_table.c.number == 2).values(node=b"n" * 32),
        "the node of seal 2 was changed",
        "the checkpoint at the end does not fit",
    ),
    "the last position of a seal": (
        lambda s: update(seal_table).where(seal_table.c.number == 3).values(last_position=99),
        "the last position of seal 3 was changed",
        "",
    ),
    "the marks of a seal": (
        lambda s: update(seal_table).where(seal_table.c.number == 1).values(marks=b"m" * 4),
        "the marks of seal 1 were changed",
        "the marks of seal 1 were changed",
    ),
}
"""Name of a change -> the change, what verify says, and what the evidence shows after it.

An empty text: the changed column is not sealed, and the evidence has the value of the delivery.
"""


@pytest.mark.parametrize(
    ("database_url", "name"), first_on_servers(CHANGES), indirect=["database_url"]
)
def test_a_changed_row_is_found(sealed: Sealed, tmp_path: Path, name: str) -> None:
    """`verify` names the row that somebody changed. Evidence with this row does not hold."""
    change, online, offline = CHANGES[name]
    sealed.change(change(sealed))
    status, output = sealed.verify()
    assert (status, matches(online, output)) == (1, True), output
    found = problems(write_evidence(sealed.app, tmp_path / "evidence"), sealed.kept.read_text())
    assert matches(offline, found) if offline else not found


def matches(pattern: str, text: str) -> bool:
    return re.search(pattern, text) is not None


def copy_of(table: Any, row_id: int, **changes: Any) -> Any:
    """Return an INSERT of a copy of a row."""
    with get_runtime().engine().connect() as connection:
        row = connection.execute(select(table).where(table.c.id == row_id)).mappings().one()
    return insert(table).values({**row, **changes})


def insert_position(position: int) -> Change:
    return lambda _: insert(log).values(position=position, entry_id=-7)


INSERTIONS: dict[str, tuple[Change, str]] = {
    "a delivery": (
        lambda s: copy_of(delivery, s.unreadable, id=s.unreadable + 5),
        r"deliveries that are not in the log: \d+",
    ),
    "an act": (lambda s: copy_of(act, s.act, id=s.act + 5), r"acts that are not in the log: \d+"),
    "a removal of a sealed delivery": (
        lambda s: copy_of(removal, s.group + 4, id=s.group + 5, position=5),
        r"removals that belong to no delivery: \d+",
    ),
    "a removal of no delivery": (
        lambda s: copy_of(removal, s.group + 4, id=s.group + 5, position=1),
        r"removals that belong to no delivery: \d+",
    ),
    **{
        f"the log position {position}": (
            insert_position(position),
            f"log positions that nobody gave out: {position}",
        )
        for position in (0, -5)
    },
    "an entry in the inbox": (
        lambda s: insert(inbox).values(entry_id=s.single),
        r"entries that have a log position, but also wait for one: \d+",
    ),
    "a seal before the first": (
        lambda s: insert(seal_table).values(
            number=0, last_position=0, entry="{}", node=b"n" * 32, marks=b""
        ),
        "seals that nobody made: 0",
    ),
    "an erasure": (
        lambda s: insert(erasure).values(delivery_id=s.single, slots=b""),
        r"erasures that belong to no erased delivery: \d+",
    ),
}
"""Name of an inserted row -> the insertion, and what verify says."""


@pytest.mark.parametrize(
    ("database_url", "name"), first_on_servers(INSERTIONS), indirect=["database_url"]
)
def test_an_inserted_row_is_found(sealed: Sealed, tmp_path: Path, name: str) -> None:
    """A row that nobody received is in no seal. So the evidence does not have it."""
    change, online = INSERTIONS[name]
    sealed.change(change(sealed))
    status, output = sealed.verify()
    assert (status, matches(online, output)) == (1, True), output
    assert not problems(write_evidence(sealed.app, tmp_path / "file"), sealed.kept.read_text())


def test_two_exchanged_rows_are_found(sealed: Sealed, tmp_path: Path) -> None:
    """The order of the log is sealed, and the order of the removals of a delivery."""
    two = removal.c.id.in_([sealed.group, sealed.group + 1])
    with get_runtime().engine().connect() as connection:
        rows = connection.execute(select(removal).where(two)).mappings().all()
    swapped = [
        {**row, "id": sealed.group + 1 - row["position"], "position": 1 - row["position"]}
        for row in rows
    ]
    sealed.change(delete(removal).where(two), insert(removal).values(swapped))
    assert "(log position 2) was changed" in sealed.verify()[1]
    sealed.change(
        delete(log).where(log.c.position < 3),
        insert(log).values(
            [
                {"position": 1, "entry_id": sealed.group},
                {"position": 2, "entry_id": sealed.single},
            ]
        ),
    )
    assert "(log position 1) was changed" in sealed.verify()[1]
    assert problems(write_evidence(sealed.app, tmp_path / "evidence"))


@pytest.mark.parametrize("is_head", [True, False], ids=["head", "tail"])
def test_a_cut_log_is_not_retention(sealed: Sealed, tmp_path: Path, is_head: bool) -> None:
    """Rows that are gone without an act are found, also if they were the oldest or the newest."""
    position, cut_seal = log.c.position, seal_table.c.number == (1 if is_head else 3)
    sealed.change(delete(log).where(position < 3 if is_head else position > 4))
    # The act of the evidence file may get the position 5 again.
    missing = r"log position (1|5)\)? (is missing|was changed)"
    assert matches(missing, sealed.verify()[1])
    assert matches(missing, problems(write_evidence(sealed.app, tmp_path / "evidence")))
    sealed.change(update(seal_table).where(cut_seal).values(marks=b""))
    missing = "log entries are missing up to the log position (2|6), and no act"
    assert matches(missing, sealed.verify()[1])
    assert matches(missing, problems(write_evidence(sealed.app, tmp_path / "evidence")))


def test_a_rewritten_and_sealed_log_differs_from_the_kept_checkpoint(
    sealed: Sealed, tmp_path: Path
) -> None:
    """A person with the database and the key can rewrite all. A kept checkpoint still shows it."""
    sealed.change(
        delete(seal_table),
        update(removal).where(removal.c.owner_id == "alice").values(owner_id="x"),
    )
    (get_runtime().sealer.path).unlink()
    for _ in range(3):
        seal()
    again = run(sealed.app, "checkpoint").output
    file = write_evidence(sealed.app, tmp_path / "evidence")
    assert not problems(file)
    assert not problems(file, again, key=SECRET.key)
    assert "has 1 seals, but a kept checkpoint has 3" in problems(file, sealed.kept.read_text())
    for day in (1, 2):  # the forged log grows past the size of the kept checkpoint
        store(("x", "y"), at=MOMENT + day * DAY)
        seal()
    file = write_evidence(sealed.app, tmp_path / "evidence")
    differs = "the seals differ from the kept checkpoint of example.com/log with the size 3"
    assert differs in problems(file, sealed.kept.read_text())
    assert differs in sealed.verify()[1]


def test_a_checkpoint_of_another_key_is_refused(sealed: Sealed, tmp_path: Path) -> None:
    """A forged checkpoint has the wrong signature, and a checkpoint of a new key another key id."""
    file = write_evidence(sealed.app, tmp_path / "evidence")
    note = sealed.kept.read_text()
    forged = tmp_path / "forged.txt"
    forged.write_text(note.replace("\n3\n", "\n2\n"))
    thief = SecretKey.from_seed(SECRET.key.name, b"t" * 32)
    resigned = tmp_path / "resigned.txt"
    resigned.write_text(verifier.read_checkpoint(note).sign(thief))
    for kept, words in ((forged, "does not fit the checkpoint"), (resigned, "not signed by")):
        result = run(sealed.app, "verify", file, "--checkpoint", kept, "--key", KEY)
        assert (result.exit_code, words in result.output) == (1, True), result.output
    # The evidence of the thief has a checkpoint with his key.
    lines = lines_of(file)[:-1]
    checkpoint = json.dumps({"checkpoint": resigned.read_text()}).encode() + b"\n"
    file.write_bytes(b"".join([*lines, checkpoint]))
    assert "not signed by the key" in problems(file, key=SECRET.key)


def test_an_old_state_is_found_by_its_age(sealed: Sealed, tmp_path: Path) -> None:
    """An old checkpoint with its old evidence holds. Only its age shows that it is old."""
    file = write_evidence(sealed.app, tmp_path / "evidence")
    at = newest_seal().at.encode()
    assert run(sealed.app, "verify", file, "--newer-than", "1d").exit_code == 0
    assert sealed.verify("--newer-than", "1d")[0] == 0
    with time_machine.travel(datetime.now(UTC) + 2 * DAY):
        result = run(sealed.app, "verify", file, "--newer-than", "1d")
    assert (result.exit_code, "older than asked" in result.output) == (1, True)
    assert at in file.read_bytes()


def edit(lines: list[bytes], number: int, old: bytes, new: bytes) -> list[bytes]:
    assert old in lines[number]
    return [*lines[:number], lines[number].replace(old, new), *lines[number + 1 :]]


def replace_in(number: int, old: str, new: str) -> Callable[[list[bytes]], list[bytes]]:
    return lambda lines: edit(lines, number, old.encode(), new.encode())


def move_to_salt(lines: list[bytes], number: int, account: str) -> list[bytes]:
    """Move the start of an account to the end of its salt, so that the hash stays the same."""
    match = re.search(rf'"{account}","([0-9a-f]+)"'.encode(), lines[number])
    assert match
    longer = match[1] + account[:2].encode().hex().encode()
    return edit(lines, number, match[0], b'"%s","%s"' % (account[2:].encode(), longer))


def move_to_nonce(lines: list[bytes]) -> list[bytes]:
    """Move the start of the texts of a packet to the end of its nonce."""
    match = re.search(rb'\["([0-9a-f]{32})","(\[)', lines[1])
    assert match
    return edit(lines, 1, match[0], b'["%s5b","' % match[1])


EDITS: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str]] = {
    "an account": (lambda lines: edit(lines, 1, b"alice", b"mallo"), "does not fit its commitment"),
    "an actor": (lambda lines: edit(lines, 2, b"boss", b"bass"), "does not fit its commitment"),
    "no actor": (lambda lines: edit(lines, 2, b'"boss"', b'""'), "an account is missing"),
    "an erased account": (
        lambda lines: edit(lines, 1, b'"alice"', b"null"),
        "accounts are erased up to the log position 1, and no act",
    ),
    "the sealed part": (lambda lines: edit(lines, 1, b"recorded", b"ignored"), "was changed"),
    "the packet": (lambda lines: edit(lines, 1, packet(lines), b"AAAA"), "the packet does not fit"),
    "the end of a salt": (
        lambda lines: move_to_salt(lines, 1, "alice"),
        "the account 'ice' does not fit its commitment",
    ),
    "the end of a nonce": (move_to_nonce, "its opened part is wrong"),
    **{
        f"{value} as an account": (
            replace_in(1, '"alice"', value),
            "its opened part is wrong",
        )
        for value in ("5", "[]", "true", "1e999", "[" * 5000)
    },
    "a seal with many positions": (
        replace_in(0, '"last":2', '"last":1000000000000000'),
        "seal 1",
    ),
    **{
        f"{old} of a seal": (
            replace_in(0, old, new),
            "the entry of seal 1 cannot be read",
        )
        for old, new in (('"acts":0', '"acts":1e999'), ('"at":"2', '"at":"x2'), ("Z", ""))
    },
    "no packet": (
        lambda lines: ([lines[0], lines[1].rpartition(b',["')[0] + b",false]\n", *lines[2:]]),
        "packets are missing up to the log position 1, and no act",
    ),
    "the detail of an act": (
        lambda lines: edit(lines, 7, b"filters", b"nothing"),
        "its detail does not fit the commitment",
    ),
    "no detail of an act": (
        lambda lines: [*lines[:7], lines[7].partition(b"\t")[0] + b"\t[]\n", *lines[8:]],
        "accounts are erased up to the log position 5, and no act",
    ),
    "a line more": (lambda lines: [*lines[:2], *lines[1:]], "more log entries than positions"),
    "a line less": (lambda lines: [*lines[:1], *lines[2:]], "the log position 1 is missing"),
    "a seal less": (
        lambda lines: lines[3:],
        "seal 1 (positions 1 and up) is missing or out of order",
    ),
    "a seal in the middle less": (lambda lines: [*lines[:3], *lines[6:]], "out of order"),
    "exchanged lines": (
        lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
        "its root does not fit",
    ),
    "an entry": (lambda lines: edit(lines, 0, b'"removals":7', b'"removals":8'), "does not fit"),
    "an unreadable entry": (lambda lines: edit(lines, 0, b'"root"', b'"toor"'), "cannot be read"),
    "cut off": (lambda lines: lines[:-1], "ends without a checkpoint"),
    "cut off in a line": (
        lambda lines: [*lines[:-1], lines[-1][:30]],
        "neither a seal nor a checkpoint",
    ),
    "something after the end": (lambda lines: [*lines, lines[1]], "more after the checkpoint"),
    "an unreadable opened part": (
        lambda lines: edit(lines, 1, b"]\n", b"\n"),
        "opened part is wrong",
    ),
    "a second opened part": (
        lambda lines: edit(lines, 1, b"]\n", b"][1]\n"),
        "it has more than one value",
    ),
}
"""Name of an edit of an evidence file -> the edit, and what the verifier says."""


def packet(lines: list[bytes]) -> bytes:
    return base64.b64encode(DELIVERY.body)


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_edited_evidence_does_not_hold(sealed: Sealed, tmp_path: Path, name: str) -> None:
    """Each edit of the file is found, even without a kept checkpoint."""
    change, words = EDITS[name]
    file = write_evidence(sealed.app, tmp_path / "evidence", "--packets")
    file.write_bytes(b"".join(change(lines_of(file))))
    result = run(sealed.app, "verify", file)
    printed = result.stdout + result.stderr  # the output of an older click is only the first
    assert (result.exit_code, words in printed) == (1, True), printed


TAKINGS: dict[str, tuple[Change, str]] = {
    "strip": (
        lambda s: [
            update(delivery)
            .where(of_single(s))
            .values({**STRIPPED, "commitment": commitment_of(s.single), "nonce": seed_of(s.single)})
        ],
        "packets are missing up to the log position 1, and no act of the kind strip says so",
    ),
    "erase": (
        lambda s: [
            insert(erasure).values(delivery_id=s.single, slots=erase_owner(s.single)),
            update(removal).where(removal.c.id == s.single).values(owner_id=""),
            update(delivery)
            .where(of_single(s))
            .values({**STRIPPED, "commitment": commitment_of(s.single), "nonce": None}),
        ],
        "accounts are erased up to the log position 1, and no act of the kind erase says so",
    ),
}
"""Kind of an act -> what it changes, and what verify says if the act is missing."""


def act_detail(**values: Any) -> dict[str, Any]:
    """Return the detail of the act of a strip or an erasure."""
    before = "2200-01-01T00:00:00+00:00"
    return {"before": before, "deliveries": 1, "acts": 0, "last_position": 4, **values}


def row_of(delivery_id: int) -> Any:
    with get_runtime().engine().connect() as connection:
        return connection.execute(select(delivery).where(delivery.c.id == delivery_id)).one()


def commitment_of(delivery_id: int) -> bytes:
    return commit_to_packet(row_of(delivery_id)._asdict())


def seed_of(delivery_id: int) -> bytes:
    return storage.seed_of(row_of(delivery_id).nonce)


def erase_owner(delivery_id: int, owner: str = "alice") -> bytes:
    salts = verifier.salts_of(seed_of(delivery_id), 2)
    return verifier.encode_slots([verifier.account_commitment(salts[0], owner), *salts[1:]])


@pytest.mark.parametrize(
    ("database_url", "kind"), first_on_servers(TAKINGS), indirect=["database_url"]
)
def test_taking_away_needs_an_act(sealed: Sealed, tmp_path: Path, kind: str) -> None:
    """Data that was taken away without an act is found. With the act, the rest holds."""
    changes, words = TAKINGS[kind]
    sealed.change(*changes(sealed))
    status, output = sealed.verify()
    assert (status, words in output) == (1, True), output
    file = write_evidence(sealed.app, tmp_path / "evidence", "--packets")
    assert words in problems(file, sealed.kept.read_text())
    engine = get_runtime().writing_engine()
    if kind == "erase":  # the act of another, smaller erasure
        store_act(engine, ActKind.ERASE, "cli:eve", 0, act_detail(deliveries=0))
        seal()
        output = sealed.verify()[1]
        for name in ("removals", "deliveries"):
            words = f"accounts are erased from 1 {name}, but the acts of the kind erase say 0"
            assert words in output
    else:  # the act of a strip of older packets
        store_act(engine, ActKind.STRIP, "cli:eve", 1, act_detail(before="2020-01-01T00:00Z"))
        seal()
        assert words in sealed.verify()[1]
    store_act(engine, ActKind(kind), "cli:eve", 1, act_detail())
    seal()
    assert sealed.verify()[0] == 0, sealed.verify()[1]
    file = write_evidence(sealed.app, tmp_path / "evidence", "--packets")
    assert not problems(file, sealed.kept.read_text())
    assert b'"alice"' not in lines_of(file)[1].partition(b'"bob"')[0] or kind == "strip"


def update_act(values: dict[str, Any]) -> Change:
    return lambda s: update(act).where(act.c.id == s.act).values(values)


NEW_VALUES: dict[str, tuple[Change, str]] = {
    **{
        column: (set_column(column, value), f"its packet was taken away, but it has a new {column}")
        for column, value in DELIVERY_VALUES.items()
        if column in STRIPPED
    },
    **{
        name: (update_act({name: value}), "written a detail into its erased place")
        for name, value in (("detail", "x"), ("nonce", b"n" * 16))
    },
}
"""Column whose value was taken away -> the new value, and what verify says."""


@pytest.mark.parametrize(
    ("database_url", "column"), first_on_servers(NEW_VALUES), indirect=["database_url"]
)
def test_a_new_value_in_a_stripped_or_erased_row_is_found(sealed: Sealed, column: str) -> None:
    """No line of the evidence holds a value that was taken away, so it must stay empty."""
    with get_runtime().engine().connect() as connection:
        row = connection.execute(select(act).where(act.c.id == sealed.act)).one()
    commitment = verifier.packet_commitment(row.nonce, row.detail.encode())
    sealed.change(
        *TAKINGS["strip"][0](sealed),
        update_act({"detail": "", "nonce": None, "commitment": commitment})(sealed),
    )
    engine = get_runtime().writing_engine()
    for kind in (ActKind.STRIP, ActKind.ERASE):
        store_act(engine, kind, "cli:eve", 1, act_detail(last_position=6, acts=1))
    seal()
    assert sealed.verify()[0] == 0, sealed.verify()[1]
    change, words = NEW_VALUES[column]
    sealed.change(change(sealed))
    status, output = sealed.verify()
    assert (status, words in output) == (1, True), output


WRONG_TYPES: dict[str, list[Any]] = {
    "imcallback_delivery": [
        *("body", "removal_count", "status", "nonce", "fingerprint", "headers", "platform"),
    ],
    "imcallback_removal": ["owner_id", "actor_id", "position", "source_id"],
    "imcallback_act": ["detail", "nonce", "actor", "affected"],
    "imcallback_seal": ["entry", "marks", "node", "last_position"],
    "imcallback_log": ["entry_id"],
    "imcallback_source": ["relation", "provider", "cause"],
}
"""Table -> columns that SQLite lets anybody fill with values of another type."""


@pytest.mark.parametrize(
    ("table", "column"), [(table, name) for table, names in WRONG_TYPES.items() for name in names]
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_value_of_another_type_is_found(sealed: Sealed, table: str, column: str) -> None:
    """A shell of SQLite writes a text into a column of bytes or numbers, or bytes into a text."""
    for value in ("'forged'", "x'ff00'", "1.5"):
        last = f"(SELECT max(rowid) FROM {table})"
        sealed.change(text(f"UPDATE {table} SET {column} = {value} WHERE rowid = {last}"))
        status, output = sealed.verify()
        assert (status, "TAMPERED: " in output) == (1, True), output


def test_a_missing_source_is_found(sealed: Sealed, tmp_path: Path) -> None:
    """Without the source of a delivery, no evidence can be made."""
    sealed.change(delete(source).where(source.c.id == source_id_of(sealed.unreadable)))
    status, output = sealed.verify()
    words = f"the source of these rows is missing: {sealed.unreadable}"
    assert (status, words in output) == (1, True), output
    result = run(sealed.app, "evidence", tmp_path / "evidence")
    words = f"imcallback_source has no row for the delivery {sealed.unreadable}"
    assert (result.exit_code, words in result.output) == (1, True), result.output


def test_a_fake_erasure_is_found(sealed: Sealed) -> None:
    """Another account cannot take the place of an erased one."""
    sealed.change(
        insert(erasure).values(delivery_id=sealed.single, slots=erase_owner(sealed.single, "x")),
        update(removal).where(removal.c.id == sealed.single).values(owner_id=""),
        update(delivery)
        .where(of_single(sealed))
        .values(commitment=commitment_of(sealed.single), nonce=None),
    )
    assert "(log position 1) was changed" in sealed.verify()[1]


def test_an_edit_is_no_prune(sealed: Sealed) -> None:
    """An act that says that a part was pruned does not excuse a change."""
    sealed.change(update(removal).where(removal.c.id == sealed.single).values(owner_id="x"))
    engine = get_runtime().writing_engine()
    store_act(engine, ActKind.PRUNE, "cli:eve", 1, {verifier.LAST_POSITION: 2})
    seal()
    assert "(log position 1) was changed" in sealed.verify()[1]


def test_an_open_door_is_found(sealed: Sealed) -> None:
    """A row in the door opens all tables for changes, so it must not stay there."""
    sealed.change(insert(door).values(act_id=sealed.act))
    status, output = sealed.verify()
    assert (status, "the tables are open for changes" in output) == (1, True)
    sealed.change(delete(door))
    status, output = sealed.verify()
    assert (status, "the tables are not append-only" in output) == (0, True)


def test_a_deleted_source_is_found(sealed: Sealed) -> None:
    """Without its source, a removal has no relation."""
    sealed.change(delete(source).where(source.c.relation == "group"))
    status, output = sealed.verify()
    assert (status, "the source of these rows is missing" in output) == (1, True), output
