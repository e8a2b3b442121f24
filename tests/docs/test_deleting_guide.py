"""The statements that delete old data delete whole deliveries, and nothing newer."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from sqlalchemy import URL

from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage import id_at
from support import ROOT
from support.apps import MakeApp, rows
from support.deliveries import DELIVERY, record

GUIDE = (ROOT / "docs/deleting.md").read_text("utf-8")
(SQL,) = re.findall(r"```sql\n(.+?)```", GUIDE, re.DOTALL)
MOMENT = datetime(2026, 1, 1, tzinfo=UTC)


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
    with app.app_context(), get_runtime().engine().begin() as connection:
        for statement in re.findall(r"DELETE[^;]+", SQL):
            connection.exec_driver_sql(statement)
    deliveries, removals = rows(app)
    assert [row["received_at"] >= MOMENT for row in deliveries] == [True]
    assert [row["delivery_id"] for row in removals] == [deliveries[0]["id"]] * 2
