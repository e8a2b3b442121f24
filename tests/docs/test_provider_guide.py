"""The guide to providers: its class runs in an app, and everything knows the new provider."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from openapi_spec_validator import OpenAPIV31SpecValidator
from sqlalchemy import select

from flask_imcallback import Provider, upgrade
from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage.tables import delivery
from support import ROOT, samples
from support.api import get
from support.apps import close_connections, wait_for_counters
from support.callbacks import run_command, served

PAGE = ROOT / "docs" / "providers.md"
TOKEN = "a-reader"
SAMPLES = {sample.name: sample for sample in samples.samples("parlour")}


def blocks(language: str) -> list[str]:
    text = PAGE.read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run(code: str, **names: Any) -> dict[str, Any]:
    """Run the code with these names, and return all names that exist then."""
    namespace = {"__name__": "parlour", **names}
    exec(compile(code, str(PAGE), "exec"), namespace)
    return namespace


PROVIDER, AS_CLASS, AS_OBJECT, CONTRACT = blocks("python")
PARLOUR = run(PROVIDER)["ParlourProvider"]
TestParlour = run(CONTRACT, ParlourProvider=PARLOUR)["TestParlour"]


@pytest.fixture(params=[AS_CLASS, AS_OBJECT], ids=["class", "object"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Flask]:
    """An app with the provider, registered in both ways of the page."""
    app = Flask("host", instance_path=str(tmp_path / "instance"))
    app.config["IMCALLBACK_HISTORY_TOKENS"] = [TOKEN]
    run(request.param, app=app, ParlourProvider=PARLOUR)
    with app.app_context():
        upgrade()
    yield app
    close_connections(app)


def send(app: Flask, sample: samples.Sample) -> None:
    """Send the packet, and compare the answer with the expected one."""
    path = f"/imcallback{sample.path}"
    response = app.test_client().post(path, headers=sample.headers, data=sample.body)
    assert response.status_code == sample.http_status, sample.name
    assert sample.answer.items() <= response.get_json().items(), sample.name


def history(app: Flask) -> list[dict[str, str]]:
    """Return the removals of the history."""
    response = get(app, "/imcallback/history", TOKEN)
    names = ("provider", "command", "relation", "owner_id", "target_id", "request_id")
    return [{name: removal[name] for name in names} for removal in response.get_json()["data"]]


def deliveries(app: Flask) -> list[Any]:
    """Return the stored deliveries."""
    with app.app_context(), get_runtime().engine().connect() as connection:
        return list(connection.execute(select(delivery).order_by(delivery.c.id)).all())


def test_a_callback_is_recorded_once(app: Flask) -> None:
    """The second delivery is a duplicate, because Parlour repeats callbacks."""
    send(app, SAMPLES["dropped"])
    send(app, SAMPLES["dropped"])
    removal = {
        "provider": "parlour",
        "command": "friend.dropped",
        "relation": "friend",
        "owner_id": "alice",
        "target_id": "bob",
        "request_id": "7f0c",
    }
    assert history(app) == [removal]
    first, second = deliveries(app)
    assert (first.status, first.authenticated_by) == ("recorded", "secret")
    assert (second.status, second.duplicate_of) == ("duplicate", first.id)


@pytest.mark.parametrize("name", ["secret_missing", "secret_wrong"])
def test_nothing_is_stored_without_the_secret(
    app: Flask, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has the reason."""
    send(app, SAMPLES[name])
    assert deliveries(app) == []
    assert "a callback of parlour: X-Parlour-Secret is missing or wrong" in caplog.text


def test_an_unreadable_packet_is_stored(app: Flask) -> None:
    """The delivery has the raw bytes and the problem."""
    unreadable = [sample for sample in SAMPLES.values() if sample.http_status == 400]
    for sample in unreadable:
        send(app, sample)
    assert [(row.status, row.body) for row in deliveries(app)] == [
        ("unreadable", sample.body) for sample in unreadable
    ]
    for row, sample in zip(deliveries(app), unreadable, strict=True):
        assert row.error.startswith(sample.problem)
    assert history(app) == []


def test_another_command_is_only_counted(app: Flask) -> None:
    """It is accepted, because the product would send it again."""
    send(app, SAMPLES["another_command"])
    wait_for_counters()
    with app.app_context():
        counts = get_runtime().counters.counts()
    assert [(count.outcome, count.name) for count in counts] == [("accepted", "friend.added")]
    assert deliveries(app) == []
    assert history(app) == []


def test_send_records_a_removal(app: Flask) -> None:
    """`send` finds the provider by the command."""
    with served(app) as url:
        result = run_command(app, "send", "friend.dropped", "--url", url, "--target", "carol")
    assert result.exit_code == 0, result.output
    assert [(r["provider"], r["owner_id"], r["target_id"]) for r in history(app)] == [
        ("parlour", "alice", "carol")
    ]


def test_doctor_sends_a_probe(app: Flask) -> None:
    """The probe of the provider is answered and stored."""
    with served(app) as url:
        result = run_command(app, "doctor", "--url", url, "--idle", "0.1")
    assert result.exit_code == 0, result.output
    assert "parlour: the probe gets the answer that the IM server expects" in result.output
    assert "parlour: the probe is stored" in result.output
    assert history(app) == []


def test_the_openapi_document_describes_the_callbacks(app: Flask) -> None:
    """The document is valid, and has the packet and the guard."""
    document = get(app, "/imcallback/openapi.json", TOKEN).get_json()
    OpenAPIV31SpecValidator(document).validate()
    post = document["paths"]["/parlour"]["post"]
    assert post["summary"] == "Receive a callback of Parlour"
    assert post["security"] == [{"parlour_secret": []}]
    packet, _ = document["components"]["schemas"]["parlour_packet"]["anyOf"]
    assert packet["properties"]["event"] == {"const": "friend.dropped"}
    assert packet["required"] == ["event", "user", "friend"]


def test_the_setup_page_shows_the_steps(app: Flask) -> None:
    """The page shows what to enter at Parlour, and no secret."""
    page = get(app, "/imcallback/", TOKEN).text
    url = "http://localhost/imcallback/parlour"
    assert "Parlour</h3>" in page
    assert f'Enter <code class="im-text">{url}</code> under Hooks.' in page
    assert "Enter one of IMCALLBACK_SECRETS as the secret." in page
    assert "a-made-up-secret" not in page


def test_the_page_shows_the_packet_of_the_tests() -> None:
    """The page shows the file, and begins with the request in it."""
    (shown,) = blocks("json")
    assert json.loads(shown) == json.loads((samples.PACKETS / "parlour/dropped.json").read_text())
    (request,) = blocks("http")
    head, _, body = request.rstrip("\n").partition("\n\n")
    line, *lines = head.split("\n")
    sample = SAMPLES["dropped"]
    assert line == f"POST /imcallback{sample.path} HTTP/1.1"
    assert dict(header.split(": ") for header in lines) == sample.headers
    assert body.encode() == sample.body


def test_each_part_of_a_provider_is_explained() -> None:
    """The tables have every part that a subclass may write, and no others."""
    rows = set(re.findall(r"^\| `(\w+)` \|", PAGE.read_text("utf-8"), re.MULTILINE))
    assert rows - {"__init__"} == {name for name in vars(Provider) if name[0] != "_"} | {"name"}
