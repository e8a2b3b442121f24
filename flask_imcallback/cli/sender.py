"""The sender of callbacks over HTTP, for `flask imcallback send` and `doctor`."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import urlsplit

from ..errors import SendError
from ..providers import OutgoingCallback

TIMEOUT_SECONDS = 5


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An HTTP response to a callback."""

    status: int
    headers: Mapping[str, str]
    """The header names are in lower case."""
    body: bytes
    seconds: float
    """The time from the request to the last byte of the response."""


class Sender:
    """A keep-alive connection to an app, for example to `https://host/imcallback`."""

    def __init__(self, url: str) -> None:
        if not re.fullmatch("[!-~]+", url):
            raise SendError(
                f"the URL has a blank or a letter that is not ASCII: write it as %20 or %C3%A9: "
                f"{url!r}"
            )
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:  # a wrong port, or half of an IPv6 address
            raise SendError(f"{url!r} is not a URL: {error}") from error
        if parts.scheme not in ("http", "https") or not host:
            raise SendError(f"the URL must begin with http:// or https:// and name a host: {url!r}")
        connection_class = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._connection = connection_class(host, port, timeout=TIMEOUT_SECONDS)
        self._prefix = parts.path.rstrip("/")
        self._address = f"{parts.scheme}://{host}:{self._connection.port}{self._prefix}"

    def send(self, callback: OutgoingCallback) -> Answer:
        """Send a POST request, and return the answer without following a redirect.

        Raises `SendError` if no answer arrives.
        """
        path = callback.path + (f"?{callback.query}" if callback.query else "")
        return self._request("POST", path, callback.body, callback.headers)

    def get(self, path: str, headers: Mapping[str, str]) -> Answer:
        """Send a GET request to a path below the URL, and return the answer.

        Raises `SendError` if no answer arrives.
        """
        return self._request("GET", path, None, headers)

    def _request(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> Answer:
        started = time.perf_counter()
        try:
            self._connection.request(method, self._prefix + path, body, dict(headers))
            response = self._connection.getresponse()
            content = response.read()
        except (OSError, HTTPException) as error:
            self._connection.close()
            raise SendError(
                f"no answer from {self._address} ({type(error).__name__}: {error}): start the app, "
                "or name its URL with --url"
            ) from error
        return Answer(
            status=response.status,
            headers={name.lower(): value for name, value in response.getheaders()},
            body=content,
            seconds=time.perf_counter() - started,
        )

    @property
    def is_open(self) -> bool:
        """Whether the server left the connection open for another callback."""
        return self._connection.sock is not None

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
