"""What is stored, on every database: whole, exactly, and once."""

from __future__ import annotations

import hashlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import URL, create_engine

from flask_imcallback import (
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
from flask_imcallback.storage.ids import id_at
from flask_imcallback.storage.recorder import Recorder
from flask_imcallback.storage.tables import removal as removal_table
from support.apps import MakeApp, rows
from support.deliveries import DELIVERY, MOMENT, record


def test_a_delivery_is_stored_as_it_came(database_url: URL, make_app: MakeApp) -> None:
    """Every column, bytes and microseconds included; its removals follow it."""
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
    """The same provider, app, command, request id and body; never without a request id."""
    app = make_app()
    other = change | {"origin": replace(DELIVERY.origin, **change.get("origin", {}))}
    for delivery in (DELIVERY, replace(DELIVERY, **other), replace(DELIVERY, **other)):
        record(app, delivery)
    deliveries, removals = rows(app)
    folds = change.get("repeats_callbacks", True) and other["origin"].request_id
    third = Status.DUPLICATE if folds else Status.RECORDED
    assert [row["status"] for row in deliveries] == [Status.RECORDED, Status.RECORDED, third]
    assert len(removals) == (4 if folds else 6)


def test_where_it_came_from_makes_no_new_callback(make_app: MakeApp) -> None:
    """A repetition may come from another address and in another query."""
    app = make_app()
    again = replace(DELIVERY, query="other", remote_addr="192.0.2.2", authenticated_by="secret")
    assert len(record(app, DELIVERY)) == 2
    assert record(app, again) == []
    (first, second), removals = rows(app)
    assert second["duplicate_of"] == first["id"]
    assert second["removal_count"] == 0
    assert len(removals) == 2


def test_a_refused_callback_may_come_again(make_app: MakeApp) -> None:
    """An unreadable packet is unreadable each time, so that each time is answered alike."""
    app = make_app()
    unreadable = replace(DELIVERY, status=Status.UNREADABLE, removals=(), error="no PairList")
    record(app, unreadable)
    record(app, unreadable)
    assert [row["status"] for row in rows(app)[0]] == ["unreadable", "unreadable"]


def test_many_at_once_record_a_callback_once(database_url: URL, make_app: MakeApp) -> None:
    """Sixteen threads, each with the same ten callbacks, all received in one microsecond."""
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
    firsts = {row["id"] for row in deliveries if row["status"] == "recorded"}
    assert {row["duplicate_of"] for row in deliveries if row["status"] == "duplicate"} == firsts


def test_an_id_that_another_process_took_is_passed_over(
    database_url: URL, make_app: MakeApp
) -> None:
    """Whether a delivery has the id, or one of the removals; nothing is stored by halves."""
    app, other = make_app(database_url), make_app(database_url, migrate=False)
    different = replace(DELIVERY, origin=replace(DELIVERY.origin, request_id="other"))
    record(app, DELIVERY)
    moved = record(other, replace(different, received_at=MOMENT - timedelta(microseconds=1)))
    deliveries, removals = rows(app)
    assert [row["status"] for row in deliveries] == ["recorded", "recorded"]
    assert len(removals) == 4
    assert moved[0].id > id_at(MOMENT) + 1


def test_two_in_one_microsecond_stay_side_by_side(make_app: MakeApp) -> None:
    """The second has the first id that is free, and is not stored twice to find it."""
    app = make_app()
    anonymous = replace(DELIVERY, repeats_callbacks=False)
    record(app, anonymous)
    assert record(app, anonymous)[0].id == id_at(MOMENT) + len(DELIVERY.removals)


def test_processes_with_many_removals_do_not_meet(make_app: MakeApp) -> None:
    """Two that receive deliveries of a thousand at the same moments take different ids."""
    moments = [MOMENT + timedelta(milliseconds=n) for n in range(0, 300, 7)]
    removals = DELIVERY.removals * 500
    taken: list[set[int]] = []
    with pytest.MonkeyPatch.context() as patch:
        for pid in (1000, 1001, 1002):
            patch.setattr(os, "getpid", lambda pid=pid: pid)
            recorder = Recorder(lambda: create_engine("sqlite://"), deadline=1, drain=None)
            entries = [
                recorder._entry(replace(DELIVERY, removals=removals, received_at=moment))
                for moment in moments
            ]
            taken.append({e.row["id"] + n for e in entries for n in range(1000)})
    assert [len(ids) for ids in taken] == [1000 * len(moments)] * 3
    assert not taken[0] & taken[1] | taken[1] & taken[2] | taken[0] & taken[2]


def test_a_clock_that_jumps_back_loses_nothing(make_app: MakeApp) -> None:
    """Ids follow the clock back, and pass over those that are taken."""
    app = make_app()
    anonymous = replace(DELIVERY, repeats_callbacks=False)
    for seconds in (0, 0, 3600, 0, -3600, 0):
        record(app, replace(anonymous, received_at=MOMENT + timedelta(seconds=seconds)))
    deliveries, removals = rows(app)
    assert (len(deliveries), len(removals)) == (6, 12)


def test_what_a_database_cannot_keep_is_replaced(database_url: URL, make_app: MakeApp) -> None:
    """U+0000 and lone surrogates in what accompanies a packet; a text too long is cut."""
    odd = "a\0\ud800" + "𠮷" * 300
    app = make_app(database_url)
    origin = Origin(command="c", request_id=odd, client_ip=odd, platform=odd, app_id=odd)
    more: dict[str, Any] = {"query": odd, "error": odd, "remote_addr": odd, "authenticated_by": odd}
    record(app, replace(DELIVERY, origin=origin, **more))
    (delivery,), _ = rows(app)
    assert delivery["platform"] == ("a\ufffd\ufffd" + "𠮷" * 252)
    assert delivery["query"] == "a\ufffd\ufffd" + "𠮷" * 300


def test_a_thousand_removals_are_kept_as_they_came(database_url: URL, make_app: MakeApp) -> None:
    """In their order, each account to the byte; as many as one statement takes, and more."""
    odd = (
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
    app = make_app(database_url)
    for count in (19, 20, 1000):
        pairs = [(odd[n % len(odd)], f"{odd[n % 7]}{n}") for n in range(count)]
        removals = tuple(Removal(Relation.BLACKLIST, *pair) for pair in pairs)
        moment = MOMENT + timedelta(hours=count)
        callback = replace(DELIVERY, received_at=moment, removals=removals, body=b"%d" % count)
        records = record(app, callback)
        stored = [row for row in rows(app)[1] if row["delivery_id"] == records[0].delivery_id]
        assert 0 <= records[0].id - id_at(moment) < 10_000
        assert [(row["owner_id"], row["target_id"]) for row in stored] == pairs
        assert stored == [record._asdict() for record in records]


def test_a_large_body_is_kept_whole(database_url: URL, make_app: MakeApp) -> None:
    """As large as IMCALLBACK_MAX_BODY is unless told otherwise."""
    app = make_app(database_url)
    body = bytes(range(256)) * 4096
    record(app, replace(DELIVERY, body=body))
    (delivery,), _ = rows(app)
    assert hashlib.sha256(delivery["body"]).digest() == hashlib.sha256(body).digest()


def test_a_failure_stores_nothing_by_halves(database_url: URL, make_app: MakeApp) -> None:
    """Without the table of removals there is no delivery either."""
    app = make_app(database_url, IMCALLBACK_SPOOL=None)
    with app.app_context():
        removal_table.drop(get_runtime().engine())
    with pytest.raises(StorageError, match="flask db upgrade"):
        record(app, DELIVERY)
    with app.app_context():
        removal_table.create(get_runtime().engine())
    assert rows(app) == ([], [])


def test_the_signal_comes_after_the_commit(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """A receiver finds what it is told; one that raises harms neither others nor the answer."""
    app = make_app(IMCALLBACK_ALLOW_UNAUTHENTICATED=True)
    seen: list[Any] = []

    def fail(sender: Flask, removals: list[Record]) -> None:
        raise ImCallbackError("on purpose")

    def hear(sender: Flask, removals: list[Record]) -> None:
        seen.append((sender, removals, [row["id"] for row in rows(app)[1]]))

    url = "/imcallback/openim/callbackAfterRemoveBlackCommand"
    packet = {"callbackCommand": url.rpartition("/")[2], "ownerUserID": "a", "blackUserID": "b"}
    with (
        removals_recorded.connected_to(fail, app),
        removals_recorded.connected_to(hear, app),
        caplog.at_level(logging.ERROR),
    ):
        assert app.test_client().post(url, json=packet).status_code == 200
        assert (
            app.test_client().post("/imcallback/openim/callbackOther", json={}).status_code == 200
        )
    ((sender, removals, ids),) = seen
    assert sender is app
    assert [(r.owner_id, r.target_id) for r in removals] == [("a", "b")]
    assert ids == [removals[0].id]
    assert "on purpose" in caplog.text


def test_ids_stay_readable_for_javascript() -> None:
    """Below 2^53 for two centuries."""
    assert id_at(datetime(2255, 1, 1, tzinfo=UTC)) < 2**53


def test_the_packet_is_in_the_log_if_it_cannot_be_stored(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody will ever send it again; the answer is 503, and tells a stranger nothing."""
    secret = "a-secret-of-16-characters"
    app = make_app(migrate=False, IMCALLBACK_SPOOL=None, IMCALLBACK_SECRETS=[secret])
    packet = {"callbackCommand": "callbackX", "ownerUserID": "needle"}
    response = app.test_client().post(f"/imcallback/openim/{secret}/callbackX", json=packet)
    assert response.status_code == 503
    assert response.get_json()["actionCode"] == 0
    assert "needle" in caplog.text
    assert "flask db upgrade" in caplog.text
    assert secret not in caplog.text
