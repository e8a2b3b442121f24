"""`flask imcallback doctor` on settings, logs, functions and servers of the host."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import flask
import pytest
from flask import Flask
from flask_limiter import Limiter
from flask_talisman import Talisman
from flask_wtf import CSRFProtect
from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware
from prometheus_flask_exporter import PrometheusMetrics

from support import ROOT
from support.apps import MakeApp
from support.callbacks import served
from support.doctor import diagnose, has_finding
from support.loggers import keeping_enabled_loggers

SECRET = "a-secret-of-16-characters"
TOKEN = "a-token-of-20-characters"
GUARDS: dict[str, Any] = {
    "IMCALLBACK_SECRETS": [SECRET],
    "IMCALLBACK_HISTORY_TOKENS": [TOKEN],
}
NOT_CALLED = "The extension handles such a callback without the functions of the app."
NO_CALLBACK = "No callback reaches the extension, and the IM server sends none again."
GATE = (
    'egin the function with: if request.blueprint == "imcallback_callbacks": return None. The '
    "callbacks have their own guards."
)
NEW_SECRET = "python -c 'import secrets; print(secrets.token_urlsafe(24))'"
LONGER = f"Use 16 or more random characters, for example from {NEW_SECRET}."

SETTINGS: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "no provider": (
        {},
        "FAILURE",
        (
            "No provider is enabled",
            "Every callback is answered with 404.",
            "Set IMCALLBACK_TENCENT_APPS or IMCALLBACK_SECRETS or IMCALLBACK_OPENIM_CREDENTIALS, "
            "and start the app again.",
        ),
    ),
    "unauthenticated": (
        {"IMCALLBACK_ALLOW_UNAUTHENTICATED": True},
        "WARNING",
        (
            "IMCALLBACK_ALLOW_UNAUTHENTICATED is on",
            "Anybody can write into the history.",
            "Set a token, a secret path segment or credentials, and remove this setting.",
        ),
    ),
    "history closed": (
        {"IMCALLBACK_SECRETS": [SECRET]},
        "WARNING",
        (
            "The history is closed",
            "Nobody can read it over HTTP.",
            "Set IMCALLBACK_HISTORY_TOKENS or pass history_decorators, if somebody should read it.",
        ),
    ),
    "no SECRET_KEY": (
        {**GUARDS, "SECRET_KEY": None},
        "WARNING",
        (
            "The app has no SECRET_KEY",
            "A cursor of the history works only in the process that made it, until that process "
            "ends.",
            "Set SECRET_KEY to the same random text on all machines, for example from "
            f"{NEW_SECRET}.",
        ),
    ),
    "short Tencent token": (
        {"IMCALLBACK_TENCENT_APPS": {"1400000000": ["a-token-of-tencent", "short-one"]}},
        "WARNING",
        (
            "IMCALLBACK_TENCENT_APPS has a token or password of 9 characters",
            "Somebody can guess it.",
            LONGER,
        ),
    ),
    "short OpenIM password": (
        {"IMCALLBACK_OPENIM_CREDENTIALS": {"openim": "password"}},
        "WARNING",
        (
            "IMCALLBACK_OPENIM_CREDENTIALS has a token or password of 8 characters",
            "Somebody can guess it.",
            LONGER,
        ),
    ),
}


@pytest.mark.parametrize(("settings", "level", "lines"), SETTINGS.values(), ids=SETTINGS)
def test_doctor_names_an_unwise_setting(
    make_app: MakeApp, settings: dict[str, Any], level: str, lines: tuple[str, ...]
) -> None:
    """Only what loses callbacks makes it exit with 1. No secret is printed."""
    result = diagnose(make_app(**settings))
    assert has_finding(result, level, *lines), result.output
    assert result.exit_code == (level == "FAILURE")
    assert "short-one" not in result.output


@contextmanager
def changed(logger: logging.Logger) -> Iterator[logging.Logger]:
    """Restore the logger of the extension at the end."""
    state = logger.level, logger.handlers[:], logger.propagate
    try:
        with keeping_enabled_loggers():
            yield logger
    finally:
        logger.level, logger.handlers[:], logger.propagate = state
        logger.manager._clear_cache()  # type: ignore[attr-defined]


def disable(logger: logging.Logger) -> None:
    """Disable the logger as Alembic's env.py does."""
    from logging.config import dictConfig

    dictConfig({"version": 1, "disable_existing_loggers": True})


