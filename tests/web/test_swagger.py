"""The page that shows the API, without a browser."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest
from flask import Flask

from support.api import assert_problem, get
from support.apps import MakeApp
from support.html import Found

PAGE = "/imcallback/docs"
TOKEN = "a-token"
POLICY = {
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self' data:",
    "connect-src 'self'",
    "form-action 'self'",
    "base-uri 'none'",
    "frame-ancestors 'none'",
}
TYPES = {"js": "text/javascript", "css": "text/css", "png": "image/png"}


def open_app(make_app: MakeApp, **arguments: Any) -> Flask:
    return make_app(migrate=False, IMCALLBACK_HISTORY_TOKENS=[TOKEN], **arguments)


@pytest.mark.parametrize("address", [PAGE, f"{PAGE}/"])
@pytest.mark.parametrize("prefix", ["/imcallback", "", "/a/b"])
def test_the_page_has_its_files_and_nothing_else(
    make_app: MakeApp, prefix: str, address: str
) -> None:
    """All are served by us and needed; there is no script and no style in the page itself."""
    app = open_app(make_app, IMCALLBACK_URL_PREFIX=prefix)
    response = get(app, address.replace("/imcallback", prefix), TOKEN)
    assert (response.status_code, response.mimetype) == (200, "text/html")
    found = Found(response.text)
    assert found.inline == []
    assert len(found.files) == 4
    for file in found.files:
        assert file.startswith(f"{prefix}/docs/")
        served = get(app, file, TOKEN)
        assert (served.status_code, served.mimetype) == (200, TYPES[file.rpartition(".")[2]])
        assert len(served.data) > 200
    script = get(app, f"{prefix}/docs/docs.js", TOKEN).text
    assert "http" not in script
    assert '"../openapi.json"' in script
    assert "validatorUrl: null" in script


@pytest.mark.parametrize("path", [PAGE, f"{PAGE}/docs.js", f"{PAGE}/x", "/imcallback/openapi.json"])
@pytest.mark.parametrize("token", [TOKEN, None])
def test_headers(make_app: MakeApp, path: str, token: str | None) -> None:
    """They are strict whatever the answer is."""
    response = get(open_app(make_app), path, token)
    policy = response.headers["Content-Security-Policy"]
    assert set(policy.split("; ")) == POLICY
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize(
    "name",
    [
        *("static/docs.js", "swagger-ui.js", "index.css", "LICENSE", "docs.js%0A", "DOCS.JS", ".."),
        *(
            "../../templates/index.template.html",
            "\\..\\x",
            "swagger-ui.css.map",
            "%FF",
            "docs.js ",
        ),
    ],
)
def test_another_file_is_404(make_app: MakeApp, name: str) -> None:
    """Also one that Swagger UI has, and whatever leads out of its folder."""
    assert_problem(get(open_app(make_app), f"{PAGE}/{name}", TOKEN), 404)


@pytest.mark.parametrize("path", [PAGE, f"{PAGE}/swagger-ui.css"])
def test_the_extra_is_named(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Where Swagger UI is not installed, only readers are told; the document is there."""
    monkeypatch.setitem(sys.modules, "flask_swagger_ui", None)
    app = open_app(make_app)
    problem = assert_problem(get(app, path, TOKEN), 501)
    assert problem["type"].endswith(":not-installed")
    assert "flask-imcallback[swagger]" in problem["detail"]
    assert_problem(get(app, path, None), 401)
    assert get(app, "/imcallback/openapi.json", TOKEN).status_code == 200


def test_nothing_of_it_comes_from_elsewhere(make_app: MakeApp) -> None:
    """Neither a font nor an image nor a script: what is no data has no address of another host."""
    app = open_app(make_app)
    style = get(app, f"{PAGE}/swagger-ui.css", TOKEN).text
    addresses = re.findall(r"url\(\s*['\"]?([^'\")]{0,40})", style)
    assert addresses
    assert [one for one in addresses if not one.startswith("data:")] == []
    assert "@import" not in style
