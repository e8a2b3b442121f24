"""`flask imcallback doctor` and `send`, with a correct app and with many wrong ones."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from sqlalchemy import URL
from werkzeug.http import http_date
from werkzeug.wrappers import Response

from flask_imcallback.storage.tables import removal
from support.apps import MakeApp, rows
from support.callbacks import Wsgi, run_command, served
from support.doctor import diagnose, has_finding
from support.serving import SECRET, Running, serving

pytestmark = pytest.mark.slow

MEMORY = "sqlite:///:memory:"

SETTINGS: dict[str, Any] = {
    "IMCALLBACK_TENCENT_APPS": {"1400000000": ["the-token-of-tencent", "the-old-token-of-it"]},
    "IMCALLBACK_SECRETS": ["a-secret-of-16-characters"],
    "IMCALLBACK_OPENIM_CREDENTIALS": {"openim": "the-password-of-openim"},
    "IMCALLBACK_HISTORY_TOKENS": ["a-token-of-20-characters"],
}


def test_doctor_finds_no_problem_in_a_correct_app(make_app: MakeApp) -> None:
    """The probe of each provider is answered and stored, and the history stays empty."""
    app = make_app(**SETTINGS)
    with served(app) as url:
        result = run_command(app, "doctor", "--url", url, "--idle", "0.5")
    assert result.exit_code == 0, result.output
    warnings = [line for line in result.output.splitlines() if line.startswith("WARNING")]
    assert warnings == ["WARNING The running app: The development server of Flask runs the app"]
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
    for secret in ("the-token-of", "a-secret-of", "the-password", "a-token-of"):
        assert secret not in result.output


def answers(status: int, body: str = "<html>", **headers: str) -> Callable[[Wsgi], Wsgi]:
    """Answer instead of the app, as a proxy does."""
    return lambda _: Response(body, status, headers, mimetype="text/html")


def drop_authorization(app: Wsgi) -> Wsgi:
    def serve(environ: dict[str, Any], start_response: Any) -> Any:
        environ.pop("HTTP_AUTHORIZATION", None)
        environ["PATH_INFO"] = environ["PATH_INFO"].replace(f"/{SECRET}", "")
        return app(environ, start_response)

    return serve


def delay_date_header(app: Wsgi) -> Wsgi:
    def serve(environ: dict[str, Any], start_response: Any) -> Any:
        def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            date = http_date(time.time() - 3600)
            return start_response(status, [*headers, ("Date", date)], *more)

        return app(environ, start)

    return serve


def delay_answer(app: Wsgi) -> Wsgi:
    def serve(environ: dict[str, Any], start_response: Any) -> Any:
        time.sleep(1.1)
        return app(environ, start_response)

    return serve


def redirecting_to_https(app: Wsgi) -> Wsgi:
    def serve(environ: dict[str, Any], start_response: Any) -> Any:
        url = f"https://im.example{environ['PATH_INFO']}/?next=1"
        return Response(status=301, headers={"Location": url})(environ, start_response)

    return serve


def losing_the_body(app: Wsgi) -> Wsgi:
    def serve(environ: dict[str, Any], start_response: Any) -> Any:
        environ["wsgi.input"] = BytesIO()
        return app(environ, start_response)

    return serve


NO_CALLBACK = "No callback reaches the extension, and the IM server sends none again."
GATE = (
    'begin the function with: if request.blueprint == "imcallback_callbacks": return None. The '
    "callbacks have their own guards."
)
EXEMPTION = 'app.blueprints["imcallback_callbacks"]'
PROXIES: dict[str, tuple[Callable[[Wsgi], Wsgi], tuple[str, ...]]] = {
    "redirect to HTTPS": (
        redirecting_to_https,
        (
            "openim: the URL redirects to https://im.example/imcallback/openim/<secret>/"
            "flaskImcallbackProbeCommand/",
            "OpenIM repeats a redirected callback as GET or drops it.",
            "Give the IM server the URL at the end of the redirect. Often it begins with https://. "
            "Behind a proxy with HTTPS, use ProxyFix of Werkzeug with x_proto=1.",
        ),
    ),
    "redirect to a login page": (
        answers(302, Location=f"/login?next=/imcallback/openim/{SECRET}"),
        (
            "tencent: the probe is sent to another page: /login",
            f"Something in front of the extension probably requires a login. {NO_CALLBACK}",
            f"If it is a before_request function of the app, {GATE} If it is the proxy, let the "
            "URLs of the callbacks pass.",
        ),
    ),
    "400 CSRF": (
        answers(400),
        (
            "tencent: the probe is answered 400",
            "Something in front of the extension takes callbacks for forms without a CSRF token. "
            f"{NO_CALLBACK}",
            f"With Flask-WTF, call csrf.exempt({EXEMPTION}). Otherwise look for a proxy or a "
            "function of the app that answers 400.",
        ),
    ),
    "400 lost body": (
        losing_the_body,
        (
            "tencent: the probe is answered 400",
            "The extension got the request without its body, or with another one.",
            "Find the proxy or the function of the app that reads or changes the body.",
        ),
    ),
    "401": (
        answers(401),
        (
            "tencent: the probe is answered 401",
            f"Something in front of the extension requires a login. {NO_CALLBACK}",
            f"If it is a before_request function of the app, {GATE} If it is the proxy, let the "
            "URLs of the callbacks pass.",
        ),
    ),
    "403 firewall": (
        answers(403),
        (
            "tencent: the probe is answered 403",
            f"Something in front of the extension refuses the request. {NO_CALLBACK}",
            "Look for a firewall of the proxy, and for a before_request function of the app. In "
            f"the function, {GATE}",
        ),
    ),
    "404": (
        answers(404),
        (
            "tencent: the probe is answered 404",
            "The path does not lead to the extension.",
            "Check the prefix of the proxy and IMCALLBACK_URL_PREFIX.",
        ),
    ),
    "405": (
        answers(405),
        (
            "tencent: the probe is answered 405",
            "The URL belongs to something else.",
            "Check the URL, the prefix of the proxy and IMCALLBACK_URL_PREFIX.",
        ),
    ),
    "413": (
        answers(413),
        (
            "tencent: the probe is answered 413",
            "The limit of the proxy or of the app is too small even for a probe.",
            "Allow bodies of 8 MiB: client_max_body_size in nginx, MAX_CONTENT_LENGTH in Flask.",
        ),
    ),
    "418": (
        answers(418),
        (
            "tencent: the probe is answered 418",
            "The IM server counts this as failed.",
            "Find out whether the proxy or the app answers, and read its log.",
        ),
    ),
    "429": (
        answers(429),
        (
            "tencent: the probe is answered 429",
            f"Something in front of the extension limits how many requests may come. {NO_CALLBACK}",
            f"With Flask-Limiter, call limiter.exempt({EXEMPTION}). In a proxy, take the URLs of "
            "the callbacks out of the limit, such as limit_req in nginx.",
        ),
    ),
    "500": (
        answers(500),
        (
            "tencent: the probe is answered 500",
            f"The app fails before the extension gets the request. {NO_CALLBACK}",
            "Read the log of the running app. It has the traceback.",
        ),
    ),
    "502": (
        answers(502),
        (
            "tencent: the probe is answered 502",
            f"The proxy does not reach the app. {NO_CALLBACK}",
            "Start the app, and check the address to which the proxy forwards.",
        ),
    ),
    "503": (
        answers(503),
        (
            "tencent: the probe is answered 503",
            f"The proxy or the platform says that the app is unavailable. {NO_CALLBACK}",
            "Start the app, and check the address to which the proxy forwards.",
        ),
    ),
    "504": (
        answers(504),
        (
            "tencent: the probe is answered 504",
            f"The proxy waited too long for the app. {NO_CALLBACK}",
            "Read the log of the running app, and check the address to which the proxy forwards.",
        ),
    ),
    "HTML with 200": (
        answers(200),
        (
            "tencent: the answer is not the one that the IM server expects",
            "Tencent counts the callback as failed.",
            "Find out whether something else answers at this URL, or a proxy changes the answer.",
        ),
    ),
    "a number as text": (
        answers(200, '{"ActionStatus": "OK", "ErrorCode": "0", "ErrorInfo": ""}'),
        (
            "tencent: the answer is not the one that the IM server expects",
            "Tencent counts the callback as failed.",
            "Find out whether something else answers at this URL, or a proxy changes the answer.",
        ),
    ),
    "members are missing": (
        answers(200, '{"actionCode": 0, "nextCode": "0"}'),
        (
            "openim: the answer is not the one that the IM server expects",
            "OpenIM can stop its users after another answer.",
            "Find out whether something else answers at this URL, or a proxy changes the answer.",
        ),
    ),
    "no Authorization": (
        drop_authorization,
        (
            "openim: the probe is answered 403",
            "The running app has other tokens, secrets or networks, or another clock. Or a proxy "
            "drops the Authorization header or changes the path.",
            "Compare the settings of the running app and of this command. The app logs the reason, "
            "and flask imcallback status counts it.",
        ),
    ),
    "a wrong clock": (
        delay_date_header,
        (
            "tencent: the clocks of this machine and of the server differ by 3600 seconds",
            "With a wrong clock, signatures are refused and the history has wrong times.",
            "Set both clocks by NTP.",
        ),
    ),
}


@pytest.mark.parametrize(("proxy", "lines"), PROXIES.values(), ids=PROXIES)
def test_doctor_names_the_fault_of_a_proxy(
    make_app: MakeApp, proxy: Callable[[Wsgi], Wsgi], lines: tuple[str, ...]
) -> None:
    """The finding says what is wrong, what the IM server makes of it, and what to do."""
    app = make_app(**SETTINGS)
    with served(proxy(app)) as url:
        result = diagnose(app, "--url", url, "--idle", "0")
    output = result.output.replace("3601 seconds", "3600 seconds")
    assert has_finding(output, "FAILURE", *lines), output
    assert result.exit_code == 1
    assert SECRET not in result.output


def test_doctor_warns_of_a_slow_answer(make_app: MakeApp) -> None:
    """The time is shown, and what the IM server does then."""
    app = make_app(**SETTINGS)
    with served(delay_answer(app)) as url:
        result = diagnose(app, "--url", url, "--idle", "0")
    assert "WARNING tencent: the answer took 1." in result.output
    assert "Tencent waits two seconds, then counts the callback as failed." in result.output
    assert "Find the slow part: the proxy, the database, or too few threads." in result.output
    assert result.exit_code == 0


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
        ({"migrate": False, "url": MEMORY, "IMCALLBACK_SPOOL": None}, "flask imcallback replay"),
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
            "No provider is enabled\n        Every callback is answered with 404.\n        Set "
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


def test_an_unguarded_app_is_a_warning(make_app: MakeApp) -> None:
    """It is not a failure, because it loses no callbacks."""
    result = run_command(make_app(IMCALLBACK_ALLOW_UNAUTHENTICATED=True), "doctor")
    assert "Anybody can write" in result.output
    assert "The history is closed" in result.output
    assert result.exit_code == 0


HISTORY_TOKENS = json.dumps(SETTINGS["IMCALLBACK_HISTORY_TOKENS"])


def diagnose_server(make_app: MakeApp, server: Running, *arguments: str) -> Result:
    """Run doctor with the settings of a running server, and against its URL."""
    app = make_app(
        server.url,
        IMCALLBACK_SECRETS=[SECRET],
        IMCALLBACK_HISTORY_TOKENS=SETTINGS["IMCALLBACK_HISTORY_TOKENS"],
        IMCALLBACK_SPOOL=str(server.spool),
    )
    return diagnose(app, "--url", f"http://127.0.0.1:{server.port}/imcallback", *arguments)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "ok      The server keeps a connection that is idle for 4 seconds\n"),
        (
            ["--keep-alive", "1"],
            "FAILURE The server closes a connection that is idle for 4 seconds (",
        ),
    ],
    ids=["kept", "closed"],
)
def test_doctor_checks_idle_connections(
    make_app: MakeApp, tmp_path: Path, options: list[str], text: str
) -> None:
    """The shipped gunicorn settings keep an idle connection open, and are right altogether."""
    with serving(tmp_path, *options, FLASK_IMCALLBACK_HISTORY_TOKENS=HISTORY_TOKENS) as server:
        result = diagnose_server(make_app, server, "--idle", "4")
        assert text in result.output
        assert "WARNING" not in result.output
        assert result.exit_code == len(options) // 2
        assert server.rows(removal) == []


def test_doctor_warns_of_an_access_log(make_app: MakeApp, tmp_path: Path) -> None:
    """The running app knows its log, and tells doctor."""
    with serving(
        tmp_path, "--access-logfile", "-", FLASK_IMCALLBACK_HISTORY_TOKENS=HISTORY_TOKENS
    ) as server:
        result = diagnose_server(make_app, server, "--idle", "0")
    assert has_finding(
        result,
        "WARNING",
        "The running app: gunicorn.access writes the paths of callbacks into a log",
        "The paths may hold a secret path segment, and the query holds the Sign of Tencent.",
        "Switch the access log off, or leave the path out of it.",
    ), result.output
    assert result.exit_code == 0


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
    assert "\nrefused: 403 after " in result.output
    assert result.output.endswith(
        "Error: the app refused 1 of 1 callbacks: its log has the reason, and flask imcallback "
        "status counts it\n"
    )
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
            "The enabled providers are: tencent, openim. They record: Sns.CallbackBlackListDelete, "
            "Sns.CallbackFriendDelete, Follow.CallbackAfterFollowDelete, "
            "Group.CallbackAfterMemberExit, Group.CallbackAfterGroupDestroyed, "
            "callbackAfterRemoveBlackCommand, callbackAfterDeleteFriendCommand, "
            "callbackAfterQuitGroupCommand, callbackAfterKickGroupCommand, "
            "callbackAfterDisMissGroupCommand\n"
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


def test_the_help_of_send_lists_the_commands(make_app: MakeApp) -> None:
    """Nobody has to look them up."""
    result = run_command(make_app(**SETTINGS), "send", "--help")
    assert (
        "  The commands that record removals:\n"
        "    tencent: Sns.CallbackBlackListDelete\n"
        "    tencent: Sns.CallbackFriendDelete\n"
        "    tencent: Follow.CallbackAfterFollowDelete\n"
        "    tencent: Group.CallbackAfterMemberExit\n"
        "    tencent: Group.CallbackAfterGroupDestroyed\n"
        "    openim: callbackAfterRemoveBlackCommand\n"
        "    openim: callbackAfterDeleteFriendCommand\n"
        "    openim: callbackAfterQuitGroupCommand\n"
        "    openim: callbackAfterKickGroupCommand\n"
        "    openim: callbackAfterDisMissGroupCommand\n"
    ) in result.output


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        (
            "http://127.0.0.1:1/imcallback",
            "no answer from http://127.0.0.1:1/imcallback (ConnectionRefusedError: [Errno 111] "
            "Connection refused): start the app, or name its URL with --url",
        ),
        (
            "127.0.0.1:8000",
            "the URL must begin with http:// or https:// and name a host: '127.0.0.1:8000'",
        ),
        ("http://h:99999", "'http://h:99999' is not a URL: Port out of range 0-65535"),
        ("http://[::1", "'http://[::1' is not a URL: Invalid IPv6 URL"),
        (
            "http://h/a b",
            "the URL has a blank or a letter that is not ASCII: write it as %20 or %C3%A9: "
            "'http://h/a b'",
        ),
    ],
)
def test_send_names_the_address_that_does_not_answer(
    make_app: MakeApp, url: str, problem: str
) -> None:
    """The error is one line with the remedy."""
    app = make_app(**SETTINGS)
    result = run_command(app, "send", "Sns.CallbackFriendDelete", "--url", url)
    assert result.output == f"Error: {problem}\n"
    assert result.exit_code == 1


def test_send_needs_no_choice_if_one_provider_is_enabled(make_app: MakeApp) -> None:
    """The only enabled provider sends any command."""
    app = make_app(IMCALLBACK_SECRETS=[SECRET])
    with served(app) as url:
        assert run_command(app, "send", "callbackNewGroupEventCommand", "--url", url).exit_code == 0
    assert [row["command"] for row in rows(app)[0]] == ["callbackNewGroupEventCommand"]
