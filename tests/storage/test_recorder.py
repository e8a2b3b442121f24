"""Deliveries are stored completely, exactly and once, on every database."""

from __future__ import annotations

import hashlib
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import URL

from flask_imcallback import (
    Cause,
    ImCallbackError,
    Record,
    Relation,
    Removal,
    StorageError,
    removals_recorded,
)
from flask_imcallback.providers import Origin
from flask_imcallback.removals import Status
from flask_imcallback.runtime import get_runtime
from flask_imcallback.settings import DEFAULT_MAX_BODY_BYTES
from flask_imcallback.storage.ids import id_at
from flask_imcallback.storage.tables import removal as removal_table
from support.apps import MakeApp, rows
from support.deliveries import ANONYMOUS, DELIVERY, MICROSECOND, MOMENT, record

ODD_TEXTS = (
    "a",
    "A",
    "a ",
    "á",
    "a\u0301",
    "%s",
    "?",
    '"\\',
    "'",
    "\n\x01",
    "𠮷" * 255,
    "{}",
    "\ufeff",
)
"""Account ids that a careless database, driver or SQL statement would change."""


def test_a_delivery_is_stored_as_it_arrived(database_url: URL, make_app: MakeApp) -> None:
    """Every column is exact, including bytes and microseconds, and the removals follow."""
    app = make_app(database_url)
    records = record(app, DELIVERY)
    (delivery,), removals = rows(app)
    assert delivery["id"] == id_at(MOMENT) == records[0].id
    assert delivery["received_at"] == MOMENT
    assert delivery["body"] == DELIVERY.body
    assert delivery["removal_count"] == 2
    assert delivery["authenticated_by"] == "signature"
    assert removals == [
        {
            "id": id_at(MOMENT) + position,
            "provider": "tencent",
            "app_id": "1400000000",
            "command": "Sns.CallbackFriendDelete",
            "relation": "friend",
            "owner_id": pair.owner_id,
            "target_id": pair.target_id,
            "actor_id": pair.actor_id,
            "cause": pair.cause,
            "position": position,
            "delivery_id": id_at(MOMENT),
            "client_ip": "203.0.113.7",
            "platform": "iOS",
            "request_id": "2ea4e023",
            "received_at": MOMENT,
        }
        for position, pair in enumerate(DELIVERY.removals)
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"provider": "mine"},
        {"repeats_callbacks": False},
        {"body": b"{}"},
        *({"origin": {name: "x"}} for name in ("command", "app_id", "request_id")),
        {"origin": {"request_id": ""}},
    ],
    ids=str,
)
def test_only_the_same_callback_is_a_duplicate(make_app: MakeApp, change: dict[str, Any]) -> None:
    """A duplicate has the same provider, app, command, body and non-empty request id."""
    app = make_app()
    changes = change | {"origin": replace(DELIVERY.origin, **change.get("origin", {}))}
    for delivery in (DELIVERY, replace(DELIVERY, **changes), replace(DELIVERY, **changes)):
        record(app, delivery)
    deliveries, removals = rows(app)
    is_folded = change.get("repeats_callbacks", True) and changes["origin"].request_id
    third = Status.DUPLICATE if is_folded else Status.RECORDED
    assert [row["status"] for row in deliveries] == [Status.RECORDED, Status.RECORDED, third]
    assert len(removals) == (4 if is_folded else 6)


def test_a_repetition_may_come_from_another_address(make_app: MakeApp) -> None:
    """Address, query and kind of authentication do not make a new callback."""
    app = make_app()
    repetition = replace(
        DELIVERY, query="other", remote_addr="192.0.2.2", authenticated_by="secret"
    )
    assert len(record(app, DELIVERY)) == 2
    assert record(app, repetition) == []
    (first, second), removals = rows(app)
    assert second["duplicate_of"] == first["id"]
    assert second["removal_count"] == 0
    assert len(removals) == 2


