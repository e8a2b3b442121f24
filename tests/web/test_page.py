"""The first page of the history: access, links, filters, timeline, page by page, exports."""

from __future__ import annotations

import csv
import io
import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

import pytest
from flask import Flask

from flask_imcallback.removals import Cause, Relation
from flask_imcallback.web.page.files import URL_PATHS
from support import ROOT
from support.api import MEMBERS, login_required
from support.apps import MakeApp
from support.deliveries import MOMENT, store
from support.pages import (
    PAGE,
    TOKEN,
    Html,
    basic,
    open_app,
    page_urls,
    read_page,
    request_page,
)


@pytest.fixture
def app(make_app: MakeApp) -> Flask:
    """An app with one removal."""
    app = open_app(make_app)
    with app.app_context():
        store(("owner", "target"), platform="iOS")
    return app


# Access


@pytest.mark.parametrize(
    "headers",
    [basic("anybody", TOKEN), {"Authorization": f"Bearer {TOKEN}"}],
    ids=["Basic", "Bearer"],
)
def test_a_token_opens_every_page(make_app: MakeApp, headers: dict[str, str]) -> None:
    """A browser may send the token as the password of HTTP Basic."""
    app = open_app(make_app)
    with app.app_context():
        record = store(("owner", "target"))[0]
    style = f"{PAGE}page/{URL_PATHS['page.css']}"
    for url in [*page_urls(record), style, f"{PAGE}history/export"]:
        assert app.test_client().get(url, headers=headers, buffered=True).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{}, basic(TOKEN, "x"), {"Authorization": "Bearer x"}],
    ids=["none", "wrong password", "wrong token"],
)
def test_without_a_token_every_page_asks_for_one(
    make_app: MakeApp, headers: dict[str, str]
) -> None:
    """The answer is 401, offers both schemes and shows nothing of the history."""
    app = open_app(make_app)
    with app.app_context():
        record = store(("owner", "target"), platform="iOS")[0]
    style = f"{PAGE}page/{URL_PATHS['page.css']}"
    for url in [*page_urls(record), style, f"{PAGE}history/export"]:
        response = app.test_client().get(url, headers=headers)
        assert response.status_code == 401
        schemes = [text.split()[0] for text in response.headers.getlist("WWW-Authenticate")]
        assert schemes == ["Basic", "Bearer"]
        assert "iOS" not in response.text
        assert response.headers["Cache-Control"] == "no-store"


def test_a_closed_page_names_the_setting(make_app: MakeApp) -> None:
    """Without tokens and decorators, nobody can read the page."""
    html = Html(make_app(migrate=False).test_client().get(PAGE))
    assert "403" in html.text
    assert "Set IMCALLBACK_HISTORY_TOKENS" in html.text


@pytest.mark.parametrize(("headers", "status"), [({"X-User": "1"}, 200), ({}, 401)])
def test_the_decorators_of_the_host_decide(
    make_app: MakeApp, headers: dict[str, str], status: int
) -> None:
    """The page uses the same decorators as the history."""
    app = make_app(history_decorators=[login_required])
    assert app.test_client().get(PAGE, headers=headers).status_code == status


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_the_page_supports_only_get(make_app: MakeApp, method: str) -> None:
    """Another method gets a 405 page."""
    response = request_page(open_app(make_app, migrate=False), PAGE, 405, method=method)
    assert response.headers["Allow"] == "GET, HEAD, OPTIONS"
    assert "This URL supports only GET and HEAD." in Html(response).text


# Links and headers


