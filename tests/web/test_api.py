"""The history over HTTP: JSON, pages, problems and access."""

from __future__ import annotations

import functools
import logging
import socket
from base64 import b64encode
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import URL
from werkzeug.test import TestResponse

from flask_imcallback.history.schemas import HISTORY_QUERY
from flask_imcallback.removals import Cause, Relation
from support.api import (
    BAD_TIMES,
    HISTORY,
    MEMBERS,
    TOKEN,
    assert_problem,
    get,
    login_required,
    open_history,
)
from support.apps import MakeApp
from support.deliveries import MICROSECOND, MOMENT, store


def targets(response: TestResponse) -> list[str]:
    """Return the target of each removal in the response."""
    assert response.status_code == 200
    return [row["target_id"] for row in (response.get_json() or {})["data"]]


def test_a_removal_as_json(database_url: URL, make_app: MakeApp) -> None:
    """A removal has the documented members in order, and its ids are unchanged."""
    app = open_history(make_app, database_url)
    with app.app_context():
        store(
            ("other", "other"),
            ("o\u00e1\n😀", "</script>\u2028"),
            relation=Relation.GROUP,
            actor_id="admin 😀",
            cause=Cause.KICKED,
            provider="tencent",
            app_id="1400000000",
            command="Group.CallbackAfterMemberExit",
            client_ip="203.0.113.7",
            platform="iOS",
            request_id="2ea4e023",
        )
    response = get(app, query_string={"limit": 1})
    (row,) = response.get_json()["data"]
    assert list(row) == MEMBERS
    first_id = row["id"] - 1
    assert list(row.values()) == [
        *(first_id + 1, "tencent", "1400000000", "Group.CallbackAfterMemberExit", "group"),
        *("o\u00e1\n😀", "</script>\u2028", "admin 😀", "kicked", 1, first_id),
        *("203.0.113.7", "iOS", "2ea4e023", "2026-11-20T18:05:00.123456Z"),
    ]
    assert response.mimetype == "application/json"
    assert list(response.get_json()) == ["data", "next_cursor"]


def test_times_always_have_microseconds(make_app: MakeApp) -> None:
    """A time ends with six digits and Z, even on a full second."""
    app = open_history(make_app)
    with app.app_context():
        store(("owner", "target"), at=MOMENT.replace(microsecond=0))
    assert get(app).get_json()["data"][0]["received_at"] == "2026-11-20T18:05:00.000000Z"