def test_an_unreadable_callback_is_never_a_duplicate(make_app: MakeApp) -> None:
    """The IM server gets the same refusal each time it sends an unreadable packet."""
    app = make_app()
    unreadable = replace(DELIVERY, status=Status.UNREADABLE, removals=(), error="no PairList")
    record(app, unreadable)
    record(app, unreadable)
    assert [row["status"] for row in rows(app)[0]] == ["unreadable", "unreadable"]


def test_parallel_repetitions_record_a_callback_once(database_url: URL, make_app: MakeApp) -> None:
    """Sixteen threads store the same ten callbacks, all received in one microsecond."""
    app = make_app(database_url, IMCALLBACK_DEADLINE=30)
    callbacks = [
        replace(DELIVERY, origin=replace(DELIVERY.origin, request_id=str(number)))
        for number in range(10)
    ]
    with ThreadPoolExecutor(16) as pool:
        stored = list(pool.map(lambda delivery: record(app, delivery), callbacks * 16))
    deliveries, removals = rows(app)
    assert len(deliveries) == 160
    assert sum(row["status"] == "recorded" for row in deliveries) == 10
    assert len(removals) == sum(len(records) for records in stored) == 20
    first_ids = {row["id"] for row in deliveries if row["status"] == "recorded"}
    duplicates = {row["duplicate_of"] for row in deliveries if row["status"] == "duplicate"}
    assert duplicates == first_ids


def test_a_delivery_avoids_the_ids_of_another_process(database_url: URL, make_app: MakeApp) -> None:
    """If another process uses the id of a removal, the whole delivery gets other ids."""
    app, other_process = make_app(database_url), make_app(database_url, migrate=False)
    different = replace(DELIVERY, origin=replace(DELIVERY.origin, request_id="other"))
    record(app, DELIVERY)
    records = record(other_process, replace(different, received_at=MOMENT - MICROSECOND))
    deliveries, removals = rows(app)
    assert [row["status"] for row in deliveries] == ["recorded", "recorded"]
    assert len(removals) == 4
    assert records[0].id > id_at(MOMENT) + 1


def test_two_deliveries_of_one_microsecond_have_neighbouring_ids(make_app: MakeApp) -> None:
    """The second delivery gets the first free id at once."""
    app = make_app()
    record(app, ANONYMOUS)
    assert record(app, ANONYMOUS)[0].id == id_at(MOMENT) + len(DELIVERY.removals)


def test_a_clock_that_jumps_back_loses_nothing(make_app: MakeApp) -> None:
    """Every delivery is stored although the clock jumps an hour forward and back."""
    app = make_app()
    for seconds in (0, 0, 3600, 0, -3600, 0):
        record(app, replace(ANONYMOUS, received_at=MOMENT + timedelta(seconds=seconds)))
    deliveries, removals = rows(app)
    assert (len(deliveries), len(removals)) == (6, 12)


def test_unstorable_text_beside_the_removals_is_replaced(
    database_url: URL, make_app: MakeApp
) -> None:
    """U+0000 and lone surrogates become U+FFFD, and a text is cut to its column."""
    unstorable = "a\0\ud800" + "𠮷" * 300
    app = make_app(database_url)
    origin = Origin(
        command="c",
        request_id=unstorable,
        client_ip=unstorable,
        platform=unstorable,
        app_id=unstorable,
    )
    names = ("query", "error", "remote_addr", "authenticated_by")
    changes: dict[str, Any] = dict.fromkeys(names, unstorable)
    record(app, replace(DELIVERY, origin=origin, **changes))
    (delivery,), _ = rows(app)
    assert delivery["platform"] == "a\ufffd\ufffd" + "𠮷" * 252
    assert delivery["app_id"] == "a\ufffd\ufffd" + "𠮷" * 29
    assert delivery["query"] == "a\ufffd\ufffd" + "𠮷" * 300


