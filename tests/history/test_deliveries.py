"""Pages of deliveries with and without removals, and one delivery with its removals."""

from __future__ import annotations

from base64 import b64decode
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import URL

from flask_imcallback.errors import HistoryQueryError
from flask_imcallback.history import DeliveryFilters, DeliveryRecord
from flask_imcallback.history import history as history_module
from flask_imcallback.history.history import MAX_BODY_BYTES_PER_PAGE
from flask_imcallback.history.queries import DeliveryQuery
from flask_imcallback.removals import Status
from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage.entries import Delivery
from flask_imcallback.storage.ids import id_at
from support.api import BAD_TIMES, HISTORY, MEMBERS, assert_problem, get, open_history
from support.apps import MakeApp
from support.deliveries import MICROSECOND, MOMENT, find, make_delivery, store, store_all

DELIVERIES = "/imcallback/deliveries"
SECOND = timedelta(seconds=1)


def record(delivery: Delivery) -> dict[str, Any]:
    """Store a delivery in the current app, and return its row."""
    stored = get_runtime().recorder.record(delivery)
    assert stored
    return stored.row


def store_every_status() -> list[int]:
    """Store three deliveries of each status, and return the ids."""
    ids = []
    for number in range(3):
        at = MOMENT + number * SECOND
        folds: dict[str, Any] = {"repeats_callbacks": True, "body": b"%d" % number}
        callback = make_delivery(("o", "1"), ("o", "2"), at=at, request_id="r", app_id="14")
        ids.append(record(replace(callback, **folds))["id"])
        again = replace(callback, received_at=at + SECOND / 4, **folds)
        ids.append(record(again)["id"])
        unknown = make_delivery(at=at + SECOND / 2, command="unknown")
        ids.append(record(replace(unknown, status=Status.IGNORED))["id"])
        bad = make_delivery(at=at + SECOND * 3 / 4, body=b"\xff{")
        ids.append(record(replace(bad, status=Status.UNREADABLE, error="no JSON"))["id"])
    return ids


def pages(app: Flask, **parameters: Any) -> list[dict[str, Any]]:
    """Return the deliveries of all pages by following the links."""
    response = get(app, DELIVERIES, query_string=parameters)
    data: list[dict[str, Any]] = []
    while True:
        body = response.get_json()
        assert list(body) == ["data", "next_cursor"]
        data += body["data"]
        link = response.headers.get("Link")
        assert (link is None) == (body["next_cursor"] is None)
        if link is None:
            return data
        assert body["data"] or "command" in parameters
        address, relation = link.split("; ")
        assert relation == 'rel="next"'
        response = get(app, address.strip("<>"))


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_pages_equal_a_list(database_url: URL, make_app: MakeApp, order: str) -> None:
    """Pages agree with a list for every status, period and limit, in both orders."""
    app = open_history(make_app, database_url)
    with app.app_context():
        ids = store_every_status()
    every = pages(app, order="asc", limit=1000)
    assert [row["id"] for row in every] == ids
    assert [row["status"] for row in every] == [
        "recorded",
        "duplicate",
        "ignored",
        "unreadable",
    ] * 3
    assert [row["removal_count"] for row in every] == [2, 0, 0, 0] * 3
    assert every[1]["duplicate_of"] == ids[0]
    assert (every[3]["error"], every[3]["body"]) == ("no JSON", None)
    assert b64decode(every[3]["body_base64"]) == b"\xff{"
    times: list[dict[str, str]] = [
        {},
        {"since": every[4]["received_at"]},
        {"until": every[4]["received_at"]},
        {"since": every[3]["received_at"], "until": every[9]["received_at"]},
        {"since": every[9]["received_at"], "until": every[3]["received_at"]},
    ]
    for statuses in ([], *([status.value] for status in Status), ["ignored", "duplicate"]):
        for period in times if len(statuses) != 1 else times[:1]:
            expected = [
                row
                for row in every
                if (not statuses or row["status"] in statuses)
                and period.get("since", "") <= row["received_at"] < period.get("until", "9")
            ]
            for limit in (1, 3, 1000) if not period else (5,):
                found = pages(app, order=order, limit=limit, status=statuses, **period)
                assert found == (expected if order == "asc" else expected[::-1])


