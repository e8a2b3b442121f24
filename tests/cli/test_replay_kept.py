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
    """Its status and its removals change together, once. Its id and its time stay the same."""
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
    assert result.stdout == "3 recorded, 1 still unreadable\n"
    assert result.stderr == (
        "The removals appear at the times at which they were received. Let followers of the "
        f"history read again from {before[0]['received_at']:%Y-%m-%dT%H:%M:%S.%fZ}\n"
    )
    assert run_replay(app, "--unreadable").output == "1 still unreadable\n"
    deliveries, removals = rows(app)
    changed = {"status", "error", "removal_count", "command"}
    assert [{name: row[name] for name in row if name not in changed} for row in deliveries] == [
        {name: row[name] for name in row if name not in changed} for row in before
    ]
    assert [(row["status"], row["error"], row["removal_count"]) for row in deliveries[:3]] == [
        ("recorded", "", 1)
    ] * 3
    assert {row["command"] for row in deliveries} == {COMMAND}
    assert [(r["id"], r["owner_id"]) for r in removals] == [
        (row["id"], f"old-{number}") for number, row in enumerate(before[:3], start=1)
    ]
    assert {r["request_id"] for r in removals} == {"op"}
    assert [record.id for record in announced] == [r["id"] for r in removals]


def test_concurrent_replays_record_each_delivery_once(database_url: URL, make_app: MakeApp) -> None:
    """However many replays run at the same time, no removal is stored twice."""
    old = old_app(make_app, database_url)
    for number in range(20):
        packet = {"callbackCommand": NEW_COMMAND, "targets": ["old-a", "b"], "number": number}
        post(old, packet, path=f"{SECRET}/{NEW_COMMAND}")
    apps = [new_app(make_app, database_url) for _ in range(4)]

    def run(app: Flask) -> int:
        with app.app_context():
            report = replay_kept(app, get_runtime(), Status.UNREADABLE, is_dry_run=False)
        return report.changed.get(Status.RECORDED, 0)

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(run, apps)) == 20
    deliveries, removals = rows(old)
    assert {row["status"] for row in deliveries} == {"recorded"}
    assert [r["id"] - r["position"] for r in removals] == [
        row["id"] for row in deliveries for _ in range(2)
    ]


def test_a_delivery_whose_ids_are_taken_moves(database_url: URL, make_app: MakeApp) -> None:
    """The removals get the ids after their delivery, so the delivery moves to free ids.

    Its duplicates still name it.
    """
    old = old_app(make_app, database_url)
    post(old, {"callbackCommand": NEW_COMMAND, "targets": ["a", "b", "c"]}, SECRET, status=200)
    ((kept,), _) = rows(old)
    neighbour = make_delivery(("o", "t"), at=kept["received_at"] + 2 * MICROSECOND)
    (taken,) = record(old, neighbour)
    assert taken.id == kept["id"] + 2
    with old.app_context(), get_runtime().engine().begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO imcallback_delivery SELECT id + 10, received_at, provider, app_id, "
            f"command, 'duplicate', {kept['id']}, '', 0, remote_addr, authenticated_by, client_ip, "
            "platform, request_id, query, headers, body, NULL, NULL FROM imcallback_delivery "
            f"WHERE id = {kept['id']}"
        )
    app = new_app(make_app, database_url)
    assert run_replay(app, "--ignored").stdout == "1 recorded, 0 still ignored\n"
    deliveries, removals = rows(app)
    (moved,) = [row for row in deliveries if row["removal_count"] == 3]
    assert moved["id"] > kept["id"]
    assert timedelta(0) < moved["received_at"] - kept["received_at"] < timedelta(seconds=0.1)
    assert [r["id"] for r in removals if r["delivery_id"] == moved["id"]] == [
        moved["id"] + position for position in range(3)
    ]
    (duplicate,) = [row for row in deliveries if row["status"] == "duplicate"]
    assert duplicate["duplicate_of"] == moved["id"]
    with app.app_context():
        detail = get_runtime().history.get_delivery(moved["id"])
    assert detail is not None
    assert [record.target_id for record in detail.removals] == ["a", "b", "c"]


def test_a_repeated_unreadable_callback_is_recorded_once(
    database_url: URL, make_app: MakeApp
) -> None:
    """Each repetition was refused and kept. The first one gets the removals."""
    old = old_app(make_app, database_url)
    path = f"/imcallback/tencent/{SECRET}?SdkAppid=1400000000&RequestId=r"
    pairs = [{"From_Account": "a", "To_Account": "b"}]
    packet = {"CallbackCommand": "Sns.CallbackFriendDelete", "PairList": pairs}
    for _ in range(2):
        assert old.test_client().post(path, json=packet).status_code == 400
    app = new_app(make_app, database_url)
    result = run_replay(app, "--unreadable")
    assert result.stdout == "1 duplicate, 1 recorded, 0 still unreadable\n"
    deliveries, removals = rows(app)
    assert [(row["status"], row["duplicate_of"]) for row in deliveries] == [
        ("recorded", None),
        ("duplicate", deliveries[0]["id"]),
    ]
    assert len(removals) == 1
    assert app.test_client().post(path, json=packet).status_code == 200
    assert rows(app)[0][-1]["status"] == "duplicate"


def test_a_command_without_removals_becomes_ignored(make_app: MakeApp) -> None:
    """The packet can be read now, and it removes nobody."""
    post(old_app(make_app), {"callbackCommand": OTHER_COMMAND, "old-": 1}, path=SECRET)
    app = new_app(make_app)
    assert run_replay(app, "--unreadable").stdout == "1 ignored, 0 still unreadable\n"
    ((delivery,), removals) = rows(app)
    assert (delivery["status"], delivery["error"], removals) == ("ignored", "", [])


def test_an_ignored_delivery_is_recorded(make_app: MakeApp) -> None:
    """A newer provider learned the command. Other ignored deliveries stay as they are."""
    old = old_app(make_app)
    post(old, {"callbackCommand": NEW_COMMAND, "targets": ["a"]}, path=SECRET, status=200)
    post(old, {"callbackCommand": OTHER_COMMAND}, path=SECRET, status=200)
    app = new_app(make_app)
    assert run_replay(app, "--ignored").stdout == "1 recorded, 1 still ignored\n"
    assert [r["target_id"] for r in rows(app)[1]] == ["a"]


def test_a_dry_run_of_kept_deliveries_changes_nothing(make_app: MakeApp) -> None:
    """It says what a replay would change."""
    post(old_app(make_app), BODY | {"ownerUserID": "old-1"})
    app = new_app(make_app)
    before = rows(app)
    result = run_replay(app, "--unreadable", "--dry-run")
    assert result.output == "1 to become recorded, 0 still unreadable\n"
    assert rows(app) == before


def test_many_kept_deliveries_are_read_in_pages(make_app: MakeApp) -> None:
    """A replay reads deliveries of more than one page, each once."""
    old = old_app(make_app)
    for number in range(203):
        post(old, BODY | {"ownerUserID": "old-1"} if number % 2 else b"[]")
    app = new_app(make_app)
    assert run_replay(app, "--unreadable").stdout == "101 recorded, 102 still unreadable\n"


def test_a_delivery_of_an_unknown_provider_stays(make_app: MakeApp) -> None:
    """The app no longer has the provider that received the delivery."""
    app = make_app()
    record(app, replace(ANONYMOUS, provider="other", removals=(), status=Status.UNREADABLE))
    assert run_replay(app, "--unreadable").stdout == "1 still unreadable\n"
