"""The top of the first page: setup help, recent callbacks, silence, the spool."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import time_machine

from flask_imcallback.providers import PROVIDERS
from flask_imcallback.runtime import get_runtime
from support.apps import MakeApp, save_counts
from support.deliveries import MOMENT, make_delivery, store, store_all
from support.pages import PAGE, SECRET, TOKEN, open_app, read_page

SETUP_HELP: list[tuple[dict[str, Any], list[str], list[str]]] = [
    (
        {"IMCALLBACK_TENCENT_APPS": {"1400000000": ["the-token-of-it"]}},
        ["https://im.example/imcallback/tencent ", "Sns.CallbackFriendDelete"],
        ["webhooks.yml", "<secret>"],
    ),
    (
        {"IMCALLBACK_TENCENT_APPS": {"1400000000": []}, "IMCALLBACK_SECRETS": [SECRET]},
        ["/imcallback/tencent/<secret>", "/imcallback/openim/<secret>", "afterRemoveBlack"],
        ["the token of"],
    ),
    (
        {"IMCALLBACK_OPENIM_CREDENTIALS": {"its-user": "its-password"}},
        ["https://<user>:<password>@im.example/imcallback/openim"],
        ["Tencent"],
    ),
    ({}, ["No provider is enabled"], ["https://"]),
    (
        {"IMCALLBACK_ALLOW_UNAUTHENTICATED": True, "providers": [*PROVIDERS]},
        ["https://im.example/imcallback/openim "],
        ["<secret>"],
    ),
]


@pytest.mark.parametrize(
    ("settings", "shown", "not_shown"),
    SETUP_HELP,
    ids=["Tencent", "secret", "OpenIM password", "no provider", "unauthenticated"],
)
def test_setup_help_before_the_first_callback(
    make_app: MakeApp, settings: dict[str, Any], shown: list[str], not_shown: list[str]
) -> None:
    """The page says what to configure in the IM server, and shows no secret."""
    app = make_app(IMCALLBACK_HISTORY_TOKENS=[TOKEN], **settings)
    with app.app_context():
        database = get_runtime().describe_database()
    html = read_page(app, base_url="https://im.example")
    assert "Nothing is recorded yet" in html.text
    for text in shown:
        assert text in html.words
    help_text = html.words.partition("Nothing is recorded yet")[2].partition("Nothing arrives")[0]
    for text in [*not_shown, SECRET, "the-token-of-it", "its-user", "its-password", TOKEN]:
        assert text not in help_text
    assert "flask --app host imcallback doctor --url https://im.example/imcallback" in html.words
    assert f"The removals are stored in {database}" in html.words


def test_no_setup_help_after_the_first_removal(make_app: MakeApp) -> None:
    """The page shows the history instead."""
    app = open_app(make_app)
    with app.app_context():
        store(("alice", "bob"))
    assert "Nothing is recorded yet" not in read_page(app).text


def test_recent_callbacks_are_counted(make_app: MakeApp) -> None:
    """Accepted callbacks are listed by command, refused ones by reason, each with the last time."""
    app = open_app(make_app)
    packet = {"callbackCommand": "callbackX"}
    with time_machine.travel(MOMENT, tick=False):
        path = f"/imcallback/openim/{SECRET}/callbackX"
        assert app.test_client().post(path, json=packet, buffered=True).status_code == 200
        save_counts(app)
    with time_machine.travel(MOMENT + timedelta(minutes=2), tick=False):
        refused = app.test_client().post("/imcallback/openim/x", json=packet, buffered=True)
        assert refused.status_code == 403
        save_counts(app)
    with time_machine.travel(MOMENT + timedelta(minutes=5), tick=False):
        html = read_page(app)
    assert "Last callback 5 minutes ago · last refusal 3 minutes ago" in html.words
    assert ["openim", "callbackX", "1", "2026-11-20 18:05:00"] in html.rows
    reason = "the request has neither a secret path segment nor a password"
    assert ["openim", reason, "1", "2026-11-20 18:07:00"] in html.rows


@pytest.mark.parametrize(
    ("count", "hours", "is_unusual"),
    [(300, 23, False), (300, 25, True), (9, 29 * 24, False), (9, 31 * 24, True), (0, 1, False)],
)
def test_a_long_silence_is_shown(
    make_app: MakeApp, count: int, hours: int, is_unusual: bool
) -> None:
    """A silence is unusual if it is ten times as long as the usual gap of a month."""
    app = open_app(make_app)
    with app.app_context():
        gap = timedelta(hours=1)
        store_all([make_delivery(("a", str(n)), at=MOMENT - n * gap) for n in range(count)])
    with time_machine.travel(MOMENT + timedelta(hours=hours), tick=False):
        for url in (PAGE, f"{PAGE}?order=asc", f"{PAGE}?owner_id=a", f"{PAGE}?limit=1"):
            text = read_page(app, url).text
            assert ("No callback for" in text) == (is_unusual and "=a" not in url), url


@pytest.mark.parametrize(("minutes", "is_unusual"), [(9, False), (11, True)])
def test_ten_minutes_are_a_usual_silence(make_app: MakeApp, minutes: int, is_unusual: bool) -> None:
    """A busy server may be silent for ten minutes, too."""
    app = open_app(make_app)
    with app.app_context():
        pairs = [("a", "b")] * 1000
        store_all([make_delivery(*pairs, at=MOMENT - timedelta(n)) for n in range(25)] * 2)
    with time_machine.travel(MOMENT + timedelta(minutes=minutes), tick=False):
        assert ("No callback for" in read_page(app).text) == is_unusual


def test_the_spool_is_shown(make_app: MakeApp) -> None:
    """The page says how much waits in the spool, or that the spool cannot be read."""
    app = open_app(make_app)
    with app.app_context():
        runtime = get_runtime()
        assert runtime.drain
        assert "the spool is empty" in read_page(app).text
        runtime.drain.spool.put(runtime.recorder.make_entry(make_delivery(("alice", "bob"))))
        assert "1 callback waits in the spool" in read_page(app).words
        runtime.drain.spool.dispose()
        runtime.drain.spool.path.write_bytes(b"no database" * 1000)
        assert "The spool cannot be used" in read_page(app).text
        runtime.drain.spool.path.unlink()
