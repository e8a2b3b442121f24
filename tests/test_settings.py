"""Settings: what stops the start of an app, and what the error says."""

from __future__ import annotations

import logging
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

SECRET = "a-secret-of-16-characters"
TENCENT_APPS = 'must map each SDKAppID to its callback tokens, such as {"1400000000": ["token"]}'
TENCENT_TOKENS = 'must be a list of non-empty strings, such as ["callback token"]'
SECRET_LIST = 'must be a list of non-empty strings, such as ["16 or more letters and digits"]'
WRONG_SECRET = (
    "has a secret that is too short or cannot be a part of a path: use 16 or more letters, "
    "digits and '-', '_', '.', '~', for example from "
    "python -c 'import secrets; print(secrets.token_urlsafe(24))'"
)
CREDENTIALS = 'must map user names to passwords, such as {"openim": "a long password"}'
TOKEN_LIST = 'must be a list of non-empty strings, such as ["a-long-random-token"]'
WRONG_TOKEN = (
    "has a token that HTTP cannot carry: use letters, digits and '-', '.', '_', '~', '+', '/' only"
)
FLAG = "must be True or False (true or false in an environment variable), not {!r}"
SECONDS = "must be a number of seconds above 0 and at most 60, not {!r}"
FILE = "must be a file path or None (null in an environment variable), not {!r}"

WRONG_VALUES = [
    ("TENCENT_APPS", ["1400000000"], TENCENT_APPS),
    (
        "TENCENT_APPS",
        {"my app": ["token"]},
        "must have SDKAppIDs as keys, such as 1400000000, not 'my app'",
    ),
    ("TENCENT_APPS[1400000000]", {"1400000000": "token"}, TENCENT_TOKENS),
    ("TENCENT_APPS[1400000000]", {"1400000000": [""]}, TENCENT_TOKENS),
    ("TENCENT_APPS[1400000000]", {"1400000000": None}, TENCENT_TOKENS),
    ("SECRETS", SECRET, SECRET_LIST),
    ("SECRETS", [1234567890123456], SECRET_LIST),
    ("SECRETS", ["short"], WRONG_SECRET),
    ("SECRETS", ["with/a/slash/and/long/enough"], WRONG_SECRET),
    ("OPENIM_CREDENTIALS", ["openim"], CREDENTIALS),
    ("OPENIM_CREDENTIALS", {"openim": ""}, CREDENTIALS),
    (
        "OPENIM_CREDENTIALS",
        {"open:im": SECRET},
        "has the user name 'open:im': remove the ':', because HTTP Basic credentials cannot carry "
        "it in a user name",
    ),
    (
        "ALLOWED_NETWORKS",
        ["203.0.113.1/24"],
        "must be a list of CIDR blocks, such as 203.0.113.0/24, but 203.0.113.1/24 has host bits "
        "set",
    ),
    (
        "ALLOWED_NETWORKS",
        "203.0.113.0/24",
        'must be a list of non-empty strings, such as ["203.0.113.0/24"]',
    ),
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
    ("HISTORY_TOKENS", "token", TOKEN_LIST),
    ("HISTORY_TOKENS", [123], TOKEN_LIST),
    ("HISTORY_TOKENS", ["with a blank"], WRONG_TOKEN),
    ("HISTORY_TOKENS", ["a=b"], WRONG_TOKEN),
    ("URL_PREFIX", "imcallback", "must be a URL path, such as /imcallback, not 'imcallback'"),
    ("BIND_KEY", 1, "must be a key of SQLALCHEMY_BINDS or None, not 1"),
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
                "0 to 9 and '_', but none of "
                "account, deliveries, health, history, page, removal",
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
