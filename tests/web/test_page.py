"""The page: what it shows, to whom, and what it makes of what strangers wrote."""

from __future__ import annotations

import csv
import gettext
import gzip
import io
import json
import re
from base64 import b64encode
from collections.abc import Iterator
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

import pytest
import time_machine
from babel.messages.extract import extract
from babel.messages.pofile import read_po
from flask import Flask
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import Environment
from jinja2.ext import extract_from_ast
from sqlalchemy import URL
from werkzeug.test import TestResponse

from flask_imcallback import providers
from flask_imcallback.providers import PROVIDERS
from flask_imcallback.removals import Record, Relation
from flask_imcallback.runtime import get_runtime
from flask_imcallback.web.page import views as page_module
from flask_imcallback.web.page.text import FOLDER, LANGUAGES, indented, visible
from flask_imcallback.web.page.views import ADDRESSES
from support import ROOT
from support.api import login_required
from support.apps import MakeApp, wait_for_counters
from support.deliveries import MOMENT, delivery_of, store, store_all

PAGE = "/imcallback/"
TOKEN = "a-token"
SECRET = "a-secret-path-segment"
GUARDS: dict[str, Any] = {
    "IMCALLBACK_SECRETS": [SECRET],
    "IMCALLBACK_HISTORY_TOKENS": [TOKEN],
}
HOSTILE = [
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "%s %(owner)s %",
    "</title></code></pre><b>",
    "../../x?a=b&c=d#e;f",
    "a\u202eb\u2066c",
    "\u200b",
    "\x07\x1b[31m\r\n",
    " a  b ",
    "\u3164\ufe0f\u00a0",
    "&lt;&amp;&#0;",
    "\u00e9\U0001f600",
    "x" * 255,
]
NOBODY_SEES = re.compile("[\x00-\x09\x0b-\x1f\x7f-\xa0\u200b-\u200f\u202a-\u202e\u2066-\u2069]")


class Html(HTMLParser):
    """What a reader gets: text, links, files, forms, tables; and what a strict policy refuses."""

    def __init__(self, response: TestResponse) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.links: dict[str, str] = {}
        """Addresses by what stands in them; the last one, if that is several times there."""
        self.addresses: list[str] = []
        self.files: list[str] = []
        self.fields: dict[str, str] = {}
        self.rows: list[list[str]] = []
        self.inline: list[str] = []
        self.language = ""
        self._link: str | None = None
        self._link_text = ""
        self._cell = False
        assert response.mimetype == "text/html"
        self.feed(response.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        assert len(given) == len(attrs), "an attribute is given twice"
        self.tags.append(tag)
        self.inline += [f"{tag} {n}" for n in given if n == "style" or n.startswith("on")]
        if tag == "html":
            self.language = given["lang"]
        if tag == "a":
            self._link, self._link_text = given["href"], ""
            self.addresses.append(given["href"])
        elif "href" in given or "src" in given:
            self.files.append(given.get("href") or given["src"])
        if tag in ("input", "select"):
            self.fields[given["name"]] = given.get("value", "")
        if tag == "option" and "selected" in given:
            self.fields[list(self.fields)[-1]] = given["value"]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._cell = True
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "a" and self._link is not None:
            self.links[" ".join(self._link_text.split())] = self._link
            self._link = None
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] in ("script", "style") and data.strip():
            self.inline.append(data)
        self.text += data
        self._link_text += data
        if self._cell:
            self.rows[-1][-1] += data

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def open_app(make_app: MakeApp, url: URL | None = None, **arguments: Any) -> Flask:
    return make_app(url, **{**GUARDS, **arguments})


def ask(app: Flask, address: str = PAGE, status: int = 200, **options: Any) -> TestResponse:
    headers = {"Authorization": f"Bearer {TOKEN}", **options.pop("headers", {})}
    response = app.test_client().open(address, headers=headers, buffered=True, **options)
    assert response.status_code == status, response.text
    return response


def read(app: Flask, address: str = PAGE, status: int = 200, **options: Any) -> Html:
    return Html(ask(app, address, status, **options))


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + b64encode(f"{user}:{password}".encode()).decode()}


def account(**query: str) -> str:
    return f"{PAGE}account?{urlencode(query)}"


def pages(record: Record) -> list[str]:
    """One of each kind."""
    return [
        PAGE,
        account(account_id=record.owner_id),
        account(account_id=record.owner_id, peer_id=record.target_id),
        f"{PAGE}removal/{record.id}",
    ]


def targets(html: Html) -> list[str]:
    """Of the table of removals."""
    begin = next(n for n, row in enumerate(html.rows) if len(row) == 5) + 1
    return [row[1].partition(" → ")[2] for row in html.rows[begin:]]


