"""HTML pages of the extension: how tests request and read them."""

from __future__ import annotations

from base64 import b64encode
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlencode

from flask import Flask
from sqlalchemy import URL
from werkzeug.test import TestResponse

from flask_imcallback.removals import Record
from support.apps import MakeApp

PAGE = "/imcallback/"
TOKEN = "a-token-of-readers"
SECRET = "a-secret-path-segment"
GUARDS: dict[str, Any] = {
    "IMCALLBACK_SECRETS": [SECRET],
    "IMCALLBACK_HISTORY_TOKENS": [TOKEN],
}


class Html(HTMLParser):
    """The parts of a page: text, links, files, form fields, table rows, inline scripts."""

    def __init__(self, response: TestResponse) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.links: dict[str, str] = {}
        """URLs by link text. If a text occurs several times, the last link counts."""
        self.urls: list[str] = []
        self.files: list[str] = []
        self.fields: dict[str, str] = {}
        self.rows: list[list[str]] = []
        self.inline: list[str] = []
        """Scripts and styles inside the page, which the Content-Security-Policy blocks."""
        self.language = ""
        self._link: str | None = None
        self._link_text = ""
        self._is_in_cell = False
        assert response.mimetype == "text/html"
        self.feed(response.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        assert len(attributes) == len(attrs), "an attribute occurs twice"
        self.tags.append(tag)
        self.inline += [f"{tag} {n}" for n in attributes if n == "style" or n.startswith("on")]
        if tag == "html":
            self.language = attributes["lang"]
        if tag == "a":
            self._link, self._link_text = attributes["href"], ""
            self.urls.append(attributes["href"])
        elif "href" in attributes or "src" in attributes:
            self.files.append(attributes.get("href") or attributes["src"])
        if tag in ("input", "select"):
            self.fields[attributes["name"]] = attributes.get("value", "")
        if tag == "option" and "selected" in attributes:
            self.fields[list(self.fields)[-1]] = attributes["value"]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._is_in_cell = True
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "a" and self._link is not None:
            self.links[" ".join(self._link_text.split())] = self._link
            self._link = None
        if tag in ("td", "th"):
            self._is_in_cell = False

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] in ("script", "style") and data.strip():
            self.inline.append(data)
        self.text += data
        self._link_text += data
        if self._is_in_cell:
            self.rows[-1][-1] += data

    @property
    def words(self) -> str:
        """The text with single spaces."""
        return " ".join(self.text.split())

    @property
    def targets(self) -> list[str]:
        """The targets in the table of removals."""
        header = next(number for number, row in enumerate(self.rows) if len(row) == 5)
        return [row[1].partition(" → ")[2] for row in self.rows[header + 1 :]]


def open_app(make_app: MakeApp, url: URL | None = None, **arguments: Any) -> Flask:
    """Make an app with a secret for callbacks and a token for readers."""
    return make_app(url, **{**GUARDS, **arguments})


def request_page(app: Flask, url: str = PAGE, status: int = 200, **options: Any) -> TestResponse:
    """Request a URL with the token, and check the status."""
    headers = {"Authorization": f"Bearer {TOKEN}", **options.pop("headers", {})}
    response = app.test_client().open(url, headers=headers, buffered=True, **options)
    assert response.status_code == status, response.text
    return response


def read_page(app: Flask, url: str = PAGE, status: int = 200, **options: Any) -> Html:
    return Html(request_page(app, url, status, **options))


def basic(user: str, password: str) -> dict[str, str]:
    """Return the header of HTTP Basic credentials."""
    return {"Authorization": "Basic " + b64encode(f"{user}:{password}".encode()).decode()}


def account_url(**query: str) -> str:
    return f"{PAGE}account?{urlencode(query)}"


def group_url(**query: str) -> str:
    return f"{PAGE}group?{urlencode(query)}"


def page_urls(record: Record) -> list[str]:
    """Return one URL of each kind of page that shows a removal."""
    return [
        PAGE,
        account_url(account_id=record.owner_id),
        account_url(account_id=record.owner_id, peer_id=record.target_id),
        group_url(group_id=record.owner_id, account_id=record.target_id),
        f"{PAGE}removal/{record.id}",
    ]
