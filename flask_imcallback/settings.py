"""Every `IMCALLBACK_` key: its type, default and check. Read once per app, when it starts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, NoReturn

from .errors import ConfigError

PREFIX = "IMCALLBACK_"
MAX_MAX_BODY = 32 * 1024 * 1024
"""Bytes. A pair takes at least 35, so that no packet reaches a million of them: see `models`."""

Network = IPv4Network | IPv6Network


def _refuse(key: str, problem: str) -> NoReturn:
    raise ConfigError(f"{PREFIX}{key} {problem}")


def _flag(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        _refuse(key, "must be True or False (true or false in an environment variable)")
    return value


def _integer(minimum: int, maximum: int | None) -> Callable[[str, object], int]:
    def check(key: str, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            _refuse(key, f"must be a whole number, {minimum} or more")
        if maximum is not None and value > maximum:
            _refuse(key, f"must be {maximum} or less")
        return value

    return check


def _seconds(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 60:
        _refuse(key, "must be a number of seconds, above 0 and at most 60")
    return value


def _file(key: str, value: object) -> str | None:
    if value is not None and (not isinstance(value, str) or not value or "\0" in value):
        _refuse(key, "must be the path of a file, or None (null in an environment variable)")
    return value


def _strings(key: str, value: object, example: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(v, str) and v for v in value):
        _refuse(key, f'must be a list of non-empty strings, such as ["{example}"]')
    return tuple(value)


def _tokens(key: str, value: object) -> tuple[str, ...]:
    tokens = _strings(key, value, "a-long-random-token")
    if not all(re.fullmatch(r"[\w.~+/-]+=*", token, re.ASCII) for token in tokens):
        # RFC 6750, section 2.1: no other can be sent as a bearer token.
        _refuse(key, "must hold tokens of letters, digits and '-', '.', '_', '~', '+', '/'")
    return tokens


def _secrets(key: str, value: object) -> tuple[str, ...]:
    secrets = _strings(key, value, "16 or more letters and digits")
    if not all(re.fullmatch(r"[\w.~-]{16,}", secret, re.ASCII) for secret in secrets):
        _refuse(
            key,
            "must hold path segments of 16 or more letters, digits and '-', '_', '.', '~': "
            "make one with python -c 'import secrets; print(secrets.token_urlsafe(24))'",
        )
    return secrets


def _tencent_apps(key: str, value: object) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, Mapping):
        _refuse(key, 'must map each SDKAppID to its callback tokens: {"1400000000": ["token"]}')
    apps: dict[str, tuple[str, ...]] = {}
    for app_id, tokens in value.items():
        if isinstance(app_id, bool) or not re.fullmatch(r"[0-9]{1,20}", str(app_id)):
            _refuse(key, "has a name that is no SDKAppID: it is a number such as 1400000000")
        apps[str(app_id)] = _strings(f"{key}[{app_id}]", tokens, "callback token")
    return apps


def _credentials(key: str, value: object) -> dict[str, str]:
    if not isinstance(value, Mapping) or not all(
        isinstance(text, str) and text for pair in value.items() for text in pair
    ):
        _refuse(key, 'must map user names to passwords: {"openim": "a long random password"}')
    if any(":" in user for user in value):
        _refuse(key, "has a user name with ':', which Basic credentials cannot carry")
    return dict(value)


def _networks(key: str, value: object) -> tuple[Network, ...]:
    blocks = _strings(key, value, "203.0.113.0/24")
    try:
        return tuple(ip_network(block) for block in blocks)
    except ValueError as error:
        _refuse(key, f"must hold CIDR blocks such as 203.0.113.0/24: {error}")


def _url_prefix(key: str, value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"(/[\w.~-]+)*/?", value, re.ASCII):
        _refuse(key, "must be a path such as /imcallback")
    return value.rstrip("/")


def _bind_key(key: str, value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        _refuse(key, "must be None or a key of SQLALCHEMY_BINDS")
    return value


def _setting(default: Any, check: Callable[[str, Any], Any], *, secret: bool = False) -> Any:
    return field(metadata={"default": default, "check": check}, repr=not secret)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The checked settings of one app; the name of a field is its key in lower case."""

    tencent_apps: Mapping[str, tuple[str, ...]] = _setting({}, _tencent_apps, secret=True)
    """SDKAppID -> callback tokens, old and new side by side; none means the app has no token."""
    secrets: tuple[str, ...] = _setting([], _secrets, secret=True)
    """Secret path segments that are accepted, old and new side by side."""
    openim_credentials: Mapping[str, str] = _setting({}, _credentials, secret=True)
    """User -> password of the Basic credentials in the URL that OpenIM was given."""
    allowed_networks: tuple[Network, ...] = _setting([], _networks)
    """CIDR blocks that callbacks may come from; none means any."""
    allow_unauthenticated: bool = _setting(False, _flag)
    """Accept callbacks that nothing but the app id protects; for development only."""
    sign_window: int = _setting(60, _integer(0, None))
    """Seconds that Tencent's RequestTime may be away from our clock."""
    max_body: int = _setting(1024 * 1024, _integer(1, MAX_MAX_BODY))
    """Bytes."""
    deadline: float = _setting(1.5, _seconds)
    """Seconds that the database may take for a callback, then the spool."""
    spool: str | None = _setting("imcallback_spool.db", _file)
    """SQLite file for callbacks that the database does not take, in the instance folder unless the
    path is absolute; None for none."""
    history_tokens: tuple[str, ...] = _setting([], _tokens, secret=True)
    """Bearer tokens that open the history."""
    url_prefix: str = _setting("/imcallback", _url_prefix)
    """Path below which all our addresses are."""
    bind_key: str | None = _setting(None, _bind_key)
    """The Flask-SQLAlchemy bind that holds our tables."""
    upgrade_with_host: bool = _setting(True, _flag)
    """Whether the host's `flask db upgrade` brings up our tables too."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Settings:
        """Read the keys that begin with `IMCALLBACK_`.

        Raises `ConfigError` for a key that is unknown or whose value is wrong.
        """
        known = {setting.name.upper(): setting for setting in fields(cls)}
        for key in config:
            if key.startswith(PREFIX) and key.removeprefix(PREFIX) not in known:
                choices = ", ".join(PREFIX + name for name in known)
                raise ConfigError(f"{key} is not a setting; the settings are {choices}")
        values = {}
        for key, setting in known.items():
            value = config.get(PREFIX + key, setting.metadata["default"])
            values[setting.name] = setting.metadata["check"](key, value)
        return cls(**values)

    def allows(self, address: str) -> bool:
        """Whether callbacks may come from this address."""
        if not self.allowed_networks:
            return True
        try:
            ip = ip_address(address)
        except ValueError:
            return False
        mapped = getattr(ip, "ipv4_mapped", None)
        return any((mapped or ip) in network for network in self.allowed_networks)