def test_who_may_read(make_app: MakeApp) -> None:
    """A token as a bearer or as a password; others are asked for one, in HTML."""
    app = open_app(make_app)
    with app.app_context():
        record = store(("owner", "target"), platform="iOS")[0]
    client = app.test_client()
    style = f"{PAGE}page/{ADDRESSES['page.css']}"
    for path in [*pages(record), style, f"{PAGE}history/export"]:
        for headers in (basic("anybody", TOKEN), {"Authorization": f"Bearer {TOKEN}"}):
            assert client.get(path, headers=headers, buffered=True).status_code == 200
        for headers in ({}, basic(TOKEN, "x"), {"Authorization": "Bearer x"}):
            response = client.get(path, headers=headers)
            assert response.status_code == 401
            schemes = [text.split()[0] for text in response.headers.getlist("WWW-Authenticate")]
            assert schemes == ["Basic", "Bearer"]
            assert "iOS" not in response.text
            assert response.headers["Cache-Control"] == "no-store"


def test_the_page_is_closed(make_app: MakeApp) -> None:
    """Until a setting opens it, which is named."""
    html = Html(make_app(migrate=False).test_client().get(PAGE))
    assert "403" in html.text
    assert "IMCALLBACK_HISTORY_TOKENS" in html.text


def test_decorators_decide(make_app: MakeApp) -> None:
    """Those of the host, as for the history."""
    app = make_app(history_decorators=[login_required])
    for headers, status in (({"X-User": "1"}, 200), ({}, 401)):
        assert app.test_client().get(PAGE, headers=headers).status_code == status


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_it_is_only_read(make_app: MakeApp, method: str) -> None:
    """405, in the frame of the page."""
    response = ask(open_app(make_app, migrate=False), PAGE, 405, method=method)
    assert response.headers["Allow"] == "GET, HEAD, OPTIONS"
    assert "405" in Html(response).text


@pytest.mark.parametrize(("prefix", "root"), [("/imcallback", ""), ("", ""), ("/a/b", "/c")])
def test_every_link_leads_somewhere(make_app: MakeApp, prefix: str, root: str) -> None:
    """All pages that links lead to, in every place, have no more than their policy allows."""
    app = open_app(make_app, IMCALLBACK_URL_PREFIX=prefix)
    with app.app_context():
        store(("alice", "bob"), ("alice", "carol"))
        store(("bob", "alice"), relation=Relation.BLACKLIST, provider="tencent", app_id="14000")
    base = f"http://localhost{root}"
    waiting, seen = [f"{prefix}/"], set()
    while waiting:
        address = waiting.pop()
        if address in seen:
            continue
        seen.add(address)
        assert len(seen) < 500
        response = ask(app, address, base_url=base)
        if response.mimetype != "text/html":
            continue
        html = Html(response)
        assert html.inline == []
        assert html.tags.count("h1") == 1
        for found in (*html.addresses, *html.files):
            if found not in ("data:,", "#content"):
                assert found.startswith(f"{root}{prefix}/"), found
                waiting.append(found.removeprefix(root))
    kinds = {urlsplit(address).path.removeprefix(prefix).split("/")[1] for address in seen}
    assert kinds == {"", "account", "removal", "page", "history"}


def test_with_and_without_a_final_slash(make_app: MakeApp) -> None:
    """It is the same."""
    app = open_app(make_app)
    assert ask(app, PAGE).data == ask(app, PAGE.rstrip("/")).data


def test_headers(make_app: MakeApp) -> None:
    """A strict policy and no copy, but of files, whose addresses change with them."""
    app = open_app(make_app)
    for path, status in ((PAGE, 200), (f"{PAGE}removal/1", 404), (f"{PAGE}page/x", 404)):
        response = ask(app, path, status)
        policy = response.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
        assert "unsafe" not in policy
        assert response.headers["Cache-Control"] == "no-store"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
    for address in ADDRESSES.values():
        response = ask(app, f"{PAGE}page/{address}")
        assert "immutable" in response.headers["Cache-Control"]
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        assert re.search(r"\d", address)


@pytest.mark.parametrize(
    "name",
    [
        *("page.css", "../page.py", "vendor.json", "uplot-1.6.32/LICENSE", "docs.js", "%2e%2e/x"),
        *("bootstrap-5.3.8", "bootstrap-5.3.8/../vendor.json", "%00", "//etc/passwd"),
    ],
)
def test_another_file_is_404(make_app: MakeApp, name: str) -> None:
    """Whatever leads out of the list."""
    assert "404" in read(open_app(make_app), f"{PAGE}page/{name}", 404).text


