"""A provider that writes only the abstract parts: the defaults make it useful everywhere."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask
from openapi_spec_validator import OpenAPIV31SpecValidator

from flask_imcallback import OpenIMProvider, Provider
from flask_imcallback.providers import Callback, CallbackRequest, Origin, Reply, load_object
from flask_imcallback.runtime import get_runtime
from support.api import get
from support.apps import MakeApp, rows, wait_for_counters
from support.callbacks import run_command, served

TOKEN = "a-token"


class MinimalProvider(Provider):
    """A provider with the abstract parts only."""

    name = "minimal"
    is_enabled = True

    def verify(self, request: CallbackRequest) -> str:
        return "nothing"

    def origin(self, request: CallbackRequest) -> Origin:
        return Origin()

    def parse(self, request: CallbackRequest, body: bytes) -> Callback:
        return Callback(command="said", removals=None, packet=load_object(body))

    def accept(self, callback: Callback) -> Reply:
        return Reply(200, {})

    def refuse(self, status: int, problem: str) -> Reply:
        return Reply(status, {})


@pytest.fixture
def app(make_app: MakeApp) -> Flask:
    """An app with the minimal provider."""
    return make_app(
        IMCALLBACK_HISTORY_TOKENS=[TOKEN], providers=[OpenIMProvider, MinimalProvider()]
    )


def test_it_receives_callbacks(app: Flask) -> None:
    """The provider knows no commands, so the callback is acknowledged and counted."""
    response = app.test_client().post("/imcallback/minimal/any/path", json={}, buffered=True)
    assert response.status_code == 200
    wait_for_counters()
    assert rows(app) == ([], [])
    with app.app_context():
        counts = get_runtime().counters.counts()
    assert [(c.provider, c.outcome, c.name, c.count) for c in counts] == [
        ("minimal", "accepted", "said", 1)
    ]


def test_a_packet_that_cannot_be_read_is_stored(app: Flask) -> None:
    """Nothing says that the packet holds a message."""
    assert app.test_client().post("/imcallback/minimal", data=b"[]").status_code == 400
    assert [(row["status"], row["body"]) for row in rows(app)[0]] == [("unreadable", b"[]")]


def test_send_says_what_to_write(app: Flask) -> None:
    """Without samples, nothing can be sent."""
    result = run_command(app, "send", "said", "--provider", "minimal")
    assert "the provider 'minimal' cannot make callbacks: write its method sample" in result.output
    assert result.exit_code == 1


def test_doctor_says_what_to_write(app: Flask) -> None:
    """Without samples, the live address is not tried, which is a warning."""
    with served(app) as url:
        result = run_command(app, "doctor", "--url", url)
    assert "WARNING minimal: no probe can be sent" in result.output
    assert "Write the method sample of the provider." in result.output
    assert result.exit_code == 0


def test_the_openapi_document_allows_any_object(app: Flask) -> None:
    """The document is valid, and has both URLs."""
    document: dict[str, Any] = get(app, "/imcallback/openapi.json", TOKEN).get_json()
    OpenAPIV31SpecValidator(document).validate()
    for path in ("/minimal", "/minimal/{rest}"):
        assert document["paths"][path]["post"]["summary"] == "Receive a callback of minimal"
    assert document["components"]["schemas"]["minimal_accepted"] == {"type": "object"}


@pytest.mark.parametrize(
    ("language", "text"), [("en", "Send callbacks to"), ("zh", "回调地址填写")]
)
def test_the_setup_page_shows_the_url(app: Flask, language: str, text: str) -> None:
    """The default step is translated."""
    page = get(app, f"/imcallback/?lang={language}", TOKEN).text
    url = "http://localhost/imcallback/minimal"
    assert f'{text} <code class="im-text">{url}</code>' in page
