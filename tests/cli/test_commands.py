"""The commands `flask imcallback history` and `stats`."""

from __future__ import annotations

import csv
import io
import json
from datetime import timedelta
from typing import Any

import pytest
from click.testing import Result
from flask import Flask
from sqlalchemy import URL

from flask_imcallback.removals import Cause, Relation
from support.api import MEMBERS, get, open_history
from support.apps import MakeApp
from support.deliveries import MOMENT, store

AWKWARD = 'a,b "c"\r\nd\t\x1b[31m\u202e\\ é😀 '
TABLE = [
    *("id", "received_at", "provider", "relation", "owner_id", "target_id", "platform"),
    *("cause", "actor_id"),
]


def run(app: Flask, *arguments: str, status: int = 0) -> Result:
    """Run `flask imcallback history`, and check the exit status."""
    result = app.test_cli_runner().invoke(args=["imcallback", "history", *arguments])
    assert result.exit_code == status, result.output
    return result


def parse_rows(result: Result) -> list[dict[str, Any]]:
    """Return the rows that `--format ndjson` printed."""
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def app(make_app: MakeApp) -> Flask:
    """An app with three removals."""
    app = open_history(make_app)
    with app.app_context():
        store(("a", "1"), ("b", AWKWARD), ("c", "3"), platform="iOS", command="callbackX")
    return app


def test_a_removal_from_a_group(app: Flask) -> None:
    """The table ends with the cause and the actor, and both are filters."""
    kicked: dict[str, Any] = {"relation": Relation.GROUP, "cause": Cause.KICKED, "actor_id": "m"}
    with app.app_context():
        store(("g", "a"), platform="iOS", at=MOMENT + timedelta(seconds=1), **kicked)
    for options in (
        *(("--cause", "kicked"), ("--actor-id", "m"), ("--group-id", "g")),
        ("--account-id", "a", "--relation", "group"),
    ):
        _, line = run(app, *options).stdout.splitlines()
        assert line.split()[3:] == ["group", "g", "a", "iOS", "kicked", "m"]


def test_ndjson_equals_the_http_answer(database_url: URL, make_app: MakeApp) -> None:
    """Each line of `ndjson` is an element of the HTTP answer."""
    app = open_history(make_app, database_url)
    with app.app_context():
        store(("a", "1"), ("b", AWKWARD), platform="iOS")
    result = run(app, "--format", "ndjson")
    assert parse_rows(result) == get(app).get_json()["data"]
    assert [list(row) for row in parse_rows(result)] == [MEMBERS] * 2
    assert result.stderr == ""


def test_csv(app: Flask) -> None:
    """CSV follows RFC 4180, has the members of the JSON as columns and keeps every id as it is."""
    result = run(app, "--format", "csv")
    data = result.stdout_bytes.decode()
    assert data.startswith(",".join(MEMBERS) + "\r\n")
    assert data.endswith("\r\n")
    parsed = list(csv.DictReader(io.StringIO(data, newline=""), strict=True))
    expected = get(app).get_json()["data"]
    assert parsed == [{name: str(value) for name, value in row.items()} for row in expected]
    assert parsed[1]["target_id"] == AWKWARD


def test_csv_without_rows_has_its_header(app: Flask) -> None:
    """A program can always read the columns."""
    result = run(app, "--format", "csv", "--owner-id", "nobody")
    assert result.stdout_bytes.decode() == ",".join(MEMBERS) + "\r\n"


def test_csv_escapes_formulas(make_app: MakeApp) -> None:
    """A text that a spreadsheet can run gets an apostrophe, but only in CSV.

    A group id of Tencent and a phone number cannot run, so they stay as they are.
    """
    app = open_history(make_app)
    with app.app_context():
        store(('=HYPERLINK("x")', "@TGS#1"), platform="@SUM(A1)", client_ip="+1+1", request_id="+1")
    parsed = list(csv.DictReader(io.StringIO(run(app, "--format", "csv").stdout, newline="")))
    names = ("owner_id", "target_id", "platform", "client_ip", "request_id")
    assert [parsed[0][name] for name in names] == [
        *('\'=HYPERLINK("x")', "@TGS#1", "'@SUM(A1)", "'+1+1", "+1")
    ]
    assert parse_rows(run(app, "--format", "ndjson"))[0]["owner_id"] == '=HYPERLINK("x")'


def test_table(app: Flask) -> None:
    """The default format is a table with aligned columns, newest removal first."""
    lines = run(app).stdout.split("\n")
    assert lines.pop() == ""
    assert lines[0].split() == TABLE
    assert len(lines) == 4
    newest = lines[1].split()
    assert newest[1:] == ["2026-11-20T18:05:00.123456Z", "openim", "friend", "c", "3", "iOS"]
    column = lines[0].index("owner_id")
    assert [line[column] for line in lines[1:]] == ["c", "b", "a"]
    assert len({line.rindex("iOS") for line in lines[1:]}) == 1


def test_a_table_escapes_control_characters(app: Flask) -> None:
    """A terminal never executes an id. Other characters are shown as they are."""
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
        (("--since", "2026-11-20"), "cba"),
        (("--since", "2026-11-21"), ""),
        (("--until", "2026-11-21"), "cba"),
        (("--until", "2026-11-20"), ""),
    ],
)
def test_filters(app: Flask, arguments: tuple[str, ...], owners: str) -> None:
    """The filters equal those of the HTTP API. Repeated options are alternatives."""
    removals = parse_rows(run(app, "--format", "ndjson", *arguments))
    assert "".join(row["owner_id"] for row in removals) == owners


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--since=2026-02-30", "not '2026-02-30'"),
        ("--since=20261101", "not '20261101'"),
        ("--until=2026-11-01T00:00:00", "not '2026-11-01T00:00:00'"),
        ("--until=0001-01-01Z", "not '0001-01-01Z'"),
    ],
)
def test_only_whole_dates_need_no_offset(app: Flask, option: str, message: str) -> None:
    """A text that is neither a date nor a time with an offset is refused."""
    problem = "must be a time with its offset, such as 2026-11-20T18:05:00Z, "
    assert run(app, option, status=2).stderr.endswith(f"{problem}{message}\n")