def test_the_first_view_is_light(make_app: MakeApp) -> None:
    """Below 100 kB in all, compressed."""
    app = open_app(make_app)
    with app.app_context():
        store_all([delivery_of((f"owner-{n}", f"target-{n}")) for n in range(100)])
    response = ask(app)
    parts = [response.data, *(ask(app, file).data for file in Html(response).files[1:])]
    assert len(parts) == 6
    assert sum(len(gzip.compress(part)) for part in parts) < 100_000


@pytest.mark.parametrize("tz", ["UTC", "Asia/Shanghai", "America/New_York"])
@pytest.mark.parametrize(("days", "bucket"), [(20, "hour"), (30, "day"), (600, "week")])
def test_the_timeline_is_that_of_stats(make_app: MakeApp, tz: str, days: int, bucket: str) -> None:
    """The table has each number of the API, in the largest buckets that are not too many."""
    app = open_app(make_app)
    since = MOMENT - timedelta(days=days)
    with app.app_context():
        for n in range(40):
            relation = list(Relation)[n % 3 == 0]
            store(("alice", str(n)), relation=relation, at=since + timedelta(days=n * days / 41))
    query = {"since": since.isoformat(), "until": MOMENT.isoformat(), "tz": tz}
    html = read(app, query_string={**query, "account_id": "alice"})
    grouped = {**query, "bucket": bucket, "group_by": "relation"}
    stats = (ask(app, f"{PAGE}history/stats", query_string=grouped).get_json() or {})["data"]
    head, *rows = html.rows[: 1 + len(stats) // 2]
    assert head == ["Begin", "blocklist", "friend list"]
    assert [int(number) for row in rows for number in row[1:]] == [row["count"] for row in stats]
    begins = [row["bucket"].replace("T", " ") for row in stats[::2]]
    assert all(begin.startswith(row[0]) for begin, row in zip(begins, rows, strict=True))
    assert len(rows) <= 501
    assert "40 removals from" in html.words


@pytest.mark.parametrize("year", ["0001", "1969", "2026", "2255", "2256", "9999"])
@pytest.mark.parametrize("tz", ["UTC", "Asia/Shanghai", "America/New_York"])
def test_any_time_can_be_asked_for(make_app: MakeApp, year: str, tz: str) -> None:
    """Or it is a 400 where no clock of UTC shows it."""
    app = open_app(make_app)
    with app.app_context():
        store(("o", "t"))
    for moment in (f"{year}-12-31T23:59:59.999999Z", f"{year}-01-01T00:00", f"{year}-12-31"):
        for asked in ({"since": moment}, {"until": moment}, {"since": moment, "until": moment}):
            query = urlencode({**asked, "tz": tz})
            response = app.test_client().get(f"{PAGE}?{query}", headers=basic("", TOKEN))
            expected = {200, 400} if year in ("0001", "9999") else {200}
            assert response.status_code in expected, query


def test_times_are_those_of_the_reader(make_app: MakeApp) -> None:
    """In the table and in the form, in which they are read, too; UTC is in the title."""
    app = open_app(make_app)
    with app.app_context():
        store(("owner", "target"))
    response = ask(app, query_string={"tz": "Asia/Shanghai", "since": "2026-11-21T02:05"})
    html = Html(response)
    assert "2026-11-21 02:05:00" in html.text
    assert 'title="2026-11-20 18:05:00.123456 UTC"' in response.text
    assert html.fields["since"] == "2026-11-21T02:05"
    assert html.fields["tz"] == "Asia/Shanghai"
    for since, found in (("2026-11-21T02:05:00.124", 0), ("2026-11-21 02:05:00.123456", 1)):
        html = read(app, query_string={"tz": "Asia/Shanghai", "since": since})
        assert ("No removals" in html.text) == (not found)
    html = read(app, query_string={"since": "2026-11-20T18:05:00.123456+00:00"})
    assert html.fields["since"] == "2026-11-20T18:05:00.123"


def test_empty_fields_do_not_count(make_app: MakeApp) -> None:
    """A browser sends all fields of a form."""
    app = open_app(make_app)
    with app.app_context():
        store(("owner", "target"))
    html = read(app)
    empty = read(app, query_string=dict.fromkeys(html.fields, ""))
    assert empty.fields == html.fields
    assert targets(empty) == ["target"]
    assert len(html.fields) >= 15


def test_the_form_keeps_what_was_asked(make_app: MakeApp) -> None:
    """Every field has the value that it was sent with, also where there is no such choice."""
    app = open_app(make_app)
    with app.app_context():
        store(("owner", "target"))
    asked = {name: "x" for name in read(app).fields if name not in ("since", "until")}
    asked |= {"relation": "friend", "tz": "Asia/Tokyo", "order": "asc", "limit": "7"}
    asked |= {"since": "2026-11-20T00:00", "until": "2026-11-21T00:00", "lang": "en"}
    html = read(app, query_string=asked)
    assert html.fields == asked
    html = read(app, query_string={"owner_id": ["a", "b"]})
    assert (html.tags.count("input"), html.fields["owner_id"]) == (
        read(app).tags.count("input") + 1,
        "b",
    )


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_links_lead_through_all_pages(make_app: MakeApp, order: str) -> None:
    """And back, one by one or to the first, with filters, language and time zone."""
    app = open_app(make_app)
    owners = ["a&b=c", "\u00e1+ %😀", '<">;,']
    with app.app_context():
        store(*((owners[n % 3], str(n)) for n in range(9)), ("another", "x"))
    asked = {"owner_id": owners, "limit": "2", "order": order, "tz": "Asia/Tokyo", "lang": "en"}
    older, newest = ("Older", "Newest") if order == "desc" else ("Newer", "Oldest")
    html = read(app, query_string=asked)
    assert newest not in html.links
    found, pages = targets(html), [targets(html)]
    while older in html.links:
        query = parse_qs(urlsplit(html.links[older]).query)
        assert len(query.pop("cursor")) == 1
        assert len(query.pop("back")) == len(pages)
        assert query == {n: v if isinstance(v, list) else [v] for n, v in asked.items()}
        html = read(app, html.links[older])
        found += targets(html)
        pages.append(targets(html))
        assert len(found) <= 9
    assert found == [str(n) for n in range(9)][:: 1 if order == "asc" else -1]
    assert targets(read(app, html.links[newest])) == pages[0]
    newer = "Newer" if order == "desc" else "Older"
    for before in pages[-2::-1]:
        html = read(app, html.links[newer])
        assert targets(html) == before
    assert newer not in html.links


@pytest.mark.parametrize("format", ["NDJSON", "CSV"])
def test_exports_have_what_is_shown(make_app: MakeApp, format: str) -> None:
    """All of it, in its order, for whoever sees the page."""
    app = open_app(make_app)
    with app.app_context():
        store(*(("a&b", str(n)) for n in range(4)), ("c", "4"))
        store(("a&b", "5"), at=MOMENT + timedelta(days=1))
    asked = {"owner_id": "a&b", "limit": "2", "until": "2026-11-21T10:00", "tz": "Asia/Tokyo"}
    asked |= {"order": "asc", "lang": "zh"}
    link = read(app, query_string=asked).links[format]
    response = app.test_client().get(link, headers=basic("x", TOKEN), buffered=True)
    assert response.status_code == 200
    if format == "CSV":
        _, *rows, _ = csv.reader(io.StringIO(response.text))
        assert [row[6] for row in rows] == ["0", "1", "2", "3"]
    else:
        *lines, _ = response.text.splitlines()
        assert [json.loads(line)["target_id"] for line in lines] == ["0", "1", "2", "3"]


BAD = [
    *({"limit": "0"}, {"relation": "foe"}, {"peer_id": "x"}, {"cursor": "x"}, {"order": "id"}),
    *({"since": "yesterday"}, {"until": "2026-13-01T00:00"}, {"tz": "Mars"}, {"lang": "xx"}),
    *({"tz": ["UTC", "UTC"]}, {"lang": ["en", "zh"]}, {"since": ["2026-01-01"] * 2}),
    *({"owner": "x"}, {"<b>": "x"}, {"_external": "x"}, {"endpoint": "x"}, {"self": "x"}),
    *({"owner_id": "\0"}, {"owner_id": "x" * 256}, {"bucket": "day"}, {"format": "csv"}),
]


@pytest.mark.parametrize("asked", BAD, ids=lambda asked: ascii(asked)[:40])
def test_a_bad_parameter_is_named(make_app: MakeApp, asked: dict[str, Any]) -> None:
    """In the frame of the page, from which one gets back."""
    app = open_app(make_app)
    html = read(app, status=400, query_string=asked)
    assert f"{next(iter(asked))} " in html.text
    assert html.inline == []
    for address in html.addresses:
        if address != "#content" and next(iter(asked)) not in unquote(address):
            ask(app, address)
    assert "400" in read(app, f"{PAGE}removal/1", 400, query_string={"owner_id": "x"}).text


def test_a_query_that_is_no_text(make_app: MakeApp) -> None:
    """It has no parameters to keep."""
    assert "UTF-8" in read(open_app(make_app), f"{PAGE}?owner_id=%ff", 400).text


def test_a_wrong_time_zone_is_not_kept(make_app: MakeApp) -> None:
    """A script that finds none in the address would give it that of the browser again."""
    html = read(open_app(make_app), f"{PAGE}?tz=Mars", 400)
    assert html.links["Back to all removals"] == f"{PAGE}?tz=UTC"


@pytest.mark.parametrize("path", ["removal/x", "removal/1", "removal/%00", "removal/1/2"])
def test_an_unknown_removal(make_app: MakeApp, path: str) -> None:
    """404, in the frame."""
    html = read(open_app(make_app), PAGE + path, 404)
    assert "There is no such removal." in html.text


def test_an_account_must_be_named(make_app: MakeApp) -> None:
    """Nothing is not all."""
    assert "account_id is missing" in read(open_app(make_app), f"{PAGE}account", 400).text


def test_missing_tables(make_app: MakeApp) -> None:
    """503, and the command that makes them."""
    html = read(open_app(make_app, migrate=False), status=503)
    assert "flask db upgrade" in html.text


def test_a_story(database_url: URL, make_app: MakeApp) -> None:
    """What happened between two, in words, from its begin; of one, from its end."""
    app = open_app(make_app, database_url)
    with app.app_context():
        store(("alice", "bob"), relation=Relation.BLACKLIST)
        store(("bob", "alice"), at=MOMENT + timedelta(days=3, hours=1))
        store(("alice", "carol"), at=MOMENT + timedelta(days=3, hours=1, minutes=1))
        store(("carol", "bob"), ("alice", "bob"), provider="tencent", app_id="1400000000")
    words = read(app, account(account_id="alice", peer_id="bob", provider="openim")).words
    assert re.search(
        "alice took bob off the blocklist .* 3 days later bob removed alice from the friend list",
        words,
    )
    assert "carol" not in words
    html = read(app, account(account_id="alice", provider="openim"))
    assert re.search(
        "alice removed carol from .* 1 minute earlier bob removed alice from .* 3 days earlier "
        "alice took bob off",
        html.words,
    )
    assert html.words.count("alice removed") == 1
    wide = read(app, html.links["The same names in all apps"])
    assert wide.words.count("alice removed") == 2
    turned = read(app, html.links["Oldest first"])
    assert turned.words.index("took bob") < turned.words.index("removed carol")
    both = read(app, html.links["all between the two"])
    assert "took bob off the blocklist" in both.words


def test_links_to_an_account_name_its_app(make_app: MakeApp) -> None:
    """The same id is somebody else in another one."""
    app = open_app(make_app)
    with app.app_context():
        store(("alice", "bob"), provider="tencent", app_id="1400000000")
    query = parse_qs(urlsplit(read(app).links["alice"]).query)
    assert query == {"account_id": ["alice"], "provider": ["tencent"], "app_id": ["1400000000"]}


def test_a_removal(database_url: URL, make_app: MakeApp) -> None:
    """Its facts, those of its delivery with the packet, and what came in it besides."""
    app = open_app(make_app, database_url)
    with app.app_context():
        record = store(
            *(("alice", f"friend-{n}") for n in range(3)),
            body='{"a":[1,{"b":"é"}],"c":{}}'.encode(),
            command="callbackX",
            client_ip="203.0.113.7",
            platform="iOS",
            request_id="2ea4e023",
        )[1]
    response = ask(app, f"{PAGE}removal/{record.id}")
    html = Html(response)
    for fact in (
        *("alice removed friend-1 from the friend list", "callbackX", "203.0.113.7", "iOS"),
        *("2ea4e023", "recorded", "secret", "192.0.2.1", "command=x", "host", "example.com"),
        *("3 removals came in it", "alice → friend-0", "alice → friend-2", str(record.id)),
    ):
        assert fact in html.words
    packet = '{\n  "a": [\n    1,\n    {\n      "b": "é"\n    }\n  ],\n  "c": {}\n}'
    assert packet in html.text


def test_a_packet_that_is_no_text(make_app: MakeApp) -> None:
    """It is in base64, and one that is no JSON is as it came."""
    app = open_app(make_app)
    with app.app_context():
        one, two = (store(("a", "b"), body=body)[0] for body in (b"\0\xff", b"{\n <b>\0 "))
    html = read(app, f"{PAGE}removal/{one.id}")
    assert b64encode(b"\0\xff").decode() in html.text
    assert "base64" in html.text
    assert "{\n <b>U+0000 " in read(app, f"{PAGE}removal/{two.id}").text


def test_a_large_delivery(make_app: MakeApp) -> None:
    """A part of its removals and of its packet is shown, and where the rest is."""
    app = open_app(make_app)
    body = json.dumps(["x" * 100] * 12_000).encode()
    with app.app_context():
        record = store(*(("a", str(n)) for n in range(120)), body=body)[5]
    response = ask(app, f"{PAGE}removal/{record.id}")
    html = Html(response)
    assert len(response.data) < 1_200_000
    assert f"/imcallback/deliveries/{record.delivery_id}" in html.text
    assert "120 removals came in it" in html.text
    assert len(targets(read(app, html.links["Show all"]))) == 50


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_hostile_text_is_shown_and_nothing_else(make_app: MakeApp, text: str) -> None:
    """In every place of every page it makes no tag, hides nothing and turns nothing around."""
    app = open_app(make_app)
    origin = dict.fromkeys(("client_ip", "platform", "request_id", "command"), text)
    with app.app_context():
        plain = store(("owner", "target"), at=MOMENT - timedelta(days=1))[0]
        body = json.dumps({"id": text}, ensure_ascii=False).encode()
        record = store((text, text[:254] + "!"), (text, "x"), body=body, **origin)[0]
        runtime = get_runtime()
        runtime.counters.accept(text[:32], text)
        runtime.counters.refuse("openim", text)
        runtime.counters.save()
    shown = visible(text).striptags()
    for kind, (hostile, harmless) in enumerate(zip(pages(record), pages(plain), strict=True)):
        response = ask(app, hostile)
        html = Html(response)
        assert html.inline == []
        assert set(html.tags) - {"span", "ol", "li", "p", "h2"} <= set(read(app, harmless).tags)
        assert shown in " ".join(html.text.split()), kind
        assert not NOBODY_SEES.search(html.text)
        for address in html.addresses:
            assert address == "#content" or address.startswith(PAGE)
    html = read(app, read(app).links[next(t for t in read(app).links if t.startswith(shown))])
    assert "friend list" in html.text
    asked = dict.fromkeys(("owner_id", "provider", "platform", "request_id", "command"), text)
    html = read(app, query_string=asked)
    assert html.inline == []
    assert not NOBODY_SEES.search(html.text)
    kept = text if "\r" not in text else None  # a browser's field has one line
    assert kept is None or html.fields["owner_id"] == kept


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("alice", "alice"),
        ("a b", "a b"),
        ("爱丽丝 😀 é", "爱丽丝 😀 é"),
        ("a\u202eb", "aU+202Eb"),
        ("\x00\x7f\u0085", "U+0000U+007FU+0085"),
        (" a", "U+0020a"),
        ("a ", "aU+0020"),
        ("a  b", "aU+0020 b"),
        (" ", "U+0020"),
        ("a\n", "aU+000A"),
        ("\u200d\ufeff\u3164\u00ad", "U+200DU+FEFFU+3164U+00AD"),
        ("\U000e0001", "U+E0001"),
        ("<&>", "<&>"),
    ],
)
def test_what_is_not_seen_has_a_name(text: str, shown: str) -> None:
    """Controls, marks of direction, what has no width, blanks at the ends; nothing else."""
    made = visible(text)
    assert made.striptags().replace(" ", "") == shown.replace(" ", "")
    assert made.unescape().count("<span") == shown.count("U+")
    assert "<&" not in made


