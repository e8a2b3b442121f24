"""Operators see how many callbacks were accepted and refused."""

from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
import time_machine
from sqlalchemy import URL

from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage.counters import MAX_KEYS, CallbackCounters
from flask_imcallback.storage.tables import counters as counter_table
from support.apps import MakeApp, rows, wait_for_counters
from support.callbacks import BODY, SECRET

COMMAND = "callbackAfterRemoveBlackCommand"
CALLBACK_URL = f"/imcallback/openim/{SECRET}/{COMMAND}"
URL_WITHOUT_SECRET = "/imcallback/openim/x"
ACCEPTED_AT, REFUSED_AT = 1_700_000_100, 1_700_000_111


def test_python_http_and_command_line_show_the_counts(database_url: URL, make_app: MakeApp) -> None:
    """The counts of all processes are shown by command and reason, to readers only."""
    apps = [
        make_app(database_url, IMCALLBACK_SECRETS=[SECRET], IMCALLBACK_HISTORY_TOKENS=["token"])
        for _ in range(2)
    ]
    for app, seconds_before in zip(apps, (100, 0), strict=True):
        client = app.test_client()
        with time_machine.travel(ACCEPTED_AT - seconds_before, tick=False):
            response = client.post(CALLBACK_URL, json=BODY, buffered=True)
            assert response.status_code == 200
            wait_for_counters()
        with time_machine.travel(REFUSED_AT - seconds_before, tick=False):
            response = client.post(URL_WITHOUT_SECRET, json=BODY, buffered=True)
            assert response.status_code == 403
            wait_for_counters()
    client = apps[0].test_client()
    assert "callbacks" not in client.get("/imcallback/health").get_json()
    wrong = client.get("/imcallback/health", headers={"Authorization": "Bearer wrong"})
    assert "callbacks" not in wrong.get_json()
    health = client.get("/imcallback/health", headers={"Authorization": "Bearer token"}).get_json()
    assert health["callbacks"] == [
        {
            "provider": "openim",
            "outcome": "accepted",
            "name": COMMAND,
            "count": 2,
            "last_at": "2023-11-14T22:15:00.000000Z",
        },
        {
            "provider": "openim",
            "outcome": "refused",
            "name": "the request has neither a secret path segment nor a password",
            "count": 2,
            "last_at": "2023-11-14T22:15:11.000000Z",
        },
    ]
    with apps[1].app_context():
        counts = get_runtime().counters.counts()
    assert [count.last_at for count in counts] == [
        datetime.fromtimestamp(seconds, UTC) for seconds in (ACCEPTED_AT, REFUSED_AT)
    ]
    status = apps[1].test_cli_runner().invoke(args=["imcallback", "status"])
    assert COMMAND in status.output


def test_the_counts_of_many_processes_add_up(database_url: URL, make_app: MakeApp) -> None:
    """Eight counters that save to an empty table at the same time lose no callback."""
    app = make_app(database_url)

    def count(_: int) -> None:
        with app.app_context():
            counters = CallbackCounters(get_runtime().engine, get_runtime().engine)
            for _ in range(5):
                counters.count_accepted("openim", "a")
                counters.count_refused("openim", "b")
            counters.save()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(8)))
    with app.app_context():
        assert [count.count for count in get_runtime().counters.counts()] == [40, 40]


def test_many_names_need_few_rows(make_app: MakeApp) -> None:
    """A caller may send any command name, so names above a limit are counted together."""
    app = make_app()
    with app.app_context():
        counters = get_runtime().counters
        for number in range(MAX_KEYS + 50):
            counters.count_accepted("openim", f"command{number}\0")
            counters.save()
        counts = {count.name: count.count for count in counters.counts()}
    assert len(counts) == MAX_KEYS + 1
    assert counts["others"] == 50
    assert counts["command0\ufffd"] == 1


def test_counts_that_cannot_be_saved_are_saved_later(
    database_url: URL, make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """While the table is missing, a warning says why, and no count is forgotten."""
    app = make_app(database_url)
    with app.app_context():
        counters, engine = get_runtime().counters, get_runtime().engine()
        counter_table.drop(engine)
        for seconds in (1_700_000_000, 1_700_000_100):
            with time_machine.travel(seconds, tick=False):
                counters.count_accepted("openim", "a")
                counters.save()
        counter_table.create(engine)
        counters.save()
        (count,) = counters.counts()
    assert (count.count, count.last_at.timestamp()) == (2, 1_700_000_100)
    warnings = [m for m in caplog.messages if m.startswith("The counts of accepted and refused")]
    assert len(warnings) == 2
    assert "imcallback_counter" in warnings[0]
    assert "They are kept in memory and saved later. Check the database." in warnings[0]


def test_a_missing_counter_table_does_not_harm_callbacks(make_app: MakeApp) -> None:
    """The callback is stored and answered. An unreadable callback is not counted as accepted."""
    app = make_app(IMCALLBACK_SECRETS=[SECRET])
    client = app.test_client()
    assert client.post(CALLBACK_URL, data=b"[]", buffered=True).status_code == 400
    with app.app_context():
        assert get_runtime().counters.counts() == []
        with get_runtime().engine().begin() as connection:
            connection.exec_driver_sql("DROP TABLE imcallback_counter")
    assert client.post(CALLBACK_URL, data=json.dumps(BODY), buffered=True).status_code == 200
    assert len(rows(app)[1]) == 1


def test_a_refusal_is_logged_once_a_minute(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """The line names provider, reason and detail, and later how many lines were left out."""
    app = make_app()
    with app.app_context(), caplog.at_level(logging.WARNING, "flask_imcallback"):
        counters = get_runtime().counters
        for seconds, detail in ((0, "5 seconds"), (30, "6 seconds"), (61, "")):
            with time_machine.travel(1_700_000_000 + seconds, tick=False):
                counters.count_refused("tencent", "RequestTime is old", detail)
    assert [line for line in caplog.messages if line.startswith("Refused")] == [
        "Refused a callback of tencent: RequestTime is old (5 seconds).",
        "Refused a callback of tencent: RequestTime is old. 1 more since the last such line.",
    ]
