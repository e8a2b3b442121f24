"""`flask imcallback history`: the history in a terminal and in a pipe."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
from click.testing import Result
from flask import Flask
from sqlalchemy import URL

from flask_imcallback.removals import Relation
from support.api import MEMBERS, get, open_history
from support.apps import MakeApp
from support.deliveries import MOMENT, store

AWKWARD = 'a,b "c"\r\nd\t\x1b[31m\u202e\\ é😀 '
TABLE = ["id", "received_at", "provider", "relation", "owner_id", "target_id", "platform"]


def run(app: Flask, *arguments: str, status: int = 0) -> Result:
    result = app.test_cli_runner().invoke(args=["imcallback", "history", *arguments])
    assert result.exit_code == status, result.output
    return result


def rows(result: Result) -> list[dict[str, Any]]:
    """What `--format ndjson` printed."""
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def app(make_app: MakeApp) -> Flask:
    """An app with three removals."""
    app = open_history(make_app)
    with app.app_context():
        store(("a", "1"), ("b", AWKWARD), ("c", "3"), platform="iOS", command="callbackX")
    return app


def test_the_same_as_over_http(database_url: URL, make_app: MakeApp) -> None:
    """A line of `ndjson` is an element of the HTTP answer, on every database."""
    app = open_history(make_app, database_url)
    with app.app_context():
        store(("a", "1"), ("b", AWKWARD), platform="iOS")
    result = run(app, "--format", "ndjson")
    assert rows(result) == get(app).get_json()["data"]
    assert [list(row) for row in rows(result)] == [MEMBERS] * 2
    assert result.stderr == ""


def test_csv(app: Flask) -> None:
    """It is RFC 4180's, with the members of the JSON as columns, and gives back any id as it is."""
    result = run(app, "--format", "csv")
    data = result.stdout_bytes.decode()
    assert data.startswith(",".join(MEMBERS) + "\r\n")
    assert data.endswith("\r\n")
    parsed = list(csv.DictReader(io.StringIO(data, newline=""), strict=True))
    expected = get(app).get_json()["data"]
    assert parsed == [{name: str(value) for name, value in row.items()} for row in expected]
    assert parsed[1]["target_id"] == AWKWARD


def test_csv_of_nothing_has_its_header(app: Flask) -> None:
    """So that a program knows the columns."""
    result = run(app, "--format", "csv", "--owner-id", "nobody")
    assert result.stdout_bytes.decode() == ",".join(MEMBERS) + "\r\n"


def test_csv_neutralises_formulas(make_app: MakeApp) -> None:
    """What a spreadsheet would run gets an apostrophe; `ndjson` has it as it is."""
    app = open_history(make_app)
    with app.app_context():
        store(('=HYPERLINK("x")', "@t"), platform="+1")
    parsed = list(csv.DictReader(io.StringIO(run(app, "--format", "csv").stdout, newline="")))
    assert [parsed[0][name][:2] for name in ("owner_id", "target_id", "platform")] == [
        *("'=", "'@", "'+")
    ]
    assert rows(run(app, "--format", "ndjson"))[0]["owner_id"] == '=HYPERLINK("x")'


def test_table(app: Flask) -> None:
    """Without a format it is a table, one line each, newest first, in aligned columns."""
    lines = run(app).stdout.split("\n")
    assert lines.pop() == ""
    assert lines[0].split() == TABLE
    assert len(lines) == 4
    newest = lines[1].split()
    assert newest[1:] == ["2026-11-20T18:05:00.123456Z", "openim", "friend", "c", "3", "iOS"]
    column = lines[0].index("owner_id")
    assert [line[column] for line in lines[1:]] == ["c", "b", "a"]
    assert len({line.rindex("iOS") for line in lines[1:]}) == 1


def test_a_table_obeys_no_id(app: Flask) -> None:
    """Newlines and control characters of an id are shown escaped, other characters as they are."""
    output = run(app, "--owner-id", "b").stdout
    assert r'a,b "c"\r\nd\t\x1b[31m\u202e' in output
    assert "é😀" in output
    assert all(character.isprintable() for character in output.replace("\n", ""))
    assert output.count("\n") == 2


@pytest.mark.parametrize(
    ("arguments", "owners"),
    [
        ((), "cba"),
        (("--order", "asc"), "abc"),
        (("--owner-id", "a", "--owner-id", "c"), "ca"),
        (("--owner-id", "a", "--owner-id", "c", "--target-id", "3"), "c"),
        (("--account-id", AWKWARD), "b"),
        (("--platform", ""), ""),
        (("--command", "callbackX", "--relation", "friend", "--provider", "openim"), "cba"),
        (("--since", MOMENT.isoformat()), "cba"),
        (("--until", MOMENT.isoformat()), ""),
    ],
)
def test_filters(app: Flask, arguments: tuple[str, ...], owners: str) -> None:
    """They are those of the HTTP address; repeated, they are alternatives."""
    found = rows(run(app, "--format", "ndjson", *arguments))
    assert "".join(row["owner_id"] for row in found) == owners