def mute(logger: logging.Logger) -> None:
    logger.setLevel(logging.CRITICAL)


def take_handlers(logger: logging.Logger) -> None:
    logger.propagate = False
    logger.handlers.clear()


def add_quiet_handler(logger: logging.Logger) -> None:
    take_handlers(logger)
    handler = logging.StreamHandler()
    handler.setLevel(logging.CRITICAL)
    logger.addHandler(handler)


INVISIBLE = "The log shows no refused callback, and lost packets go to stderr without a time."
LOGS: dict[str, tuple[Callable[[logging.Logger], None], str, tuple[str, ...]]] = {
    "disabled by fileConfig": (
        disable,
        "WARNING",
        (
            "The logger flask_imcallback is disabled",
            f"{INVISIBLE} Often fileConfig() of Alembic's env.py disables all loggers.",
            "Call fileConfig(..., disable_existing_loggers=False), or enable the logger after the "
            "upgrade.",
        ),
    ),
    "level": (
        mute,
        "WARNING",
        (
            "The logger flask_imcallback has the level CRITICAL",
            INVISIBLE,
            'Call logging.getLogger("flask_imcallback").setLevel("WARNING"), and do not call '
            "logging.disable().",
        ),
    ),
    "no handler": (
        take_handlers,
        "note",
        (
            "The logger flask_imcallback has no handler",
            "Python prints its warnings to stderr without time and level. Call "
            "logging.basicConfig() for both.",
        ),
    ),
    "level of the handler": (
        add_quiet_handler,
        "WARNING",
        (
            "No handler of the logger flask_imcallback takes warnings",
            INVISIBLE,
            "Give the logger flask_imcallback or the root logger a handler with the level WARNING.",
        ),
    ),
}


@pytest.mark.parametrize(("change", "level", "lines"), LOGS.values(), ids=LOGS)
def test_doctor_names_a_log_that_is_off(
    make_app: MakeApp,
    change: Callable[[logging.Logger], None],
    level: str,
    lines: tuple[str, ...],
) -> None:
    """Nobody would see which callbacks are refused."""
    app = make_app(**GUARDS)
    with changed(logging.getLogger("flask_imcallback")) as logger:
        change(logger)
        result = diagnose(app)
    assert has_finding(result, level, *lines), result.output
    assert result.exit_code == 0


def require_login() -> Any:
    if "user" not in flask.session:
        return flask.redirect("/login?next=/")
    return None


def require_api_key() -> None:
    flask.abort(401)


def fail() -> None:
    raise LookupError("no such tenant")


def close_for_maintenance() -> None:
    flask.abort(503)


def read_json() -> None:
    flask.request.get_json()


HOOKS: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "login gate": (
        require_login,
        (
            f"The function require_login of {__name__} answers callbacks with 302 to /login?next=/",
            NO_CALLBACK,
            f"B{GATE}",
        ),
    ),
    "abort": (
        require_api_key,
        (
            f"The function require_api_key of {__name__} answers callbacks with 401",
            NO_CALLBACK,
            f"B{GATE}",
        ),
    ),
}
FAILING_HOOKS: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "error": (
        fail,
        (
            f"The function fail of {__name__} fails before a callback is read",
            f"{NOT_CALLED} The error: LookupError: no such tenant",
            f"Correct the function, or b{GATE}",
        ),
    ),
    "503": (
        close_for_maintenance,
        (
            f"The function close_for_maintenance of {__name__} answers callbacks with 503",
            NOT_CALLED,
            f"B{GATE}",
        ),
    ),
}


@pytest.mark.parametrize(("hook", "lines"), HOOKS.values(), ids=HOOKS)
def test_doctor_names_the_function_that_answers_callbacks(
    make_app: MakeApp, hook: Callable[[], Any], lines: tuple[str, ...]
) -> None:
    """Also without --url, because doctor calls the functions itself."""
    app = make_app(**GUARDS)
    app.before_request(hook)
    result = diagnose(app)
    assert has_finding(result, "FAILURE", *lines), result.output
    assert result.exit_code == 1


@pytest.mark.parametrize(("hook", "lines"), FAILING_HOOKS.values(), ids=FAILING_HOOKS)
def test_doctor_names_the_function_that_fails_at_callbacks(
    make_app: MakeApp, hook: Callable[[], Any], lines: tuple[str, ...]
) -> None:
    """No callback is lost, so this is a warning."""
    app = make_app(**GUARDS)
    app.before_request(hook)
    result = diagnose(app)
    assert has_finding(result, "WARNING", *lines), result.output
    assert result.exit_code == 0


