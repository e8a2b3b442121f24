"""Sends callbacks as the IM servers send them: for trying things out, and for `doctor`."""

from __future__ import annotations

import hashlib
import json
import time
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from ..errors import SendError
from ..settings import Settings

TIMEOUT = 5
"""Seconds; Tencent's server waits two, OpenIM's five."""


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """A callback to send; its path is below the URL prefix."""

    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, kw_only=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    """By name in lower case."""
    body: bytes
    seconds: float


def tencent(settings: Settings, packet: Mapping[str, Any], app_id: str) -> Outgoing:
    """A callback as Tencent Cloud IM sends it, signed with the app's newest token.

    With the secret path segment if there is one: a URL that has it is what the console should have.
    """
    query = {
        "CallbackCommand": packet["CallbackCommand"],
        "OptPlatform": "RESTAPI",
        "SdkAppid": app_id,
        "contenttype": "json",
    }
    if tokens := settings.tencent_apps.get(app_id):
        query["RequestTime"] = str(int(time.time()))
        signed = tokens[0] + query["RequestTime"]
        query["Sign"] = hashlib.sha256(signed.encode()).hexdigest()
    return Outgoing(
        path="/tencent" + "".join(f"/{secret}" for secret in settings.secrets[:1]),
        query=urlencode(query),
        headers={"Content-Type": "application/json"},
        body=_compact(packet),
    )


def openim(settings: Settings, packet: Mapping[str, Any], operation_id: str) -> Outgoing:
    """A callback as OpenIM 3.7 and later sends it; the newline ends its encoder's output."""
    headers = {"Content-Type": "application/json; charset=utf-8", "Operationid": operation_id}
    for user, password in list(settings.openim_credentials.items())[:1]:
        credentials = b64encode(f"{user}:{password}".encode()).decode()
        headers["Authorization"] = f"Basic {credentials}"
    segments = [*settings.secrets[:1], quote(packet["callbackCommand"], safe="")]
    return Outgoing(
        path="/openim/" + "/".join(segments),
        query="",
        headers=headers,
        body=_compact(packet) + b"\n",
    )


def _compact(packet: Mapping[str, Any]) -> bytes:
    return json.dumps(packet, separators=(",", ":"), ensure_ascii=False).encode()


class Sender:
    """One kept-alive connection to the address of a receiver, such as `https://host/imcallback`."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SendError("the address must begin with http:// or https:// and name a host")
        connection = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._connection = connection(parts.hostname, parts.port, timeout=TIMEOUT)
        self._prefix = parts.path.rstrip("/")

    def send(self, callback: Outgoing) -> Answer:
        """Send by POST, follow no redirect. Raises `SendError` if there is no answer."""
        path = self._prefix + callback.path + (f"?{callback.query}" if callback.query else "")
        started = time.perf_counter()
        try:
            self._connection.request("POST", path, callback.body, dict(callback.headers))
            response = self._connection.getresponse()
            body = response.read()
        except (OSError, HTTPException) as error:
            self._connection.close()
            raise SendError(f"no answer: {type(error).__name__}: {error}") from error
        return Answer(
            status=response.status,
            headers={name.lower(): value for name, value in response.getheaders()},
            body=body,
            seconds=time.perf_counter() - started,
        )

    @property
    def is_open(self) -> bool:
        """Whether the connection is kept for the next callback, as far as was said."""
        return self._connection.sock is not None

    def close(self) -> None:
        self._connection.close()