@pytest.mark.parametrize("format", ["table", "ndjson", "csv"])
def test_the_next_page(app: Flask, format: str) -> None:
    """If there is one, stderr says the option that leads to it; the last page says nothing."""
    arguments = ["--format", format, "--limit", "2", "--account-id", "1", "--account-id", "c"]
    with app.app_context():
        store(("c", "2"))
    first = run(app, *arguments)
    assert "--cursor" not in first.stdout
    hint = first.stderr.split()
    assert hint[-2] == "--cursor"
    last = run(app, *arguments, *hint[-2:])
    assert last.stderr == ""
    lines = len(last.stdout.splitlines())
    assert lines == (1 if format == "ndjson" else 2)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--limit", "0"),
        ("--limit", "1001"),
        ("--limit", "x"),
        ("--limit", ""),
        ("--order", "ASC"),
        ("--order", ""),
        ("--since", "yesterday"),
        ("--since", ""),
        ("--until", "2026-11-20T18:05:00"),
        ("--cursor", "x"),
        ("--cursor", ""),
        ("--relation", "foe"),
        ("--owner-id", ""),
        ("--owner-id", "x" * 256),
        ("--owner-id", "\udcff"),
        ("--delivery-id", "-1"),
        ("--format", "xml"),
        ("--owner", "x"),
    ],
)
def test_a_wrong_option_is_named(app: Flask, option: str, value: str) -> None:
    """It is said on stderr, nothing is listed, and the exit status is 2."""
    result = run(app, f"{option}={value}", status=2)
    assert result.stdout == ""
    assert option in result.stderr.splitlines()[-1]


def test_missing_tables(make_app: MakeApp) -> None:
    """Exit status 1, and stderr says the command that makes them."""
    result = run(open_history(make_app, migrate=False), status=1)
    assert result.stdout == ""
    assert "flask db upgrade" in result.stderr
    assert "Traceback" not in result.stderr


def test_help(app: Flask) -> None:
    """It lists an option for each filter of the HTTP address."""
    output = run(app, "--help").stdout
    names = [*MEMBERS, "account_id", "since", "until", "order", "limit", "cursor", "format"]
    for name in set(names) - {"id", "position", "received_at"}:
        assert f"--{name.replace('_', '-')} " in output, name


STATS = ("stats", "--since", "2026-11-20T00:00:00Z", "--until", "2026-11-21T12:00:00Z")


def run_stats(app: Flask, *arguments: str, status: int = 0) -> Result:
    result = app.test_cli_runner().invoke(args=["imcallback", *STATS, *arguments])
    assert result.exit_code == status, result.output
    return result


@pytest.mark.parametrize("group_by", [None, "relation", "platform"])
def test_stats_in_every_format(make_app: MakeApp, group_by: str | None) -> None:
    """They are those of the HTTP address."""
    app = open_history(make_app)
    with app.app_context():
        store(("a", "1"), ("b", "2"), platform="=1+1")
        store(("c", "3"), relation=Relation.BLACKLIST)
    given = dict(zip(("since", "until"), STATS[2::2], strict=True))
    options: list[str] = []
    if group_by:
        given["group_by"] = group_by
        options = ["--group-by", group_by]
    data = get(app, "/imcallback/history/stats", query_string=given).get_json()["data"]
    assert sum(row["count"] for row in data) == 3
    assert rows(run_stats(app, "--format", "ndjson", *options)) == data
    columns = ["bucket", "group", "count"]
    file = run_stats(app, "--format", "csv", *options).stdout_bytes.decode()
    cells = [list(row.values()) for row in data]
    expected = [
        ["'=1+1" if cell == "=1+1" else "" if cell is None else str(cell) for cell in row]
        for row in cells
    ]
    assert list(csv.reader(io.StringIO(file, newline=""), strict=True)) == [columns, *expected]
    lines = run_stats(app, *options).stdout.splitlines()
    assert lines[0].split() == columns
    assert [line.split() for line in lines[1:]] == [
        [str(cell or "-") if cell != 0 else "0" for cell in row] for row in cells
    ]


def test_stats_of_nothing(make_app: MakeApp) -> None:
    """Each format is what it is without rows."""
    app = open_history(make_app)
    nothing = ("--group-by", "relation")
    assert run_stats(app, "--format", "ndjson", *nothing).stdout == ""
    assert run_stats(app, "--format", "csv", *nothing).stdout_bytes == b"bucket,group,count\r\n"
    assert run_stats(app, *nothing).stdout.split() == ["bucket", "group", "count"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--bucket", value) for value in ("", "minute", "DAY", "x" * 10_000)),
        *(("--group-by", value) for value in ("", "owner_id", "x" * 10_000)),
        *(("--tz", value) for value in ("", "America", "../etc/passwd", "x" * 10_000, "é")),
        *(("--format", "xml"), ("--limit", "1"), ("--order", "asc"), ("--cursor", "x")),
        *(("--owner-id", ""), ("--peer-id", "x"), ("--relation", "foe"), ("--delivery-id", "0")),
    ],
)
def test_a_wrong_option_of_stats_is_named(make_app: MakeApp, option: str, value: str) -> None:
    """With exit status 2, and nothing on stdout."""
    result = run_stats(open_history(make_app, migrate=False), f"{option}={value}", status=2)
    assert result.stdout == ""
    assert option in result.stderr


def test_too_many_counts_are_said(app: Flask) -> None:
    """With the option that makes fewer."""
    result = app.test_cli_runner().invoke(
        args=["imcallback", "stats", "--since", "2001-01-01T00:00:00Z", "--bucket", "hour"]
    )
    assert result.exit_code == 2
    assert "--bucket" in result.stderr
