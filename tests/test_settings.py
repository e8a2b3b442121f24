"""Settings: what stops the start, and what the error says."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from flask import Flask

from flask_imcallback import ConfigError, ImCallback, OpenIMProvider, TencentProvider
from flask_imcallback.settings import Settings

SECRET = "a-secret-of-16-characters"

WRONG = [
    ("IMCALLBACK_TENCENT_APS", {}),
    ("IMCALLBACK_TENCENT_APPS", ["1400000000"]),
    ("IMCALLBACK_TENCENT_APPS", {"my app": ["token"]}),
    ("IMCALLBACK_TENCENT_APPS", {"1400000000": "token"}),
    ("IMCALLBACK_TENCENT_APPS", {"1400000000": [""]}),
    ("IMCALLBACK_TENCENT_APPS", {"1400000000": None}),
    ("IMCALLBACK_SECRETS", SECRET),
    ("IMCALLBACK_SECRETS", ["short"]),
    ("IMCALLBACK_SECRETS", ["with/a/slash/and/long/enough"]),
    ("IMCALLBACK_SECRETS", [1234567890123456]),
    ("IMCALLBACK_OPENIM_CREDENTIALS", ["openim"]),
    ("IMCALLBACK_OPENIM_CREDENTIALS", {"openim": ""}),
    ("IMCALLBACK_OPENIM_CREDENTIALS", {"open:im": "password"}),
    ("IMCALLBACK_ALLOWED_NETWORKS", ["203.0.113.1/24"]),
    ("IMCALLBACK_ALLOWED_NETWORKS", "203.0.113.0/24"),
    ("IMCALLBACK_ALLOW_UNAUTHENTICATED", "yes"),
    ("IMCALLBACK_ALLOW_UNAUTHENTICATED", 1),
    ("IMCALLBACK_SIGN_WINDOW", -1),
    ("IMCALLBACK_SIGN_WINDOW", "60"),
    ("IMCALLBACK_SIGN_WINDOW", True),
    ("IMCALLBACK_MAX_BODY", 0),
    ("IMCALLBACK_MAX_BODY", 2**40),
    ("IMCALLBACK_HISTORY_TOKENS", "token"),
    ("IMCALLBACK_HISTORY_TOKENS", [123]),
    ("IMCALLBACK_HISTORY_TOKENS", ["with a blank"]),
    ("IMCALLBACK_HISTORY_TOKENS", ["a=b"]),
    ("IMCALLBACK_URL_PREFIX", "imcallback"),
    ("IMCALLBACK_BIND_KEY", 1),
    ("IMCALLBACK_UPGRADE_WITH_HOST", None),
]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_wrong_setting_stops_the_start(key: str, value: Any) -> None:
    """The error names the key, and holds no value that may be a secret."""
    app = Flask("host")
    app.config[key] = value
    with pytest.raises(ConfigError, match=key) as raised:
        ImCallback(app)
    assert SECRET not in str(raised.value)
    assert "imcallback" not in app.extensions


def test_an_unguarded_app_stops_the_start() -> None:
    """A secret path or the switch for development is enough of a guard."""
    app = Flask("host")
    app.config["IMCALLBACK_TENCENT_APPS"] = {1400000000: []}
    with pytest.raises(ConfigError, match="IMCALLBACK_TENCENT_APPS"):
        ImCallback(app)
    app.config["IMCALLBACK_SECRETS"] = [SECRET]
    ImCallback(app)


def test_no_repr_tells_a_secret() -> None:
    """Settings may end in a log or a traceback."""
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


def test_the_environment_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flask's own reading of `FLASK_…` variables gives values that are taken."""
    monkeypatch.setenv("FLASK_IMCALLBACK_TENCENT_APPS", '{"1400000000": ["token"]}')
    monkeypatch.setenv("FLASK_IMCALLBACK_SIGN_WINDOW", "30")
    app = Flask("host")
    app.config.from_prefixed_env()
    ImCallback(app)
    settings = app.extensions["imcallback"].settings
    assert settings.tencent_apps == {"1400000000": ("token",)}
    assert settings.sign_window == 30


def test_a_second_registration_is_refused() -> None:
    """The error says which of the two calls to leave out."""
    app = Flask("host")
    imcallback = ImCallback(app)
    with pytest.raises(ConfigError, match="not both"):
        imcallback.init_app(app)


def test_with_no_provider_on_there_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    """The app starts, and its callbacks answer 404 in the provider's words."""
    app = Flask("host")
    with caplog.at_level(logging.WARNING):
        ImCallback(app)
    assert len(caplog.records) == 1
    response = app.test_client().post("/imcallback/openim/callbackX", json={})
    assert response.status_code == 404
    assert response.get_json()["nextCode"] == 0


@pytest.mark.parametrize(
    ("address", "is_allowed"),
    [
        ("203.0.113.9", True),
        ("::ffff:203.0.113.9", True),
        ("2001:db8::1", True),
        ("192.0.2.1", False),
        ("", False),
        ("not an address", False),
    ],
)
def test_networks(address: str, is_allowed: bool) -> None:
    """Also an IPv4 address that came through an IPv6 socket is known."""
    blocks = ["203.0.113.0/24", "2001:db8::/32"]
    settings = Settings.from_config({"IMCALLBACK_ALLOWED_NETWORKS": blocks})
    assert settings.allows(address) == is_allowed
    assert Settings.from_config({}).allows(address)


@pytest.mark.parametrize(
    "name", ["history", "health", "page", "Mine", "my/own", "", "x" * 33, "tencent"]
)
def test_a_provider_cannot_have_any_name(name: str) -> None:
    """It is an address, and must hide none of ours or of another provider's."""

    class Named(OpenIMProvider):
        pass

    Named.name = name
    with pytest.raises(ConfigError, match="name"):
        ImCallback(Flask("host"), providers=[TencentProvider, Named])
