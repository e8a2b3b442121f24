"""Callbacks over HTTP: every packet, and what is stored of it on every database."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import samples
import time_machine
from conftest import MakeApp
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import URL, select

from flask_imcallback.models import delivery, removal
from flask_imcallback.state import get_state

SAMPLES = samples.samples("tencent") + samples.samples("openim")


def rows(app: Flask) -> tuple[list[Any], list[Any]]:
    with app.app_context(), get_state().engine().connect() as connection:
        deliveries = connection.execute(select(delivery).order_by(delivery.c.id)).mappings().all()
        removals = connection.execute(select(removal).order_by(removal.c.id)).mappings().all()
    return list(deliveries), list(removals)


def clear(app: Flask) -> None:
    with app.app_context(), get_state().engine().begin() as connection:
        for table in (delivery, removal):
            connection.execute(table.delete())


def send(client: FlaskClient, sample: samples.Sample, body: bytes) -> Any:
    return client.open(
        f"/imcallback{sample.path}",
        method=sample.method,
        query_string=sample.query,
        headers=[h for h in sample.headers.items() if h[0] not in ("Host", "Content-Length")],
        data=body,
    )


def test_each_packet_is_answered_and_stored(database_url: URL, make_app: MakeApp) -> None:
    """Answer, deliveries and removals are those that stand beside the packet."""
    by_settings = defaultdict(list)
    for sample in SAMPLES:
        by_settings[repr(sample.settings)].append(sample)
    for some in by_settings.values():
        app = make_app(database_url, **some[0].settings)
        client = app.test_client()
        for sample in some:
            clear(app)
            for body in sample.bodies:
                with time_machine.travel(sample.now or 1_700_000_000, tick=True):
                    response = send(client, sample, body)
                assert response.status_code == sample.http_status, sample.name
                assert response.mimetype == "application/json", sample.name
                assert sample.answer.items() <= response.get_json().items(), sample.name
            deliveries, removals = rows(app)
            stored = [{name: row[name] for name in ("status", "command")} for row in deliveries]
            assert stored == sample.deliveries, sample.name
            if deliveries:
                assert [row["body"] for row in deliveries] == sample.bodies, sample.name
            names = ("relation", "owner_id", "target_id")
            pairs = [{name: row[name] for name in names} for row in removals]
            assert pairs == sample.removals, sample.name


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("path", ["/openim/callbackX", "/openim", "/tencent", "/tencent/x"])
def test_another_method_is_405(make_app: MakeApp, method: str, path: str) -> None:
    """In the provider's words, because another body can stop OpenIM's users."""
    app = make_app(
        migrate=False,
        IMCALLBACK_ALLOW_UNAUTHENTICATED=True,
        IMCALLBACK_TENCENT_APPS={"1400000000": []},
    )
    response = app.test_client().open(f"/imcallback{path}", method=method)
    assert response.status_code == 405
    assert response.headers["Allow"] == "POST"
    assert (
        method == "HEAD" or set(response.get_json()) >= {"errCode"} or "ErrorCode" in response.text
    )