@pytest.mark.parametrize("body", [b'{"a": "\xc3\xa1\\u0000"}\n', b"\0\xff", b"", b"\xef\xbb\xbf"])
def test_one_removal_has_its_delivery(database_url: URL, make_app: MakeApp, body: bytes) -> None:
    """A removal has its delivery with the raw packet, as text if it is UTF-8, else in base64."""
    app = open_history(make_app, database_url)
    with app.app_context():
        record = store(("owner", "1"), ("owner", "2"), body=body, command="callbackX")[1]
    removal = get(app, f"{HISTORY}/{record.id}").get_json()
    assert list(removal) == [*MEMBERS, "delivery"]
    assert removal["target_id"] == "2"
    try:
        text, base64 = body.decode(), None
    except UnicodeDecodeError:
        text, base64 = None, b64encode(body).decode()
    assert removal["delivery"] == {
        "id": record.delivery_id,
        "provider": "openim",
        "app_id": "",
        "command": "callbackX",
        "status": "recorded",
        "duplicate_of": None,
        "error": "",
        "removal_count": 2,
        "remote_addr": "192.0.2.1",
        "authenticated_by": "secret",
        "client_ip": "",
        "platform": "",
        "request_id": "",
        "query": "command=x",
        "headers": {"host": "example.com"},
        "body": text,
        "body_base64": base64,
        "received_at": "2026-11-20T18:05:00.123456Z",
    }


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_links_lead_through_all_pages(make_app: MakeApp, order: str) -> None:
    """The link to the next page keeps the filters, with any characters in their values."""
    app = open_history(make_app)
    owners = ["a&b=c", "á+ %😀", '<">;,']
    with app.app_context():
        store(*((owners[n % 3], str(n)) for n in range(9)), ("another", "x"))
    parameters = {"owner_id": owners, "limit": "2", "order": order, "since": MOMENT.isoformat()}
    response = get(app, query_string=parameters)
    seen = targets(response)
    while link := response.headers.get("Link"):
        address, relation = link.split("; ")
        assert relation == 'rel="next"'
        cursor = response.get_json()["next_cursor"]
        response = get(app, address.strip("<>"))
        assert response.request.args.getlist("owner_id") == owners
        assert response.request.args.getlist("cursor") == [cursor]
        seen += targets(response)
        assert len(seen) <= 9
    assert response.get_json()["next_cursor"] is None
    assert seen == [str(n) for n in range(9)][:: 1 if order == "asc" else -1]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", "4321"),
        ("owner_id=a&owner_id=b", "321"),
        ("owner_id=a&owner_id=b&target_id=1&target_id=3&target_id=4", "31"),
        ("owner_id=a&owner_id=a", "31"),
        ("account_id=4&account_id=a", "431"),
        ("account_id=4&relation=friend", ""),
        ("relation=blacklist&relation=friend", "4321"),
        ("relation=blacklist", "4"),
        ("platform=", "321"),
        ("platform", "321"),
        ("platform=iOS&platform=", "4321"),
        ("platform=ios", ""),
        ("provider=tencent", ""),
        ("order=asc", "1234"),
        ("limit=2&order=asc", "12"),
        ("since=2026-11-20T18:05:01Z", "4"),
        ("since=2026-11-20T18%3A05%3A00.123456%2B00%3A00", "4321"),
        ("since=2026-11-21t02:05:00.123457%2B08:00", "4"),
        ("until=2026-11-20T13:05:00.123457-05:00", "321"),
        ("until=2026-11-20T18:05:00.123456z", ""),
        ("owner_id=%27%20OR%201=1", ""),
        ("owner_id=%25", ""),
    ],
)
def test_filters(make_app: MakeApp, query: str, expected: str) -> None:
    """Values of one filter are alternatives. A removal must match all filters."""
    app = open_history(make_app)
    with app.app_context():
        store(("a", "1"), ("b", "2"), ("a", "3"))
        blacklist = Relation.BLACKLIST
        store(("c", "4"), relation=blacklist, platform="iOS", at=MOMENT + timedelta(seconds=1))
    assert "".join(targets(get(app, f"{HISTORY}?{query}"))) == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("group_id=g", "4321"),
        ("group_id=g&cause=kicked", "21"),
        ("group_id=g&cause=quit&cause=dismissed", "43"),
        ("group_id=g&target_id=1", "1"),
        ("group_id=g&account_id=4&account_id=1", "41"),
        ("group_id=g&relation=friend", ""),
        ("group_id=g&owner_id=1", ""),
        ("group_id=1", ""),
        ("actor_id=m", "21"),
        ("actor_id=m&account_id=2", "2"),
        ("actor_id=g", ""),
        ("cause=", "6g"),
        ("account_id=g", "6g"),
        ("account_id=g&relation=group", ""),
        ("account_id=g&peer_id=1", "g"),
        ("account_id=m", ""),
        ("owner_id=g", "64321"),
    ],
)
def test_filters_of_groups(make_app: MakeApp, query: str, expected: str) -> None:
    """A group is an owner, but never an account, also if an account has the same id."""
    app = open_history(make_app)
    group: dict[str, Any] = {"relation": Relation.GROUP}
    with app.app_context():
        store(("g", "1"), ("g", "2"), actor_id="m", cause=Cause.KICKED, **group)
        store(("g", "3"), cause=Cause.QUIT, **group)
        store(("g", "4"), cause=Cause.DISMISSED, **group)
        store(("1", "g"))
        store(("g", "6"), relation=Relation.FOLLOW)
    found = targets(get(app, f"{HISTORY}?{query}"))
    assert "".join(found) == expected


