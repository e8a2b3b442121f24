"""Callbacks over HTTP: every packet, and what is stored of it on every database."""

from __future__ import annotations

import hashlib
import time
from base64 import b64encode
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import time_machine
from flask import Flask, request
from flask.testing import FlaskClient
from sqlalchemy import URL

from flask_imcallback import OpenIMProvider
from flask_imcallback.runtime import get_runtime
from flask_imcallback.settings import Settings
from flask_imcallback.storage.tables import delivery, removal
from support import samples
from support.apps import MakeApp, rows, wait_for_counters
from support.callbacks import BODY, SECRET, MineProvider

SAMPLES = samples.samples("tencent") + samples.samples("openim")


def clear(app: Flask) -> None:
    with app.app_context(), get_runtime().engine().begin() as connection:
        for table in (delivery, removal):
            connection.execute(table.delete())


def send(client: FlaskClient, sample: samples.Sample, body: bytes) -> Any:
    return client.open(
        f"/imcallback{sample.path}",
        method=sample.method,
        query_string=sample.query,
        headers=[h for h in sample.headers.items() if h[0] not in ("Host", "Content-Length")],
        data=body,
    )


def test_each_packet_is_answered_and_stored(database_url: URL, make_app: MakeApp) -> None:
    """Answer, deliveries and removals are those that stand beside the packet."""
    by_settings = defaultdict(list)
    for sample in SAMPLES:
        by_settings[repr(sample.settings)].append(sample)
    for some in by_settings.values():
        app = make_app(database_url, **some[0].settings)
        client = app.test_client()
        for sample in some:
            clear(app)
            for body in sample.bodies:
                with time_machine.travel(sample.now or 1_700_000_000, tick=True):
                    response = send(client, sample, body)
                assert response.status_code == sample.http_status, sample.name
                assert response.mimetype == "application/json", sample.name
                assert sample.answer.items() <= response.get_json().items(), sample.name
            deliveries, removals = rows(app)
            stored = [{name: row[name] for name in ("status", "command")} for row in deliveries]
            assert stored == sample.deliveries, sample.name
            if deliveries:
                assert [row["body"] for row in deliveries] == sample.bodies, sample.name
            names = ("relation", "owner_id", "target_id")
            pairs = [{name: row[name] for name in names} for row in removals]
            assert pairs == sample.removals, sample.name


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("path", ["/openim/callbackX", "/openim", "/tencent", "/tencent/x"])
def test_another_method_is_405(make_app: MakeApp, method: str, path: str) -> None:
    """In the provider's words, because another body can stop OpenIM's users."""
    app = make_app(
        migrate=False,
        IMCALLBACK_ALLOW_UNAUTHENTICATED=True,
        IMCALLBACK_TENCENT_APPS={"1400000000": []},
    )
    response = app.test_client().open(f"/imcallback{path}", method=method)
    assert response.status_code == 405
    assert response.headers["Allow"] == "POST"
    words = "errCode" if "openim" in path else "ErrorCode"
    assert method == "HEAD" or words in response.get_json()


OTHER = "another-secret-of-enough-length"


@pytest.mark.parametrize(
    ("url", "headers"),
    [
        ("/imcallback/openim/callbackAfterRemoveBlackCommand", {}),
        (f"/imcallback/openim/{OTHER}/callbackAfterRemoveBlackCommand", {}),
        (f"/imcallback/openim/{SECRET}/callbackAfterRemoveBlackCommand/more", {}),
        (f"/imcallback/openim/{SECRET}/x", {"Authorization": "Basic !"}),
        (f"/imcallback/openim/{SECRET}/x", {"Authorization": f"Bearer {OTHER}"}),
        (f"/imcallback/tencent?SdkAppid=1&Sign={OTHER}", {}),
        (f"/imcallback/tencent/{OTHER}?SdkAppid=1400000000", {}),
        (f"/imcallback/tencent/{SECRET}/{SECRET}?SdkAppid=1400000000", {}),
    ],
)
def test_refusals_are_alike_and_tell_no_secret(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture, url: str, headers: dict[str, str]
) -> None:
    """One text for every reason; the reason is in the log, but nothing that was presented."""
    app = make_app(
        IMCALLBACK_TENCENT_APPS={"1400000000": [OTHER]},
        IMCALLBACK_SECRETS=[SECRET],
        IMCALLBACK_OPENIM_CREDENTIALS={"openim": OTHER},
    )
    response = app.test_client().post(url, json=BODY, headers=headers)
    assert response.status_code == 403
    tencent = {"ActionStatus": "FAIL", "ErrorCode": 1, "ErrorInfo": "not authentic"}
    openim = {"actionCode": 0, "errCode": 0, "errMsg": "", "errDlt": "", "nextCode": 0}
    assert response.get_json() == (tencent if "tencent" in url else openim)
    assert rows(app) == ([], [])
    assert "Refused a callback" in caplog.text
    assert SECRET not in caplog.text
    assert OTHER not in caplog.text


