"""A request to a callback URL and its answer, shared by the middleware and the view."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, quote

from flask import Response
from werkzeug.wsgi import ClosingIterator

from ..logger import logger
from ..providers import Provider
from ..receiver import encode_kept_query
from .request_body import RequestBody

EXCHANGE_KEY = "flask_imcallback.exchange"
"""The key of the `Exchange` in the WSGI environment."""
URL_VARIABLES = (
    "RAW_URI",
    "REQUEST_URI",
    "HTTP_X_ORIGINAL_URI",
    "HTTP_X_ORIGINAL_URL",
    "HTTP_X_REWRITE_URL",
    "HTTP_X_FORWARDED_URI",
)
"""Variables of the WSGI environment in which servers and proxies repeat the URL."""
CONTENT_HEADERS = frozenset(
    ["content-type", "content-length", "content-encoding", "transfer-encoding", "etag", "location"]
)
"""Headers that describe the content of the response of the host app."""

Environ = dict[str, Any]
Headers = list[tuple[str, str]]
StartResponse = Callable[..., Any]
App = Callable[[Environ, StartResponse], Iterable[bytes]]


@dataclass(frozen=True)
class Answer:
    """The answer of our view. No function of the host app can change it."""

    status: str
    """Status code and reason phrase."""
    headers: Headers
    body: bytes

    @classmethod
    def copy(cls, response: Response) -> Answer:
        return cls(response.status, response.headers.to_wsgi_list(), response.get_data())


@dataclass
class Exchange:
    """A request to a callback URL, without its secrets, and the answer of our view."""

    provider: Provider
    rest: str = field(repr=False)
    """The path after the name of the provider. It may hold a secret."""
    query: Mapping[str, tuple[str, ...]] = field(repr=False)
    """All values of each query parameter. They may hold a signature."""
    body: RequestBody | None = None
    answer: Answer | None = None
    """None if our view has not ended."""
    is_received: bool = False
    """Whether our view has begun. It reads the body, which can be read only once."""

    @classmethod
    def begin(
        cls, environ: Environ, provider: Provider, path: str, rest: str, max_body: int
    ) -> Exchange:
        """Take path, query and body out of a WSGI environment.

        The rest of the app sees only `path`, which ends with the name of the provider. So no log,
        span or metric of the app can show a secret path segment or `Sign`.
        """
        query = read_query(environ.get("QUERY_STRING", ""))
        kept = encode_kept_query(provider, query)
        environ["PATH_INFO"], environ["QUERY_STRING"] = path, kept
        url = quote(environ.get("SCRIPT_NAME", "") + path, encoding="latin-1")
        url += f"?{kept}" if kept else ""
        for name in URL_VARIABLES:
            if name in environ:
                environ[name] = url
        body = environ["wsgi.input"] = RequestBody(environ["wsgi.input"], max_body)
        exchange = environ[EXCHANGE_KEY] = cls(provider, decode(rest), query, body)
        return exchange

    def run(
        self,
        app: App,
        environ: Environ,
        start_response: StartResponse,
        handle: Callable[[str], None] | None,
        report: Callable[[str, str], None],
    ) -> Iterable[bytes]:
        """Call the host app, and send our answer unchanged if our view was called.

        Functions of the host app that run after the view may change its response, or fail. The IM
        server still gets the answer of the provider. Functions that run before the view may fail,
        too, or answer with a 2xx, which the IM server would take for ours. Then `handle` is called
        with the status of the host. It handles the callback without these functions, and sets the
        answer. If the host refused a callback, `report` is called with the status and a detail.
        """
        is_callback = environ.get("REQUEST_METHOD") == "POST"
        status, headers, body = "500", [], list[bytes]()
        parts: Iterable[bytes] = ()
        error: Exception | None = None

        def start(new_status: str, new_headers: Headers, exc_info: Any = None) -> Any:
            nonlocal status, headers
            status, headers = new_status, new_headers
            return body.append

        try:
            parts = app(environ, start)
            body += parts  # a middleware that is a generator runs only now
        except Exception as caught:
            error = caught
        is_handled = False
        if is_callback and not self.is_received and (error or status.startswith(("2", "5"))):
            is_handled = self._handle_without_host(handle, status.partition(" ")[0])
        if self.answer is not None:
            if error:
                logger.error("A function of the app failed at a callback", exc_info=error)
            host_headers = [] if error or is_handled else headers
            status, headers = self.answer.status, self._headers(host_headers)
            body = [] if environ.get("REQUEST_METHOD") == "HEAD" else [self.answer.body]
        elif error:
            if is_callback:
                report("500", type(error).__name__)
            if close := getattr(parts, "close", None):
                close()
            raise error
        elif is_callback:
            report(status.partition(" ")[0], _describe_location(headers))
            if status.startswith("2"):
                status, headers, body = "503 SERVICE UNAVAILABLE", [], []
        start_response(status, headers)
        return ClosingIterator(body, getattr(parts, "close", None))

    def _handle_without_host(self, handle: Callable[[str], None] | None, status: str) -> bool:
        """Handle the callback after the host answered it. Returns False if nobody may do that."""
        if handle is None:
            return False
        try:
            handle(status)
        except Exception:
            logger.exception("A function of the app failed at a callback")
        return True

    def _headers(self, host_headers: Headers) -> Headers:
        """Return the headers of our answer, and the headers that the host app added."""
        headers = self.answer.headers if self.answer else []
        own_names = CONTENT_HEADERS | {name.lower() for name, _ in headers}
        return headers + [pair for pair in host_headers if pair[0].lower() not in own_names]


def read_query(text: str) -> dict[str, tuple[str, ...]]:
    """Return all values of each query parameter. Bytes that are not UTF-8 are replaced."""
    # Werkzeug's `request.args` raises an error for these bytes.
    query = parse_qs(decode(text), keep_blank_values=True)
    return {name: tuple(values) for name, values in query.items()}


def decode(text: str) -> str:
    """Return a text of a request as UTF-8. WSGI gives each byte as one character (PEP 3333)."""
    return text if text.isascii() else text.encode("latin-1", "replace").decode(errors="replace")


def _describe_location(headers: Headers) -> str:
    """Return the target of a redirect without its query, or an empty text."""
    for name, value in headers:
        if name.lower() == "location":
            return f"to {re.split('[?#]', value[:200])[0]}"
    return ""