def test_delivery_id_filters(make_app: MakeApp) -> None:
    """The filter finds the removals of one or several deliveries, and of no delivery nearby."""
    app = open_history(make_app)
    with app.app_context():
        one, two, _ = (store(("o", str(n)), at=MOMENT + n * MICROSECOND)[0].id for n in range(3))
    assert targets(get(app, f"{HISTORY}?delivery_id={one}")) == ["0"]
    assert targets(get(app, f"{HISTORY}?delivery_id={two}&delivery_id={one}")) == ["1", "0"]


NUMBERS = [
    "",
    "-1",
    "1.0",
    "1e3",
    " 1",
    "+1",
    "0x1",
    "1_0",
    "\u0661",
    "\uff11",
    "true",
    "9" * 10_000,
]
BAD_PARAMETERS: list[tuple[str, Any]] = [
    *((name, number) for name in ("limit", "delivery_id") for number in [*NUMBERS, "0"]),
    *(("limit", "1001"), ("limit", ["1", "1"]), ("delivery_id", ["1", "x"])),
    *((name, moment) for name in ("since", "until") for moment in BAD_TIMES),
    ("since", ["2026-11-20T18:05:00Z"] * 2),
    *(("order", order) for order in ("", "ASC", "id", ["asc", "asc"])),
    *(("cursor", cursor) for cursor in ("", "x", "😀", "x" * 10_000, ["x", "x"])),
    *(("relation", relation) for relation in ("", "Friend", "black", ["friend", "foe"])),
    *((name, "") for name in ("provider", "owner_id", "target_id", "account_id")),
    *((name, "x" * 10_000) for name in HISTORY_QUERY.fields if "time" not in name),
    *((name, ["x", "\0"]) for name in ("app_id", "owner_id", "target_id", "request_id")),
    *(
        (name, "x")
        for name in ("owner", "Owner_id", "owner_id[]", "texts", "format", "_schema", "")
    ),
    *((name, "x") for name in ("\u00f6wner_id", "owner_id ", "x" * 10_000)),
]


@pytest.mark.parametrize(("name", "value"), BAD_PARAMETERS, ids=lambda v: ascii(v)[:40])
def test_a_bad_parameter_is_named(make_app: MakeApp, name: str, value: Any) -> None:
    """A parameter that is malformed, unknown or wrongly repeated is refused by its name.

    A very long name is cut.
    """
    app = open_history(make_app, migrate=False)
    problem = assert_problem(get(app, query_string={"platform": "x", name: value}), 400)
    shown_name = name if len(name) <= 60 else f"{name[:60]}…"
    assert problem["parameter"] == shown_name
    assert problem["detail"].startswith(f"{shown_name} ")


def test_a_plus_must_be_escaped(make_app: MakeApp) -> None:
    """A + in a URL is a space. The problem says how to write it."""
    response = get(open_history(make_app), f"{HISTORY}?since=2026-11-20T18:05:00+08:00")
    problem = assert_problem(response, 400)
    assert problem["parameter"] == "since"
    assert problem["detail"] == (
        "since must be a time with its offset, such as 2026-11-20T18:05:00Z, "
        "not '2026-11-20T18:05:00 08:00'. Write %2B for a + in a URL"
    )


