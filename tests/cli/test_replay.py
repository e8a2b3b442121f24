"""The command `flask imcallback replay` for logs with lost callbacks."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from flask import Flask
from sqlalchemy import URL

from flask_imcallback import removals_recorded, upgrade
from flask_imcallback.removals import Status
from flask_imcallback.replay import replay_log
from flask_imcallback.runtime import get_runtime
from support import ROOT
from support.apps import MakeApp, rows
from support.callbacks import BODY, SECRET
from support.deliveries import ANONYMOUS, DELIVERY, record
from support.lost import docker, journal, json_logger, kubernetes, line_of, lines_of, losing_app
from support.serving import PATH, environment, serving, upgrade_tables

URL_PATH = f"/imcallback/openim/{SECRET}/callbackAfterRemoveBlackCommand"


def replay(app: Flask, log: str | bytes, *options: str, status: int = 0) -> Result:
    """Run the command with a log on stdin, and check the exit status."""
    arguments = ["imcallback", "replay", "-", *options]
    result = app.test_cli_runner().invoke(args=arguments, input=log)
    assert result.exit_code == status, result.output
    return result


def summary(stored: int, known: int = 0, unread: int = 0) -> str:
    return f"{stored} stored, {known} already there, {unread} could not be read\n"


def test_a_lost_callback_comes_back(
    database_url: URL, make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """After the repair, the delivery and its removals are stored as if nothing had happened."""
    app = losing_app(make_app, url=database_url)
    headers = {"Operationid": "op-1", "Authorization": "Basic x"}
    packet = BODY | {"blackUserID": "b\u2028\n😀"}
    before = datetime.now(UTC)
    response = app.test_client().post(f"{URL_PATH}?command=&x=1", json=packet, headers=headers)
    after = datetime.now(UTC)
    assert response.status_code == 503
    (line,) = lines_of(caplog)
    assert "\n" not in line
    assert SECRET not in line
    assert "Basic x" not in line
    with app.app_context():
        upgrade()
    announced: list[Any] = []
    with removals_recorded.connected_to(lambda _, removals: announced.extend(removals), app):
        result = replay(app, line)
        assert result.stdout == summary(1)
        assert replay(app, line).stdout == summary(0, 1)
    ((delivery,), (removal,)) = rows(app)
    assert before <= delivery["received_at"] <= after
    assert result.stderr == (
        "The history shows the removals at the times at which they were received, from "
        f"{delivery['received_at']:%Y-%m-%dT%H:%M:%S.%fZ} on\n"
    )
    assert json.loads(line)["received_at"] == delivery["received_at"].isoformat()
    assert (delivery["status"], delivery["request_id"]) == ("recorded", "op-1")
    assert (delivery["query"], json.loads(delivery["body"])) == ("command=", packet)
    assert set(json.loads(delivery["headers"])) >= {"host", "user-agent", "content-type"}
    assert (removal["owner_id"], removal["target_id"]) == ("a", "b\u2028\n😀")
    assert [r.id for r in announced] == [removal["id"]]


BODIES = [b"", b"\xff\x00{", b"x" * 100_000, '{"a": "你好\\n\\"\\\\"}'.encode()]


@pytest.mark.parametrize("body", BODIES, ids=["empty", "bytes", "large", "text"])
@pytest.mark.parametrize("status", [Status.IGNORED, Status.UNREADABLE])
def test_every_delivery_comes_back(make_app: MakeApp, body: bytes, status: Status) -> None:
    """Also an ignored or unreadable delivery comes back, with its packet unchanged."""
    app = make_app()
    delivery = replace(ANONYMOUS, status=status, removals=(), body=body, error="e\n\u2028")
    assert replay(app, line_of(app, delivery)).stdout == summary(1)
    ((row,), removals) = rows(app)
    assert (row["status"], row["body"], row["error"]) == (status, body, "e\n\u2028")
    assert removals == []


FORMS: dict[str, Callable[[str], str]] = {
    "plain": lambda line: line + "\n",
    "logging": lambda line: f"2026-11-20 18:05:00,123 ERROR [flask_imcallback] {line}\n",
    "gunicorn": lambda line: f"[2026-11-20 18:05:00 +0000] [42] [ERROR] {line}\r\n",
    "systemd": lambda line: f"Nov 20 18:05:00 host gunicorn[42]: {line}\n",
    "colours": lambda line: f"\x1b[31m{line}\x1b[0m\n",
    "compose": lambda line: f"web-1  | {line}\n",
    "json logger": lambda line: json_logger(line) + "\n",
    "journal": journal,
    "docker": docker,
    "kubernetes": kubernetes,
    "json logger in docker": lambda line: docker(json_logger(line)),
    "json logger in kubernetes": lambda line: kubernetes(json_logger(line)),
    "json logger in journal": lambda line: journal(json_logger(line)),
    "prefix in docker": lambda line: docker(f"18:05 ERROR {line}"),
    "shipper of docker": lambda line: json.dumps({"text": docker(json_logger(line), 10**6)}),
}
"""The forms in which servers, containers and loggers write a line."""

OTHERS = (
    "",
    "{",
    "[2026-11-20 18:05:00 +0000] [42] [INFO] Booting worker with pid: 42",
    '{"log":"GET / 200\\n","stream":"stdout","time":"2026-11-20T18:05:00.1Z"}',
    '{"log": 5}',
    "Traceback (most recent call last):",
    "flask_imcallback_lost",
    "2026-11-20T18:05:00.123456789Z stdout F GET / 200",
)
"""Lines that are no lost callbacks."""


@pytest.mark.parametrize("form", FORMS)
def test_a_line_is_found_in_every_form(make_app: MakeApp, form: str) -> None:
    """A small and a large callback are stored once, between the lines of others."""
    app = make_app()
    large = replace(ANONYMOUS, body=b'{"a": "\\u4f60"}' * 5000)
    log = ""
    for delivery in (ANONYMOUS, large):
        for line in OTHERS:
            log += line + "\n"
        log += FORMS[form](line_of(app, delivery))
        log += "".join(line + "\n" for line in OTHERS) if log.endswith("\n") else ""
    result = replay(app, log)
    assert result.stdout == summary(2)
    assert replay(app, log + "\n" + log).stdout == summary(0, 4)
    assert [row["body"] for row in rows(app)[0]] == [ANONYMOUS.body, large.body]
    assert len(rows(app)[1]) == 4


def test_parts_of_two_streams_are_joined_separately(make_app: MakeApp) -> None:
    """Docker may write a line of stdout between two parts of a line of stderr."""
    app = make_app()
    parts = docker(line_of(app, ANONYMOUS), 100).splitlines(keepends=True)
    between = '{"log":"GET / 200\\n","stream":"stdout","time":"2026"}\n'
    assert replay(app, between.join(parts)).stdout == summary(1)


def test_a_rotated_log_is_read_from_a_file(make_app: MakeApp, tmp_path: Path) -> None:
    """Files that overlap can be joined in any order."""
    app = make_app()
    lines = [line_of(app, replace(ANONYMOUS, body=b"%d" % number)) for number in range(5)]
    file = tmp_path / "app.log"
    file.write_text("\n".join([*lines[2:], *lines[:4]]))
    result = app.test_cli_runner().invoke(args=["imcallback", "replay", str(file)])
    assert (result.exit_code, result.stdout) == (0, summary(5, 2))


def damage(line: str, **changes: Any) -> str:
    """Return the line with other members."""
    return json.dumps(json.loads(line) | changes)


DAMAGES: dict[str, tuple[Callable[[str], str], str]] = {
    "cut off": (lambda line: line[:-50], "it is cut off or changed"),
    "cut off in docker": (lambda line: docker(line[:-50]), "it is cut off or changed"),
    "without its end": (lambda line: docker(line, 100)[:700], "it is cut off or changed"),
    "no entry": (lambda line: '{"flask_imcallback_lost": 1}', "it is changed (KeyError)"),
    "no object": (lambda line: '{"flask_imcallback_lost": [}', "it is cut off or changed"),
    "another body": (lambda line: damage(line, body_base64="eA=="), "its signature is wrong: "),
    "no signature": (lambda line: damage(line, signature=""), "its signature is wrong: "),
    "signature of a list": (lambda line: damage(line, signature=[]), "its signature is wrong: "),
    "nested deeply": (
        lambda line: '{"flask_imcallback_lost": ' + "[" * 100_000,
        "it is changed (RecursionError)",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_line_is_reported(make_app: MakeApp, name: str) -> None:
    """stderr names the line and the reason. The other lines are stored, and the status is 1."""
    app = make_app()
    change, reason = DAMAGES[name]
    good = line_of(app, ANONYMOUS)
    bad = change(line_of(app, replace(ANONYMOUS, body=b"\xffneedle")))
    result = replay(app, f"a\n{good}\n{bad.rstrip()}\n", status=1)
    assert result.stdout == summary(1, 0, 1)
    assert result.stderr.startswith(f"line 3 could not be read: {reason}")
    assert result.stderr.endswith("Error: not all lost callbacks of the log could be read\n")
    assert "needle" not in result.output
    assert len(rows(app)[0]) == 1


def test_a_forged_line_is_refused(make_app: MakeApp) -> None:
    """A stranger who gets a text into the log gets nothing into the history."""
    app = make_app()
    forged = line_of(make_app(SECRET_KEY="the key of a stranger"), ANONYMOUS)
    result = replay(app, forged, status=1)
    assert result.stderr.splitlines()[0] == (
        "line 1 could not be read: its signature is wrong: somebody has forged it, or the "
        "SECRET_KEY has changed. Add the old key to SECRET_KEY_FALLBACKS, or check the line and "
        "pass --trust"
    )
    assert rows(app) == ([], [])
    assert replay(app, forged, "--trust").stdout == summary(1)


def test_an_old_key_still_verifies(make_app: MakeApp) -> None:
    """After a change of the SECRET_KEY, the old key is one of SECRET_KEY_FALLBACKS."""
    line = line_of(make_app(SECRET_KEY="old"), ANONYMOUS)
    app = make_app(SECRET_KEY="new", SECRET_KEY_FALLBACKS=["old"])
    assert replay(app, line).stdout == summary(1)


def test_without_a_secret_key_the_guards_sign(make_app: MakeApp) -> None:
    """The secrets of callbacks take the place of the SECRET_KEY. Without any, nothing is signed."""
    other = [secret + "-x" for secret in (SECRET,)]
    line = line_of(make_app(SECRET_KEY=None, IMCALLBACK_SECRETS=[SECRET]), ANONYMOUS)
    replay(make_app(SECRET_KEY=None, IMCALLBACK_SECRETS=other), line, status=1)
    app = make_app(SECRET_KEY=None, IMCALLBACK_SECRETS=[SECRET, *other])
    assert replay(app, line).stdout == summary(1)
    bare = make_app(SECRET_KEY=None)
    unsigned = line_of(bare, replace(ANONYMOUS, body=b"2"))
    assert json.loads(unsigned)["signature"] == ""
    assert replay(bare, unsigned).stdout == summary(1)


def test_concurrent_replays_store_each_callback_once(database_url: URL, make_app: MakeApp) -> None:
    """Several replays run at the same time, and the ids of some callbacks are taken."""
    apps = [make_app(database_url, migrate=number == 0) for number in range(4)]
    deliveries = [replace(ANONYMOUS, body=b"%d" % number) for number in range(40)]
    log = [line_of(apps[0], delivery).encode() for delivery in deliveries]
    for number in range(0, 40, 2):
        moment = json.loads(log[number])["received_at"]
        taken = replace(ANONYMOUS, received_at=datetime.fromisoformat(moment), body=b"taken")
        record(make_app(database_url, migrate=False), taken)

    def run(app: Flask) -> int:
        with app.app_context():
            lines = random.sample(log, len(log))
            report = replay_log(app, get_runtime(), lines, trusts_all=False, is_dry_run=False)
            assert report.problems == []
            return report.stored

    with ThreadPoolExecutor(4) as pool:
        stored = sum(pool.map(run, apps))
    stored_again = run(apps[0])
    bodies = [row["body"] for row in rows(apps[0])[0] if row["body"] != b"taken"]
    assert sorted(bodies) == sorted(delivery.body for delivery in deliveries)
    assert (stored, stored_again) == (40, 0)


def test_a_repeated_callback_is_a_duplicate(make_app: MakeApp) -> None:
    """The IM server has sent a lost callback again, and the repetition was recorded."""
    app = make_app()
    record(app, DELIVERY)
    line = line_of(app, DELIVERY)
    assert replay(app, line).stdout == summary(1)
    assert replay(app, line).stdout == summary(0, 1)
    deliveries, removals = rows(app)
    assert [row["status"] for row in deliveries] == ["recorded", "duplicate"]
    assert len(removals) == 2


def test_a_dry_run_changes_nothing(make_app: MakeApp) -> None:
    """It says what a replay would store, also if the id of the callback was taken."""
    app = make_app()
    first, second = (line_of(app, replace(ANONYMOUS, body=body)) for body in (b"1", b"2"))
    moment = datetime.fromisoformat(json.loads(first)["received_at"])
    record(make_app(migrate=False), replace(ANONYMOUS, received_at=moment, body=b"taken"))
    expected = "2 to store, 0 already there, 0 could not be read\n"
    assert replay(app, f"{first}\n{second}", "--dry-run").output == expected
    assert len(rows(app)[0]) == 1
    assert replay(app, first).stdout == summary(1)
    expected = "1 to store, 1 already there, 0 could not be read\n"
    assert replay(app, f"{first}\n{second}", "--dry-run").output == expected


def test_a_database_that_is_still_broken_is_reported(make_app: MakeApp) -> None:
    """The exit status is 1, and the log can be replayed again later."""
    app = make_app(migrate=False, IMCALLBACK_SPOOL=None)
    line = line_of(app, ANONYMOUS)
    result = replay(app, line, status=1)
    assert result.stderr == (
        "Error: cannot store the callbacks (OperationalError: no such table: imcallback_source): "
        "check the database, and run the command again. 0 are stored\n"
    )
    with app.app_context():
        upgrade()
    assert replay(app, line).stdout == summary(1)


@pytest.mark.parametrize("arguments", [[], ["-", "--unreadable"], ["--unreadable", "--ignored"]])
def test_one_source_must_be_chosen(make_app: MakeApp, arguments: list[str]) -> None:
    """Without a source, or with two, the command explains its choices."""
    result = make_app().test_cli_runner().invoke(args=["imcallback", "replay", *arguments])
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == (
        "Error: name a log file, or - for stdin, or pass --unreadable or --ignored: one of them"
    )


@pytest.mark.slow
def test_a_callback_lost_under_a_real_server_comes_back(tmp_path: Path) -> None:
    """The log of gunicorn is a file that the command reads."""
    with serving(tmp_path, upgrade=False, FLASK_IMCALLBACK_SPOOL="null") as running:
        for _ in range(3):
            assert running.ask("POST", PATH, body=json.dumps(BODY))[0] == 503
    env = environment(tmp_path, running.url)
    upgrade_tables(env)
    log = str(tmp_path / "log")
    command = [sys.executable, "-m", "flask", "--app", "example_app", "imcallback", "replay", log]
    for expected in (summary(3), summary(0, 3)):
        result = subprocess.run(
            command, cwd=ROOT, env=env, check=True, capture_output=True, text=True
        )
        assert result.stdout == expected
