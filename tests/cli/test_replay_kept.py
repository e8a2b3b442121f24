"""The commands `flask imcallback replay --unreadable` and `--ignored`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

from click.testing import Result
from flask import Flask
from sqlalchemy import URL

from flask_imcallback import (
    Callback,
    CallbackRequest,
    OpenIMProvider,
    PacketError,
    Relation,
    Removal,
    TencentProvider,
    removals_recorded,
)
from flask_imcallback.removals import Status
from flask_imcallback.replay import replay_kept
from flask_imcallback.runtime import get_runtime
from support.apps import MakeApp, rows
from support.callbacks import BODY, SECRET
from support.deliveries import ANONYMOUS, MICROSECOND, make_delivery, record

COMMAND = "callbackAfterRemoveBlackCommand"
NEW_COMMAND = "callbackAfterDeleteAllFriendsCommand"
OTHER_COMMAND = "callbackAfterAddFriendCommand"
"""A command that is kept, and that removes nobody."""
SETTINGS: Mapping[str, Any] = {
    "IMCALLBACK_SECRETS": [SECRET],
    "IMCALLBACK_TENCENT_APPS": {"1400000000": []},
}


class OldProvider(OpenIMProvider):
    """The provider of a release that reads no packet of one command, and ignores another."""

    def parse(self, request: CallbackRequest, body: bytes) -> Callback:
        if b"old-" in body:
            raise PacketError("the packet is too new")
        return super().parse(request, body)


class NewProvider(OpenIMProvider):
    """The provider of a newer release, which reads both commands."""

    def parse(self, request: CallbackRequest, body: bytes) -> Callback:
        callback = super().parse(request, body)
        targets = callback.packet.get("targets")
        if callback.command != NEW_COMMAND or targets is None:
            return callback
        removals = tuple(Removal(Relation.FRIEND, "owner", str(target)) for target in targets)
        return Callback(command=callback.command, removals=removals, packet=callback.packet)


class OldTencent(TencentProvider):
    """The provider of a release that can read no packet."""

    def parse(self, request: CallbackRequest, body: bytes) -> Callback:
        raise PacketError("the packet is too new")


def old_app(make_app: MakeApp, url: URL | None = None) -> Flask:
    return make_app(url, providers=[OldTencent, OldProvider], **SETTINGS)


def new_app(make_app: MakeApp, url: URL | None = None) -> Flask:
    return make_app(url, providers=[TencentProvider, NewProvider], migrate=False, **SETTINGS)


def post(app: Flask, packet: object, path: str = f"{SECRET}/{COMMAND}", status: int = 400) -> None:
    """Post a callback of OpenIM."""
    body = packet if isinstance(packet, bytes) else json.dumps(packet)
    response = app.test_client().post(
        f"/imcallback/openim/{path}", data=body, headers={"Operationid": "op"}
    )
    assert response.status_code == status


def run_replay(app: Flask, *options: str) -> Result:
    """Run the command, and check the exit status."""
    result = app.test_cli_runner().invoke(args=["imcallback", "replay", *options])
    assert result.exit_code == 0, result.output
    return result


def test_an_unreadable_delivery_is_recorded(database_url: URL, make_app: MakeApp) -> None:
    """A new delivery of the same time has its removals. The kept delivery stays as it arrived."""
    old = old_app(make_app, database_url)
    post(old, BODY | {"ownerUserID": "old-1"})
    post(old, BODY | {"ownerUserID": "old-2"}, path=SECRET)
    post(old, BODY | {"ownerUserID": "old-3"}, path=f"{SECRET}?command={COMMAND}")
    post(old, b"[]")
    before, _ = rows(old)
    assert [row["error"] for row in before[:3]] == ["the packet is too new"] * 3
    app = new_app(make_app, database_url)
    announced: list[Any] = []
    with removals_recorded.connected_to(lambda _, removals: announced.extend(removals), app):
        result = run_replay(app, "--unreadable")
    assert result.stdout == "3 recorded, 0 already recorded, 1 still unreadable\n"
    deliveries, removals = rows(app)
    new = [row for row in deliveries if row["status"] == "recorded"]
    assert result.stderr == (
        "The history shows the removals at the times at which they were received, from "
        f"{new[0]['received_at']:%Y-%m-%dT%H:%M:%S.%fZ} on\n"
    )
    again = run_replay(app, "--unreadable")
    assert again.output == "0 recorded, 3 already recorded, 1 still unreadable\n"
    assert rows(app) == (deliveries, removals)
    assert [row for row in deliveries if row not in new] == before
    same = (
        *("provider", "app_id", "remote_addr", "authenticated_by", "client_ip", "platform"),
        *("request_id", "query", "headers", "body"),
    )
    for kept, row in zip(before, new, strict=False):
        assert [row[name] for name in same] == [kept[name] for name in same]
        assert (row["command"], row["error"], row["removal_count"]) == (COMMAND, "", 1)
        assert row["duplicate_of"] == kept["id"]
        assert timedelta(0) < row["received_at"] - kept["received_at"] < timedelta(milliseconds=1)
    assert [(r["id"], r["owner_id"]) for r in removals] == [
        (row["id"], f"old-{number}") for number, row in enumerate(new, start=1)
    ]
    assert {r["request_id"] for r in removals} == {"op"}
    assert [record.id for record in announced] == [r["id"] for r in removals]


def test_concurrent_replays_record_each_delivery_once(database_url: URL, make_app: MakeApp) -> None:
    """However many replays run at the same time, nothing is stored twice."""
    old = old_app(make_app, database_url)
    for number in range(20):
        packet = {"callbackCommand": NEW_COMMAND, "targets": ["old-a", "b"], "number": number}
        post(old, packet, path=f"{SECRET}/{NEW_COMMAND}")
    apps = [new_app(make_app, database_url) for _ in range(4)]

    def run(app: Flask) -> int:
        with app.app_context():
            report = replay_kept(app, get_runtime(), Status.UNREADABLE, is_dry_run=False)
        assert report.recorded + report.recorded_before == 20
        return report.recorded

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(run, apps)) == 20
    deliveries, removals = rows(old)
    statuses = [row["status"] for row in deliveries]
    assert (statuses.count("unreadable"), statuses.count("recorded")) == (20, 20)
    new = [row for row in deliveries if row["status"] == "recorded"]
    assert len({row["duplicate_of"] for row in new}) == 20
    assert [r["id"] - r["position"] for r in removals] == [row["id"] for row in new for _ in "ab"]


def test_a_delivery_whose_ids_are_taken_moves(database_url: URL, make_app: MakeApp) -> None:
    """The removals get the ids after the new delivery, so it moves to free ids."""
    old = old_app(make_app, database_url)
    post(old, {"callbackCommand": NEW_COMMAND, "targets": ["a", "b", "c"]}, SECRET, status=200)
    ((kept,), _) = rows(old)
    neighbour = make_delivery(("o", "t"), at=kept["received_at"] + 2 * MICROSECOND)
    (taken,) = record(old, neighbour)
    assert taken.id == kept["id"] + 2
    app = new_app(make_app, database_url)
    result = run_replay(app, "--ignored")
    assert result.stdout == "1 recorded, 0 already recorded, 0 still ignored\n"
    deliveries, removals = rows(app)
    (moved,) = [row for row in deliveries if row["removal_count"] == 3]
    assert moved["duplicate_of"] == kept["id"]
    assert timedelta(0) < moved["received_at"] - kept["received_at"] < timedelta(seconds=0.1)
    assert [r["id"] for r in removals if r["delivery_id"] == moved["id"]] == [
        moved["id"] + position for position in range(3)
    ]
    with app.app_context():
        detail = get_runtime().history.get_delivery(moved["id"])
    assert detail is not None
    assert [record.target_id for record in detail.removals] == ["a", "b", "c"]


def post_to_tencent(app: Flask, status: int) -> None:
    """Post a callback of Tencent that can repeat."""
    path = f"/imcallback/tencent/{SECRET}?SdkAppid=1400000000&RequestId=r"
    pairs = [{"From_Account": "a", "To_Account": "b"}]
    packet = {"CallbackCommand": "Sns.CallbackFriendDelete", "PairList": pairs}
    assert app.test_client().post(path, json=packet).status_code == status


def test_a_repeated_unreadable_callback_is_recorded_once(
    database_url: URL, make_app: MakeApp
) -> None:
    """Each repetition was refused and kept. Also a later repetition has no removals."""
    old = old_app(make_app, database_url)
    for _ in range(2):
        post_to_tencent(old, 400)
    app = new_app(make_app, database_url)
    result = run_replay(app, "--unreadable")
    assert result.stdout == "1 recorded, 1 already recorded, 0 still unreadable\n"
    deliveries, removals = rows(app)
    assert sorted(row["status"] for row in deliveries) == ["recorded", "unreadable", "unreadable"]
    assert len(removals) == 1
    post_to_tencent(app, 200)
    assert rows(app)[0][-1]["status"] == "duplicate"


def test_a_repeated_ignored_callback_is_recorded_once(make_app: MakeApp) -> None:
    """The kept delivery has the fingerprint of the callback, so the new delivery has another."""

    class OlderTencent(TencentProvider):
        def parse(self, request: CallbackRequest, body: bytes) -> Callback:
            return replace(super().parse(request, body), removals=None)

    old = make_app(providers=[OlderTencent], **SETTINGS)
    for _ in range(2):
        post_to_tencent(old, 200)
    app = new_app(make_app)
    assert (
        run_replay(app, "--ignored").stdout == "1 recorded, 0 already recorded, 0 still ignored\n"
    )
    assert (
        run_replay(app, "--ignored").stdout == "0 recorded, 1 already recorded, 0 still ignored\n"
    )
    post_to_tencent(app, 200)
    deliveries, removals = rows(app)
    assert sorted(row["status"] for row in deliveries) == [
        *("duplicate", "duplicate", "ignored", "recorded")
    ]
    assert len(removals) == 1


def test_a_command_without_removals_is_not_stored_again(make_app: MakeApp) -> None:
    """The packet can be read now, and it removes nobody."""
    post(old_app(make_app), {"callbackCommand": OTHER_COMMAND, "old-": 1}, path=SECRET)
    app = new_app(make_app)
    assert run_replay(app, "--unreadable").stdout == (
        "0 recorded, 0 already recorded, 1 without removals, 0 still unreadable\n"
    )
    ((delivery,), removals) = rows(app)
    assert (delivery["status"], removals) == ("unreadable", [])


def test_an_ignored_delivery_is_recorded(make_app: MakeApp) -> None:
    """A newer provider learned the command. Other ignored deliveries stay as they are."""
    old = old_app(make_app)
    post(old, {"callbackCommand": NEW_COMMAND, "targets": ["a"]}, path=SECRET, status=200)
    post(old, {"callbackCommand": OTHER_COMMAND}, path=SECRET, status=200)
    app = new_app(make_app)
    assert (
        run_replay(app, "--ignored").stdout == "1 recorded, 0 already recorded, 1 still ignored\n"
    )
    assert [r["target_id"] for r in rows(app)[1]] == ["a"]


def test_a_dry_run_of_kept_deliveries_changes_nothing(make_app: MakeApp) -> None:
    """It says what a replay would record."""
    post(old_app(make_app), BODY | {"ownerUserID": "old-1"})
    app = new_app(make_app)
    before = rows(app)
    result = run_replay(app, "--unreadable", "--dry-run")
    assert result.output == "1 to record, 0 already recorded, 0 still unreadable\n"
    assert rows(app) == before


def test_many_kept_deliveries_are_read_in_pages(make_app: MakeApp) -> None:
    """A replay reads deliveries of more than one page, each once."""
    old = old_app(make_app)
    for number in range(203):
        post(old, BODY | {"ownerUserID": "old-1"} if number % 2 else b"[]")
    app = new_app(make_app)
    result = run_replay(app, "--unreadable")
    assert result.stdout == "101 recorded, 0 already recorded, 102 still unreadable\n"


def test_a_delivery_of_an_unknown_provider_stays(make_app: MakeApp) -> None:
    """The app no longer has the provider that received the delivery."""
    app = make_app()
    record(app, replace(ANONYMOUS, provider="other", removals=(), status=Status.UNREADABLE))
    result = run_replay(app, "--unreadable")
    assert result.stdout == "0 recorded, 0 already recorded, 1 still unreadable\n"
