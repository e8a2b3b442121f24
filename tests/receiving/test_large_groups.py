"""A group of 100,000 members is dismissed: the largest packet that is expected."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import URL, func, select

from flask_imcallback.runtime import get_runtime
from flask_imcallback.settings import DEFAULT_MAX_BODY_BYTES
from flask_imcallback.storage.tables import delivery, removal
from support.apps import MakeApp, wait_until
from support.callbacks import BODY

MEMBER_COUNT = 100_000
TENCENT = "Group.CallbackAfterGroupDestroyed"
OPENIM = "callbackAfterDisMissGroupCommand"
URLS = {
    TENCENT: f"/imcallback/tencent?SdkAppid=1400000000&CallbackCommand={TENCENT}",
    OPENIM: f"/imcallback/openim/{OPENIM}",
}


def packet(command: str, members: list[str]) -> dict[str, Any]:
    """Return the packet of a dismissed group."""
    if command == TENCENT:
        member_list = [{"Member_Account": member} for member in members]
        return {"CallbackCommand": command, "GroupId": "group", "MemberList": member_list}
    return {"callbackCommand": command, "groupID": "group", "membersID": members}


def count(app: Flask, table: Any) -> int:
    """Return the number of rows of a table."""
    with app.app_context(), get_runtime().engine().connect() as connection:
        return connection.scalar(select(func.count()).select_from(table)) or 0


@pytest.mark.slow
@pytest.mark.parametrize(("command", "id_length"), [(TENCENT, 57), (OPENIM, 76)])
def test_all_members_are_recorded(
    database_url: URL,
    make_app: MakeApp,
    caplog: pytest.LogCaptureFixture,
    command: str,
    id_length: int,
) -> None:
    """The default settings are enough for long ids. Meanwhile, other callbacks do not wait."""
    app = make_app(
        database_url,
        IMCALLBACK_ALLOW_UNAUTHENTICATED=True,
        IMCALLBACK_TENCENT_APPS={"1400000000": []},
        IMCALLBACK_DEADLINE=30,
    )
    client = app.test_client()
    members = [str(number).zfill(id_length) for number in range(MEMBER_COUNT)]
    body = json.dumps(packet(command, members), separators=(",", ":")).encode()
    assert 0.95 * DEFAULT_MAX_BODY_BYTES < len(body) <= DEFAULT_MAX_BODY_BYTES
    assert client.post(URLS[command], data=body).status_code == 200
    assert client.post("/imcallback/openim", json=BODY).status_code == 200
    wait_until(lambda: count(app, delivery) == 2, 120)
    assert count(app, removal) == MEMBER_COUNT + 1
    by_id = select(removal.c.owner_id, removal.c.target_id).order_by(removal.c.id)
    with app.app_context(), get_runtime().engine().connect() as connection:
        assert set(connection.scalars(select(delivery.c.status))) == {"recorded"}
        stored = connection.execute(by_id).all()[:MEMBER_COUNT]
    assert [tuple(row) for row in stored] == [("group", member) for member in members]
    assert caplog.messages == []


@pytest.mark.parametrize("command", [TENCENT, OPENIM])
def test_a_larger_packet_is_refused(make_app: MakeApp, command: str) -> None:
    """The answer is 413, and the log names the setting."""
    app = make_app(
        IMCALLBACK_ALLOW_UNAUTHENTICATED=True, IMCALLBACK_TENCENT_APPS={"1400000000": []}
    )
    members = ["a" * 255] * (DEFAULT_MAX_BODY_BYTES // 255)
    response = app.test_client().post(URLS[command], json=packet(command, members))
    assert response.status_code == 413
    assert count(app, delivery) == 0