PARAMETERS = (
    "The parameters are since, until, order, limit, cursor, provider, app_id, command, relation, "
    "owner_id, target_id, account_id, peer_id, actor_id, group_id, cause, platform, client_ip, "
    "request_id, delivery_id"
)


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("order=up", "order must be desc or asc, not 'up'"),
        ("order=asc&order=asc", "order must not be repeated, but is given 2 times"),
        ("limit=0", "limit must be a whole number from 1 to 1000, not 0"),
        ("limit=1e3", "limit must be a whole number, not '1e3'"),
        ("delivery_id=x", "delivery_id must be a whole number, not 'x'"),
        (
            "relation=friend&relation=foe",
            "relation must be friend, blacklist, follow or group, not 'foe'",
        ),
        ("owner_id=", "owner_id must not be empty"),
        ("peer_id=x", "peer_id needs account_id: it names the account on the other side"),
        (
            "owner=x",
            f"owner is not a parameter of this URL: did you mean owner_id? {PARAMETERS}",
        ),
        ("page=2", f"page is not a parameter of this URL. {PARAMETERS}"),
        (
            "since=2026-11-01",
            "since must be a time with its offset, such as 2026-11-20T18:05:00Z, "
            "not '2026-11-01'. Write 2026-11-01T00:00:00Z for the start of this day in UTC",
        ),
        (
            "until=2026-13-01",
            "until must be a time with its offset, such as 2026-11-20T18:05:00Z, not '2026-13-01'",
        ),
        (
            "cursor=x",
            "cursor is invalid: it was changed, cut off, or signed with another SECRET_KEY. "
            "Start again without it",
        ),
    ],
)
def test_a_problem_says_what_is_wrong(make_app: MakeApp, query: str, detail: str) -> None:
    """The detail names the parameter, shows its value and says what is allowed."""
    problem = assert_problem(get(open_history(make_app), f"{HISTORY}?{query}"), 400)
    assert problem["detail"] == detail


@pytest.mark.parametrize(
    "removal_id",
    ["0", "1", "-1", "abc", "1.5", "\u0661", "9" * 16, "9" * 17, "9" * 10_000, "%00", "%FF", " "],
    ids=lambda text: ascii(text)[:40],
)
def test_an_unknown_removal_is_404(make_app: MakeApp, removal_id: str) -> None:
    """An id that no removal has, or that is no number, is not found."""
    problem = assert_problem(get(open_history(make_app), f"{HISTORY}/{removal_id}"), 404)
    assert problem["detail"] == "No removal has this id."


def test_an_id_has_ascii_digits(make_app: MakeApp) -> None:
    """An id in other digits is not found, although Python can read them."""
    app = open_history(make_app)
    with app.app_context():
        ascii_id = str(store(("owner", "target"))[0].id)
    wide = "".join(chr(0xFF10 + int(digit)) for digit in ascii_id)
    assert int(wide) == int(ascii_id)
    assert get(app, f"{HISTORY}/{ascii_id}").status_code == 200
    assert_problem(get(app, f"{HISTORY}/{wide}"), 404)


PATHS = pytest.mark.parametrize("path", [HISTORY, f"{HISTORY}/1", f"{HISTORY}?unknown=1"])


@PATHS
@pytest.mark.parametrize("token", [None, "", "None"])
def test_the_history_is_closed(make_app: MakeApp, path: str, token: str | None) -> None:
    """Nobody may read by default. The problem names the setting that opens the history."""
    problem = assert_problem(get(make_app(migrate=False), path, token), 403)
    assert "IMCALLBACK_HISTORY_TOKENS" in problem["detail"]
    assert "history_decorators" in problem["detail"]


