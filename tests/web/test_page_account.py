"""The page of one account, of two accounts, of a group, or of a member of a group."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from flask import Flask
from sqlalchemy import URL

from flask_imcallback.removals import Cause, Relation
from support.apps import MakeApp
from support.deliveries import MOMENT, store
from support.pages import PAGE, account_url, group_url, open_app, read_page


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


@pytest.mark.parametrize(("page", "parameter"), [("account", "account_id"), ("group", "group_id")])
def test_an_account_or_a_group_must_be_given(make_app: MakeApp, page: str, parameter: str) -> None:
    """Without an id the page would show all removals."""
    html = read_page(open_app(make_app), f"{PAGE}{page}", 400)
    assert f"{parameter} is missing" in html.text


@pytest.fixture
def group_app(make_app: MakeApp) -> Flask:
    """An app in which members left the groups "g" and "alice"."""
    app = open_app(make_app)
    group: dict[str, Any] = {"relation": Relation.GROUP, "provider": "tencent", "app_id": "14"}
    with app.app_context():
        store(("g", "alice"), ("g", "bob"), actor_id="mary", cause=Cause.KICKED, **group)
        store(("g", "alice"), cause=Cause.KICKED, **group)
        store(("g", "alice"), cause=Cause.QUIT, **group)
        store(("g", "alice"), cause=Cause.DISMISSED, **group)
        store(("alice", "carol"), cause=Cause.QUIT, **group)
        store(("alice", "bob"), relation=Relation.FOLLOW)
    return app


def test_an_account_is_told_how_it_left_its_groups(group_app: Flask) -> None:
    """Each cause has its sentence, with the actor if the provider sent it."""
    words = read_page(group_app, account_url(account_id="alice", order="asc")).words
    found = re.findall(
        r"alice was removed from group g by mary|alice was removed from group g(?! by)"
        r"|alice left group g|group g was dismissed, and alice left it"
        r"|alice no longer follows bob",
        words,
    )
    assert found == [
        "alice was removed from group g by mary",
        "alice was removed from group g",
        "alice left group g",
        "group g was dismissed, and alice left it",
        "alice no longer follows bob",
    ]
    assert "carol" not in words


def test_a_group_has_a_page(group_app: Flask) -> None:
    """Links lead from a removal to its group, to one of its members, and to the actor."""
    html = read_page(group_app, query_string={"order": "asc", "group_id": "g"})
    query = parse_qs(urlsplit(html.links["g"]).query)
    assert query == {"group_id": ["g"], "provider": ["tencent"], "app_id": ["14"]}
    group = read_page(group_app, html.links["g"])
    assert group.words.startswith("Group g")
    assert "bob was removed from group g by mary" in group.words
    member = read_page(group_app, group.links["all removals of this member"])
    assert "Group g · alice" in member.words
    assert "bob" not in member.words
    assert parse_qs(urlsplit(group.links["mary"]).query)["account_id"] == ["mary"]
    assert "No removals." in read_page(group_app, group.links["mary"]).words


def test_a_group_is_no_account(group_app: Flask) -> None:
    """A group may have the id of an account. Their pages show different removals."""
    words = read_page(group_app, group_url(group_id="alice")).words
    assert "carol left group alice" in words
    assert "follows" not in words


def test_a_removal_from_a_group_has_an_actor_and_a_cause(group_app: Flask) -> None:
    """The page of the removal and the table of removals show both."""
    html = read_page(group_app, query_string={"actor_id": "mary", "cause": "kicked"})
    assert html.targets == ["bob", "alice"]
    assert [row[2] for row in html.rows[-2:]] == ["group · kicked"] * 2
    url = next(url for url in html.urls if "/removal/" in url)
    words = read_page(group_app, url).words
    for fact in ("List group", "Group g", "Target bob", "Removed by mary", "Cause kicked"):
        assert fact in words
