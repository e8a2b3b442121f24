"""The style sheets and scripts of the pages."""

from __future__ import annotations

import gzip
import re

import pytest

from flask_imcallback.web.page.files import URL_PATHS
from support.apps import MakeApp
from support.deliveries import make_delivery, store_all
from support.pages import PAGE, Html, open_app, read_page, request_page


@pytest.mark.parametrize("name", URL_PATHS)
def test_browsers_may_keep_a_file(make_app: MakeApp, name: str) -> None:
    """The URL contains a version or a hash, so that a new content has a new URL."""
    response = request_page(open_app(make_app), f"{PAGE}page/{URL_PATHS[name]}")
    assert "immutable" in response.headers["Cache-Control"]
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert re.search(r"\d", URL_PATHS[name])


@pytest.mark.parametrize(
    "name",
    [
        *("page.css", "../page.py", "vendor.json", "uplot-1.6.32/LICENSE", "docs.js", "%2e%2e/x"),
        *("bootstrap-5.3.8", "bootstrap-5.3.8/../vendor.json", "%00", "//etc/passwd"),
    ],
)
def test_another_file_is_a_404_page(make_app: MakeApp, name: str) -> None:
    """No path leads out of the list of files."""
    html = read_page(open_app(make_app), f"{PAGE}page/{name}", 404)
    assert "The page has no such file." in html.text


def test_the_first_view_is_small(make_app: MakeApp) -> None:
    """The page and its files have less than 100 kB when they are compressed."""
    app = open_app(make_app)
    with app.app_context():
        store_all([make_delivery((f"owner-{n}", f"target-{n}")) for n in range(100)])
    response = request_page(app)
    parts = [response.data, *(request_page(app, file).data for file in Html(response).files[1:])]
    assert len(parts) == 6
    assert sum(len(gzip.compress(part)) for part in parts) < 100_000
