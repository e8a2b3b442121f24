"""Settings: what stops the start of an app, and what the error says."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from flask_imcallback import (
    ConfigError,
    ImCallback,
    OpenIMProvider,
    TencentProvider,
    VerificationError,
)
from flask_imcallback.settings import Settings
from support.apps import MakeApp

SECRET = "a-secret-of-16-characters"
TENCENT_APPS = 'must map each SDKAppID to its callback tokens, such as {"1400000000": ["token"]}'
TENCENT_TOKENS = 'must be a list of non-empty strings, such as ["callback token"]'
SECRET_LIST = 'must be a list of non-empty strings, such as ["16 or more letters and digits"]'
EXAMPLE = "for example from python -c 'import secrets; print(secrets.token_urlsafe(24))'"
SHORT = "has a {} of {} characters: use 16 or more random letters and digits, " + EXAMPLE
WRONG_SECRET = (
    "has a secret with the character {!r}, which cannot be a part of a path: use letters, digits "
    f"and '-', '_', '.', '~' only, {EXAMPLE}"
)
CREDENTIALS = 'must map user names to passwords, such as {"openim": "a long password"}'
WRONG_TOKEN = (
    "has a token with the character {!r}, which HTTP cannot carry: use letters, digits and '-', "
    f"'.', '_', '~', '+', '/' only, {EXAMPLE}"
)
NETWORKS = 'must be a list of CIDR blocks, such as ["203.0.113.0/24"]'
NOT_JSON = ": this is not JSON: use double quotes"
FLAG = "must be True or False (true or false in an environment variable), not {!r}"
SECONDS = "must be a number of seconds above 0 and at most 60, not {!r}"
FILE = "must be a file path or None (null in an environment variable), not {!r}"
PATH = "must be a file path without quotes and without '~', not {!r}"
BIND = "must be a key of SQLALCHEMY_BINDS or None (null in an environment variable), not {!r}"

WRONG_VALUES = [
    ("TENCENT_APPS", ["1400000000"], f"{TENCENT_APPS}, not a list of 1 value"),
    ("TENCENT_APPS", "{'1': ['a']}", f"{TENCENT_APPS}, not a text of 12 characters{NOT_JSON}"),
    (
        "TENCENT_APPS",
        {"my app": ["token"]},
        "must have SDKAppIDs as keys, such as 1400000000, not 'my app'",
    ),
    (
        "TENCENT_APPS[1400000000]",
        {"1400000000": "token"},
        f"{TENCENT_TOKENS}, not a text of 5 characters",
    ),
    (
        "TENCENT_APPS[1400000000]",
        {"1400000000": [""]},
        f"{TENCENT_TOKENS}, but value 1 is a text of 0 characters",
    ),
    ("TENCENT_APPS[1400000000]", {"1400000000": None}, f"{TENCENT_TOKENS}, not None"),
    ("SECRETS", SECRET, f"{SECRET_LIST}, not a text of 25 characters"),
    ("SECRETS", f"['{SECRET}']", f"{SECRET_LIST}, not a text of 29 characters{NOT_JSON}"),
    (
        "SECRETS",
        f'["{SECRET}"]',
        f"{SECRET_LIST}, not a text of 29 characters: read this JSON with "
        "app.config.from_prefixed_env() or json.loads()",
    ),
    (
        "SECRETS",
        f"'[\"{SECRET}\"]'",
        f"{SECRET_LIST}, not a text of 31 characters: remove the quotes around the whole text",
    ),
    ("SECRETS", {SECRET: SECRET}, f"{SECRET_LIST}, not a mapping of 1 key"),
    ("SECRETS", {SECRET}, f"{SECRET_LIST}, not an object of the type set"),
    (
        "SECRETS",
        [SECRET, 1234567890123456],
        f"{SECRET_LIST}, but value 2 is a number of 16 characters",
    ),
    ("SECRETS", ["short"], SHORT.format("secret", 5)),
    ("SECRETS", ["with/a/slash/and/long/enough"], WRONG_SECRET.format("/")),
    ("OPENIM_CREDENTIALS", ["openim"], f"{CREDENTIALS}, not a list of 1 value"),
    (
        "OPENIM_CREDENTIALS",
        {"openim": ""},
        f"{CREDENTIALS}, but the password of 'openim' is a text of 0 characters",
    ),
    ("OPENIM_CREDENTIALS", {"": SECRET}, f"{CREDENTIALS}, but a user name is ''"),
    (
        "OPENIM_CREDENTIALS",
        {"open:im": SECRET},
        "has the user name 'open:im': remove the ':', because HTTP Basic credentials cannot carry "
        "it in a user name",
    ),
    (
        "ALLOWED_NETWORKS",
        ["203.0.113.1/24"],
        f"{NETWORKS}, but 203.0.113.1/24 has host bits set",
    ),
    (
        "ALLOWED_NETWORKS",
        "203.0.113.0/24",
        f"{NETWORKS}, not '203.0.113.0/24'",
    ),
    ("ALLOWED_NETWORKS", "['::1']", f"{NETWORKS}, not \"['::1']\"{NOT_JSON}"),
    ("ALLOW_UNAUTHENTICATED", "yes", FLAG.format("yes")),
    ("ALLOW_UNAUTHENTICATED", 1, FLAG.format(1)),
    ("SIGN_WINDOW", -1, "must be a whole number of 0 or more, not -1"),
    ("SIGN_WINDOW", "60", "must be a whole number of 0 or more, not '60'"),
    ("SIGN_WINDOW", True, "must be a whole number of 0 or more, not True"),
    ("MAX_BODY", 0, "must be a whole number of 1 or more, not 0"),
    ("MAX_BODY", 2**40, "must be 33554432 or less, not 1099511627776"),
    ("DEADLINE", 0, SECONDS.format(0)),
    ("DEADLINE", 61, SECONDS.format(61)),
    ("DEADLINE", "1", SECONDS.format("1")),
    ("SPOOL", "", FILE.format("")),
    ("SPOOL", 1, FILE.format(1)),
    *(("SPOOL", word, FILE.format(word)) for word in ("None", "none", "NULL", "False", "off")),
    ("SPOOL", False, FILE.format(False)),
    ("SPOOL", "~/spool.db", PATH.format("~/spool.db")),
    ("SPOOL", "'spool.db'", PATH.format("'spool.db'")),
    ("HISTORY_TOKENS", "token", f"{SECRET_LIST}, not a text of 5 characters"),
    ("HISTORY_TOKENS", [123], f"{SECRET_LIST}, but value 1 is a number of 3 characters"),
    ("HISTORY_TOKENS", [SECRET, "fifteen-letters"], SHORT.format("token", 15)),
    ("HISTORY_TOKENS", ["with a blank and long"], WRONG_TOKEN.format(" ")),
    ("HISTORY_TOKENS", [f"a={SECRET}"], WRONG_TOKEN.format("=")),
    ("HISTORY_TOKENS", ["=" * 16], WRONG_TOKEN.format("=")),
    ("URL_PREFIX", "imcallback", "must be a URL path, such as /imcallback, not 'imcallback'"),
    ("URL_PREFIX", None, "must be a URL path, such as /imcallback, not None"),
    ("URL_PREFIX", "None", "must be a URL path, such as /imcallback, not 'None'"),
    *(("BIND_KEY", value, BIND.format(value)) for value in (1, "", "None", "null")),
    ("UPGRADE_WITH_HOST", None, FLAG.format(None)),
]


@pytest.mark.parametrize(("key", "value", "problem"), WRONG_VALUES)
def test_a_wrong_value_stops_the_start(key: str, value: Any, problem: str) -> None:
    """The error names the key and the remedy, and shows the value unless it may be a secret."""
    app = Flask("host")
    app.config[f"IMCALLBACK_{key.partition('[')[0]}"] = value
    with pytest.raises(ConfigError) as caught:
        ImCallback(app)
    assert str(caught.value) == f"IMCALLBACK_{key} {problem}"
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "imcallback" not in app.extensions


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("IMCALLBACK_TENCENT_APS", "IMCALLBACK_TENCENT_APPS"),
        ("IMCALLBACK_SECRET", "IMCALLBACK_SECRETS"),
        ("IMCALLBACK_TOKENS", "IMCALLBACK_HISTORY_TOKENS"),
    ],
)
def test_a_misspelled_key_stops_the_start(key: str, nearest: str) -> None:
    """The error proposes the key that was probably meant."""
    with pytest.raises(ConfigError) as caught:
        Settings.from_config({key: None})
    assert str(caught.value) == f"{key} is not a setting: did you mean {nearest}?"


def test_a_key_like_no_other_stops_the_start() -> None:
    """The error lists all settings."""
    with pytest.raises(ConfigError) as caught:
        Settings.from_config({"IMCALLBACK_QWQWQWQWQWQWQWQWQWQWQWQW": None})
    message = str(caught.value)
    assert message.startswith(
        "IMCALLBACK_QWQWQWQWQWQWQWQWQWQWQWQW is not a setting: remove it, or use one of "
        "IMCALLBACK_TENCENT_APPS, IMCALLBACK_SECRETS, "
    )
    assert message.endswith("IMCALLBACK_UPGRADE_WITH_HOST")


def test_an_app_without_a_guard_stops_the_start() -> None:
    """A Tencent app needs a token or a secret path."""
    app = Flask("host")
    app.config["IMCALLBACK_TENCENT_APPS"] = {1400000000: []}
    with pytest.raises(ConfigError, match="IMCALLBACK_TENCENT_APPS"):
        ImCallback(app)
    app.config["IMCALLBACK_SECRETS"] = [SECRET]
    ImCallback(app)


def test_no_repr_shows_a_secret() -> None:
    """Settings may appear in a log or in a traceback."""
    settings = Settings.from_config(
        {
            "IMCALLBACK_TENCENT_APPS": {"1400000000": [SECRET + "1"]},
            "IMCALLBACK_SECRETS": [SECRET + "2"],
            "IMCALLBACK_OPENIM_CREDENTIALS": {"openim": SECRET + "3"},
            "IMCALLBACK_HISTORY_TOKENS": [SECRET + "4"],
        }
    )
    assert settings.secrets == (SECRET + "2",)
    assert SECRET not in repr(settings)


def test_environment_variables_set_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """`app.config.from_prefixed_env()` reads them, with JSON values."""
    monkeypatch.setenv("FLASK_IMCALLBACK_TENCENT_APPS", '{"1400000000": ["token"]}')
    monkeypatch.setenv("FLASK_IMCALLBACK_SIGN_WINDOW", "30")
    app = Flask("host")
    app.config.from_prefixed_env()
    ImCallback(app)
    settings = app.extensions["imcallback"].settings
    assert settings.tencent_apps == {"1400000000": ("token",)}
    assert settings.sign_window == 30


def test_null_in_an_environment_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """It switches the spool off. A path object is a file path, too."""
    monkeypatch.setenv("FLASK_IMCALLBACK_SPOOL", "null")
    monkeypatch.setenv("FLASK_IMCALLBACK_BIND_KEY", "null")
    app = Flask("host")
    app.config.from_prefixed_env()
    settings = Settings.from_config(app.config)
    assert (settings.spool, settings.bind_key) == (None, None)
    assert Settings.from_config({"IMCALLBACK_SPOOL": Path("a/b.db")}).spool == "a/b.db"


def test_the_traceback_of_a_wrong_setting_is_short() -> None:
    """It ends where the app calls the extension."""
    app = Flask("host")
    app.config["IMCALLBACK_SECRETS"] = SECRET
    with pytest.raises(ConfigError) as caught:
        ImCallback(app)
    assert [entry.name for entry in caught.traceback][1:] == ["__init__", "init_app"]
    assert caught.value.__suppress_context__


def test_an_app_takes_one_extension_object() -> None:
    """The error says that one of the two calls is too many."""
    app = Flask("host")
    imcallback = ImCallback(app)
    with pytest.raises(ConfigError) as caught:
        imcallback.init_app(app)
    assert str(caught.value) == (
        "this app already has an ImCallback: call ImCallback(app) or init_app(app), not both"
    )


def test_an_app_without_a_provider_starts_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The warning names the settings. Callbacks get the 404 answer of the provider."""
    app = Flask("host")
    with caplog.at_level(logging.WARNING):
        ImCallback(app)
    assert [record.getMessage() for record in caplog.records] == [
        "No provider is enabled, so every callback is answered with 404. Set one of: "
        "IMCALLBACK_TENCENT_APPS, IMCALLBACK_SECRETS, IMCALLBACK_OPENIM_CREDENTIALS"
    ]
    response = app.test_client().post("/imcallback/openim/callbackX", json={})
    assert response.status_code == 404
    assert response.get_json()["nextCode"] == 0


