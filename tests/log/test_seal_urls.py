"""The checkpoint and the evidence over HTTP, in health, on the page, and as commands."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import URL

from flask_imcallback.log import SecretKey, read_acts, read_secret_key, verifier
from flask_imcallback.runtime import get_runtime
from support import ROOT
from support.api import TOKEN, assert_problem, get, open_history
from support.apps import MakeApp
from support.commands import run_flask
from support.deliveries import store
from support.log import SECRET, check, run, seal
from support.pages import read_page
from support.serving import environment

READER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def app(make_app: MakeApp) -> Flask:
    app = open_history(make_app, IMCALLBACK_SEAL_KEY=SECRET.text())
    with app.app_context():
        store(("alice", "bob"))
        seal()
    return app


def test_readers_get_the_checkpoint(app: Flask) -> None:
    """The checkpoint is plain text, as `flask imcallback checkpoint` prints it."""
    response = get(app, "/imcallback/checkpoint")
    assert (response.status_code, response.mimetype) == (200, "text/plain")
    assert response.text == run(app, "checkpoint").output
    assert verifier.read_checkpoint(response.text, SECRET.key).size == 1
    assert_problem(get(app, "/imcallback/checkpoint", token=None), 401)
    assert_problem(get(app, "/imcallback/checkpoint?x=1"), 400)


def test_readers_download_the_evidence(app: Flask, tmp_path: Path) -> None:
    """The download is noted by two acts. It is the file that the command writes."""
    response = get(app, "/imcallback/evidence")
    assert (response.status_code, response.mimetype) == (200, "application/x-ndjson")
    file = tmp_path / "evidence"
    file.write_bytes(response.data)
    report = check(file, get(app, "/imcallback/checkpoint").text, key=SECRET.key)
    assert (report.problems, report.opened) == ([], 1)
    assert run(app, "evidence", "-").stdout_bytes == response.data
    assert_problem(get(app, "/imcallback/evidence", token=None), 401)
    assert get(app, "/imcallback/evidence", method="HEAD").data == b""
    with app.app_context():
        acts = read_acts(get_runtime().engine(), 10)
        assert [(act.kind, act.actor.partition(":")[0]) for act in acts] == [
            *[("evidence", "cli")] * 2,
            *[("evidence", "token")] * 2,
        ]
        seal()
    assert "4 acts" in run(app, "verify").output


def test_health_says_until_when_the_log_is_sealed(app: Flask, make_app: MakeApp) -> None:
    """A log that cannot be sealed makes the health degraded. Callbacks are stored all the same."""
    health = get(app, "/imcallback/health", token=None).json
    assert health["status"] == "ok"
    assert datetime.fromisoformat(health["sealed_until"]).tzinfo is not None
    with app.app_context():
        get_runtime().sealer.path.write_text(f"example.com/log\n7\n{'A' * 43}=\n")
    response = get(app, "/imcallback/health", token=None)
    assert (response.status_code, response.json["status"]) == (200, "degraded")
    assert response.json["problem"] == "the log is not sealed"
    assert "WARNING The log is not sealed" in run(app, "doctor").output
    assert "new-key example.com/log/2" in read_page(app, headers=READER).text


def test_the_page_shows_which_seal_a_removal_has(app: Flask) -> None:
    """A removal is sealed by a seal with a number and a time, or not yet."""
    with app.app_context():
        (later,) = store(("carol", "dave"))
        page = get_runtime().history.find(owner_id="alice")
    assert "sealed until" in read_page(app, headers=READER).text
    removal = read_page(app, f"/imcallback/removal/{page.data[0].id}", headers=READER).text
    assert "by seal 1 at" in removal
    assert "not yet" in read_page(app, f"/imcallback/removal/{later.id}", headers=READER).text


def test_a_new_key_can_be_set_at_once(make_app: MakeApp) -> None:
    """The command prints the secret key and the public key."""
    app = make_app()
    result = run(app, "new-key", "example.com/log")
    secret, public = result.stdout.splitlines()
    assert str(read_secret_key(secret).key) == public
    assert public.startswith("example.com/log+")
    result = run(app, "new-key", "a b")
    assert (result.exit_code, "cannot name a key" in result.output) == (1, True)


def test_verify_needs_the_key_of_the_app(app: Flask) -> None:
    """A key of another app with the same name is unknown."""
    other = SecretKey.from_seed(SECRET.key.name, b"o" * 32)
    assert run(app, "verify", "--key", str(SECRET.key)).exit_code == 0
    result = run(app, "verify", "--key", str(other.key))
    assert (result.exit_code, "is not signed by the key" in result.output) == (1, True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong",
    [
        {"FLASK_IMCALLBACK_NOSUCH": "1"},
        {"FLASK_IMCALLBACK_SEAL_KEY": "x"},
        {"FLASK_IMCALLBACK_BIND_KEY": "nowhere"},
        {"FLASK_SQLALCHEMY_DATABASE_URI": "nodatabase://host/name"},
    ],
    ids=str,
)
def test_a_wrong_setting_is_no_tampering(tmp_path: Path, wrong: dict[str, str]) -> None:
    """The exit status 1 of `verify` is for tampering only."""
    url = URL.create("sqlite", database=str(tmp_path / "test.db"))
    result = run_flask(["imcallback", "verify"], ROOT, environment(tmp_path, url) | wrong)
    assert (result.returncode, result.stderr.count("Traceback")) == (2, 0), result.stderr


def test_an_app_without_a_key_has_unsigned_checkpoints(make_app: MakeApp, tmp_path: Path) -> None:
    """Without a key, the checkpoint is only the size and the root."""
    app = make_app()
    with app.app_context():
        store(("alice", "bob"))
    assert run(app, "seal").output == (
        "seal 1: log positions 1 to 1, 1 deliveries, 1 removals, 0 acts\n"
    )
    kept = tmp_path / "kept"
    kept.write_text(run(app, "checkpoint").output)
    assert kept.read_text().splitlines()[:2] == ["imcallback", "1"]
    assert run(app, "verify", "--checkpoint", kept).exit_code == 0
    result = run(app, "verify", "--checkpoint", kept, "--key", str(SECRET.key))
    assert (result.exit_code, "by nobody" in result.output) == (1, True)