@PATHS
@pytest.mark.parametrize(
    "header",
    [
        *(
            "",
            "Bearer",
            "Bearer ",
            "Bearer wrong",
            "Bearer old-toke",
            "Bearer OLD-TOKEN",
            "Bearer é",
        ),
        *(
            "Bearer old-token-of-readers old-token-of-readers",
            "old-token-of-readers",
            f"Token {TOKEN}",
            "Bearer a=b, c=d",
            "Digest",
        ),
        "Basic " + b64encode(f"{TOKEN}:wrong".encode()).decode(),
    ],
)
def test_a_reader_without_the_token(make_app: MakeApp, path: str, header: str) -> None:
    """A reader without a valid token gets 401 and a challenge for a token."""
    app = open_history(make_app, migrate=False)
    headers = {"Authorization": header} if header else {}
    response = app.test_client().get(path, headers=headers)
    assert_problem(response, 401)
    schemes = [text.split()[0] for text in response.headers.getlist("WWW-Authenticate")]
    assert schemes == ["Basic", "Bearer"]
    assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "header",
    [
        *("Bearer old-token-of-readers", f"Bearer {TOKEN}", f"bearer  {TOKEN}"),
        "Basic " + b64encode(f"anybody:{TOKEN}".encode()).decode(),
    ],
)
def test_each_token_opens(make_app: MakeApp, header: str) -> None:
    """Each of several tokens opens the history. The case of the scheme does not matter."""
    client = open_history(make_app).test_client()
    assert client.get(HISTORY, headers={"Authorization": header}).status_code == 200


@pytest.mark.parametrize("tokens", [[], [TOKEN]])
@pytest.mark.parametrize(("headers", "status"), [({"X-User": "1"}, 200), ({}, 401)])
def test_decorators_decide(
    make_app: MakeApp, tokens: list[str], headers: dict[str, str], status: int
) -> None:
    """Decorators of the host guard the list and one removal, with and without tokens."""
    app = make_app(IMCALLBACK_HISTORY_TOKENS=tokens, history_decorators=[login_required])
    with app.app_context():
        record = store(("owner", "target"))[0]
    for path in (HISTORY, f"{HISTORY}/{record.id}"):
        response = app.test_client().get(path, headers=headers)
        assert response.status_code == status
        assert response.headers["Cache-Control"] == "no-store"
        assert ("target" in response.text) == (status == 200)


def test_a_token_stands_beside_decorators(make_app: MakeApp) -> None:
    """A valid token opens the history without them."""
    closed = open_history(make_app, history_decorators=[login_required])
    assert get(closed).status_code == 200


