"""How many callbacks came, for operators: in Python, over HTTP, by command."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import time_machine
from sqlalchemy import URL

from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage.counters import MAX_KEYS, CallbackCounters
from flask_imcallback.storage.tables import counters as table
from support.apps import MakeApp, rows, wait_for_counters
from support.callbacks import BODY, SECRET

URL_OF = f"/imcallback/openim/{SECRET}/callbackAfterRemoveBlackCommand"
REFUSED = "403 FORBIDDEN"


def test_the_last_of_each_is_known(database_url: URL, make_app: MakeApp) -> None:
    """By command and by reason, of all processes, in each of the three faces."""
    apps = [
        make_app(database_url, IMCALLBACK_SECRETS=[SECRET], IMCALLBACK_HISTORY_TOKENS=["token"])
        for _ in range(2)
    ]
    for app, moment in zip(apps, (1_700_000_000, 1_700_000_100), strict=True):
        with time_machine.travel(moment, tick=False):
            assert app.test_client().post(URL_OF, json=BODY, buffered=True).status_code == 200
            wait_for_counters()
        with time_machine.travel(moment + 11, tick=False):
            assert (
                app.test_client().post("/imcallback/openim/x", json=BODY, buffered=True).status
                == REFUSED
            )
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
            "what": "callbackAfterRemoveBlackCommand",
            "count": 2,
            "last_at": "2023-11-14T22:15:00.000000Z",
        },
        {
            "provider": "openim",
            "outcome": "refused",
            "what": "the request has neither a secret path segment nor a password",
            "count": 2,
            "last_at": "2023-11-14T22:15:11.000000Z",
        },
    ]
    with apps[1].app_context():
        counts = get_runtime().counters.counts()
    assert [count.last_at for count in counts] == [
        datetime.fromtimestamp(moment, UTC) for moment in (1_700_000_100, 1_700_000_111)
    ]
    shown = apps[1].test_cli_runner().invoke(args=["imcallback", "status"]).output
    assert "callbackAfterRemoveBlackCommand" in shown


def test_many_processes_add_up(database_url: URL, make_app: MakeApp) -> None:
    """Eight at once on an empty table, each with the same two counts."""
    app = make_app(database_url)

    def count(_: int) -> None:
        with app.app_context():
            counters = CallbackCounters(get_runtime().engine)
            for _ in range(5):
                counters.accept("openim", "a")
                counters.refuse("openim", "b")
            counters.save()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(8)))
    with app.app_context():
        assert [count.count for count in get_runtime().counters.counts()] == [40, 40]


def test_commands_without_number_cost_no_memory(make_app: MakeApp) -> None:
    """Whoever has the secret may name any; those above a limit are counted together."""
    app = make_app()
    with app.app_context():
        counters = get_runtime().counters
        for number in range(MAX_KEYS + 50):
            counters.accept("openim", f"command{number}\0")
        counters.save()
        counts = {count.what: count.count for count in counters.counts()}
    assert len(counts) == MAX_KEYS + 1
    assert counts["others"] == 50


def test_what_cannot_be_saved_is_saved_later(database_url: URL, make_app: MakeApp) -> None:
    """As while the database is away: nothing that was counted is forgotten."""
    app = make_app(database_url)
    with app.app_context():
        counters, engine = get_runtime().counters, get_runtime().engine()
        table.drop(engine)
        for moment in (1_700_000_000, 1_700_000_100):
            with time_machine.travel(moment, tick=False):
                counters.accept("openim", "a")
                counters.save()
        table.create(engine)
        counters.save()
        (count,) = counters.counts()
    assert (count.count, count.last_at.timestamp()) == (2, 1_700_000_100)


def test_a_tally_that_cannot_be_saved_harms_no_callback(make_app: MakeApp) -> None:
    """The callback is stored and answered; an unreadable one is not counted as accepted."""
    app = make_app(IMCALLBACK_SECRETS=[SECRET])
    client = app.test_client()
    assert client.post(URL_OF, data=b"[]", buffered=True).status_code == 400
    with app.app_context():
        assert get_runtime().counters.counts() == []
        with get_runtime().engine().begin() as connection:
            connection.exec_driver_sql("DROP TABLE imcallback_counter")
    assert client.post(URL_OF, data=json.dumps(BODY), buffered=True).status_code == 200
    assert len(rows(app)[1]) == 1