@pytest.mark.parametrize("actors", [[""], ODD_TEXTS[:1], ["", *ODD_TEXTS]], ids=len)
@pytest.mark.parametrize("count", [19, 20, 1000])
def test_many_removals_are_stored_as_they_arrived(
    database_url: URL, make_app: MakeApp, count: int, actors: list[str]
) -> None:
    """The order and every account id are exact, below and above the limits of one statement."""
    app = make_app(database_url)
    pairs = [
        (ODD_TEXTS[number % len(ODD_TEXTS)], f"{ODD_TEXTS[number % 7]}{number}")
        for number in range(count)
    ]
    removals = tuple(
        Removal(Relation.GROUP, *pair, actors[number % len(actors)], list(Cause)[number % 4])
        for number, pair in enumerate(pairs)
    )
    records = record(app, replace(DELIVERY, removals=removals))
    stored = rows(app)[1]
    assert 0 <= records[0].id - id_at(MOMENT) < 10_000
    assert [(row["owner_id"], row["target_id"]) for row in stored] == pairs
    assert [row["actor_id"] for row in stored] == [removal.actor_id for removal in removals]
    assert stored == [record._asdict() for record in records]


def test_a_large_body_is_stored_completely(database_url: URL, make_app: MakeApp) -> None:
    """A body of the default IMCALLBACK_MAX_BODY keeps every byte."""
    app = make_app(database_url)
    body = bytes(range(250)) * (DEFAULT_MAX_BODY_BYTES // 250)
    record(app, replace(DELIVERY, body=body))
    (delivery,), _ = rows(app)
    assert hashlib.sha256(delivery["body"]).digest() == hashlib.sha256(body).digest()


def test_a_failure_stores_neither_delivery_nor_removals(
    database_url: URL, make_app: MakeApp
) -> None:
    """Without the table of removals there is no delivery, and the error says what to do."""
    app = make_app(database_url, IMCALLBACK_SPOOL=None)
    with app.app_context():
        removal_table.drop(get_runtime().engine())
    message = (
        r"(?s)^cannot store the callback \(\w+: .*imcallback_removal.*\): check that the database "
        r"answers, and run `flask db upgrade` if a table or column is missing$"
    )
    with pytest.raises(StorageError, match=message):
        record(app, DELIVERY)
    with app.app_context():
        removal_table.create(get_runtime().engine())
    assert rows(app) == ([], [])


def test_the_signal_comes_after_the_commit(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """A receiver finds the removals in the database. A receiver that raises harms nothing."""
    app = make_app(IMCALLBACK_ALLOW_UNAUTHENTICATED=True)
    signals: list[Any] = []

    def fail(sender: Flask, removals: list[Record]) -> None:
        raise ImCallbackError("on purpose")

    def listen(sender: Flask, removals: list[Record]) -> None:
        signals.append((sender, removals, [row["id"] for row in rows(app)[1]]))

    url = "/imcallback/openim/callbackAfterRemoveBlackCommand"
    packet = {"callbackCommand": url.rpartition("/")[2], "ownerUserID": "a", "blackUserID": "b"}
    client = app.test_client()
    with (
        removals_recorded.connected_to(fail, app),
        removals_recorded.connected_to(listen, app),
        caplog.at_level(logging.ERROR),
    ):
        assert client.post(url, json=packet).status_code == 200
        assert client.post("/imcallback/openim/callbackBlackOther", json={}).status_code == 200
    ((sender, removals, stored_ids),) = signals
    assert sender is app
    assert [(removal.owner_id, removal.target_id) for removal in removals] == [("a", "b")]
    assert stored_ids == [removals[0].id]
    assert "on purpose" in caplog.text


def test_a_packet_that_cannot_be_stored_is_logged(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer is 503 and tells a stranger nothing. The log holds the packet and the remedy."""
    secret = "a-secret-of-16-characters"
    app = make_app(migrate=False, IMCALLBACK_SPOOL=None, IMCALLBACK_SECRETS=[secret])
    packet = {"callbackCommand": "callbackBlackX", "ownerUserID": "needle"}
    response = app.test_client().post(f"/imcallback/openim/{secret}/callbackBlackX", json=packet)
    assert response.status_code == 503
    assert response.get_json()["actionCode"] == 0
    assert "needle" in caplog.text
    assert "run `flask db upgrade` if a table or column is missing" in caplog.text
    assert secret not in caplog.text