def add_csrf(app: Flask) -> None:
    CSRFProtect(app)


def add_limiter(app: Flask) -> None:
    Limiter(lambda: "everybody", app=app, default_limits=["1 per day"], storage_uri="memory://")


def add_prometheus(app: Flask) -> None:
    PrometheusMetrics(app)


def add_reader(app: Flask) -> None:
    app.before_request(read_json)


HARMLESS = {
    "CSRFProtect": add_csrf,
    "Flask-Limiter": add_limiter,
    "prometheus-flask-exporter": add_prometheus,
    "a function that reads the body": add_reader,
}


@pytest.mark.parametrize("add", HARMLESS.values(), ids=HARMLESS)
def test_doctor_finds_nothing_where_the_extension_protects_itself(
    make_app: MakeApp, add: Callable[[Flask], None]
) -> None:
    """Callbacks are exempt, and their secrets are hidden."""
    app = make_app(**GUARDS)
    add(app)
    for _ in range(2):
        result = diagnose(app)
        assert "ok      The functions before each request let callbacks pass" in result.output
        assert result.exit_code == 0


def test_doctor_warns_of_a_redirect_to_https(make_app: MakeApp) -> None:
    """Flask-Talisman redirects http://, and a proxy may make https:// look like it."""
    app = make_app(**GUARDS)
    Talisman(app)
    result = diagnose(app)
    assert has_finding(
        result,
        "WARNING",
        "Only callbacks over https:// reach the extension",
        "A function of the app answers callbacks over http://. Behind a proxy, the app may take "
        "every request for one over http://.",
        "Give the IM server an https:// URL. Behind a proxy, use ProxyFix of Werkzeug with "
        "x_proto=1, or turn force_https of Flask-Talisman off.",
    ), result.output
    assert result.exit_code == 0


def test_doctor_warns_of_spans_with_secrets(make_app: MakeApp) -> None:
    """A middleware around the extension sees the URLs before the secrets are hidden."""
    app = make_app(**GUARDS)
    app.wsgi_app = OpenTelemetryMiddleware(app.wsgi_app)  # type: ignore[method-assign]
    assert has_finding(
        diagnose(app),
        "WARNING",
        "OpenTelemetry writes the URLs of callbacks into its spans",
        "The URLs may hold a secret path segment, and they hold the Sign of Tencent.",
        "Wrap app.wsgi_app before ImCallback(app), or use FlaskInstrumentor instead.",
    )


