"""Callbacks over HTTP: how each packet is answered and stored on each database."""

from __future__ import annotations

import hashlib
import json
import time
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import pytest
import time_machine
from flask import Flask, request
from flask.testing import FlaskClient
from sqlalchemy import URL
from werkzeug.test import TestResponse

from flask_imcallback import OpenIMProvider, upgrade
from flask_imcallback.runtime import get_runtime
from flask_imcallback.settings import Settings
from support import samples, servers
from support.apps import DATABASES, MakeApp, rows, save_counts
from support.callbacks import BODY, SECRET, BrokenProvider, SharedApps, shared_apps

SAMPLES = samples.samples("tencent") + samples.samples("openim")


@pytest.fixture(scope="module", params=DATABASES)
def apps(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SharedApps]:
    """Apps on a database of each kind, shared by all packets."""
    folder = tmp_path_factory.mktemp("packets")
    with ExitStack() as stack:
        if request.param == "sqlite":
            url = URL.create("sqlite", database=str(folder / "test.db"))
        else:
            server = request.getfixturevalue("database_servers")[request.param]
            url = stack.enter_context(servers.database(server))
        yield stack.enter_context(shared_apps(url, folder))


def send(client: FlaskClient, sample: samples.Sample, body: bytes) -> TestResponse:
    """Send one request of a sample at the time of the sample."""
    with time_machine.travel(sample.now or 1_700_000_000, tick=True):
        return client.open(
            f"/imcallback{sample.path}",
            method=sample.method,
            query_string=sample.query,
            headers=[h for h in sample.headers.items() if h[0] not in ("Host", "Content-Length")],
            data=body,
        )


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: f"{sample.provider}-{sample}")
def test_a_packet_is_answered_and_stored(apps: SharedApps, sample: samples.Sample) -> None:
    """The answer, the delivery and the removals are as the sample expects."""
    app = apps.empty_app(sample.settings)
    client = app.test_client()
    for body in sample.bodies:
        response = send(client, sample, body)
        assert response.status_code == sample.http_status
        assert response.mimetype == "application/json"
        assert sample.answer.items() <= response.get_json().items()
    deliveries, removals = rows(app)
    stored = [{name: row[name] for name in ("status", "command")} for row in deliveries]
    assert stored == sample.deliveries
    for row, body in zip(deliveries, sample.bodies, strict=bool(deliveries)):
        assert row["body"] == body
        assert row["authenticated_by"] == sample.authenticated_by
        assert row["error"].startswith(sample.problem)
        assert bool(row["error"]) == bool(sample.problem)
    for row, removal in zip(removals, sample.removals, strict=True):
        expected = {name: text for name, text in removal.items() if name in row}
        assert {name: row[name] for name in expected} == expected


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("path", ["/openim/callbackX", "/openim", "/tencent", "/tencent/x"])
def test_another_method_is_405(make_app: MakeApp, method: str, path: str) -> None:
    """The answer has the provider's body, because another body can stop OpenIM's users."""
    app = make_app(
        migrate=False,
        IMCALLBACK_ALLOW_UNAUTHENTICATED=True,
        IMCALLBACK_TENCENT_APPS={"1400000000": []},
    )
    response = app.test_client().open(f"/imcallback{path}", method=method)
    assert response.status_code == 405
    assert response.headers["Allow"] == "POST"
    member = "errCode" if "openim" in path else "ErrorCode"
    assert method == "HEAD" or member in response.get_json()


@pytest.mark.parametrize(
    ("path", "method", "status", "result"),
    [
        (f"openim/{SECRET}/callbackX", "POST", 200, "accepted"),
        ("openim/callbackX", "POST", 403, "refused"),
        (f"openim/{SECRET}/callbackX", "GET", 405, "refused"),
        ("tencent", "POST", 404, "refused"),
    ],
)
def test_a_header_tells_a_refusal_from_a_success(
    make_app: MakeApp, path: str, method: str, status: int, result: str
) -> None:
    """The body of OpenIM is the same for both, because another body can stop its users."""
    client = make_app(IMCALLBACK_SECRETS=[SECRET]).test_client()
    response = client.open(f"/imcallback/{path}", method=method, data="{}")
    assert response.status_code == status
    assert response.headers["Imcallback-Result"] == result