def test_newest_first(make_app: MakeApp) -> None:
    """The default page holds the hundred newest deliveries."""
    app = open_history(make_app)
    with app.app_context():
        store_all([make_delivery(at=MOMENT + n * SECOND, command=f"x{n}") for n in range(101)])
    body = get(app, DELIVERIES).get_json()
    assert [row["command"] for row in body["data"]] == [f"x{n}" for n in range(100, 0, -1)]
    assert body["next_cursor"]


def test_a_page_ends_where_packets_are_large(database_url: URL, make_app: MakeApp) -> None:
    """A packet larger than the limit has a page of its own. All pages together are complete."""
    app = open_history(make_app, database_url)
    small, large = b"x", b"x" * (MAX_BODY_BYTES_PER_PAGE // 3)
    bodies = [
        small,
        large,
        large,
        large,
        large,
        small,
        large * 4,
        small,
        b"\xff" * len(large),
        small,
    ]
    with app.app_context():
        store_all(
            [make_delivery(body=body, at=MOMENT + n * SECOND) for n, body in enumerate(bodies)]
        )
        for order in ("asc", "desc"):
            sizes: list[list[int]] = []
            cursor: str | None = None
            while cursor or not sizes:
                page = get_runtime().history.deliveries(order=order, cursor=cursor)
                cursor = page.next_cursor
                sizes.append([len(delivery.body) for delivery in page.data])
            returned = [size for page_sizes in sizes for size in page_sizes]
            assert returned == [len(body) for body in bodies][:: 1 if order == "asc" else -1]
            assert all(sum(part) <= MAX_BODY_BYTES_PER_PAGE or len(part) == 1 for part in sizes)
            assert [len(large) * 4] in sizes
            assert 4 <= len(sizes) <= 6


def test_a_delivery_has_its_removals(database_url: URL, make_app: MakeApp) -> None:
    """The removals are in the order of the packet, without those of a delivery at the same time."""
    app = open_history(make_app, database_url)
    with app.app_context():
        store(*[("before", str(n)) for n in range(3)], at=MOMENT)
        records = store(*[("o", str(n)) for n in range(25)], at=MOMENT)
        store(*[("after", str(n)) for n in range(3)], at=MOMENT)
        empty = record(make_delivery(at=MOMENT, command="unknown"))["id"]
    delivery = get(app, f"{DELIVERIES}/{records[0].id}").get_json()
    assert [row["target_id"] for row in delivery["removals"]] == [str(n) for n in range(25)]
    assert [list(row) for row in delivery["removals"]] == [MEMBERS] * 25
    assert {row["delivery_id"] for row in delivery["removals"]} == {delivery["id"]}
    with_it = get(app, f"{HISTORY}/{records[3].id}").get_json()
    assert with_it["delivery"] | {"removals": delivery["removals"]} == delivery
    assert get(app, f"{DELIVERIES}/{empty}").get_json()["removals"] == []
    assert_problem(get(app, f"{DELIVERIES}/{records[3].id}"), 404)


@pytest.mark.parametrize(
    "delivery_id",
    ["0", "1", "-1", "abc", "1.5", "\u0661", "9" * 16, "9" * 17, "9" * 10_000, "%00", "%FF", " "],
    ids=lambda text: ascii(text)[:40],
)
def test_an_unknown_delivery_is_404(make_app: MakeApp, delivery_id: str) -> None:
    """An id that no delivery has, or that is no number, is not found."""
    assert_problem(get(open_history(make_app), f"{DELIVERIES}/{delivery_id}"), 404)


def test_cursors_belong_to_one_url(make_app: MakeApp) -> None:
    """A cursor of the history is refused for deliveries, and the other way round."""
    app = open_history(make_app)
    with app.app_context():
        store(("o", "1"), ("o", "2"))
        record(make_delivery(at=MOMENT + SECOND))
    for of, other in ((HISTORY, DELIVERIES), (DELIVERIES, HISTORY)):
        for order in ("asc", "desc"):
            given = {"order": order, "limit": 1}
            cursor = get(app, of, query_string=given).get_json()["next_cursor"]
            assert get(app, of, query_string=given | {"cursor": cursor}).status_code == 200
            problem = assert_problem(get(app, other, query_string=given | {"cursor": cursor}), 400)
            assert problem["parameter"] == "cursor"


def test_a_cursor_belongs_to_its_filters(make_app: MakeApp) -> None:
    """A cursor is valid for the same statuses and times in another form, and for no others."""
    app = open_history(make_app)
    with app.app_context():
        store_every_status()
    given = {"status": ["ignored", "recorded"], "limit": 1, "since": "2026-11-20T18:05:00Z"}
    given["cursor"] = get(app, DELIVERIES, query_string=given).get_json()["next_cursor"]
    same = given | {"status": ["recorded", "ignored", "recorded"], "limit": 5}
    same["since"] = "2026-11-21T02:05:00.000+08:00"
    assert len(get(app, DELIVERIES, query_string=same).get_json()["data"]) == 5
    changes: list[dict[str, Any]] = [{"status": "ignored"}, {"order": "asc"}, {"status": []}]
    for change in [*changes, {"since": "2026-11-20T18:05:01Z"}, {"until": "2026-11-20T18:05:01Z"}]:
        problem = assert_problem(get(app, DELIVERIES, query_string=given | change), 400)
        assert problem["parameter"] == "cursor"


BAD: list[tuple[str, Any]] = [
    *(("status", status) for status in ("", "Recorded", "x" * 10_000, "\0", "é", ["ignored", "x"])),
    *((name, moment) for name in ("since", "until") for moment in BAD_TIMES),
    *((name, ["2026-11-20T18:05:00Z"] * 2) for name in ("since", "until")),
    *(("limit", number) for number in ("", "0", "1001", "-1", "x", "1" * 10_000, ["1", "1"])),
    *(("order", order) for order in ("", "ASC", "x" * 10_000, ["asc", "asc"])),
    *(("cursor", cursor) for cursor in ("", "x", "\0", "é", "x" * 10_000, ["x", "x"])),
    *((name, "x") for name in ("provider", "delivery_id", "owner_id", "format", "tz", "", "é")),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda v: ascii(v)[:40])
def test_a_bad_parameter_is_named(make_app: MakeApp, name: str, value: Any) -> None:
    """A parameter that is malformed, unknown or wrongly repeated is refused by its name."""
    app = open_history(make_app, migrate=False)
    problem = assert_problem(get(app, DELIVERIES, query_string={name: value}), 400)
    assert problem["parameter"] == name


def test_one_delivery_takes_no_parameters(make_app: MakeApp) -> None:
    """A parameter of the list is refused here, and not ignored."""
    problem = assert_problem(get(open_history(make_app), f"{DELIVERIES}/1?status=ignored"), 400)
    assert problem["parameter"] == "status"
    assert (
        problem["detail"] == "status is not a parameter of this URL. This URL takes no parameters"
    )


STATUSES = "must be recorded, duplicate, ignored or unreadable, not"
NAIVE = MOMENT.replace(tzinfo=None)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("status", "x", f"{STATUSES} 'x'"),
        ("status", 5, f"{STATUSES} 5"),
        ("status", [None], f"{STATUSES} None"),
        ("since", NAIVE, f"must be a datetime with a time zone, not {NAIVE!r}"),
        ("limit", 0, "must be a whole number from 1 to 1000, not 0"),
        ("order", "x", "must be desc or asc, not 'x'"),
        ("cursor", 5, "must be a string, not 5"),
        (
            "owner_id",
            "x",
            "is not a filter of this method. "
            "The filters are status, command, since, until, order, limit, cursor",
        ),
        ("command", "x" * 256, "must have at most 255 characters, not 256"),
        ("command", ["x", None], "must be a string, not None"),
        (
            "command",
            ["x"] * 10_001,
            "has 10001 values. All filters together may have at most 10000",
        ),
    ],
)
def test_a_bad_filter_in_python(name: str, value: Any, message: str) -> None:
    """The error names the filter and shows its value."""
    with pytest.raises(HistoryQueryError) as caught:
        DeliveryQuery.from_filters({name: value})
    assert caught.value.parameter == name
    assert str(caught.value) == f"{name} {message}"


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        ({"status": ["recorded", "ignored"] * 40_000}, 1),
        ({"status": Status.RECORDED}, 1),
        ({"status": []}, 0),
        ({"status": None}, 1),
    ],
    ids=["many", "one", "none", "unused"],
)
def test_statuses(
    database_url: URL, make_app: MakeApp, filters: DeliveryFilters, count: int
) -> None:
    """Any number of statuses can be given. An empty list matches nothing."""
    with make_app(database_url).app_context():
        record(make_delivery(("o", "t")))
        assert len(get_runtime().history.deliveries(**filters).data) == count


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("scanned", [3, 5, 9000])
def test_deliveries_are_found_by_command(
    database_url: URL,
    make_app: MakeApp,
    monkeypatch: pytest.MonkeyPatch,
    scanned: int,
    order: str,
) -> None:
    """A dismissed group without members is found, however many deliveries a page may search."""
    monkeypatch.setattr(history_module, "MAX_SCANNED_DELIVERIES", scanned)
    app = open_history(make_app, database_url)
    commands = [["", "kick", "kick", "quit", "dismiss"][n % 7 % 5] for n in range(30)]
    statuses = [Status.IGNORED if n % 3 else Status.RECORDED for n in range(30)]
    with app.app_context():
        store_all(
            [
                replace(make_delivery(at=MOMENT + n * SECOND, command=command), status=status)
                for n, (command, status) in enumerate(zip(commands, statuses, strict=True))
            ]
        )
    every = pages(app, order=order)
    for command in (["dismiss"], ["", "quit"], ["never"]):
        for status in ([], ["recorded"], ["recorded", "ignored"]):
            for limit in (1, 4, 1000):
                expected = [
                    row
                    for row in every
                    if row["command"] in command and (not status or row["status"] in status)
                ]
                found = pages(app, order=order, command=command, status=status, limit=limit)
                assert found == expected
    with app.app_context():
        assert get_runtime().history.deliveries(command=[]).data == []