def test_the_name_of_a_code_is_its_title() -> None:
    """As Unicode has it."""
    assert 'title="RIGHT-TO-LEFT OVERRIDE"' in visible("\u202e")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
    st.sampled_from([None, 1, 7]),
)
def test_a_packet_is_the_same_when_it_is_indented(packet: Any, indent: int | None) -> None:
    """Only white space between its tokens is other."""
    text = json.dumps(packet, indent=indent, allow_nan=True)
    assert json.loads(indented(text)) == packet
    assert json.dumps(json.loads(indented(text))) == json.dumps(json.loads(text))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            '{"a":1.10,"a":1e400,"b":"\\u0041\\"}"}',
            '{\n  "a": 1.10,\n  "a": 1e400,\n  "b": "\\u0041\\"}"\n}',
        ),
        ("[]", "[]"),
        ('{"a": { }}', '{\n  "a": { }\n}'),
        ("not JSON", "not JSON"),
        ("", ""),
        ("9" * 10_000, "9" * 10_000),
    ],
)
def test_tokens_stay_as_they_came(text: str, shown: str) -> None:
    """Numbers, escapes, and names that are there twice."""
    assert indented(text) == shown


def test_deep_packets_stay_small() -> None:
    """Whatever is nested in whatever."""
    for depth in (900, 100_000):
        text = "[" * depth + "1" + "]" * depth
        assert len(indented(text)) < 100 * len(text)


