"""Packets that are not about removals: some are kept, messages and everything else are counted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flask import Flask

from flask_imcallback import removals_recorded
from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage import MAX_REMOVALS
from flask_imcallback.storage.counters import MAX_KEYS
from support.apps import MakeApp, rows, wait_for_counters

TEXT = "a private text"
TENCENT = "/imcallback/tencent?SdkAppid=1400000000&CallbackCommand="
OPENIM = "/imcallback/openim/"
SETTINGS: dict[str, Any] = {
    "IMCALLBACK_ALLOW_UNAUTHENTICATED": True,
    "IMCALLBACK_TENCENT_APPS": {"1400000000": []},
}
MESSAGES = [
    (TENCENT, "C2C.CallbackAfterSendMsg"),
    (TENCENT, "Group.CallbackBeforeSendMsg"),
    (OPENIM, "callbackAfterSendSingleMsgCommand"),
    (OPENIM, "callbackBeforeSendGroupMsgCommand"),
    (OPENIM, "callbackBeforeGroupOnlinePushCommand"),
]


def post(app: Flask, url: str, body: bytes) -> int:
    """Send a callback, and return the status of its answer."""
    return app.test_client().post(url, data=body, buffered=True).status_code


def counts(app: Flask) -> list[tuple[str, str, int]]:
    """Return the outcome, the name and the number of each count."""
    wait_for_counters()
    with app.app_context():
        return [(c.outcome, c.name, c.count) for c in get_runtime().counters.counts()]


@pytest.mark.parametrize(("url", "command"), MESSAGES, ids=[name for _, name in MESSAGES])
def test_a_message_leaves_only_a_count(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture, url: str, command: str
) -> None:
    """It is acknowledged and counted by its command. No table and no log has its text."""
    app = make_app(**SETTINGS)
    signals: list[Any] = []
    body = {"CallbackCommand": command, "callbackCommand": command, "text": TEXT}
    with caplog.at_level("DEBUG"), removals_recorded.connected_to(signals.append, app):
        assert post(app, url + command, json.dumps(body).encode()) == 200
    assert counts(app) == [("accepted", command, 1)]
    assert rows(app) == ([], [])
    assert signals == []
    assert TEXT not in caplog.text


@pytest.mark.parametrize(("url", "command"), MESSAGES, ids=[name for _, name in MESSAGES])
def test_a_message_that_cannot_be_read_leaves_only_a_count(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture, url: str, command: str
) -> None:
    """It is refused. The log has the reason, but neither the text nor the command."""
    app = make_app(**SETTINGS)
    body = json.dumps({"CallbackCommand": command, "text": TEXT}).encode()[:-1]
    assert post(app, url + command, body) == 400
    reason = "the packet cannot be read, and its command is not kept"
    assert counts(app) == [("refused", reason, 1)]
    assert rows(app) == ([], [])
    (line,) = caplog.messages
    assert line.endswith(f": {reason}.")


@pytest.mark.parametrize("body", [b'{"text": "a private text"', b"\xff", b"[]"])
def test_a_message_needs_no_database(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture, body: bytes
) -> None:
    """Without tables and without a spool, a removal is logged as lost, but a message is not."""
    app = make_app(migrate=False, **SETTINGS, IMCALLBACK_SPOOL=None)
    command = "callbackAfterSendGroupMsgCommand"
    packet = json.dumps({"callbackCommand": command, "text": TEXT}).encode()
    assert post(app, OPENIM + command, packet) == 200
    assert post(app, OPENIM + command, body) == 400
    assert TEXT not in caplog.text
    removal = b'{"callbackCommand": "callbackAfterQuitGroupCommand", "groupID": "g", "userID": "u"}'
    assert post(app, OPENIM, removal) == 503
    assert "userID" in caplog.text


def test_many_commands_need_few_counts(make_app: MakeApp) -> None:
    """A sender with the secret chooses the names of commands. The table of counts stays small."""
    app = make_app(**SETTINGS)
    for number in range(MAX_KEYS + 20):
        assert post(app, f"{OPENIM}command{number}", b"{}") == 200
        if number % 10 == 9:
            wait_for_counters()
            with app.app_context():
                get_runtime().counters.save()
    found = counts(app)
    assert len(found) == MAX_KEYS + 1
    assert [count for _, name, count in found if name == "others"] == [20]
    assert rows(app) == ([], [])


def test_a_delivery_of_a_million_removals_is_unreadable(make_app: MakeApp) -> None:
    """Its ids would reach into the next second. The packet is kept."""
    app = make_app(**SETTINGS)
    command = b"callbackAfterKickGroupCommand"
    packet = b'{"callbackCommand":"%b","groupID":"g","kickedUserIDs":[%b"a"]}'
    body = packet % (command, b'"a",' * (MAX_REMOVALS - 1))
    assert post(app, OPENIM + command.decode(), body) == 400
    ((delivery,), removals) = rows(app)
    assert (delivery["status"], delivery["body"]) == ("unreadable", body)
    assert delivery["error"] == "the packet has 1000000 removals or more"
    assert removals == []