def test_a_flood_of_refusals_costs_no_disk(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """One line a minute for each reason, which tells how many there were; all are counted."""
    app = make_app(IMCALLBACK_SECRETS=[SECRET])
    with time_machine.travel(1_700_000_000, tick=False) as clock:
        client = app.test_client()
        for _ in range(2):
            for number in range(500):
                client.post(f"/imcallback/openim/{number}/callbackX", json=BODY, buffered=True)
            wait_for_counters()
            clock.shift(61)
        client.post("/imcallback/openim/0/callbackX", json=BODY, buffered=True)
        wait_for_counters()
        client.post("/imcallback/openim/callbackX", json=BODY, buffered=True)
    assert len(caplog.records) == 4
    assert "499 more" in caplog.messages[1]
    with app.app_context():
        counts = get_runtime().counters.counts()
    # The last one came less than ten seconds after the counters was saved.
    assert [(count.outcome, count.count) for count in counts] == [("refused", 1001)]
    assert rows(app) == ([], [])


def test_no_secret_is_stored(make_app: MakeApp) -> None:
    """A delivery keeps what is known to be harmless of query and headers."""
    password = "Basic b3BlbmltOm15LXBhc3N3b3Jk"
    app = make_app(
        IMCALLBACK_SECRETS=[SECRET], IMCALLBACK_OPENIM_CREDENTIALS={"openim": "my-password"}
    )
    response = app.test_client().post(
        f"/imcallback/openim/{SECRET}?command=callbackAfterRemoveBlackCommand&token={OTHER}",
        json=BODY,
        headers={"Authorization": password, "Cookie": OTHER, "Operationid": "op-1"},
    )
    assert response.status_code == 200
    (delivery,), _ = rows(app)
    assert delivery["query"] == "command=callbackAfterRemoveBlackCommand"
    assert '"operationid": "op-1"' in delivery["headers"]
    assert delivery["request_id"] == "op-1"
    assert delivery["authenticated_by"] == "secret+password"
    for secret in (SECRET, OTHER, password, "my-password"):
        assert secret not in repr(delivery)


def test_what_a_host_does_with_requests_harms_no_callback(make_app: MakeApp) -> None:
    """A hook that reads every body, and a lower limit for the host's own uploads."""
    app = make_app(IMCALLBACK_ALLOW_UNAUTHENTICATED=True, MAX_CONTENT_LENGTH=10_000)

    @app.before_request
    def read() -> None:
        if request.args.get("read"):
            request.get_data()

    client, url = app.test_client(), "/imcallback/openim/callbackAfterRemoveBlackCommand"
    assert client.post(f"{url}?read=1", json=BODY).status_code == 200
    assert client.post(url, json={**BODY, "ex": "x" * 20_000}).status_code == 200
    assert len(rows(app)[1]) == 2


def test_another_prefix(make_app: MakeApp) -> None:
    """All addresses move, those with doubled slashes too; the old ones are gone."""
    app = make_app(IMCALLBACK_ALLOW_UNAUTHENTICATED=True, IMCALLBACK_URL_PREFIX="/a/b/")
    client = app.test_client()
    command = BODY["callbackCommand"]
    assert client.post(f"/a/b/openim//{command}", json=BODY).status_code == 200
    assert client.post(f"/imcallback/openim/{command}", json=BODY).status_code == 404
    assert client.get("/a/b/history").status_code == 403


def test_the_first_requests_may_come_at_once(make_app: MakeApp) -> None:
    """The database of an app that has none is made by the first; the others wait until it is."""
    app = make_app(IMCALLBACK_ALLOW_UNAUTHENTICATED=True)
    url = "/imcallback/openim/callbackAfterRemoveBlackCommand"
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            fresh = make_app(migrate=False, IMCALLBACK_ALLOW_UNAUTHENTICATED=True)
            post = partial(fresh.test_client().post, url, json=BODY)
            answers = list(pool.map(lambda _, post=post: post().status_code, range(8)))
            assert answers == [200] * 8
    assert len(rows(app)[1]) == 160


def test_networks_are_a_guard(make_app: MakeApp) -> None:
    """An address outside is refused, whatever else it presents."""
    app = make_app(
        IMCALLBACK_ALLOW_UNAUTHENTICATED=True, IMCALLBACK_ALLOWED_NETWORKS=["203.0.113.0/24"]
    )
    url = "/imcallback/openim/callbackAfterRemoveBlackCommand"
    for address, status in (("203.0.113.9", 200), ("192.0.2.1", 403)):
        environ = {"REMOTE_ADDR": address}
        assert app.test_client().post(url, json=BODY, environ_base=environ).status_code == status
    (delivery,), _ = rows(app)
    assert delivery["remote_addr"] == "203.0.113.9"


@pytest.mark.parametrize("as_object", [False, True])
def test_a_host_adds_a_provider(make_app: MakeApp, *, as_object: bool) -> None:
    """As a class that takes the settings, or as a ready object; its mistakes lose no packet."""
    config = {"IMCALLBACK_ALLOW_UNAUTHENTICATED": True}
    mine = MineProvider(Settings.from_config(config)) if as_object else MineProvider
    app = make_app(**config, providers=[OpenIMProvider, mine])
    client = app.test_client()
    assert client.post("/imcallback/mine/callbackAfterRemoveBlackCommand", json=BODY).json
    assert client.post("/imcallback/mine/callbackX", data=b'{"fail": 1}').status_code == 400
    deliveries, removals = rows(app)
    assert [(row["provider"], row["status"]) for row in deliveries] == [
        ("mine", "recorded"),
        ("mine", "unreadable"),
    ]
    assert [row["provider"] for row in removals] == ["mine"]


TOKEN, OLD = "the-token", "the-old-token"
GUARDS: dict[str, dict[str, Any]] = {
    "tencent": {
        "nothing": {"IMCALLBACK_ALLOW_UNAUTHENTICATED": True},
        "token": {"IMCALLBACK_TENCENT_APPS": {"1400000000": [TOKEN, OLD]}},
        "secret": {"IMCALLBACK_SECRETS": [SECRET, OTHER]},
    },
    "openim": {
        "nothing": {"IMCALLBACK_ALLOW_UNAUTHENTICATED": True},
        "password": {"IMCALLBACK_OPENIM_CREDENTIALS": {"new": TOKEN, "old": OLD}},
        "secret": {"IMCALLBACK_SECRETS": [SECRET, OTHER]},
    },
}
# settings, what is presented, and whether that is let in
TENCENT = [
    ("nothing", "", True),
    ("nothing", "sign", True),  # no token, so that nobody can tell whether it is right
    ("nothing", "secret", False),  # none is accepted
    ("token", "", False),
    ("token", "sign", True),
    ("token", "old sign", True),
    ("token", "wrong sign", False),
    ("token", "late sign", False),
    ("token", "sign secret", False),
    ("token nothing", "", False),
    ("token nothing", "sign", True),
    ("secret", "", False),
    ("secret", "secret", True),
    ("secret", "other secret", True),
    ("secret", "wrong secret", False),
    ("secret", "sign", False),
    ("token secret", "secret", False),  # an app with tokens must always sign
    ("token secret", "sign", True),
    ("token secret", "sign secret", True),
    ("token secret", "sign wrong secret", False),
    ("token secret", "wrong sign secret", False),
]
OPENIM = [
    ("nothing", "", True),
    ("nothing", "password", True),  # there are none to compare it with
    ("nothing", "secret", False),
    ("password", "", False),
    ("password", "password", True),
    ("password", "old password", True),
    ("password", "wrong password", False),
    ("password", "password secret", False),
    ("secret", "", False),
    ("secret", "secret", True),
    ("secret", "other secret", True),
    ("secret", "wrong secret", False),
    ("secret", "password", False),
    ("password secret", "password", True),
    ("password secret", "secret", True),
    ("password secret", "password secret", True),
    ("password secret", "wrong password secret", False),
    ("password secret", "password wrong secret", False),
]


@pytest.mark.parametrize(
    ("provider", "configured", "presented", "is_let_in"),
    [("tencent", *row) for row in TENCENT] + [("openim", *row) for row in OPENIM],
)
def test_guards(
    make_app: MakeApp, provider: str, configured: str, presented: str, is_let_in: bool
) -> None:
    """Settings and request give the answer; a row is stored for whom is let in."""
    apps: dict[str, Any] = {"IMCALLBACK_TENCENT_APPS": {"1400000000": []}}
    config = apps if provider == "tencent" else {}
    for guard in configured.split():
        config |= GUARDS[provider][guard]
    app = make_app(**config)
    now = int(time.time())
    secrets = {"wrong secret": "x" * 20, "other secret": OTHER, "secret": SECRET}
    secret = next((f"/{secrets[name]}" for name in secrets if name in presented), "")
    headers, query = {}, ""
    if "password" in presented:
        user, password = ("old", OLD) if "old password" in presented else ("new", TOKEN)
        password += "x" if "wrong password" in presented else ""
        headers["Authorization"] = f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"
    if "sign" in presented:
        now -= 100 if "late" in presented else 0
        token = OLD if "old sign" in presented else TOKEN
        sign = hashlib.sha256(f"{token}{now}".encode()).hexdigest()
        sign = sign[:-1] + "x" if "wrong sign" in presented else sign
        query = f"&Sign={sign}&RequestTime={now}"
    if provider == "tencent":
        url = f"/imcallback/tencent{secret}?SdkAppid=1400000000&CallbackCommand=X.Y{query}"
    else:
        url = f"/imcallback/openim{secret}/callbackX"
    response = app.test_client().post(url, json={}, headers=headers)
    assert response.status_code == (200 if is_let_in else 403)
    assert len(rows(app)[0]) == int(is_let_in)


def test_of_duplicate_members_the_last_counts(make_app: MakeApp) -> None:
    """As for the servers' own JSON readers; nothing is stored by halves."""
    app = make_app(IMCALLBACK_ALLOW_UNAUTHENTICATED=True)
    command = BODY["callbackCommand"]
    body = (
        f'{{"callbackCommand":"{command}","ownerUserID":"a","ownerUserID":"c","blackUserID":"b"}}'
    )
    url = f"/imcallback/openim/{command}"
    assert app.test_client().post(url, data=body).status_code == 200
    assert [row["owner_id"] for row in rows(app)[1]] == ["c"]