@pytest.mark.parametrize(
    ("asked", "header", "language"),
    [
        ({}, None, "en"),
        ({}, "zh-CN,zh;q=0.9,en;q=0.8", "zh-Hans"),
        ({}, "zh", "zh-Hans"),
        ({}, "fr", "en"),
        ({}, "en-GB,zh;q=0.5", "en"),
        ({"lang": "zh"}, "en", "zh-Hans"),
        ({"lang": "en"}, "zh", "en"),
    ],
)
def test_languages(
    make_app: MakeApp, asked: dict[str, str], header: str | None, language: str
) -> None:
    """That of the address, else of the browser, else English; links keep what was chosen."""
    app = open_app(make_app)
    with app.app_context():
        store(("alice", "bob"))
    headers = {} if header is None else {"Accept-Language": header}
    html = read(app, query_string=asked, headers=headers)
    assert html.language == language
    assert ("移除记录" in html.text) == (language != "en")
    assert parse_qs(urlsplit(html.links["alice"]).query).get("lang") == (
        [asked["lang"]] if asked else None
    )
    other = read(app, html.links["简体中文"], headers=headers)
    assert "好友列表" in other.text


def messages() -> Iterator[tuple[str, ...]]:
    """All that the templates and the code say."""
    for template in Path(page_module.__file__).parent.glob("templates/imcallback/*.html"):
        tree = Environment(autoescape=True).parse(template.read_text("utf-8"))
        for _, _, found in extract_from_ast(tree, ("_", "ngettext"), babel_style=False):
            if texts := tuple(text for text in found or () if isinstance(text, str)):
                yield texts
    for module in Path(providers.__file__).parent.glob("*.py"):
        for _, step, *_ in extract("python", io.BytesIO(module.read_bytes()), {"SetupStep": (1,)}):
            yield (str(step),)
    words = (Path(page_module.__file__).parent / "text.py").read_bytes()
    for _, found, *_ in extract("python", io.BytesIO(words), {"ngettext": (1, 2)}):
        yield tuple(str(text) for text in found or ())


