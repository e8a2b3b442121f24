"""`flask imcallback doctor` and `send`, against a right app and against many wrong ones."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import time_machine
from click.testing import Result
from flask import Flask
from sqlalchemy import URL
from werkzeug.http import http_date
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Response

from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage.tables import removal
from support import servers
from support.apps import MakeApp, rows
from support.deliveries import DELIVERY, entry_of
from support.serving import SECRET, serving

MEMORY = "sqlite:///:memory:"

SETTINGS: dict[str, Any] = {
    "IMCALLBACK_TENCENT_APPS": {"1400000000": ["the token", "the old token"]},
    "IMCALLBACK_SECRETS": ["a-secret-of-16-characters"],
    "IMCALLBACK_OPENIM_CREDENTIALS": {"openim": "the password"},
    "IMCALLBACK_HISTORY_TOKENS": ["token"],
}
Wsgi = Callable[[dict[str, Any], Any], Any]


class Quiet(WSGIRequestHandler):
    """Closes each connection with its answer, and logs none."""

    def log(self, type: str, message: str, *args: Any) -> None:
        pass


@contextmanager
def served(app: Wsgi) -> Iterator[str]:
    running = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}/imcallback"
    finally:
        running.shutdown()
        thread.join()
        running.server_close()


def run(app: Flask, *arguments: str) -> Result:
    return app.test_cli_runner().invoke(args=["imcallback", *arguments])


def test_a_right_app_is_found_right(make_app: MakeApp) -> None:
    """Nothing but ok, each provider probed and read back, and nothing in the history."""
    app = make_app(**SETTINGS)
    with served(app) as url:
        result = run(app, "doctor", "--url", url, "--idle", "0.5")
    assert result.exit_code == 0, result.output
    assert "WARNING" not in result.output
    for said in ("tencent: the probe is stored", "openim: the probe is stored", "closed with the"):
        assert said in result.output
    deliveries, removals = rows(app)
    assert removals == []
    assert {row["authenticated_by"] for row in deliveries} == {
        "secret+signature",
        "secret+password",
    }
    for secret in ("the token", "a-secret-of", "the password"):
        assert secret not in result.output


def answers(status: int, body: str = "<html>", **headers: str) -> Callable[[Wsgi], Wsgi]:
    """Something before the app that answers in its place."""
    return lambda _: Response(body, status, headers, mimetype="text/html")


def without_authorization(app: Wsgi) -> Wsgi:
    def serve(environ: dict[str, Any], start_response: Any) -> Any:
        environ.pop("HTTP_AUTHORIZATION", None)
        environ["PATH_INFO"] = environ["PATH_INFO"].replace(f"/{SECRET}", "")
        return app(environ, start_response)

    return serve


def an_hour_late(app: Wsgi) -> Wsgi:
    def serve(environ: dict[str, Any], start_response: Any) -> Any:
        def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            date = http_date(time.time() - 3600)
            return start_response(status, [*headers, ("Date", date)], *more)

        return app(environ, start)

    return serve


def slowly(app: Wsgi) -> Wsgi:
    def serve(environ: dict[str, Any], start_response: Any) -> Any:
        time.sleep(1.1)
        return app(environ, start_response)

    return serve


@pytest.mark.parametrize(
    ("before", "said"),
    [
        (answers(301, Location="https://other.example/"), "redirects to https://other.example/"),
        (answers(308, Location="/imcallback/openim/x/"), "redirects to /imcallback/openim/x/"),
        (answers(400), "answered 400"),
        (answers(401), "asks for a login"),
        (answers(404), "the prefix"),
        (answers(405), "answered 405"),
        (answers(413), "Allow bodies of 1 MiB"),
        (answers(502), "answered 502"),
        (answers(200), "not the one that the server wants"),
        (answers(200, '{"ActionStatus": "OK", "ErrorCode": "0", "ErrorInfo": ""}'), "not the one"),
        (answers(200, '{"actionCode": 0, "nextCode": "0"}'), "not the one that the server wants"),
        (without_authorization, "a proxy drops the Authorization header"),
        (an_hour_late, "seconds from this one's"),
        (slowly, "the answer took 1."),
    ],
)
def test_what_stands_before_the_app_is_named(
    make_app: MakeApp, before: Callable[[Wsgi], Wsgi], said: str
) -> None:
    """Each wrong way to the app by its cause."""
    app = make_app(**SETTINGS)
    with served(before(app)) as url:
        result = run(app, "doctor", "--url", url, "--idle", "0")
    assert said in result.output
    assert result.exit_code == (0 if before is slowly else 1)


@pytest.mark.parametrize(
    ("running", "said"),
    [
        ({"IMCALLBACK_SECRETS": ["another-of-16-characters"]}, "other tokens, secrets or networks"),
        (
            {"IMCALLBACK_TENCENT_APPS": {"1400000000": ["another"]}},
            "tencent: the probe is answered 403",
        ),
        ({"IMCALLBACK_ALLOWED_NETWORKS": ["203.0.113.0/24"]}, "answered 403"),
        ({"IMCALLBACK_URL_PREFIX": "/another"}, "the prefix"),
        ({"IMCALLBACK_TENCENT_APPS": {}}, "tencent: the probe is answered 404"),
        ({"IMCALLBACK_MAX_BODY": 10}, "answered 413"),
        ({"migrate": False, "url": MEMORY, "IMCALLBACK_SPOOL": None}, "cannot store callbacks"),
        ({"url": "other.db"}, "is not in this app's database"),
    ],
)
def test_a_running_app_with_other_settings_is_named(
    make_app: MakeApp, tmp_path: Path, running: dict[str, Any], said: str
) -> None:
    """The command has the right settings, the app that answers has not."""
    other = SETTINGS | running
    if other.get("url") == "other.db":
        other["url"] = f"sqlite:///{tmp_path / 'other.db'}"
    app, answering = make_app(**SETTINGS), make_app(**other)
    with served(answering) as url:
        result = run(app, "doctor", "--url", url, "--idle", "0")
    assert said in result.output
    assert result.exit_code == 1


@pytest.mark.parametrize(
    ("settings", "arguments", "said"),
    [
        ({}, [], "No provider is on"),
        ({**SETTINGS, "migrate": False}, [], "Run flask db upgrade"),
        (
            {
                **SETTINGS,
                "migrate": False,
                "url": URL.create("postgresql+psycopg", "u", "pass-word", "127.0.0.1", 1, "d"),
            },
            [],
            "The database does not answer",
        ),
        (SETTINGS, ["--url", "http://127.0.0.1:1/imcallback"], "Check the address, its DNS"),
        (SETTINGS, ["--url", "127.0.0.1/imcallback"], "must begin with http"),
    ],
)
def test_a_wrong_app_is_named(
    make_app: MakeApp, settings: dict[str, Any], arguments: list[str], said: str
) -> None:
    """Also where there is nobody to answer; a password is never shown."""
    result = run(make_app(**settings), "doctor", *arguments)
    assert said in result.output
    assert "pass-word" not in result.output
    assert result.exit_code == 1


def test_a_clock_apart_from_the_databases_is_named(
    make_app: MakeApp, database_servers: dict[str, servers.Server]
) -> None:
    """A signature is refused by a wrong clock."""
    with servers.database(database_servers["postgresql"]) as url:
        app = make_app(url, **SETTINGS)
        assert run(app, "doctor").exit_code == 0
        with time_machine.travel(time.time() + 3600, tick=True):
            result = run(app, "doctor")
    assert "3600 seconds apart" in result.output
    assert result.exit_code == 1


def test_the_spool_is_looked_at(tmp_path: Path, make_app: MakeApp) -> None:
    """That there is one, that it can be written, and what waits in it."""
    result = run(make_app(**SETTINGS, IMCALLBACK_SPOOL=None), "doctor")
    assert (result.exit_code, "There is no spool" in result.output) == (0, True)
    (tmp_path / "file").touch()
    spool = str(tmp_path / "file" / "spool.db")
    result = run(make_app(**SETTINGS, IMCALLBACK_SPOOL=spool), "doctor")
    assert (result.exit_code, f"{spool} cannot be written" in result.output) == (1, True)
    app = make_app(**SETTINGS)
    with app.app_context():
        drain = get_runtime().drain
        assert drain
        drain.spool.put(entry_of(app, DELIVERY))
    result = run(app, "doctor")
    assert (result.exit_code, "1 callbacks wait in it" in result.output) == (0, True)


def test_what_is_open_to_anybody_is_a_warning(make_app: MakeApp) -> None:
    """Not a failure: it loses nothing."""
    result = run(make_app(IMCALLBACK_ALLOW_UNAUTHENTICATED=True), "doctor")
    assert "Anybody can write" in result.output
    assert "The history is closed" in result.output
    assert result.exit_code == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "idle for 4 seconds is kept"),
        (["--keep-alive", "1"], "idle for 4 seconds is closed by the server"),
    ],
)
def test_idle_connections(make_app: MakeApp, tmp_path: Path, options: list[str], said: str) -> None:
    """The shipped settings keep them; the events that others lose never reach an app."""
    with serving(tmp_path, *options) as server:
        database = URL.create("sqlite", database=str(tmp_path / "test.db"))
        app = make_app(database, IMCALLBACK_SECRETS=[SECRET], IMCALLBACK_HISTORY_TOKENS=["token"])
        url = f"http://127.0.0.1:{server.port}/imcallback"
        result = run(app, "doctor", "--url", url, "--idle", "4")
        assert said in result.output
        assert result.exit_code == len(options) // 2
        assert server.rows(removal) == []


@pytest.mark.parametrize(
    ("command", "provider", "relation"),
    [
        ("Sns.CallbackBlackListDelete", "tencent", "blacklist"),
        ("Sns.CallbackFriendDelete", "tencent", "friend"),
        ("callbackAfterRemoveBlackCommand", "openim", "blacklist"),
        ("callbackAfterDeleteFriendCommand", "openim", "friend"),
    ],
)
def test_send_sends_what_is_recorded(
    make_app: MakeApp, command: str, provider: str, relation: str
) -> None:
    """Signed, with secret and password; several targets are several removals."""
    app = make_app(**SETTINGS)
    with served(app) as url:
        targets = ["--target", "张三", "--target", "b ob"]
        result = run(app, "send", command, "--url", url, "--owner", "al/ice", *targets)
    assert result.exit_code == 0, result.output
    _, removals = rows(app)
    names = ("provider", "relation", "owner_id", "target_id")
    assert [tuple(row[name] for name in names) for row in removals] == [
        (provider, relation, "al/ice", "张三"),
        (provider, relation, "al/ice", "b ob"),
    ]


def test_send_shows_what_went_wrong(make_app: MakeApp) -> None:
    """Another command is sent too; a refusal is shown and is exit status 1."""
    app = make_app(**SETTINGS)
    with served(app) as url:
        assert run(app, "send", "Sns.CallbackSomethingNew", "--url", url).exit_code == 0
        result = run(app, "send", "Sns.CallbackFriendDelete", "--app-id", "1", "--url", url)
    assert "not authentic" in result.output
    assert result.exit_code == 1
    assert [row["command"] for row in rows(app)[0]] == ["Sns.CallbackSomethingNew"]