def test_decorators_have_an_order(make_app: MakeApp) -> None:
    """The last decorator is the outermost one."""
    called = []

    def named(name: str) -> Callable[..., Any]:
        def decorator(view: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(view)
            def wrapper(**arguments: Any) -> Any:
                called.append(name)
                return view(**arguments)

            return wrapper

        return decorator

    app = make_app(history_decorators=[named("inner"), named("outer")])
    assert get(app, token=None).status_code == 200
    assert called == ["outer", "inner"]


@pytest.mark.parametrize("path", [HISTORY, f"{HISTORY}/1"])
def test_missing_tables_are_503(database_url: URL, make_app: MakeApp, path: str) -> None:
    """The problem names the command that creates the tables."""
    problem = assert_problem(get(open_history(make_app, database_url, migrate=False), path), 503)
    assert "flask db upgrade" in problem["detail"]


@pytest.mark.parametrize("path", [HISTORY, f"{HISTORY}/1"])
@pytest.mark.parametrize("driver", ["postgresql+psycopg", "mysql+pymysql"])
def test_an_unavailable_database_is_503(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture, driver: str, path: str
) -> None:
    """The password of the database is neither in the response nor in a log."""
    caplog.set_level(logging.DEBUG)
    with socket.socket() as not_listening:
        not_listening.bind(("127.0.0.1", 0))
        port = not_listening.getsockname()[1]
        url = URL.create(driver, "root", "pass-word", "127.0.0.1", port, "x")
        response = get(open_history(make_app, url, migrate=False), path)
    assert_problem(response, 503)
    assert "pass-word" not in response.text + caplog.text
    assert "root" not in response.text


@pytest.mark.parametrize(
    ("query", "token", "status"), [("", TOKEN, 200), ("?x=1", TOKEN, 400), ("", "wrong", 401)]
)
def test_head(make_app: MakeApp, query: str, token: str, status: int) -> None:
    """HEAD has the same response as GET, without the body."""
    app = open_history(make_app)
    with app.app_context():
        store(("owner", "1"), ("owner", "2"))
    whole = get(app, HISTORY + query, token)
    head = get(app, HISTORY + query, token, method="HEAD")
    assert head.status_code == whole.status_code == status
    assert head.headers == whole.headers
    assert head.data == b""


@pytest.mark.parametrize("path", [HISTORY, f"{HISTORY}/1"])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_another_method_is_405(make_app: MakeApp, path: str, method: str) -> None:
    """Only GET and HEAD are allowed."""
    response = open_history(make_app, migrate=False).test_client().open(path, method=method)
    assert response.status_code == 405
    assert {"GET", "HEAD"} <= set(response.headers["Allow"].split(", "))
    assert "POST" not in response.headers["Allow"]


def test_the_prefix_is_a_setting(make_app: MakeApp) -> None:
    """Links to the next page start with the configured prefix."""
    app = open_history(make_app, IMCALLBACK_URL_PREFIX="/im")
    with app.app_context():
        store(("owner", "1"), ("owner", "2"))
    response = get(app, "/im/history?limit=1")
    assert response.headers["Link"].startswith("<http://localhost/im/history?limit=1&cursor=")


def test_one_removal_takes_no_parameters(make_app: MakeApp) -> None:
    """A parameter of the list is refused here, and not ignored."""
    app = make_app(IMCALLBACK_HISTORY_TOKENS=["a-token-of-readers"])
    headers = {"Authorization": "Bearer a-token-of-readers"}
    response = app.test_client().get("/imcallback/history/1?owner_id=a", headers=headers)
    assert response.status_code == 400
    assert response.get_json()["parameter"] == "owner_id"
    assert response.get_json()["detail"] == (
        "owner_id is not a parameter of this URL. This URL takes no parameters"
    )


PATHS_OF_READERS = [
    *(HISTORY, f"{HISTORY}/1", f"{HISTORY}/stats", f"{HISTORY}/export"),
    *("/imcallback/deliveries", "/imcallback/deliveries/1"),
]


@pytest.mark.parametrize("path", PATHS_OF_READERS)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "TRACE"])
def test_another_method_is_a_problem(make_app: MakeApp, path: str, method: str) -> None:
    """Another method is a problem at every URL, with and without a token."""
    app = open_history(make_app, migrate=False)
    for token in (TOKEN, None):
        response = get(app, path, token, method=method)
        assert_problem(response, 405)
        assert response.headers["Allow"] == "GET, HEAD, OPTIONS"


@pytest.mark.parametrize("path", PATHS_OF_READERS)
def test_options_names_the_methods(make_app: MakeApp, path: str) -> None:
    """OPTIONS names the same methods as the answer to another method."""
    response = get(open_history(make_app, migrate=False), path, method="OPTIONS")
    assert (response.status_code, response.data) == (200, b"")
    assert response.headers["Allow"] == "GET, HEAD, OPTIONS"


@pytest.mark.parametrize("path", PATHS_OF_READERS)
def test_a_final_slash_changes_nothing(make_app: MakeApp, path: str) -> None:
    """A URL with a final slash has the same response, and no redirect."""
    app = open_history(make_app)
    without, with_it = (get(app, path + end, buffered=True) for end in ("", "/"))
    assert without.status_code == with_it.status_code == (404 if path.endswith("1") else 200)
    assert without.data == with_it.data