@pytest.mark.parametrize("language", [language for language in LANGUAGES if language != "en"])
def test_translations_are_complete(language: str) -> None:
    """Each message is there, with the same values, and no other; the compiled file is the same."""
    with (FOLDER / language / "LC_MESSAGES/imcallback.po").open("rb") as file:
        source = [message for message in read_po(file) if message.id]
    compiled = gettext.translation("imcallback", FOLDER, [language])
    said = set(messages())
    assert len(said) > 90
    ids = [(m.id,) if isinstance(m.id, str) else tuple(map(str, m.id or ())) for m in source]
    assert sorted(ids) == sorted(said)
    for (one, *many), message in zip(ids, source, strict=True):
        texts = [message.string] if isinstance(message.string, str) else [*(message.string or ())]
        assert texts[0] == (compiled.ngettext(one, many[0], 1) if many else compiled.gettext(one))
        for text in texts:
            assert text
            assert sorted(VALUE.findall(text)) == sorted(VALUE.findall(one))


VALUE = re.compile(r"%\(\w+\)s")


FIRST: list[tuple[dict[str, Any], list[str], list[str]]] = [
    (
        {"IMCALLBACK_TENCENT_APPS": {"1400000000": ["the-token-of-it"]}},
        ["https://im.example/imcallback/tencent ", "Sns.CallbackFriendDelete"],
        ["webhooks.yml", "<secret>"],
    ),
    (
        {"IMCALLBACK_TENCENT_APPS": {"1400000000": []}, "IMCALLBACK_SECRETS": [SECRET]},
        ["/imcallback/tencent/<secret>", "/imcallback/openim/<secret>", "afterRemoveBlack"],
        ["the token of"],
    ),
    (
        {"IMCALLBACK_OPENIM_CREDENTIALS": {"its-user": "its-password"}},
        ["https://<user>:<password>@im.example/imcallback/openim"],
        ["Tencent"],
    ),
    ({}, ["No provider is on"], ["https://"]),
    (
        {"IMCALLBACK_ALLOW_UNAUTHENTICATED": True, "providers": [*PROVIDERS]},
        ["https://im.example/imcallback/openim "],
        ["<secret>"],
    ),
]