@pytest.mark.parametrize(
    ("settings", "warnings"),
    [
        ({}, 1),
        ({"SECRET_KEY": "a secret key"}, 0),
        ({"SECRET_KEY_FALLBACKS": ["an old secret key"]}, 0),
        ({"IMCALLBACK_HISTORY_TOKENS": []}, 0),
    ],
    ids=["no key", "a key", "an old key", "a closed history"],
)
def test_a_missing_secret_key_is_said_once(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture, settings: dict[str, Any], warnings: int
) -> None:
    """The first request of a process says it, because a host may set the key after `ImCallback`."""
    app = make_app(
        **{"IMCALLBACK_SECRETS": [SECRET], "IMCALLBACK_HISTORY_TOKENS": [SECRET]} | settings,
        **{} if "SECRET_KEY" in settings else {"SECRET_KEY": None},
    )
    caplog.clear()
    for _ in range(2):
        app.test_client().get("/imcallback/health")
    messages = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert messages == warnings * [
        "The app has no SECRET_KEY, so a cursor of the history works only in the process that made "
        f"it. Set SECRET_KEY to the same random text on all machines, {EXAMPLE}"
    ]


UNREADABLE = "the IP address of the sender cannot be read: check ProxyFix and the proxy"
OUTSIDE = "the IP address of the sender is not in IMCALLBACK_ALLOWED_NETWORKS"


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("203.0.113.9", ""),
        ("203.0.113.9:51008", ""),
        (" 203.0.113.9 ", ""),
        ("::ffff:203.0.113.9", ""),
        ("[::ffff:203.0.113.9]:51008", ""),
        ("::ffff:cb00:7109", ""),
        ("2001:db8::1", ""),
        ("[2001:db8::1]", ""),
        ("[2001:db8::1]:443", ""),
        ('"[2001:db8::1]:443"', ""),
        ("2001:db8::1%eth0", ""),
        ("[2001:db8::1%25eth0]:443", ""),
        ("2001:DB8:0:0:0:0:0:1", ""),
        ("::ffff:198.51.100.1", ""),
        ("198.51.100.1", OUTSIDE),
        ("192.0.2.1", OUTSIDE),
        ("192.0.2.1:51008", OUTSIDE),
        ("[2001:db9::1]:443", OUTSIDE),
        ("fe80::1%eth0", OUTSIDE),
        ("", UNREADABLE),
        ("unknown", UNREADABLE),
        ("_hidden", UNREADABLE),
        ("proxy.example.com", UNREADABLE),
        ("unix:", UNREADABLE),
        ("203.0.113.9:", UNREADABLE),
        ("203.0.113.9:http", UNREADABLE),
        ("203.0.113", UNREADABLE),
        ("203.000.113.009", UNREADABLE),
        ("[203.0.113.9", UNREADABLE),
        ("203.0.113.9, 10.0.0.1", UNREADABLE),
    ],
)
def test_allowed_networks_understand_every_spelling(address: str, reason: str) -> None:
    """Proxies add ports, brackets and zones. The refusal shows the address as it arrived."""
    blocks = ["203.0.113.0/24", "2001:db8::/32", "::ffff:198.51.100.0/120"]
    settings = Settings.from_config({"IMCALLBACK_ALLOWED_NETWORKS": blocks})
    if not reason:
        settings.check_address(address)
        return
    with pytest.raises(VerificationError) as caught:
        settings.check_address(address)
    assert (caught.value.reason, caught.value.detail) == (reason, f"the address is {address!r}")


