"""An app that chooses its views by the host of the URL."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask

from flask_imcallback import ImCallback, upgrade
from support.apps import close_connections, rows
from support.pages import TOKEN

SECRET = "a-secret-path-segment"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
HOSTS = ["localhost", "10.1.2.3:8000", "api.example.com"]


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    """An app with `host_matching`, whose own page has one host."""
    app = Flask("host", instance_path=str(tmp_path), host_matching=True, static_folder=None)
    app.config.update(IMCALLBACK_SECRETS=[SECRET], IMCALLBACK_HISTORY_TOKENS=[TOKEN])
    ImCallback(app)
    app.add_url_rule("/", view_func=lambda: "home", host="api.example.com")
    with app.app_context():
        upgrade()
    yield app
    close_connections(app)


@pytest.mark.parametrize("host", HOSTS)
def test_our_urls_work_with_every_host(app: Flask, host: str) -> None:
    """The IM server may call another host than the readers."""
    client, base_url = app.test_client(), f"http://{host}"
    packet = {
        "callbackCommand": "callbackAfterRemoveBlackCommand",
        "ownerUserID": "alice",
        "blackUserID": "bob",
    }
    url = f"/imcallback/openim/{SECRET}/callbackAfterRemoveBlackCommand"
    assert client.post(url, json=packet, base_url=base_url).status_code == 200
    assert [row["target_id"] for row in rows(app)[1]] == ["bob"]

    for path in ("", "history", "openapi.json", "health", "history/export?format=csv"):
        response = client.get(f"/imcallback/{path}", base_url=base_url, headers=HEADERS)
        assert response.status_code == 200, path


@pytest.mark.parametrize("host", HOSTS)
def test_links_of_our_pages_stay_on_their_host(app: Flask, host: str) -> None:
    """The page before the first removal also shows the URLs for the IM server."""
    client, base_url = app.test_client(), f"http://{host}"
    page = client.get("/imcallback/", base_url=base_url, headers=HEADERS).text
    assert f"http://{host}/imcallback/openim/" in page
    assert "imcallback_host" not in page
    links = re.findall(r'(?:href|src)="(/[^"]+)"', page)
    assert links
    for link in links:
        response = client.get(link.replace("&amp;", "&"), base_url=base_url, headers=HEADERS)
        assert response.status_code == 200, link


def test_pages_of_the_host_keep_their_host(app: Flask) -> None:
    """Our rules change no rule of the app."""
    client = app.test_client()
    assert client.get("/", base_url="http://api.example.com").text == "home"
    assert client.get("/", base_url="http://localhost").status_code == 404