OTHER = "another-secret-of-enough-length"
CONTINUE = {"actionCode": 0, "errCode": 0, "errMsg": "", "errDlt": "", "nextCode": 0}


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
def test_all_refusals_are_the_same_and_hold_no_secret(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture, url: str, headers: dict[str, str]
) -> None:
    """The log has the reason, but nothing that the request presented."""
    app = make_app(
        IMCALLBACK_TENCENT_APPS={"1400000000": [OTHER]},
        IMCALLBACK_SECRETS=[SECRET],
        IMCALLBACK_OPENIM_CREDENTIALS={"openim": OTHER},
    )
    response = app.test_client().post(url, json=BODY, headers=headers)
    assert response.status_code == 403
    tencent = {"ActionStatus": "FAIL", "ErrorCode": 1, "ErrorInfo": "not authentic"}
    assert response.get_json() == (tencent if "tencent" in url else CONTINUE)
    assert rows(app) == ([], [])
    assert "Refused a callback" in caplog.text
    assert SECRET not in caplog.text
    assert OTHER not in caplog.text


def test_a_flood_of_refusals_costs_no_disk(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """The log gets one line a minute for each reason, with the number of refusals."""
    app = make_app(IMCALLBACK_SECRETS=[SECRET])
    with time_machine.travel(1_700_000_000, tick=False) as clock:
        client = app.test_client()
        for _ in range(2):
            for number in range(500):
                client.post(f"/imcallback/openim/{number}/callbackX", json=BODY, buffered=True)
            save_counts(app)
            clock.shift(61)
        client.post("/imcallback/openim/0/callbackX", json=BODY, buffered=True)
        save_counts(app)
        client.post("/imcallback/openim/callbackX", json=BODY, buffered=True)
    assert len(caplog.records) == 4
    assert "499 more" in caplog.messages[1]
    save_counts(app)
    with app.app_context():
        counts = get_runtime().counters.counts()
    assert [(count.outcome, count.count) for count in counts] == [("refused", 1), ("refused", 1001)]
    assert rows(app) == ([], [])


@pytest.mark.parametrize("is_readable", [True, False])
def test_no_secret_is_stored(make_app: MakeApp, is_readable: bool) -> None:
    """A delivery keeps only the parameters and headers that never hold a secret.

    A delivery with removals also leaves out what its other fields say.
    """
    password = "Basic b3BlbmltOm15LXBhc3N3b3Jk"
    app = make_app(
        IMCALLBACK_SECRETS=[SECRET], IMCALLBACK_OPENIM_CREDENTIALS={"openim": "my-password"}
    )
    response = app.test_client().post(
        f"/imcallback/openim/{SECRET}?command=callbackAfterRemoveBlackCommand&token={OTHER}"
        "&contenttype=json",
        json=BODY if is_readable else {},
        headers={"Authorization": password, "Cookie": OTHER, "Operationid": "op-1"},
    )
    assert response.status_code == (200 if is_readable else 400)
    (delivery,), _ = rows(app)
    command = "" if is_readable else "command=callbackAfterRemoveBlackCommand&"
    assert delivery["query"] == f"{command}contenttype=json"
    headers = json.loads(delivery["headers"])
    others = set() if is_readable else {"operationid", "content-length"}
    assert headers.keys() == {"host", "user-agent", "content-type"} | others
    assert delivery["request_id"] == "op-1"
    assert delivery["authenticated_by"] == "secret+password"
    for secret in (SECRET, OTHER, password, "my-password"):
        assert secret not in repr(delivery)


def test_a_delivery_keeps_the_known_parameters(make_app: MakeApp) -> None:
    """The case of a name does not matter. Signature and unknown parameters are not kept."""
    app = make_app(
        IMCALLBACK_TENCENT_APPS={"1400000000": []}, IMCALLBACK_ALLOW_UNAUTHENTICATED=True
    )
    query = "SdkAppid=1400000000&REQUESTID=one&ClientIP=192.0.2.7"
    response = app.test_client().post(
        f"/imcallback/tencent?{query}&Sign={OTHER}&RequestTime=1&x=2",
        json={"CallbackCommand": "Sns.CallbackFriendAdd"},
    )
    assert response.status_code == 200
    (delivery,), _ = rows(app)
    assert delivery["query"] == query
    assert delivery["request_id"] == "one"


def test_hooks_and_limits_of_the_host_lose_no_callback(make_app: MakeApp) -> None:
    """The host may read every body first, and may limit its own uploads."""
    app = make_app(IMCALLBACK_ALLOW_UNAUTHENTICATED=True, MAX_CONTENT_LENGTH=10_000)

    client, url = app.test_client(), "/imcallback/openim/callbackAfterRemoveBlackCommand"
    app.before_request(lambda: request.get_data() and None)
    assert client.post(url, json=BODY).status_code == 200
    app.before_request_funcs.clear()
    assert client.post(url, json={**BODY, "ex": "x" * 20_000}).status_code == 200
    assert len(rows(app)[1]) == 2


def test_another_prefix(make_app: MakeApp) -> None:
    """All URLs move, also with doubled slashes, and the old URLs are gone."""
    app = make_app(IMCALLBACK_ALLOW_UNAUTHENTICATED=True, IMCALLBACK_URL_PREFIX="/a/b/")
    client = app.test_client()
    command = BODY["callbackCommand"]
    assert client.post(f"/a/b/openim//{command}", json=BODY).status_code == 200
    assert client.post(f"/imcallback/openim/{command}", json=BODY).status_code == 404
    assert client.get("/a/b/history").status_code == 403


def test_the_first_requests_may_arrive_together(make_app: MakeApp) -> None:
    """The first request makes the database of an app that has none, and the others wait."""
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
    """A client outside the allowed networks is refused."""
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
    """The provider is a class or an object, and a mistake in it loses no packet."""
    config = {"IMCALLBACK_ALLOW_UNAUTHENTICATED": True}
    mine = BrokenProvider(Settings.from_config(config)) if as_object else BrokenProvider
    app = make_app(**config, providers=[OpenIMProvider, mine])
    client = app.test_client()
    path = "/imcallback/mine/callbackAfterRemoveBlackCommand"
    assert client.post(path, json=BODY).json == CONTINUE
    response = client.post("/imcallback/mine/callbackBlackX", data=b'{"fail": 1}')
    assert (response.status_code, response.json) == (400, CONTINUE)
    deliveries, removals = rows(app)
    assert [(row["provider"], row["status"], row["error"]) for row in deliveries] == [
        ("mine", "recorded", ""),
        ("mine", "unreadable", "the packet cannot be read"),
    ]
    assert [row["provider"] for row in removals] == ["mine"]


def test_a_provider_that_cannot_verify_is_logged_once_a_minute(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """A stranger can repeat such a request, so the log gets one line and no traceback."""
    app = make_app(providers=[BrokenProvider], IMCALLBACK_SECRETS=[SECRET])
    for _ in range(3):
        response = app.test_client().post("/imcallback/mine/callbackX?fail=1", json=BODY)
        assert (response.status_code, response.get_json()) == (503, CONTINUE)
    assert caplog.messages == [
        "Refused a callback of mine: the provider fails to verify the request (KeyError)."
    ]
    assert rows(app) == ([], [])


def test_a_callback_that_a_provider_cannot_answer_is_kept(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """The packet is stored before the provider fails to make an answer."""
    app = make_app(providers=[BrokenProvider], IMCALLBACK_SECRETS=[SECRET])
    response = app.test_client().post(f"/imcallback/mine/{SECRET}", data=b'{"fail": 2}')
    assert (response.status_code, response.get_json()) == (503, CONTINUE)
    assert caplog.messages[-1] == "A callback of mine could not be answered"
    ((delivery,), _) = rows(app)
    assert (delivery["status"], delivery["body"]) == ("unreadable", b'{"fail": 2}')


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        (f"{SECRET}/callbackBlackX", b"[]", "the body is not a JSON object"),
        (
            f"{SECRET}/callbackFriendX",
            b'{"callbackCommand": "a\'\\n\\"b"}',
            "the request names different commands: … and …",
        ),
    ],
)
def test_an_unreadable_callback_is_logged_and_counted(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture, path: str, body: bytes, reason: str
) -> None:
    """One line names the delivery and the reason, without any text of the request."""
    app = make_app(IMCALLBACK_SECRETS=[SECRET])
    assert app.test_client().post(f"/imcallback/openim/{path}", data=body).status_code == 400
    ((delivery,), _) = rows(app)
    assert caplog.messages == [
        f"A callback of openim is unreadable: {reason}. Run flask imcallback deliveries "
        f"{delivery['id']} to see its packet."
    ]
    assert caplog.records[0].levelname == "WARNING"
    save_counts(app)
    with app.app_context():
        (count,) = get_runtime().counters.counts()
    assert (count.outcome, count.name, count.count) == ("refused", "the packet is unreadable", 1)


def test_a_provider_that_cannot_read_the_origin_loses_no_packet(make_app: MakeApp) -> None:
    """The delivery is stored without the facts of the path and the query."""
    app = make_app(providers=[BrokenProvider], IMCALLBACK_SECRETS=[SECRET])
    path = f"/imcallback/mine/{SECRET}/callbackBlackX?fail_origin=1"
    assert (
        app.test_client().post(path, json={"callbackCommand": "callbackBlackX"}).status_code == 200
    )
    ((delivery,), _) = rows(app)
    assert (delivery["status"], delivery["command"]) == ("ignored", "callbackBlackX")


@pytest.mark.parametrize("size", [10, 9_000_000])
def test_every_refusal_of_an_authentic_callback_is_counted(make_app: MakeApp, size: int) -> None:
    """A body that is too large and a callback that cannot be stored are counted by reason."""
    app = make_app(migrate=False, IMCALLBACK_SPOOL=None, IMCALLBACK_SECRETS=[SECRET])
    url = f"/imcallback/openim/{SECRET}/callbackBlackX"
    status = app.test_client().post(url, data=b" " * size).status_code
    with app.app_context():
        upgrade()
    app.extensions["imcallback"].counters.count_accepted("openim", "callbackY")
    save_counts(app)
    with app.app_context():
        counts = {count.name: count.outcome for count in get_runtime().counters.counts()}
    reason = (
        "it could not be stored" if size == 10 else "the body is larger than IMCALLBACK_MAX_BODY"
    )
    assert status == (503 if size == 10 else 413)
    assert counts == {reason: "refused", "callbackY": "accepted"}


TOKEN, OLD_TOKEN, WRONG_TOKEN = "the-token", "the-old-token", "a-wrong-token"
WRONG_SECRET = "a-wrong-secret-of-enough-length"


@dataclass(frozen=True, kw_only=True)
class GuardCase:
    """The guards of an app, the proofs in a request, and the guards that let it in."""

    unauthenticated: bool = False
    """Whether the app allows callbacks without a guard."""
    token: bool = False
    """Whether the app has Tencent tokens, or OpenIM credentials."""
    secrets: bool = False
    """Whether the app has secret path segments."""
    presented_token: str = ""
    """The token of the signature, or the password."""
    presented_secret: str = ""
    age_seconds: int = 0
    """The age of the signature."""
    authenticated_by: str = ""
    """Empty: the callback is refused."""

    def __str__(self) -> str:
        changed = {f.name: getattr(self, f.name) for f in fields(self)}
        return "-".join(k if v is True else f"{k}={v}" for k, v in changed.items() if v)

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings that both providers have in common."""
        secrets = [SECRET, OTHER] if self.secrets else []
        return {
            "IMCALLBACK_ALLOW_UNAUTHENTICATED": self.unauthenticated,
            "IMCALLBACK_SECRETS": secrets,
        }


TENCENT_CASES = [
    GuardCase(unauthenticated=True, authenticated_by="nothing"),
    # Nobody can check a signature if the app has no token.
    GuardCase(unauthenticated=True, presented_token=TOKEN, authenticated_by="nothing"),
    # No secret is accepted if the app has none.
    GuardCase(unauthenticated=True, presented_secret=SECRET),
    GuardCase(token=True),
    GuardCase(token=True, presented_token=TOKEN, authenticated_by="signature"),
    GuardCase(token=True, presented_token=OLD_TOKEN, authenticated_by="signature"),
    GuardCase(token=True, presented_token=WRONG_TOKEN),
    GuardCase(token=True, presented_token=TOKEN, age_seconds=100),
    GuardCase(token=True, presented_token=TOKEN, presented_secret=SECRET),
    GuardCase(token=True, unauthenticated=True),
    GuardCase(
        token=True, unauthenticated=True, presented_token=TOKEN, authenticated_by="signature"
    ),
    GuardCase(secrets=True),
    GuardCase(secrets=True, presented_secret=SECRET, authenticated_by="secret"),
    GuardCase(secrets=True, presented_secret=OTHER, authenticated_by="secret"),
    GuardCase(secrets=True, presented_secret=WRONG_SECRET),
    GuardCase(secrets=True, presented_token=TOKEN),
    # An app with tokens must always sign.
    GuardCase(token=True, secrets=True, presented_secret=SECRET),
    GuardCase(token=True, secrets=True, presented_token=TOKEN, authenticated_by="signature"),
    GuardCase(
        token=True,
        secrets=True,
        presented_token=TOKEN,
        presented_secret=SECRET,
        authenticated_by="secret+signature",
    ),
    GuardCase(token=True, secrets=True, presented_token=TOKEN, presented_secret=WRONG_SECRET),
    GuardCase(token=True, secrets=True, presented_token=WRONG_TOKEN, presented_secret=SECRET),
]
OPENIM_CASES = [
    GuardCase(unauthenticated=True, authenticated_by="nothing"),
    # A password is not compared if the app has no credentials.
    GuardCase(unauthenticated=True, presented_token=TOKEN, authenticated_by="nothing"),
    GuardCase(unauthenticated=True, presented_secret=SECRET),
    GuardCase(token=True),
    GuardCase(token=True, presented_token=TOKEN, authenticated_by="password"),
    GuardCase(token=True, presented_token=OLD_TOKEN, authenticated_by="password"),
    GuardCase(token=True, presented_token=WRONG_TOKEN),
    GuardCase(token=True, presented_token=TOKEN, presented_secret=SECRET),
    GuardCase(secrets=True),
    GuardCase(secrets=True, presented_secret=SECRET, authenticated_by="secret"),
    GuardCase(secrets=True, presented_secret=OTHER, authenticated_by="secret"),
    GuardCase(secrets=True, presented_secret=WRONG_SECRET),
    GuardCase(secrets=True, presented_token=TOKEN),
    GuardCase(token=True, secrets=True, presented_token=TOKEN, authenticated_by="password"),
    GuardCase(token=True, secrets=True, presented_secret=SECRET, authenticated_by="secret"),
    GuardCase(
        token=True,
        secrets=True,
        presented_token=TOKEN,
        presented_secret=SECRET,
        authenticated_by="secret+password",
    ),
    GuardCase(token=True, secrets=True, presented_token=WRONG_TOKEN, presented_secret=SECRET),
    GuardCase(token=True, secrets=True, presented_token=TOKEN, presented_secret=WRONG_SECRET),
]


def check_guards(app: Flask, url: str, case: GuardCase, headers: dict[str, str]) -> None:
    """Send a callback. A delivery is stored only if it is let in."""
    packet = {"CallbackCommand": "Sns.CallbackBlackListAdd"}
    response = app.test_client().post(url, json=packet, headers=headers)
    assert response.status_code == (200 if case.authenticated_by else 403)
    stored = [row["authenticated_by"] for row in rows(app)[0]]
    assert stored == ([case.authenticated_by] if case.authenticated_by else [])


@pytest.mark.parametrize("case", TENCENT_CASES, ids=str)
def test_the_guards_of_tencent(make_app: MakeApp, case: GuardCase) -> None:
    """Everything that is presented must be correct, and one guard is needed."""
    tokens = [TOKEN, OLD_TOKEN] if case.token else []
    app = make_app(**case.settings, IMCALLBACK_TENCENT_APPS={"1400000000": tokens})
    secret = f"/{case.presented_secret}" if case.presented_secret else ""
    url = (
        f"/imcallback/tencent{secret}?SdkAppid=1400000000&CallbackCommand=Sns.CallbackBlackListAdd"
    )
    if case.presented_token:
        request_time = int(time.time()) - case.age_seconds
        sign = hashlib.sha256(f"{case.presented_token}{request_time}".encode()).hexdigest()
        url += f"&Sign={sign}&RequestTime={request_time}"
    check_guards(app, url, case, {})


@pytest.mark.parametrize("case", OPENIM_CASES, ids=str)
def test_the_guards_of_openim(make_app: MakeApp, case: GuardCase) -> None:
    """Everything that is presented must be correct, and one guard is needed."""
    users = {"new": TOKEN, "old": OLD_TOKEN}
    app = make_app(**case.settings, IMCALLBACK_OPENIM_CREDENTIALS=users if case.token else {})
    secret = f"/{case.presented_secret}" if case.presented_secret else ""
    headers = {}
    if case.presented_token:
        user = "old" if case.presented_token == OLD_TOKEN else "new"
        credentials = b64encode(f"{user}:{case.presented_token}".encode()).decode()
        headers["Authorization"] = f"Basic {credentials}"
    check_guards(app, f"/imcallback/openim{secret}/callbackBlackX", case, headers)


def test_the_last_of_duplicate_members_counts(make_app: MakeApp) -> None:
    """The JSON readers of the IM servers do the same."""
    app = make_app(IMCALLBACK_ALLOW_UNAUTHENTICATED=True)
    command = BODY["callbackCommand"]
    body = (
        f'{{"callbackCommand":"{command}","ownerUserID":"a","ownerUserID":"c","blackUserID":"b"}}'
    )
    url = f"/imcallback/openim/{command}"
    assert app.test_client().post(url, data=body).status_code == 200
    assert [row["owner_id"] for row in rows(app)[1]] == ["c"]
