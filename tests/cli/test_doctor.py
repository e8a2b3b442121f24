"""`flask imcallback doctor` and `send`, with a correct app and with many wrong ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import time_machine
from sqlalchemy import URL
from werkzeug.http import http_date
from werkzeug.wrappers import Response

from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage.tables import removal
from support import servers
from support.apps import MakeApp, rows
from support.callbacks import Wsgi, run_command, served
from support.deliveries import DELIVERY, entry_of
from support.serving import SECRET, serving

pytestmark = pytest.mark.slow

MEMORY = "sqlite:///:memory:"

SETTINGS: dict[str, Any] = {
    "IMCALLBACK_TENCENT_APPS": {"1400000000": ["the token", "the old token"]},
    "IMCALLBACK_SECRETS": ["a-secret-of-16-characters"],
    "IMCALLBACK_OPENIM_CREDENTIALS": {"openim": "the password"},
    "IMCALLBACK_HISTORY_TOKENS": ["token"],
}


def test_doctor_finds_no_problem_in_a_correct_app(make_app: MakeApp) -> None:
    """The probe of each provider is answered and stored, and the history stays empty."""
    app = make_app(**SETTINGS)
    with served(app) as url:
        result = run_command(app, "doctor", "--url", url, "--idle", "0.5")
    assert result.exit_code == 0, result.output
    assert "WARNING" not in result.output
    for text in (
        "tencent: the probe gets the answer that the IM server expects",
        "tencent: the probe is stored",
        "openim: the probe is stored",
        "The server closes each connection with its answer",
    ):
        assert text in result.output
    deliveries, removals = rows(app)
    assert removals == []
    assert {row["authenticated_by"] for row in deliveries} == {
        "secret+signature",
        "secret+password",
    }
    for secret in ("the token", "a-secret-of", "the password"):
        assert secret not in result.output


def answers(status: int, body: str = "<html>", **headers: str) -> Callable[[Wsgi], Wsgi]:
    """Answer instead of the app, as a proxy does."""
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
    ("proxy", "text"),
    [
        (
            answers(301, Location="https://other.example/"),
            "tencent: the URL redirects to https://other.example/\n"
            "        Tencent counts a redirected callback as failed.",
        ),
        (
            answers(308, Location="/imcallback/openim/x/"),
            "openim: the URL redirects to /imcallback/openim/x/\n"
            "        OpenIM repeats a redirected callback as GET or drops it.",
        ),
        (answers(400), "answered 400\n        The request was not taken for a callback"),
        (answers(401), "Something in front of the app requires a login"),
        (answers(404), "Check the prefix of the proxy"),
        (answers(405), "answered 405\n        The proxy changed the method"),
        (answers(413), "Allow bodies of 1 MiB"),
        (answers(502), "answered 502\n        The IM server counts this as failed."),
        (answers(200), "not the one that the IM server expects"),
        (
            answers(200, '{"ActionStatus": "OK", "ErrorCode": "0", "ErrorInfo": ""}'),
            "tencent: the answer is not the one that the IM server expects",
        ),
        (
            answers(200, '{"actionCode": 0, "nextCode": "0"}'),
            "openim: the answer is not the one that the IM server expects\n"
            "        OpenIM can stop its users after another answer.",
        ),
        (without_authorization, "a proxy drops the Authorization header"),
        (an_hour_late, "tencent: the clocks of the server and of this host are 36"),
        (slowly, "Tencent waits two seconds, then counts the callback as failed."),
    ],
)
def test_doctor_names_the_fault_of_a_proxy(
    make_app: MakeApp, proxy: Callable[[Wsgi], Wsgi], text: str
) -> None:
    """The finding says what is wrong and what the IM server makes of it."""
    app = make_app(**SETTINGS)
    with served(proxy(app)) as url:
        result = run_command(app, "doctor", "--url", url, "--idle", "0")
    assert text in result.output
    assert result.exit_code == (0 if proxy is slowly else 1)


@pytest.mark.parametrize(
    ("running", "text"),
    [
        ({"IMCALLBACK_SECRETS": ["another-of-16-characters"]}, "other tokens, secrets or networks"),
        (
            {"IMCALLBACK_TENCENT_APPS": {"1400000000": ["another"]}},
            "tencent: the probe is answered 403",
        ),
        ({"IMCALLBACK_ALLOWED_NETWORKS": ["203.0.113.0/24"]}, "answered 403"),
        ({"IMCALLBACK_URL_PREFIX": "/another"}, "Check the prefix of the proxy"),
        ({"IMCALLBACK_TENCENT_APPS": {}}, "tencent: the probe is answered 404"),
        ({"IMCALLBACK_MAX_BODY": 10}, "answered 413"),
        ({"migrate": False, "url": MEMORY, "IMCALLBACK_SPOOL": None}, "cannot store callbacks"),
        ({"url": "other.db"}, "is not in this app's database"),
    ],
)
def test_doctor_names_the_wrong_settings_of_the_running_app(
    make_app: MakeApp, tmp_path: Path, running: dict[str, Any], text: str
) -> None:
    """The command has the correct settings, and the running app has others."""
    other = SETTINGS | running
    if other.get("url") == "other.db":
        other["url"] = f"sqlite:///{tmp_path / 'other.db'}"
    app, answering = make_app(**SETTINGS), make_app(**other)
    with served(answering) as url:
        result = run_command(app, "doctor", "--url", url, "--idle", "0")
    assert text in result.output
    assert result.exit_code == 1


@pytest.mark.parametrize(
    ("settings", "arguments", "text"),
    [
        (
            {},
            [],
            "No provider is on\n        Every callback is answered with 404.\n        Set "
            "IMCALLBACK_TENCENT_APPS or IMCALLBACK_SECRETS or IMCALLBACK_OPENIM_CREDENTIALS, "
            "and start the app again.",
        ),
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
        (SETTINGS, ["--url", "http://127.0.0.1:1/imcallback"], "Check the URL, its DNS name"),
        (SETTINGS, ["--url", "127.0.0.1/x"], "must begin with http:// or https://"),
    ],
)
def test_doctor_names_the_fault_of_the_app(
    make_app: MakeApp, settings: dict[str, Any], arguments: list[str], text: str
) -> None:
    """The command ends with status 1 and never prints a password."""
    result = run_command(make_app(**settings), "doctor", *arguments)
    assert text in result.output
    assert "pass-word" not in result.output
    assert result.exit_code == 1


def test_doctor_compares_the_clocks_of_host_and_database(
    make_app: MakeApp, database_servers: dict[str, servers.Server]
) -> None:
    """A wrong clock is a failure, because signatures are refused with it."""
    with servers.database(database_servers["postgresql"]) as url:
        app = make_app(url, **SETTINGS)
        assert run_command(app, "doctor").exit_code == 0
        with time_machine.travel(time.time() + 3600, tick=True):
            result = run_command(app, "doctor")
    assert "3600 seconds apart" in result.output
    assert result.exit_code == 1


def test_doctor_checks_the_spool(tmp_path: Path, make_app: MakeApp) -> None:
    """It reports a missing spool, a spool that cannot be written, and waiting callbacks."""
    result = run_command(make_app(**SETTINGS, IMCALLBACK_SPOOL=None), "doctor")
    assert (result.exit_code, "There is no spool" in result.output) == (0, True)
    (tmp_path / "file").touch()
    spool = str(tmp_path / "file" / "spool.db")
    result = run_command(make_app(**SETTINGS, IMCALLBACK_SPOOL=spool), "doctor")
    assert (result.exit_code, f"{spool} cannot be written" in result.output) == (1, True)
    app = make_app(**SETTINGS)
    with app.app_context():
        drain = get_runtime().drain
        assert drain
        drain.spool.put(entry_of(app, DELIVERY))
    result = run_command(app, "doctor")
    assert (result.exit_code, "1 callbacks wait in the spool" in result.output) == (0, True)


def test_an_unguarded_app_is_a_warning(make_app: MakeApp) -> None:
    """It is not a failure, because it loses no callbacks."""
    result = run_command(make_app(IMCALLBACK_ALLOW_UNAUTHENTICATED=True), "doctor")
    assert "Anybody can write" in result.output
    assert "The history is closed" in result.output
    assert result.exit_code == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "The server keeps a connection that is idle for 4 seconds"),
        (["--keep-alive", "1"], "The server closes a connection that is idle for 4 seconds"),
    ],
)
def test_doctor_checks_idle_connections(
    make_app: MakeApp, tmp_path: Path, options: list[str], text: str
) -> None:
    """The shipped gunicorn settings keep an idle connection open."""
    with serving(tmp_path, *options) as server:
        database = URL.create("sqlite", database=str(tmp_path / "test.db"))
        app = make_app(database, IMCALLBACK_SECRETS=[SECRET], IMCALLBACK_HISTORY_TOKENS=["token"])
        url = f"http://127.0.0.1:{server.port}/imcallback"
        result = run_command(app, "doctor", "--url", url, "--idle", "4")
        assert text in result.output
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
def test_send_records_removals(
    make_app: MakeApp, command: str, provider: str, relation: str
) -> None:
    """Each target is a removal. Signature, secret path and password are those of the app."""
    app = make_app(**SETTINGS)
    with served(app) as url:
        targets = ["--target", "张三", "--target", "b ob"]
        result = run_command(app, "send", command, "--url", url, "--owner", "al/ice", *targets)
    assert result.exit_code == 0, result.output
    _, removals = rows(app)
    names = ("provider", "relation", "owner_id", "target_id")
    assert [tuple(row[name] for name in names) for row in removals] == [
        (provider, relation, "al/ice", "张三"),
        (provider, relation, "al/ice", "b ob"),
    ]


def test_send_shows_a_refusal(make_app: MakeApp) -> None:
    """The answer is printed, and the exit status is 1."""
    app = make_app(**SETTINGS)
    with served(app) as url:
        result = run_command(app, "send", "Sns.CallbackFriendDelete", "--app-id", "1", "--url", url)
    assert "not authentic" in result.output
    assert "not every callback was accepted" in result.output
    assert result.exit_code == 1


def test_send_takes_a_command_that_no_provider_records(make_app: MakeApp) -> None:
    """The user chooses the provider."""
    app = make_app(**SETTINGS)
    command = ["send", "Sns.CallbackSomethingNew"]
    with served(app) as url:
        result = run_command(app, *command, "--url", url)
        assert result.exit_code == 1
        assert (
            "choose the provider of the command 'Sns.CallbackSomethingNew' with --provider. "
            "The enabled providers are: tencent, openim"
        ) in result.output
        assert run_command(app, *command, "--url", url, "--provider", "tencent").exit_code == 0
    assert [(row["provider"], row["command"]) for row in rows(app)[0]] == [
        ("tencent", "Sns.CallbackSomethingNew")
    ]


@pytest.mark.parametrize(
    ("settings", "arguments", "text"),
    [
        (
            {"IMCALLBACK_SECRETS": [SECRET]},
            ["--provider", "tencent"],
            "the provider 'tencent' is not enabled. The enabled providers are: openim",
        ),
        ({}, [], "The enabled providers are: none"),
    ],
)
def test_send_needs_an_enabled_provider(
    make_app: MakeApp, settings: dict[str, Any], arguments: list[str], text: str
) -> None:
    """The message lists the enabled providers."""
    result = run_command(make_app(**settings), "send", "Sns.CallbackFriendDelete", *arguments)
    assert text in result.output
    assert result.exit_code == 1


def test_send_needs_no_choice_if_one_provider_is_enabled(make_app: MakeApp) -> None:
    """The only enabled provider sends any command."""
    app = make_app(IMCALLBACK_SECRETS=[SECRET])
    with served(app) as url:
        assert run_command(app, "send", "callbackSomethingNew", "--url", url).exit_code == 0
    assert [row["command"] for row in rows(app)[0]] == ["callbackSomethingNew"]