def test_doctor_notes_packages_that_record_urls(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They patch Flask, and see more than the app."""
    monkeypatch.setitem(sys.modules, "sentry_sdk", ModuleType("sentry_sdk"))
    assert has_finding(
        diagnose(make_app(**GUARDS)),
        "note",
        "The package sentry_sdk is loaded, and may record the URLs of callbacks",
        "The URLs hold secrets. Exclude the paths of the callbacks there.",
    )


def running_findings(app: Flask, **environ: Any) -> list[dict[str, str]]:
    """Return what the running app finds in its own process."""
    answer = app.test_client().get(
        "/imcallback/health",
        headers={"Authorization": f"Bearer {TOKEN}", **environ.pop("headers", {})},
        environ_base=environ,
    )
    findings: list[dict[str, str]] = answer.get_json()["findings"]
    return findings


NETWORKS = {**GUARDS, "IMCALLBACK_ALLOWED_NETWORKS": ["203.0.113.0/24"]}
REQUESTS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, str]]] = {
    "development server": (
        GUARDS,
        {"SERVER_SOFTWARE": "Werkzeug/3.1"},
        {
            "level": "warning",
            "title": "The development server of Flask runs the app",
            "why": "It closes each connection, and it prints the paths of callbacks, which hold "
            "secrets.",
            "remedy": "Run the app with gunicorn or another server for production.",
        },
    ),
    "unreadable address": (
        NETWORKS,
        {"REMOTE_ADDR": "unix:"},
        {
            "level": "failure",
            "title": "The app cannot read the IP address 'unix:' of its clients",
            "why": "IMCALLBACK_ALLOWED_NETWORKS refuses every callback.",
            "remedy": "Behind a proxy, use ProxyFix of Werkzeug with x_for set to the number of "
            "proxies.",
        },
    ),
    "address of the proxy": (
        NETWORKS,
        {"REMOTE_ADDR": "10.0.0.1:80", "headers": {"X-Forwarded-For": "203.0.113.7"}},
        {
            "level": "failure",
            "title": "The app takes the proxy 10.0.0.1:80 for the sender of callbacks",
            "why": "IMCALLBACK_ALLOWED_NETWORKS refuses every callback.",
            "remedy": "Use ProxyFix of Werkzeug with x_for set to the number of proxies.",
        },
    ),
}


@pytest.mark.parametrize(("settings", "request_", "finding"), REQUESTS.values(), ids=REQUESTS)
def test_a_running_app_tells_readers_what_is_wrong_with_it(
    make_app: MakeApp, settings: dict[str, Any], request_: dict[str, Any], finding: dict[str, str]
) -> None:
    """Only readers with a token see it."""
    app = make_app(**settings)
    assert running_findings(app, **request_) == [finding]
    assert "findings" not in app.test_client().get("/imcallback/health").get_json()


def test_a_correct_running_app_has_no_findings(make_app: MakeApp) -> None:
    """An address outside the networks is the address of a monitor."""
    assert running_findings(make_app(**NETWORKS), REMOTE_ADDR="192.0.2.1") == []


def test_a_running_app_in_debug_mode_says_so(make_app: MakeApp) -> None:
    """Debug mode lets strangers run code."""
    app = make_app(**GUARDS)
    app.debug = True
    assert [finding["title"] for finding in running_findings(app)] == ["Debug mode is on"]


LOG = (
    "uWSGI writes the paths of callbacks into a log",
    "The paths may hold a secret path segment, and the query holds the Sign of Tencent.",
    "Start uWSGI with --disable-logging.",
)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"http": b":8000"}, [LOG]),
        ({b"threads": b"4", b"disable-logging": True}, []),
    ],
    ids=["log", "no log"],
)
def test_a_running_app_names_wrong_options_of_uwsgi(
    make_app: MakeApp,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[Any, Any],
    expected: list[tuple[str, str, str]],
) -> None:
    """uWSGI gives its options to the app in a module."""
    monkeypatch.setitem(sys.modules, "uwsgi", SimpleNamespace(opt=options))
    findings = running_findings(make_app(**GUARDS))
    assert [(f["title"], f["why"], f["remedy"]) for f in findings] == expected


GEVENT = f"""
import gevent
from hosts.bare import app

def ask():
    client = app.test_client()
    return client.get("/imcallback/health", headers={{"Authorization": "Bearer {TOKEN}"}}).json

for finding in gevent.spawn(ask).get()["findings"]:
    print(finding["title"], finding["why"], finding["remedy"], sep="\\n")
"""


@pytest.mark.slow
def test_a_running_app_names_gevent_without_patches(tmp_path: Path) -> None:
    """The driver of the database then blocks all requests of the process."""
    env = os.environ | {
        "PYTHONPATH": str(ROOT / "tests"),
        "FLASK_SQLALCHEMY_DATABASE_URI": f"sqlite:///{tmp_path}/test.db",
        "FLASK_IMCALLBACK_HISTORY_TOKENS": f'["{TOKEN}"]',
        "FLASK_IMCALLBACK_SPOOL": str(tmp_path / "spool.db"),
    }
    command = [sys.executable, "-c", GEVENT]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    lines = (
        "gevent runs the app, but has not patched Python's modules",
        "A slow query of the history stops all requests of the process.",
        "Call gevent.monkey.patch_all() before everything else, or start uWSGI with "
        "--gevent-monkey-patch.",
    )
    assert "\n".join(lines) in done.stdout, done.stdout + done.stderr


def test_doctor_shows_what_the_running_app_says(make_app: MakeApp, tmp_path: Path) -> None:
    """doctor has the token, and asks with it. Another database of the app is named."""
    app = make_app(**GUARDS)
    other = make_app(f"sqlite:///{tmp_path}/other.db", **GUARDS)
    other.debug = True
    with served(other) as url:
        result = diagnose(app, "--url", url, "--idle", "0")
    assert has_finding(
        result,
        "WARNING",
        "The running app: Debug mode is on",
        "After an error, anybody can run Python code in the app.",
        "Turn debug mode off, and unset FLASK_DEBUG.",
    ), result.output
    assert has_finding(
        result,
        "note",
        f"The running app names its database sqlite:///{tmp_path}/other.db",
        f"This command names it sqlite:///{tmp_path}/instance/imcallback.db. Both may be the same "
        "database.",
    ), result.output
    assert result.exit_code == 1