def test_without_networks_every_address_is_allowed() -> None:
    """An address that cannot be read matters only to the allowed networks."""
    Settings.from_config({}).check_address("unknown")


PLATFORM_VARIABLES = [
    ("SERVICE_HOST", "10.0.0.11"),
    ("SERVICE_PORT", "8000"),
    ("SERVICE_PORT_HTTP", "8000"),
    ("PORT", "tcp://10.0.0.11:8000"),
    ("PORT_8000_TCP", "tcp://10.0.0.11:8000"),
    ("PORT_8000_TCP_PROTO", "tcp"),
    ("PORT_8000_TCP_PORT", "8000"),
    ("PORT_8000_TCP_ADDR", "10.0.0.11"),
    ("PORT_8000_TCP_START", "tcp://10.0.0.11:8000"),
    ("PORT_53_UDP_ADDR", "10.0.0.11"),
    ("PORT_9_SCTP", "sctp://10.0.0.11:9"),
    ("METRICS_SERVICE_HOST", "10.0.0.12"),
    ("METRICS_PORT_9100_TCP_ADDR", "10.0.0.12"),
    ("NAME", "/web/flask_imcallback"),
    ("ENV_PYTHON_VERSION", "3.14"),
]


@pytest.mark.parametrize(("name", "value"), PLATFORM_VARIABLES)
def test_variables_of_a_platform_are_no_settings(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """Kubernetes sets them for a service named flask-imcallback, and Docker for a link."""
    monkeypatch.setenv(f"FLASK_IMCALLBACK_{name}", value)
    app = Flask("host")
    app.config.from_prefixed_env()
    assert f"IMCALLBACK_{name}" in app.config
    ImCallback(app)


@pytest.mark.parametrize(
    "key",
    [
        "IMCALLBACK_PORTS",
        "IMCALLBACK_SUPPORT",
        "IMCALLBACK_SERVICE",
        "IMCALLBACK_HOST",
        "IMCALLBACK_PORT_TCP",
        "IMCALLBACK_PORT_8000_HTTP",
        "IMCALLBACK_PORT_8000_TCP_HOST",
        "IMCALLBACK_SERVICE_HOSTS",
        "IMCALLBACK_MAX_BODYS",
    ],
)
def test_keys_that_no_platform_sets_stop_the_start(key: str) -> None:
    """A key that only resembles a variable of a platform is a typo."""
    with pytest.raises(ConfigError, match=f"^{key} is not a setting: "):
        Settings.from_config({key: "tcp://10.0.0.11:8000"})


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        *(
            (
                name,
                f"a provider cannot have the name {name!r}: use up to 32 of the characters a to z, "
                "0 to 9 and '_', but none of account, checkpoint, deliveries, evidence, feed, "
                "group, health, history, page, removal",
            )
            for name in ("history", "health", "page", "Mine", "my/own", "", "x" * 33)
        ),
        ("tencent", "two providers have the name 'tencent': give each its own name"),
    ],
)
def test_a_wrong_provider_name_stops_the_start(name: str, problem: str) -> None:
    """The name is a part of the URL, so that it must not hide another URL."""

    class NamedProvider(OpenIMProvider):
        pass

    NamedProvider.name = name
    with pytest.raises(ConfigError) as caught:
        ImCallback(Flask("host"), providers=[TencentProvider, NamedProvider])
    assert str(caught.value) == problem
