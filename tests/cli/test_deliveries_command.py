"""The command `flask imcallback deliveries`."""

from __future__ import annotations

import csv
import io
import json

import pytest
from click.testing import Result
from flask import Flask
from sqlalchemy import URL

from support.api import get, open_history
from support.apps import MakeApp
from support.callbacks import BODY, SECRET

COMMAND = "callbackAfterRemoveBlackCommand"
PATH = f"/imcallback/openim/{SECRET}"
PACKETS = (
    json.dumps(BODY).encode(),
    b'{"callbackCommand": "callbackAfterAddFriendCommand", "text": "\\u202e\xe4\xbd\xa0"}',
    b"\xff[\x1b",
)


def run(app: Flask, *arguments: str, status: int = 0) -> Result:
    """Run the command, and check the exit status."""
    result = app.test_cli_runner().invoke(args=["imcallback", "deliveries", *arguments])
    assert result.exit_code == status, result.output
    return result


@pytest.fixture
def app(make_app: MakeApp) -> Flask:
    """An app with a recorded, an ignored and an unreadable delivery."""
    app = open_history(make_app, IMCALLBACK_SECRETS=[SECRET])
    for packet in PACKETS:
        app.test_client().post(PATH, data=packet)
    return app


def ids(app: Flask) -> list[str]:
    """Return the ids of all deliveries, the newest first."""
    return [str(row["id"]) for row in get(app, "/imcallback/deliveries").get_json()["data"]]


def test_ndjson_equals_the_http_answer(app: Flask) -> None:
    """Each line is an element of the HTTP answer."""
    lines = run(app, "--format", "ndjson").stdout.splitlines()
    assert [json.loads(line) for line in lines] == get(app, "/imcallback/deliveries").json["data"]


def test_csv_has_the_members_as_columns(app: Flask) -> None:
    """An empty cell stands for null, and the headers are JSON."""
    file = io.StringIO(run(app, "--format", "csv").stdout_bytes.decode(), newline="")
    parsed = list(csv.DictReader(file, strict=True))
    data = get(app, "/imcallback/deliveries").get_json()["data"]
    assert [list(row) for row in parsed] == [list(row) for row in data]
    for row, expected in zip(parsed, data, strict=True):
        assert json.loads(row["headers"]) == expected["headers"]
        assert row["id"] == str(expected["id"])
        assert row["duplicate_of"] == ""


def test_the_table_shows_why_a_delivery_is_unreadable(app: Flask) -> None:
    """The newest delivery is first."""
    lines = run(app).stdout.splitlines()
    assert lines[0].split() == [
        *("id", "received_at", "provider", "command", "status", "removal_count", "error")
    ]
    assert [line.split()[0] for line in lines[1:]] == ids(app)
    assert lines[1].endswith("unreadable  0              the body is not UTF-8")
    assert lines[3].split()[3:] == [COMMAND, "recorded", "1"]


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (("--status", "unreadable"), 1),
        (("--status", "unreadable", "--status", "ignored"), 2),
        (("--command", COMMAND), 1),
        (("--command", COMMAND, "--command", "callbackAfterAddFriendCommand"), 2),
        (("--command", COMMAND, "--status", "ignored"), 0),
        (("--since", "2026-01-01T00:00:00Z"), 3),
        (("--until", "2026-01-01T00:00:00Z"), 0),
        (("--limit", "2"), 2),
        (("--order", "asc", "--limit", "1"), 1),
    ],
)
def test_filters(app: Flask, options: tuple[str, ...], count: int) -> None:
    """The filters equal those of the HTTP API."""
    assert len(run(app, "--format", "ndjson", *options).stdout.splitlines()) == count


def test_a_hint_leads_to_the_next_page(app: Flask) -> None:
    """If there is a next page, stderr shows the option for it."""
    first = run(app, "--limit", "2", "--format", "ndjson")
    assert first.stderr.startswith("There are more: --cursor ")
    last = run(app, "--limit", "2", "--format", "ndjson", *first.stderr.split()[-2:])
    assert (len(last.stdout.splitlines()), last.stderr) == (1, "")


def test_one_delivery_is_readable(app: Flask) -> None:
    """Its members and removals are lines, and its packet is indented."""
    unreadable, ignored, recorded = ids(app)
    head, _, packet = run(app, recorded).stdout.partition("\n\n")
    assert json.loads(packet) == BODY
    assert packet.count("\n") == 5
    assert "status            recorded\n" in head
    assert head.splitlines()[-1] == f"removal           {recorded} blacklist: a lost b"
    assert '"text": "\\u202e你"' in run(app, ignored).stdout
    output = run(app, unreadable).stdout
    assert "error             the body is not UTF-8\n" in output
    assert output.endswith("\n\n\\xff[\\x1b\n")


def test_one_delivery_as_json_equals_the_http_answer(app: Flask) -> None:
    """The line has the removals of the delivery, too."""
    for delivery_id in ids(app):
        line = run(app, delivery_id, "--format", "ndjson").stdout
        assert json.loads(line) == get(app, f"/imcallback/deliveries/{delivery_id}").get_json()
        assert len(run(app, delivery_id, "--format", "csv").stdout.splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "status", "problem"),
    [
        (["1"], 1, "Error: no delivery has the id 1"),
        (["x"], 2, "Error: Invalid value for '[ID]': 'x' is not a valid integer."),
        (
            ["1", "--status", "ignored"],
            2,
            "Error: a delivery that is named by its id takes no filters",
        ),
        (
            ["--status", "lost"],
            2,
            "Error: Invalid value for --status: must be recorded, duplicate, ignored or "
            "unreadable, not 'lost'",
        ),
        (["--limit", "0"], 2, "Error: Invalid value for --limit: "),
    ],
)
def test_a_wrong_argument_is_explained(
    app: Flask, arguments: list[str], status: int, problem: str
) -> None:
    """stderr names the argument, and stdout is empty."""
    result = run(app, *arguments, status=status)
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith(problem)


def test_every_database_lists_deliveries(database_url: URL, make_app: MakeApp) -> None:
    """The command works on each database."""
    app = open_history(make_app, database_url, IMCALLBACK_SECRETS=[SECRET])
    app.test_client().post(PATH, data=PACKETS[2])
    assert "unreadable" in run(app, "--status", "unreadable").stdout
