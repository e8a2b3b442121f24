"""The statements that delete old data delete whole deliveries, and nothing newer."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from flask import Flask
from sqlalchemy import URL

from flask_imcallback.removals import Cause, Relation, Removal
from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage import id_at
from support import ROOT
from support.apps import MakeApp, rows
from support.deliveries import DELIVERY, make_delivery, record

GUIDE = (ROOT / "docs/deleting.md").read_text("utf-8")
BY_AGE, BY_ACCOUNT = re.findall(r"```sql\n(.+?)```", GUIDE, re.DOTALL)
MOMENT = datetime(2026, 1, 1, tzinfo=UTC)


def execute(app: Flask, sql: str) -> None:
    """Run the statements of the guide in one transaction."""
    with app.app_context(), get_runtime().engine().begin() as connection:
        for statement in re.findall(r"DELETE[^;]+", sql):
            connection.exec_driver_sql(statement)


def test_old_deliveries_are_deleted_with_their_removals(
    database_url: URL, make_app: MakeApp
) -> None:
    """A delivery of the last microsecond disappears with its removals, the next one stays whole."""
    assert f"this moment is the id {id_at(MOMENT)}" in GUIDE
    app = make_app(database_url)
    for received_at in (
        MOMENT - timedelta(days=1),
        MOMENT - timedelta(microseconds=1),
        MOMENT + timedelta(microseconds=5),
    ):
        body = str(received_at).encode()
        assert len(record(app, replace(DELIVERY, received_at=received_at, body=body))) == 2
    execute(app, BY_AGE)
    deliveries, removals = rows(app)
    assert [row["received_at"] >= MOMENT for row in deliveries] == [True]
    assert [row["delivery_id"] for row in removals] == [deliveries[0]["id"]] * 2


def test_the_data_of_an_account_is_deleted(database_url: URL, make_app: MakeApp) -> None:
    """Deliveries of alice disappear with their repetitions and removals, and all others stay."""
    app = make_app(database_url)
    record(app, DELIVERY)
    record(app, DELIVERY)
    record(app, make_delivery(("carol", "alice"), ("carol", "dave")))
    kick = Removal(Relation.GROUP, "team", "dave", actor_id="alice", cause=Cause.KICKED)
    record(app, replace(DELIVERY, removals=(kick,), body=b"kick"))
    kept = record(app, make_delivery(("carol", "dave"), ("Alice", "bob")))
    assert len(rows(app)[0]) == 5
    execute(app, BY_ACCOUNT)
    deliveries, removals = rows(app)
    assert [row["id"] for row in deliveries] == [kept[0].delivery_id]
    assert [row["id"] for row in removals] == [removal.id for removal in kept]