@pytest.mark.parametrize(("settings", "there", "not_there"), FIRST)
def test_the_first_run(
    make_app: MakeApp, settings: dict[str, Any], there: list[str], not_there: list[str]
) -> None:
    """Before anything came: what to enter where, and no secret in it."""
    app = make_app(IMCALLBACK_HISTORY_TOKENS=[TOKEN], **settings)
    html = read(app, base_url="https://im.example")
    assert "Nothing is recorded yet" in html.text
    for text in there:
        assert text in html.words
    main = html.words.partition("Nothing is recorded yet")[2].partition("Nothing arrives")[0]
    for text in [*not_there, SECRET, "the-token-of-it", "its-user", "its-password", TOKEN]:
        assert text not in main
    assert "flask imcallback doctor --url https://im.example/imcallback" in html.words
    with app.app_context():
        store(("alice", "bob"))
    assert "Nothing is recorded yet" not in read(app).text


def test_a_filter_that_finds_nothing_is_no_first_run(make_app: MakeApp) -> None:
    """Then there is a form."""
    html = read(open_app(make_app), query_string={"owner_id": "x"})
    assert "No removals." in html.text
    assert html.fields["owner_id"] == "x"


def test_what_came_and_what_was_refused(make_app: MakeApp) -> None:
    """The last of each, by command and by reason."""
    app = open_app(make_app)
    packet = {"callbackCommand": "callbackX"}
    with time_machine.travel(MOMENT, tick=False):
        path = f"/imcallback/openim/{SECRET}/callbackX"
        assert app.test_client().post(path, json=packet, buffered=True).status_code == 200
        wait_for_counters()
    with time_machine.travel(MOMENT + timedelta(minutes=2), tick=False):
        refused = app.test_client().post("/imcallback/openim/x", json=packet, buffered=True)
        assert refused.status_code == 403
        wait_for_counters()
    with time_machine.travel(MOMENT + timedelta(minutes=5), tick=False):
        html = read(app)
    assert "Last callback 5 minutes ago · last refusal 3 minutes ago" in html.words
    assert ["openim", "callbackX", "1", "2026-11-20 18:05:00"] in html.rows
    reason = "the request has neither a secret path segment nor a password"
    assert ["openim", reason, "1", "2026-11-20 18:07:00"] in html.rows


