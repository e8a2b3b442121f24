"""The guide to providers: its code is run, in an app that receives what its product sends."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select

from flask_imcallback import Provider, upgrade
from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage.tables import delivery
from support import ROOT, samples

PAGE = ROOT / "docs" / "providers.md"
SAMPLES = {sample.name: sample for sample in samples.samples("parlour")}


def blocks(language: str) -> list[str]:
    text = PAGE.read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run(code: str, **names: Any) -> dict[str, Any]:
    """The names that are there when the code was run among those given."""
    namespace = {"__name__": "parlour", **names}
    exec(compile(code, str(PAGE), "exec"), namespace)
    return namespace


PROVIDER, AS_CLASS, AS_OBJECT, CONTRACT = blocks("python")
PARLOUR = run(PROVIDER)["ParlourProvider"]
TestParlour = run(CONTRACT, ParlourProvider=PARLOUR)["TestParlour"]


@pytest.fixture(params=[AS_CLASS, AS_OBJECT], ids=["class", "object"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Flask]:
    """An app with the provider, registered in each way that the page shows."""
    app = Flask("host", instance_path=str(tmp_path / "instance"))
    app.config["IMCALLBACK_HISTORY_TOKENS"] = ["a-reader"]
    run(request.param, app=app, ParlourProvider=PARLOUR)
    with app.app_context():
        upgrade()
    yield app
    with app.app_context():
        for engine in get_runtime().database.open().engines.values():
            engine.dispose()


def send(app: Flask, sample: samples.Sample) -> None:
    """Send the packet; its answer is the one that stands beside it."""
    path = f"/imcallback{sample.path}"
    response = app.test_client().post(path, headers=sample.headers, data=sample.body)
    assert response.status_code == sample.http_status, sample.name
    assert sample.answer.items() <= response.get_json().items(), sample.name


def history(app: Flask) -> list[dict[str, str]]:
    """The removals, as a reader is shown them."""
    response = app.test_client().get(
        "/imcallback/history", headers={"Authorization": "Bearer a-reader"}
    )
    names = ("provider", "command", "relation", "owner_id", "target_id", "request_id")
    return [{name: removal[name] for name in names} for removal in response.get_json()["data"]]


def deliveries(app: Flask) -> list[Any]:
    with app.app_context(), get_runtime().engine().connect() as connection:
        return list(connection.execute(select(delivery).order_by(delivery.c.id)).all())


def test_a_callback_is_recorded_once(app: Flask) -> None:
    """It is in the history; sent again it is a duplicate, as `repeats_callbacks` promises."""
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
def test_without_the_secret_nothing_is_kept(
    app: Flask, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer is in the product's words; the reason is in the log."""
    send(app, SAMPLES[name])
    assert deliveries(app) == []
    assert "a callback of parlour: X-Parlour-Secret is missing or wrong" in caplog.text


def test_what_cannot_be_read_is_kept(app: Flask) -> None:
    """The raw bytes, and what is wrong with them."""
    unreadable = [sample for sample in SAMPLES.values() if sample.http_status == 400]
    for sample in unreadable:
        send(app, sample)
    assert [(row.status, row.body) for row in deliveries(app)] == [
        ("unreadable", sample.body) for sample in unreadable
    ]
    assert all(row.error for row in deliveries(app))
    assert history(app) == []


def test_another_command_is_kept_without_removals(app: Flask) -> None:
    """It is accepted, for the product would send it again."""
    send(app, SAMPLES["another_command"])
    assert [(row.status, row.command) for row in deliveries(app)] == [("ignored", "friend.added")]
    assert history(app) == []


def test_the_packet_on_the_page_is_the_one_that_is_sent() -> None:
    """The file that the page shows, and the request that it begins with."""
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
    """The table of promises has all that a subclass may write, and no more."""
    rows = set(re.findall(r"^\| `(\w+)` \|", PAGE.read_text("utf-8"), re.MULTILINE))
    assert rows - {"__init__"} == {name for name in vars(Provider) if name[0] != "_"} | {"name"}
