"""Settings: what stops the start of an app, and what the error says."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from flask import Flask

from flask_imcallback import ConfigError, ImCallback, OpenIMProvider, TencentProvider
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


@pytest.mark.parametrize(
    ("ip_address", "is_allowed"),
    [
        ("203.0.113.9", True),
        ("::ffff:203.0.113.9", True),
        ("2001:db8::1", True),
        ("192.0.2.1", False),
        ("", False),
        ("not an IP address", False),
    ],
)
def test_allowed_networks(ip_address: str, is_allowed: bool) -> None:
    """An IPv4 address that came through an IPv6 socket counts as IPv4."""
    blocks = ["203.0.113.0/24", "2001:db8::/32"]
    settings = Settings.from_config({"IMCALLBACK_ALLOWED_NETWORKS": blocks})
    assert settings.allows(ip_address) == is_allowed
    assert Settings.from_config({}).allows(ip_address)


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