@pytest.mark.slow
@pytest.mark.parametrize(("prefix", "root"), [("/imcallback", ""), ("", ""), ("/a/b", "/c")])
def test_every_link_works(make_app: MakeApp, prefix: str, root: str) -> None:
    """Every URL on every page exists, under any prefix, and no page has an inline script."""
    app = open_app(make_app, IMCALLBACK_URL_PREFIX=prefix)
    with app.app_context():
        store(("alice", "bob"), ("alice", "carol"))
        store(("bob", "alice"), relation=Relation.BLACKLIST, provider="tencent", app_id="14000")
        store(("bob", "alice"), relation=Relation.GROUP, actor_id="carol", cause=Cause.KICKED)
    waiting, seen = [f"{prefix}/"], set()
    while waiting:
        url = waiting.pop()
        if url in seen:
            continue
        seen.add(url)
        assert len(seen) < 500
        response = request_page(app, url, base_url=f"http://localhost{root}")
        if response.mimetype != "text/html":
            continue
        html = Html(response)
        assert html.inline == []
        assert html.tags.count("h1") == 1
        for link in (*html.urls, *html.files):
            if link not in ("data:,", "#content"):
                assert link.startswith(f"{root}{prefix}/"), link
                waiting.append(link.removeprefix(root))
    first_segments = {urlsplit(url).path.removeprefix(prefix).split("/")[1] for url in seen}
    assert first_segments == {"", "account", "group", "removal", "page", "history"}


def test_a_final_slash_changes_nothing(make_app: MakeApp) -> None:
    """`/imcallback` and `/imcallback/` return the same page."""
    app = open_app(make_app)
    assert request_page(app, PAGE).data == request_page(app, PAGE.rstrip("/")).data


@pytest.mark.parametrize(("path", "status"), [("", 200), ("removal/1", 404), ("page/x", 404)])
def test_every_page_has_a_strict_policy(make_app: MakeApp, path: str, status: int) -> None:
    """Browsers run no inline script, keep no copy and guess no media type."""
    response = request_page(open_app(make_app), PAGE + path, status)
    policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
    assert "unsafe" not in policy
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Content-Type-Options"] == "nosniff"


# Timeline and times