def test_a_delivery_as_python_values(database_url: URL, make_app: MakeApp) -> None:
    """A delivery is a record of plain values, the same in a page and by its id."""
    with make_app(database_url).app_context():
        ids = store_every_status()
        history = get_runtime().history
        page = history.deliveries(order="asc", limit=2)
        assert page.next_cursor is not None
        first, duplicate = page.data
        assert first == DeliveryRecord(
            id=ids[0],
            provider="openim",
            app_id="14",
            command="",
            status=Status.RECORDED,
            duplicate_of=None,
            error="",
            removal_count=2,
            remote_addr="192.0.2.1",
            authenticated_by="secret",
            client_ip="",
            platform="",
            request_id="r",
            query="command=x",
            headers={"host": "example.com"},
            body=b"0",
            received_at=MOMENT,
        )
        assert (duplicate.status, duplicate.duplicate_of) == (Status.DUPLICATE, first.id)
        detail = history.get_delivery(first.id)
        assert detail is not None
        assert detail.delivery == first
        assert [removal.target_id for removal in detail.removals] == ["1", "2"]


def test_the_delivery_filter_finds_all_removals(make_app: MakeApp) -> None:
    """The filter `delivery_id` finds as many removals as the delivery counts."""
    app = open_history(make_app)
    with app.app_context():
        store(("o", "1"), ("o", "2"), at=MOMENT)
        store(("o", "3"), at=MOMENT + MICROSECOND)
        for row in pages(app):
            assert len(find(delivery_id=row["id"]).data) == row["removal_count"]
            assert row["id"] >= id_at(MOMENT)


def test_missing_tables_are_503(database_url: URL, make_app: MakeApp) -> None:
    """The problem names the command that creates the tables."""
    app = open_history(make_app, database_url, migrate=False)
    for path in (DELIVERIES, f"{DELIVERIES}/1"):
        assert "flask db upgrade" in assert_problem(get(app, path), 503)["detail"]
