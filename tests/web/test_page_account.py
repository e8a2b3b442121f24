"""The page of one account, or of two accounts."""

from __future__ import annotations

import re
from datetime import timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
from flask import Flask
from sqlalchemy import URL

from flask_imcallback.removals import Relation
from support.apps import MakeApp
from support.deliveries import MOMENT, store
from support.pages import PAGE, account_url, open_app, read_page


@pytest.fixture
def app(database_url: URL, make_app: MakeApp) -> Flask:
    """An app in which alice removed bob, bob removed alice, and alice removed carol."""
    app = open_app(make_app, database_url)
    with app.app_context():
        store(("alice", "bob"), relation=Relation.BLACKLIST)
        store(("bob", "alice"), at=MOMENT + timedelta(days=3, hours=1))
        store(("alice", "carol"), at=MOMENT + timedelta(days=3, hours=1, minutes=1))
        store(("carol", "bob"), ("alice", "bob"), provider="tencent", app_id="1400000000")
    return app


def test_two_accounts_are_read_from_the_start(app: Flask) -> None:
    """Sentences tell what happened, with the time between them."""
    words = read_page(app, account_url(account_id="alice", peer_id="bob", provider="openim")).words
    assert re.search(
        "alice removed bob from the blocklist .* 3 days later "
        "bob removed alice from the friend list",
        words,
    )
    assert "carol" not in words


def test_one_account_is_read_from_the_end(app: Flask) -> None:
    """The newest removal is first. A link turns the order."""
    html = read_page(app, account_url(account_id="alice", provider="openim"))
    assert re.search(
        "alice removed carol from .* 1 minute earlier bob removed alice from .* 3 days earlier "
        "alice removed bob from",
        html.words,
    )
    turned = read_page(app, html.links["Oldest first"]).words
    assert turned.index("removed bob") < turned.index("removed carol")


def test_a_link_shows_the_accounts_in_all_apps(app: Flask) -> None:
    """The page itself shows the accounts of one app."""
    html = read_page(app, account_url(account_id="alice", provider="openim"))
    assert html.words.count("alice removed") == 2
    all_apps = read_page(app, html.links["The same accounts in all apps"])
    assert all_apps.words.count("alice removed") == 3


def test_a_link_shows_the_removals_between_two(app: Flask) -> None:
    """Each removal on the page of one account has this link."""
    html = read_page(app, account_url(account_id="alice", provider="openim"))
    between = read_page(app, html.links["all removals between the two"])
    assert "alice removed bob from the blocklist" in between.words


def test_a_link_to_an_account_names_its_app(make_app: MakeApp) -> None:
    """In another app the same account id is another account."""
    app = open_app(make_app)
    with app.app_context():
        store(("alice", "bob"), provider="tencent", app_id="1400000000")
    query = parse_qs(urlsplit(read_page(app).links["alice"]).query)
    assert query == {"account_id": ["alice"], "provider": ["tencent"], "app_id": ["1400000000"]}


def test_an_account_must_be_given(make_app: MakeApp) -> None:
    """Without an account the page would show all removals."""
    html = read_page(open_app(make_app), f"{PAGE}account", 400)
    assert "account_id is missing" in html.text