@pytest.mark.parametrize(
    "path",
    [
        *("history/x", "history/1/x", "history/stats/x", "history/export/x", "history/x/"),
        *("history/stats.json", "history/..", "history/%2e%2e", "history/\u00e9", "history/%00"),
        *("history/%ff", "history/1%2f2", "history/😀", "history/" + "x" * 10_000),
        *("deliveries/x", "deliveries/1/x", "deliveries/stats", "deliveries/%00", "deliveries/x/"),
    ],
    ids=lambda path: ascii(path)[:40],
)
@pytest.mark.parametrize("token", [TOKEN, None])
def test_an_unknown_url_is_a_problem(make_app: MakeApp, path: str, token: str | None) -> None:
    """A reader gets 404. Everybody else gets 401."""
    response = get(open_history(make_app), f"/imcallback/{path}", token)
    assert_problem(response, 404 if token else 401)


BAD_STATS: list[tuple[str, Any]] = [
    *(("bucket", value) for value in ("", "minute", "DAY", "x" * 10_000, "\0", "é", ["day"] * 2)),
    *(("group_by", value) for value in ("", "owner_id", "x" * 10_000, "\0", ["platform"] * 2)),
    *(("tz", value) for value in (["UTC", "UTC"], ["UTC", "Asia/Tokyo"])),
    *((name, moment) for name in ("since", "until") for moment in BAD_TIMES),
    *((name, ["2026-11-20T18:05:00Z"] * 2) for name in ("since", "until")),
    *(("delivery_id", number) for number in [*NUMBERS, "0"]),
    *((name, "") for name in ("provider", "owner_id", "target_id", "account_id", "relation")),
    *((name, "\0") for name in ("app_id", "command", "platform", "client_ip", "request_id")),
    *((name, "x") for name in ("peer_id", "limit", "order", "cursor", "format", "status", "", "é")),
]


@pytest.mark.parametrize(("name", "value"), BAD_STATS, ids=lambda v: ascii(v)[:40])
def test_a_bad_parameter_of_stats_is_named(make_app: MakeApp, name: str, value: Any) -> None:
    """A parameter that is malformed, unknown or wrongly repeated is refused by its name."""
    app = open_history(make_app, migrate=False)
    problem = assert_problem(get(app, f"{HISTORY}/stats", query_string={name: value}), 400)
    assert problem["parameter"] == name


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("owner_id=%ff", "owner_id"),
        ("%ff=x", "\ufffd"),
        ("owner_id=a&owner_id=%ed%b3%bf", "owner_id"),
        ("a=%C3", "a"),
    ],
)
@pytest.mark.parametrize("path", PATHS_OF_READERS)
def test_a_query_that_is_not_utf8(make_app: MakeApp, path: str, query: str, name: str) -> None:
    """A name or a value that is not UTF-8 is refused by its name."""
    app = open_history(make_app, migrate=False)
    problem = assert_problem(get(app, f"{path}?{query}"), 400)
    assert (problem["parameter"], problem["detail"]) == (name, f"{name} is not UTF-8")


@pytest.mark.parametrize("year", ["0001", "1969", "1970", "2200", "2255", "2256", "9999"])
@pytest.mark.parametrize("tz", ["UTC", "Asia/Shanghai", "America/New_York"])
def test_any_year_can_be_asked_for(make_app: MakeApp, year: str, tz: str) -> None:
    """Every URL that takes times accepts every year, for the start, the end and both."""
    app = open_history(make_app)
    with app.app_context():
        store(("o", "t"))
    moment = f"{year}-12-31T23:59:59.999999Z" if year != "0001" else "0001-01-01T00:00:00Z"
    for path in (HISTORY, f"{HISTORY}/export", "/imcallback/deliveries"):
        for given in ({"since": moment}, {"until": moment}, {"since": moment, "until": moment}):
            for order in ("asc", "desc"):
                query = given | {"order": order}
                response = get(app, path, query_string=query, buffered=True)
                assert response.status_code == 200
    for given in ({"since": moment}, {"until": moment}, {"since": moment, "until": moment}):
        for bucket in ("hour", "month"):
            query = given | {"bucket": bucket, "tz": tz}
            response = get(app, f"{HISTORY}/stats", query_string=query)
            assert response.status_code in (200, 422), (given, bucket)
