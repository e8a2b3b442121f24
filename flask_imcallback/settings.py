"""Every `IMCALLBACK_` setting: its type, its default and its check."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, NoReturn

from .errors import ConfigError, VerificationError

PREFIX = "IMCALLBACK_"
DEFAULT_MAX_BODY_BYTES = 8_000_000
"""Enough for a dismissed group of 100,000 members. For each member, Tencent sends its id and 22
bytes, OpenIM its id and 3 bytes. PyMySQL sends a body as hexadecimal digits, and MariaDB accepts
16 MiB by default."""

MAX_BODY_LIMIT_BYTES = 32 * 1024 * 1024
"""A process holds several copies of a packet while it stores it."""

PLATFORM_VARIABLE = re.compile(
    PREFIX + r"(\w+_)?"
    r"(SERVICE_HOST|SERVICE_PORT(_\w+)?"
    r"|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR|START|END))?)?)"
    rf"|{PREFIX}(NAME|ENV_\w+)",
    re.ASCII,
)
"""Variables that Kubernetes sets for a service named flask-imcallback, and Docker for a link with
this name. `from_prefixed_env()` reads them like settings, but they are no settings."""

ADDRESS_WITH_PORT = re.compile(r"\[([^\[\]]+)\](?::\d+)?|([\d.]+):\d+", re.ASCII)
"""An IP address with a port, or in brackets. Several proxies write it into X-Forwarded-For."""

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


NEW_SECRET = "python -c 'import secrets; print(secrets.token_urlsafe(24))'"  # noqa: S105
"""A command that prints a good secret or token."""
MIN_SECRET_LENGTH = 16
"""Characters. A stranger can guess a shorter text by trying."""
WORDS_FOR_NOTHING = ("none", "null", "false", "off", "no")
"""Texts that are meant as no value. Only JSON's `null` in an environment variable is None."""


def _refuse(key: str, problem: str) -> NoReturn:
    raise ConfigError(f"{PREFIX}{key} {problem}")


def _refuse_type(key: str, needed: str, value: object) -> NoReturn:
    """Refuse a value of the wrong type. It may be a secret, so the message does not show it."""
    hint = _json_hint(value)
    _refuse(key, f"{needed}, not {_describe_secret(value)}" + (f": {hint}" if hint else ""))


def _describe_secret(value: object) -> str:
    """Return the kind and the length of a value."""
    if value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, str):
        return f"a text of {_count(len(value), 'character')}"
    if isinstance(value, int | float):
        return f"a number of {_count(len(str(value)), 'character')}"
    if isinstance(value, list | tuple):
        return f"a list of {_count(len(value), 'value')}"
    if isinstance(value, Mapping):
        return f"a mapping of {_count(len(value), 'key')}"
    return f"an object of the type {type(value).__name__}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _json_hint(value: object) -> str:
    """Return what is wrong with a text that was meant as JSON, or an empty text."""
    text = value.strip() if isinstance(value, str) else ""
    if text[:1] in ("'", '"'):
        return "remove the quotes around the whole text"
    if text[:1] not in ("[", "{"):
        return ""
    try:
        json.loads(text)
    except ValueError:
        return "this is not JSON: use double quotes"
    return "read this JSON with app.config.from_prefixed_env() or json.loads()"


