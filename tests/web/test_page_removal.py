"""The page of one removal, with its delivery and its packet."""

from __future__ import annotations

import json
from base64 import b64encode

import pytest
from sqlalchemy import URL

from support.apps import MakeApp
from support.deliveries import store
from support.pages import PAGE, Html, open_app, read_page, request_page


def test_a_removal_shows_its_facts(database_url: URL, make_app: MakeApp) -> None:
    """The page shows the removal, its delivery, the packet and the other removals in it."""
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
    html = read_page(app, f"{PAGE}removal/{record.id}")
    for fact in (
        *("alice removed friend-1 from the friend list", "callbackX", "203.0.113.7", "iOS"),
        *("2ea4e023", "recorded", "secret", "192.0.2.1", "command=x", "host", "example.com"),
        *("3 removals in this delivery", "alice → friend-0", "alice → friend-2", str(record.id)),
    ):
        assert fact in html.words
    packet = '{\n  "a": [\n    1,\n    {\n      "b": "é"\n    }\n  ],\n  "c": {}\n}'
    assert packet in html.text


def test_a_packet_that_is_not_text_is_shown_in_base64(make_app: MakeApp) -> None:
    """The heading says so."""
    app = open_app(make_app)
    with app.app_context():
        record = store(("a", "b"), body=b"\0\xff")[0]
    html = read_page(app, f"{PAGE}removal/{record.id}")
    assert b64encode(b"\0\xff").decode() in html.text
    assert "Packet (in base64, because it is not text)" in html.text


def test_a_packet_that_is_not_json_is_shown_as_it_is(make_app: MakeApp) -> None:
    """Only invisible characters are replaced."""
    app = open_app(make_app)
    with app.app_context():
        record = store(("a", "b"), body=b"{\n <b>\0 ")[0]
    assert "{\n <b>U+0000 " in read_page(app, f"{PAGE}removal/{record.id}").text


def test_a_large_delivery_is_shown_in_part(make_app: MakeApp) -> None:
    """The page says where the rest of the packet and of the removals is."""
    app = open_app(make_app)
    body = json.dumps(["x" * 100] * 12_000).encode()
    with app.app_context():
        record = store(*(("a", str(n)) for n in range(120)), body=body)[5]
    response = request_page(app, f"{PAGE}removal/{record.id}")
    html = Html(response)
    assert len(response.data) < 1_200_000
    assert '["xxx' in html.text  # indenting a very large packet would take long
    assert f"/imcallback/deliveries/{record.delivery_id}" in html.text
    assert "120 removals in this delivery" in html.text
    assert len(read_page(app, html.links["Show all"]).targets) == 50


@pytest.mark.parametrize("path", ["removal/x", "removal/1", "removal/%00", "removal/1/2"])
def test_an_unknown_removal_is_a_404_page(make_app: MakeApp, path: str) -> None:
    """The page says that there is no such removal."""
    html = read_page(open_app(make_app), PAGE + path, 404)
    assert "There is no such removal." in html.text


def test_a_removal_takes_no_filters(make_app: MakeApp) -> None:
    """A filter in the URL is a 400."""
    html = read_page(open_app(make_app), f"{PAGE}removal/1?owner_id=x", 400)
    assert "owner_id " in html.text