@pytest.mark.parametrize("tz", ["UTC", "Asia/Shanghai", "America/New_York"])
@pytest.mark.parametrize(("days", "bucket"), [(20, "hour"), (30, "day"), (600, "week")])
def test_the_timeline_shows_the_counts_of_the_api(
    make_app: MakeApp, tz: str, days: int, bucket: str
) -> None:
    """The buckets are the smallest ones that give at most 500 rows."""
    app = open_app(make_app)
    since = MOMENT - timedelta(days=days)
    with app.app_context():
        for n in range(40):
            relation = list(Relation)[n % 3 == 0]
            store(("alice", str(n)), relation=relation, at=since + timedelta(days=n * days / 41))
    query = {"since": since.isoformat(), "until": MOMENT.isoformat(), "tz": tz}
    html = read_page(app, query_string={**query, "account_id": "alice"})
    stats_query = {**query, "bucket": bucket, "group_by": "relation"}
    response = request_page(app, f"{PAGE}history/stats", query_string=stats_query)
    stats = (response.get_json() or {})["data"]
    head, *rows = html.rows[: 1 + len(stats) // 2]
    assert head == ["Start", "blocklist", "friend list"]
    assert [int(number) for row in rows for number in row[1:]] == [row["count"] for row in stats]
    starts = [row["bucket"].replace("T", " ") for row in stats[::2]]
    assert all(start.startswith(row[0]) for start, row in zip(starts, rows, strict=True))
    assert len(rows) <= 501
    assert "40 removals from" in html.words


@pytest.mark.parametrize("year", ["0001", "1969", "2026", "2255", "2256", "9999"])
@pytest.mark.parametrize("tz", ["UTC", "Asia/Shanghai", "America/New_York"])
def test_any_year_is_answered(app: Flask, year: str, tz: str) -> None:
    """A time that does not exist in UTC is a 400, never a 500."""
    expected = {200, 400} if year in ("0001", "9999") else {200}
    for moment in (f"{year}-12-31T23:59:59.999999Z", f"{year}-01-01T00:00", f"{year}-12-31"):
        for times in ({"since": moment}, {"until": moment}, {"since": moment, "until": moment}):
            query = urlencode({**times, "tz": tz})
            response = app.test_client().get(f"{PAGE}?{query}", headers=basic("", TOKEN))
            assert response.status_code in expected, query


def test_times_are_in_the_chosen_zone(app: Flask) -> None:
    """The table and the form show the time zone of the URL. A title shows UTC."""
    response = request_page(app, query_string={"tz": "Asia/Shanghai", "since": "2026-11-21T02:05"})
    html = Html(response)
    assert "2026-11-21 02:05:00" in html.text
    assert 'title="2026-11-20 18:05:00.123456 UTC"' in response.text
    assert html.fields["since"] == "2026-11-21T02:05"
    assert html.fields["tz"] == "Asia/Shanghai"


@pytest.mark.parametrize(
    ("since", "is_found"),
    [("2026-11-21T02:05:00.124", False), ("2026-11-21 02:05:00.123456", True)],
)
def test_a_local_time_is_read_in_the_chosen_zone(app: Flask, since: str, is_found: bool) -> None:
    """The removal was received at 02:05:00.123456 in Shanghai."""
    html = read_page(app, query_string={"tz": "Asia/Shanghai", "since": since})
    assert ("No removals" in html.text) == (not is_found)


def test_a_form_field_shows_milliseconds(app: Flask) -> None:
    """Browsers do not accept microseconds in a time field."""
    html = read_page(app, query_string={"since": "2026-11-20T18:05:00.123456+00:00"})
    assert html.fields["since"] == "2026-11-20T18:05:00.123"


# Form


def test_empty_fields_are_ignored(app: Flask) -> None:
    """A browser sends all fields of a form, also the empty ones."""
    html = read_page(app)
    empty = read_page(app, query_string=dict.fromkeys(html.fields, ""))
    assert empty.fields == html.fields
    assert empty.targets == ["target"]
    assert len(html.fields) >= 15


def test_the_form_shows_the_query(app: Flask) -> None:
    """Every field has the value of its parameter, also a value that is not in its list."""
    query = {name: "x" for name in read_page(app).fields if name not in ("since", "until")}
    query |= {
        "relation": "group",
        "cause": "kicked",
        "tz": "Asia/Tokyo",
        "order": "asc",
        "limit": "7",
    }
    query |= {"since": "2026-11-20T00:00", "until": "2026-11-21T00:00", "lang": "en"}
    assert read_page(app, query_string=query).fields == query


def test_a_repeated_filter_has_several_fields(app: Flask) -> None:
    """Each value has its own field."""
    html = read_page(app, query_string={"owner_id": ["a", "b"]})
    assert html.tags.count("input") == read_page(app).tags.count("input") + 1
    assert html.fields["owner_id"] == "b"


def test_a_filter_without_matches_shows_the_form(make_app: MakeApp) -> None:
    """The setup help appears only if nothing is recorded at all."""
    html = read_page(open_app(make_app), query_string={"owner_id": "x"})
    assert "No removals." in html.text
    assert html.fields["owner_id"] == "x"


# Page by page


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_links_lead_through_all_pages_and_back(make_app: MakeApp, order: str) -> None:
    """The links keep the filters, the language and the time zone."""
    app = open_app(make_app)
    owners = ["a&b=c", "\u00e1+ %😀", '<">;,']
    with app.app_context():
        store(*((owners[n % 3], str(n)) for n in range(9)), ("another", "x"))
    query = {"owner_id": owners, "limit": "2", "order": order, "tz": "Asia/Tokyo", "lang": "en"}
    next_link, first_link, previous_link = (
        ("Older", "Newest", "Newer") if order == "desc" else ("Newer", "Oldest", "Older")
    )
    html = read_page(app, query_string=query)
    assert first_link not in html.links
    pages = [html.targets]
    while next_link in html.links:
        parameters = parse_qs(urlsplit(html.links[next_link]).query)
        assert len(parameters.pop("cursor")) == 1
        assert len(parameters.pop("back")) == len(pages)
        assert parameters == {n: v if isinstance(v, list) else [v] for n, v in query.items()}
        html = read_page(app, html.links[next_link])
        pages.append(html.targets)
        assert len(pages) <= 5
    targets = [target for page in pages for target in page]
    assert targets == [str(n) for n in range(9)][:: 1 if order == "asc" else -1]
    assert read_page(app, html.links[first_link]).targets == pages[0]
    for page in pages[-2::-1]:
        html = read_page(app, html.links[previous_link])
        assert html.targets == page
    assert previous_link not in html.links


@pytest.mark.parametrize("format", ["NDJSON", "CSV"])
def test_an_export_has_all_matches(make_app: MakeApp, format: str) -> None:
    """The export has the filters and the order of the page, but not its limit.

    CSV is for a spreadsheet.
    """
    app = open_app(make_app)
    with app.app_context():
        store(*(("a&b", str(n)) for n in range(4)), ("c", "4"))
        store(("a&b", "5"), at=MOMENT + timedelta(days=1))
    query = {"owner_id": "a&b", "limit": "2", "until": "2026-11-21T10:00", "tz": "Asia/Tokyo"}
    query |= {"order": "asc", "lang": "zh"}
    url = read_page(app, query_string=query).links[format]
    response = app.test_client().get(url, headers=basic("x", TOKEN), buffered=True)
    assert response.status_code == 200
    if format == "CSV":
        _, *rows = csv.reader(io.StringIO(response.text))
        assert response.text.startswith("\ufeff")
        assert [row[MEMBERS.index("target_id")] for row in rows] == ['="0"', '="1"', '="2"', '="3"']
    else:
        lines = response.text.splitlines()
        assert [json.loads(line)["target_id"] for line in lines] == ["0", "1", "2", "3"]


# Errors

WRONG_QUERIES = [
    *({"limit": "0"}, {"relation": "foe"}, {"peer_id": "x"}, {"cursor": "x"}, {"order": "id"}),
    *({"since": "yesterday"}, {"until": "2026-13-01T00:00"}, {"tz": "Mars"}, {"lang": "xx"}),
    *({"tz": ["UTC", "UTC"]}, {"lang": ["en", "zh"]}, {"since": ["2026-01-01"] * 2}),
    *({"owner": "x"}, {"<b>": "x"}, {"_external": "x"}, {"endpoint": "x"}, {"self": "x"}),
    *(
        {"cause": "left"},
        {"group_id": "\0"},
        {"owner_id": "\0"},
        {"owner_id": "x" * 256},
        {"bucket": "day"},
        {"format": "csv"},
    ),
]


@pytest.mark.parametrize("query", WRONG_QUERIES, ids=lambda query: ascii(query)[:40])
def test_a_wrong_parameter_is_named(make_app: MakeApp, query: dict[str, Any]) -> None:
    """The 400 page names the parameter, and its links work."""
    app = open_app(make_app)
    (name,) = query
    html = read_page(app, status=400, query_string=query)
    assert f"{name} " in html.text
    assert html.inline == []
    for url in html.urls:
        if url != "#content" and name not in unquote(url):
            request_page(app, url)


def test_a_query_that_is_not_utf8_is_a_400_page(make_app: MakeApp) -> None:
    """The page cannot keep the parameters of such a query."""
    html = read_page(open_app(make_app), f"{PAGE}?owner_id=%ff", 400)
    assert "owner_id is not UTF-8" in html.text


def test_an_unknown_time_zone_becomes_utc_in_links(make_app: MakeApp) -> None:
    """Without a time zone in the link, the script would add the one of the browser again."""
    html = read_page(open_app(make_app), f"{PAGE}?tz=Mars", 400)
    assert html.links["Back to all removals"] == f"{PAGE}?tz=UTC"


def test_missing_tables_name_the_command(make_app: MakeApp) -> None:
    """The 503 page says how to create the tables."""
    html = read_page(open_app(make_app, migrate=False), status=503)
    assert "flask db upgrade" in html.text


# Layout of the host

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


def test_the_documentation_has_two_recipes() -> None:
    """The next test runs each of them."""
    assert len(RECIPES) == 2


@pytest.mark.parametrize("recipe", RECIPES, ids=["blocks", "own layout"][: len(RECIPES)])
def test_a_host_can_use_its_own_layout(make_app: MakeApp, tmp_path: Path, recipe: str) -> None:
    """The recipes of the documentation work on every page."""
    app = open_app(make_app)
    (tmp_path / "templates/imcallback").mkdir(parents=True)
    (tmp_path / "templates/imcallback/base.html").write_text(recipe)
    (tmp_path / "templates/layout.html").write_text(LAYOUT)
    app.root_path, app.template_folder = str(tmp_path), "templates"
    with app.app_context():
        record = store(("alice", "bob"))[0]
    for url in page_urls(record):
        html = read_page(app, url)
        assert html.links["Home"] == "/"
        assert "alice" in html.text
        assert [file.rpartition("/")[2] for file in html.files].count("page.js") == 1
    assert "uPlot.iife.min.js" in request_page(app).text