def _flag(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        _refuse(
            key,
            f"must be True or False (true or false in an environment variable), not {value!r}",
        )
    return value


def _integer(minimum: int, maximum: int | None) -> Callable[[str, object], int]:
    def check(key: str, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            _refuse(key, f"must be a whole number of {minimum} or more, not {value!r}")
        if maximum is not None and value > maximum:
            _refuse(key, f"must be {maximum} or less, not {value!r}")
        return value

    return check


def _seconds(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 60:
        _refuse(key, f"must be a number of seconds above 0 and at most 60, not {value!r}")
    return value


def _file(key: str, value: object) -> str | None:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if value is None:
        return None
    if (
        not isinstance(value, str)
        or not value
        or "\0" in value
        or value.casefold() in WORDS_FOR_NOTHING
    ):
        _refuse(
            key,
            f"must be a file path or None (null in an environment variable), not {value!r}",
        )
    if value[0] in "~'\"":
        _refuse(key, f"must be a file path without quotes and without '~', not {value!r}")
    return value


def _strings(key: str, value: object, example: str) -> tuple[str, ...]:
    needed = f'must be a list of non-empty strings, such as ["{example}"]'
    if not isinstance(value, list | tuple):
        _refuse_type(key, needed, value)
    for number, item in enumerate(value, 1):
        if not isinstance(item, str) or not item:
            _refuse(key, f"{needed}, but value {number} is {_describe_secret(item)}")
    return tuple(value)


def _tokens(key: str, value: object) -> tuple[str, ...]:
    tokens = _strings(key, value, "16 or more letters and digits")
    for token in tokens:
        _check_length(key, "token", token)
        # RFC 6750, section 2.1: a bearer token has no other characters.
        if wrong := re.search(r"[^\w.~+/-]", token.rstrip("=") or "=", re.ASCII):
            _refuse(
                key,
                f"has a token with the character {wrong[0]!r}, which HTTP cannot carry: use "
                "letters, digits and '-', '.', '_', '~', '+', '/' only, for example from "
                f"{NEW_SECRET}",
            )
    return tokens


def _secrets(key: str, value: object) -> tuple[str, ...]:
    secrets = _strings(key, value, "16 or more letters and digits")
    for secret in secrets:
        _check_length(key, "secret", secret)
        if wrong := re.search(r"[^\w.~-]", secret, re.ASCII):
            _refuse(
                key,
                f"has a secret with the character {wrong[0]!r}, which cannot be a part of a path: "
                f"use letters, digits and '-', '_', '.', '~' only, for example from {NEW_SECRET}",
            )
    return secrets


def _check_length(key: str, noun: str, secret: str) -> None:
    if len(secret) < MIN_SECRET_LENGTH:
        _refuse(
            key,
            f"has a {noun} of {_count(len(secret), 'character')}: use {MIN_SECRET_LENGTH} or more "
            f"random letters and digits, for example from {NEW_SECRET}",
        )


def _tencent_apps(key: str, value: object) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, Mapping):
        _refuse_type(
            key,
            'must map each SDKAppID to its callback tokens, such as {"1400000000": ["token"]}',
            value,
        )
    apps: dict[str, tuple[str, ...]] = {}
    for app_id, tokens in value.items():
        if isinstance(app_id, bool) or not re.fullmatch(r"[0-9]{1,20}", str(app_id)):
            _refuse(key, f"must have SDKAppIDs as keys, such as 1400000000, not {app_id!r}")
        apps[str(app_id)] = _strings(f"{key}[{app_id}]", tokens, "callback token")
    return apps


def _credentials(key: str, value: object) -> dict[str, str]:
    needed = 'must map user names to passwords, such as {"openim": "a long password"}'
    if not isinstance(value, Mapping):
        _refuse_type(key, needed, value)
    for user, password in value.items():
        if not isinstance(user, str) or not user:
            _refuse(key, f"{needed}, but a user name is {user!r}")
        if not isinstance(password, str) or not password:
            _refuse(key, f"{needed}, but the password of {user!r} is {_describe_secret(password)}")
        if ":" in user:
            _refuse(
                key,
                f"has the user name {user!r}: remove the ':', "
                "because HTTP Basic credentials cannot carry it in a user name",
            )
    return dict(value)


def _networks(key: str, value: object) -> tuple[Network, ...]:
    needed = 'must be a list of CIDR blocks, such as ["203.0.113.0/24"]'
    if not isinstance(value, list | tuple):
        hint = _json_hint(value)
        _refuse(key, f"{needed}, not {value!r}" + (f": {hint}" if hint else ""))
    blocks = _strings(key, value, "203.0.113.0/24")
    try:
        return tuple(ip_network(block) for block in blocks)
    except ValueError as error:
        _refuse(key, f"{needed}, but {error}")


def _url_prefix(key: str, value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"(/[\w.~-]+)*/?", value, re.ASCII):
        _refuse(key, f"must be a URL path, such as /imcallback, not {value!r}")
    return value.rstrip("/")


def _bind_key(key: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value or value.casefold() in WORDS_FOR_NOTHING:
        _refuse(
            key,
            "must be a key of SQLALCHEMY_BINDS or None (null in an environment variable), "
            f"not {value!r}",
        )
    return value


def _seal_key(key: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value.startswith("PRIVATE+KEY+"):
        _refuse(
            key,
            "must be a secret key that begins with PRIVATE+KEY+, or None, not "
            f"{_describe_secret(value)}: print one with flask imcallback new-key ORIGIN",
        )
    return value.strip()


def _setting(default: Any, check: Callable[[str, Any], Any], *, secret: bool = False) -> Any:
    return field(metadata={"default": default, "check": check}, repr=not secret)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The checked settings of one app. The name of a field is its key in lower case."""

    tencent_apps: Mapping[str, tuple[str, ...]] = _setting({}, _tencent_apps, secret=True)
    """The Tencent apps that may call, as a mapping of SDKAppID to callback tokens.
    During a change, list the old and the new token. An app without tokens has an empty list."""
    secrets: tuple[str, ...] = _setting([], _secrets, secret=True)
    """The secret path segments that callbacks may use.
    During a change, list the old and the new secret."""
    openim_credentials: Mapping[str, str] = _setting({}, _credentials, secret=True)
    """The user names and passwords that OpenIM may send, as a mapping of user name to password.
    OpenIM sends them as HTTP Basic credentials if its callback URL contains them."""
    allowed_networks: tuple[Network, ...] = _setting([], _networks)
    """The networks that callbacks may come from, as CIDR blocks.
    An empty list allows every IP address."""
    allow_unauthenticated: bool = _setting(False, _flag)
    """Whether callbacks without a token, a secret or a password are accepted.
    Use it for development only."""
    sign_window: int = _setting(60, _integer(0, None))
    """The largest difference, in seconds, between Tencent's RequestTime and the clock of this
    server."""
    max_body: int = _setting(DEFAULT_MAX_BODY_BYTES, _integer(1, MAX_BODY_LIMIT_BYTES))
    """The largest body of a callback, in bytes. A larger callback is lost.
    The default is enough for a dismissed group of 100,000 members."""
    deadline: float = _setting(1.5, _seconds)
    """The time, in seconds, that the database has to store a callback.
    After this time the callback goes to the spool."""
    spool: str | None = _setting("imcallback_spool.db", _file)
    """The SQLite file for callbacks that the database cannot store now.
    A relative path starts in the instance folder. None switches the spool off."""
    history_tokens: tuple[str, ...] = _setting([], _tokens, secret=True)
    """The bearer tokens that may read the history."""
    log_reading: bool = _setting(False, _flag)
    """Whether the log notes each answer that shows or counts removals or deliveries.
    Exports are always noted."""
    seal_key: str | None = _setting(None, _seal_key, secret=True)
    """The secret key that signs checkpoints, as `flask imcallback new-key ORIGIN` prints it.
    None: checkpoints are not signed."""
    seal_seconds: int = _setting(60, _integer(0, 86_400))
    """The seconds after which new log entries are sealed. With 0, the app seals nothing by itself:
    run `flask imcallback seal`."""
    url_prefix: str = _setting("/imcallback", _url_prefix)
    """The path that all URLs of this extension begin with."""
    bind_key: str | None = _setting(None, _bind_key)
    """The Flask-SQLAlchemy bind of the database that holds the tables of this extension."""
    upgrade_with_host: bool = _setting(True, _flag)
    """Whether `flask db upgrade` of the host app also upgrades the tables of this extension."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Settings:
        """Read and check the keys that begin with `IMCALLBACK_`.

        Raises `ConfigError` for an unknown key and for a wrong value.
        """
        known = {setting.name.upper(): setting for setting in fields(cls)}
        for key in config:
            if not key.startswith(PREFIX) or PLATFORM_VARIABLE.fullmatch(key):
                continue
            if key.removeprefix(PREFIX) not in known:
                raise ConfigError(_unknown_key(key, [PREFIX + name for name in known]))
        values = {}
        for key, setting in known.items():
            value = config.get(PREFIX + key, setting.metadata["default"])
            values[setting.name] = setting.metadata["check"](key, value)
        return cls(**values)

    @property
    def guards(self) -> list[str]:
        """The secrets that make a callback authentic."""
        tokens = [token for app_tokens in self.tencent_apps.values() for token in app_tokens]
        return [*tokens, *self.secrets, *self.openim_credentials.values()]

    def check_address(self, text: str) -> None:
        """Check that callbacks may come from this IP address, as WSGI or a proxy writes it.

        Raises `VerificationError` if the address is outside the allowed networks or unreadable.
        """
        if not self.allowed_networks:
            return
        addresses = _read_address(text)
        if not addresses:
            raise VerificationError(
                "the IP address of the sender cannot be read: check ProxyFix and the proxy",
                f"the address is {text[:100]!r}",
            )
        if not any(a in network for a in addresses for network in self.allowed_networks):
            raise VerificationError(
                "the IP address of the sender is not in IMCALLBACK_ALLOWED_NETWORKS",
                f"the address is {text[:100]!r}",
            )


def _read_address(text: str) -> list[Address]:
    """Return the IP address in the text, or an empty list if the text has none.

    An IPv4 address that is written as IPv6 is returned in both forms.
    """
    text = text.strip().strip('"')
    if match := ADDRESS_WITH_PORT.fullmatch(text):
        text = match[1] or match[2]
    try:
        address = ip_address(text)
    except ValueError:
        return []
    mapped = getattr(address, "ipv4_mapped", None)
    return [address, mapped] if mapped else [address]


def _unknown_key(key: str, known_keys: list[str]) -> str:
    nearest = get_close_matches(key, known_keys, n=1)
    if nearest:
        return f"{key} is not a setting: did you mean {nearest[0]}?"
    return f"{key} is not a setting: remove it, or use one of {', '.join(known_keys)}"