def test_the_nearest_option_is_named(app: Flask) -> None:
    """A misspelt filter gets the option that was meant."""
    for option, nearest in (("--owner", "--owner-id"), ("--target_id", "--target-id")):
        *_, message = run(app, option, "x", status=2).stderr.splitlines()
        assert message.startswith("Error: No such option")
        assert nearest in message


@pytest.mark.parametrize("format", ["table", "ndjson", "csv"])
def test_a_hint_leads_to_the_next_page(app: Flask, format: str) -> None:
    """If there is a next page, stderr shows the option for it."""
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
    """stderr names the option, stdout is empty, and the exit status is 2."""
    result = run(app, f"{option}={value}", status=2)
    assert result.stdout == ""
    assert option in result.stderr.splitlines()[-1]


def test_missing_tables(make_app: MakeApp) -> None:
    """The exit status is 1, and stderr names the command that creates the tables."""
    result = run(open_history(make_app, migrate=False), status=1)
    assert result.stdout == ""
    assert "flask db upgrade" in result.stderr
    assert "Traceback" not in result.stderr


def test_help(app: Flask) -> None:
    """The help lists an option for each filter of the HTTP API."""
    output = run(app, "--help").stdout
    names = [*MEMBERS, "account_id", "since", "until", "order", "limit", "cursor", "format"]
    for name in set(names) - {"id", "position", "received_at"}:
        assert f"--{name.replace('_', '-')} " in output, name

    assert "A date without a time means midnight in UTC" in " ".join(output.split())


STATS = ("stats", "--since", "2026-11-20T00:00:00Z", "--until", "2026-11-21T12:00:00Z")


def run_stats(app: Flask, *arguments: str, status: int = 0) -> Result:
    """Run `flask imcallback stats`, and check the exit status."""
    result = app.test_cli_runner().invoke(args=["imcallback", *STATS, *arguments])
    assert result.exit_code == status, result.output
    return result


@pytest.mark.parametrize("group_by", [None, "relation", "platform"])
def test_stats_equal_the_http_answer(make_app: MakeApp, group_by: str | None) -> None:
    """Each format has the counts of the HTTP API."""
    app = open_history(make_app)
    with app.app_context():
        store(("a", "1"), ("b", "2"), platform="=1+1")
        store(("c", "3"), relation=Relation.BLACKLIST)
    query = dict(zip(("since", "until"), STATS[2::2], strict=True))
    options: list[str] = []
    if group_by:
        query["group_by"] = group_by
        options = ["--group-by", group_by]
    data = get(app, "/imcallback/history/stats", query_string=query).get_json()["data"]
    assert sum(row["count"] for row in data) == 3
    assert parse_rows(run_stats(app, "--format", "ndjson", *options)) == data
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


@pytest.mark.parametrize(
    ("tz", "first"),
    [
        (None, "2026-11-20T00:00:00Z"),
        ("UTC", "2026-11-20T00:00:00Z"),
        ("Asia/Shanghai", "2026-11-20T00:00:00+08:00"),
        ("America/St_Johns", "2026-11-20T00:00:00-03:30"),
    ],
)
def test_a_date_of_stats_is_in_the_zone_of_the_buckets(
    app: Flask, tz: str | None, first: str
) -> None:
    """A date means midnight in `--tz`, so that the first bucket is a whole day."""
    options = ["--since", "2026-11-20", "--until", "2026-11-22", "--format", "ndjson"]
    options += ["--tz", tz] if tz else []
    result = app.test_cli_runner().invoke(args=["imcallback", "stats", *options])
    rows = parse_rows(result)
    assert [row["bucket"][:10] for row in rows] == ["2026-11-20", "2026-11-21"]
    assert rows[0]["bucket"] == first
    output = app.test_cli_runner().invoke(args=["imcallback", "stats", "--help"]).stdout
    assert "A date without a time means midnight in --tz" in " ".join(output.split())


def test_a_wrong_zone_of_a_date_is_named(app: Flask) -> None:
    """The error names the zone and not the date."""
    options = ["--since", "2026-11-20", "--tz", "Mars"]
    result = app.test_cli_runner().invoke(args=["imcallback", "stats", *options])
    assert result.exit_code == 2
    assert "Invalid value for --tz: must name a time zone" in result.stderr


def test_stats_without_rows(make_app: MakeApp) -> None:
    """Each format has its header or nothing."""
    app = open_history(make_app)
    no_rows = ("--group-by", "relation")
    assert run_stats(app, "--format", "ndjson", *no_rows).stdout == ""
    assert run_stats(app, "--format", "csv", *no_rows).stdout_bytes == b"bucket,group,count\r\n"
    assert run_stats(app, *no_rows).stdout.split() == ["bucket", "group", "count"]


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
    """stderr names the option, stdout is empty, and the exit status is 2."""
    result = run_stats(open_history(make_app, migrate=False), f"{option}={value}", status=2)
    assert result.stdout == ""
    assert option in result.stderr


def test_too_many_counts_name_the_option(app: Flask) -> None:
    """stderr names the option that makes fewer counts."""
    result = app.test_cli_runner().invoke(
        args=["imcallback", "stats", "--since", "2001-01-01T00:00:00Z", "--bucket", "hour"]
    )
    assert result.exit_code == 2
    assert "--bucket" in result.stderr