@pytest.mark.parametrize(
    ("count", "hours", "quiet"),
    [(300, 23, False), (300, 25, True), (9, 29 * 24, False), (9, 31 * 24, True), (0, 1, False)],
)
def test_silence(make_app: MakeApp, count: int, hours: int, quiet: bool) -> None:
    """It is unusual if it is ten times the usual gap of a month."""
    app = open_app(make_app)
    with app.app_context():
        gap = timedelta(hours=1)
        store_all([delivery_of(("a", str(n)), at=MOMENT - n * gap) for n in range(count)])
    with time_machine.travel(MOMENT + timedelta(hours=hours), tick=False):
        for path in (PAGE, f"{PAGE}?order=asc", f"{PAGE}?owner_id=a", f"{PAGE}?limit=1"):
            text = read(app, path).text
            assert ("Nothing has come for" in text) == (quiet and "=a" not in path), path


def test_ten_minutes_are_never_unusual(make_app: MakeApp) -> None:
    """However busy it was."""
    app = open_app(make_app)
    with app.app_context():
        pairs = [("a", "b")] * 1000
        store_all([delivery_of(*pairs, at=MOMENT - timedelta(n)) for n in range(25)] * 2)
    for minutes, quiet in ((9, False), (11, True)):
        with time_machine.travel(MOMENT + timedelta(minutes=minutes), tick=False):
            assert ("Nothing has come for" in read(app).text) == quiet


def test_what_waits_in_the_spool(make_app: MakeApp) -> None:
    """It is told, since the history does not show it; and so is a spool that cannot be read."""
    app = open_app(make_app)
    with app.app_context():
        runtime = get_runtime()
        assert runtime.drain
        assert "nothing waits in the spool" in read(app).text
        runtime.drain.spool.put(runtime.recorder._entry(delivery_of(("alice", "bob"))))
        assert "1 callback waits in the spool" in read(app).words
        runtime.drain.spool.engine.dispose()
        runtime.drain.spool.path.write_bytes(b"no database" * 1000)
        assert "The spool cannot be read" in read(app).text
        runtime.drain.spool.path.unlink()


LAYOUT = """<!doctype html>
<html lang="en">
<head>{% block head %}<title>Host</title>{% endblock %}</head>
<body>{% block main %}{% endblock %}<a href="/">Home</a>{% block end %}{% endblock %}</body>
</html>"""
RECIPES = re.findall(
    r"```html\+jinja\n(.+?)```",
    (ROOT / "docs/page.md").read_text("utf-8"),
    re.DOTALL,
)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_host_has_its_own_frame(make_app: MakeApp, tmp_path: Path, recipe: str) -> None:
    """As the documentation shows it; all pages have it."""
    assert len(RECIPES) == 2
    app = open_app(make_app)
    (tmp_path / "templates/imcallback").mkdir(parents=True)
    (tmp_path / "templates/imcallback/base.html").write_text(recipe)
    (tmp_path / "templates/layout.html").write_text(LAYOUT)
    app.root_path, app.template_folder = str(tmp_path), "templates"
    with app.app_context():
        record = store(("alice", "bob"))[0]
    for address in pages(record):
        html = read(app, address)
        assert html.links["Home"] == "/"
        assert "alice" in html.text
        assert [file.rpartition("/")[2] for file in html.files].count("page.js") == 1
    assert "uPlot.iife.min.js" in ask(app).text
