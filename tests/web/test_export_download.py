"""Exports over HTTP and on the command line. A file equals the pages."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import subprocess
import sys
import threading
from datetime import timedelta
from http.client import HTTPConnection, IncompleteRead
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from flask import Flask
from pyarrow import parquet
from sqlalchemy import URL, create_engine, event
from sqlalchemy.exc import OperationalError

from flask_imcallback.errors import StorageError
from flask_imcallback.history.history import CHUNK_REMOVALS
from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage.ids import id_at
from support import ROOT, faults, servers
from support.api import BAD_TIMES, HISTORY, assert_problem, get, open_history
from support.apps import MakeApp
from support.deliveries import MOMENT, make_delivery, store, store_all
from support.serving import serving

EXPORT = f"{HISTORY}/export"
PAST = MOMENT.replace(year=2023)
FORMATS = ("ndjson", "csv", "parquet")
EVERY_FORMAT = pytest.mark.parametrize("format", FORMATS)
Rows = list[dict[str, Any]]


def rows_of(format: str, file: bytes) -> Rows:
    """Return the removals of a file as JSON members. CSV values are texts."""
    if format == "ndjson":
        return [json.loads(line) for line in file.splitlines()]
    if format == "csv":
        return list(csv.DictReader(io.StringIO(file.decode(), newline=""), strict=True))
    rows: Rows = parquet.read_table(io.BytesIO(file)).to_pylist()
    for row in rows:
        row["received_at"] = row["received_at"].strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return rows


def convert_rows(format: str, rows: Rows) -> Rows:
    """Return the rows of a page as a file of the format holds them."""
    if format != "csv":
        return rows
    return [{name: str(value) for name, value in row.items()} for row in rows]


def store_many(count: int, each: int = 500) -> None:
    """Store `count` removals, in deliveries of `each` removals."""
    store_all(
        [
            make_delivery(
                *((f"owner{n % 7}", f"target{first + n}") for n in range(each)),
                at=PAST + timedelta(minutes=first),
                platform=["iOS", "Android"][first // each % 2],
            )
            for first in range(0, count, each)
        ]
    )


MANY = 200_000


def fill(url: URL, count: int) -> None:
    """Insert `count` removals with SQL, which is faster than recording them."""
    source = "imcallback_source (id, provider, app_id, command, relation, cause, platform)"
    removal = "imcallback_removal (id, source_id, position, owner_id, target_id, actor_id)"
    engine = create_engine(url)
    with engine.begin() as connection:
        execute = connection.exec_driver_sql
        values = "(999, 'openim', '', 'callbackX', 'friend', '', 'iOS')"
        execute(f"INSERT INTO {source} VALUES {values}")
        execute(
            f"WITH RECURSIVE n(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n + 1 < {count})"
            f" INSERT INTO {removal} SELECT {id_at(PAST)} + n, 999, 0, 'owner', 'target', '' FROM n"
        )
    engine.dispose()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> URL:
    """The URL of a SQLite database with many removals."""
    url = URL.create("sqlite", database=str(tmp_path_factory.mktemp("many") / "many.db"))
    run_flask(url, "db", "upgrade")
    fill(url, MANY)
    return url


def run_flask(url: URL, *arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run a command of the example app in a new process."""
    command = [sys.executable, "-m", "flask", "--app", "example_app", *arguments]
    how: dict[str, Any] = {"capture_output": True, "check": True} | options
    done: subprocess.CompletedProcess[bytes]
    done = subprocess.run(command, cwd=ROOT, env=environment(url), **how)  # noqa: PLW1510
    return done


def environment(url: URL) -> dict[str, str]:
    name = "FLASK_SQLALCHEMY_DATABASE_URI"
    return os.environ | {name: url.render_as_string(hide_password=False)}


def test_files_equal_the_pages(database_url: URL, make_app: MakeApp) -> None:
    """A file has the removals of all pages, in every format and order, over several chunks."""
    app = open_history(make_app, database_url)
    with app.app_context():
        store_many(2 * CHUNK_REMOVALS + 700)
    queries: list[dict[str, Any]] = [
        {},
        {"order": "asc", "owner_id": ["owner1", "owner5"], "platform": "iOS"},
        {"since": (PAST + timedelta(minutes=1500)).isoformat(), "owner_id": "owner1"},
        {"account_id": "target3", "order": "desc"},
        {"owner_id": "nobody"},
    ]
    for query in queries:
        page = get(app, HISTORY, query_string=query | {"limit": 1000})
        rows = page.get_json()["data"]
        while link := page.headers.get("Link"):
            if 'rel="next"' not in link:
                break
            page = get(app, link.split(";")[0].strip("<>"))
            rows += page.get_json()["data"]
        for format in FORMATS if query else ("ndjson",):
            response = get(app, EXPORT, query_string=query | {"format": format})
            assert response.status_code == 200
            assert rows_of(format, response.data) == convert_rows(format, rows)


@pytest.mark.parametrize(
    ("format", "media_type"),
    [
        ("ndjson", "application/x-ndjson"),
        ("csv", "text/csv; charset=utf-8; header=present"),
        ("parquet", "application/vnd.apache.parquet"),
    ],
)
def test_headers(make_app: MakeApp, format: str, media_type: str) -> None:
    """GET and HEAD return the media type and a file name."""
    app = open_history(make_app)
    with app.app_context():
        store(("o", "t"), at=PAST)
    for method in ("GET", "HEAD"):
        response = get(app, f"{EXPORT}?format={format}", method=method)
        assert response.content_type == media_type
        name = f'attachment; filename="removals.{format}"'
        assert response.headers["Content-Disposition"] == name
        assert "Content-Length" not in response.headers
        assert bool(response.data) == (method == "GET")
    without = get(app, EXPORT)
    assert without.content_type == "application/x-ndjson"


def test_formulas(make_app: MakeApp) -> None:
    """CSV escapes formulas unless the reader asks to keep them. Other formats keep ids."""
    app = open_history(make_app)
    with app.app_context():
        store(("=1+1", "@t"), at=PAST)
    for query, owner in (
        ("format=csv", "'=1+1"),
        ("format=csv&formulas=escape", "'=1+1"),
        ("format=csv&formulas=keep", "=1+1"),
        ("format=csv&spreadsheet=no&manifest=omit", "'=1+1"),
        ("format=ndjson", "=1+1"),
        ("format=parquet", "=1+1"),
    ):
        format = re.findall("format=([a-z]+)", query)[0]
        (row,) = rows_of(format, get(app, f"{EXPORT}?{query}").data)
        assert row["owner_id"] == owner


def test_a_spreadsheet_and_a_manifest(make_app: MakeApp, tmp_path: Path) -> None:
    """HTTP and the command write the same file for a spreadsheet, with a manifest on request."""
    app = open_history(make_app)
    with app.app_context():
        store(("=1+1", "00000007"), at=PAST)
    for query, options, owner, target in (
        ("", (), "'=1+1", '="00000007"'),
        ("&formulas=keep", ("--formulas", "keep"), "=1+1", '="00000007"'),
        ("&manifest=append", ("--manifest", "append"), "'=1+1", '="00000007"'),
    ):
        response = get(app, f"{EXPORT}?format=csv&spreadsheet=yes{query}")
        assert response.content_type == "text/csv; charset=utf-8; header=present"
        assert response.data.startswith(b"\xef\xbb\xbfid,provider,")
        (row, *rest) = rows_of("csv", response.data)
        assert (row["owner_id"], row["target_id"]) == (owner, target)
        assert [last["provider"] for last in rest] == (["1"] if "manifest" in query else [])
        export(app, str(tmp_path / "removals.csv"), "--spreadsheet", *options)
        assert (tmp_path / "removals.csv").read_bytes() == response.data


@pytest.mark.parametrize("query", ["", "&format=ndjson", "&format=parquet"])
def test_a_spreadsheet_needs_csv(make_app: MakeApp, query: str) -> None:
    """The problem names the parameter, and the format that it needs."""
    app = open_history(make_app, migrate=False)
    problem = assert_problem(get(app, f"{EXPORT}?spreadsheet=yes{query}"), 400)
    format = query.partition("=")[2] or "ndjson"
    assert problem["detail"] == f"spreadsheet needs the format csv, not {format}"
    assert problem["parameter"] == "spreadsheet"
    result = export(app, "-", "--spreadsheet", "--format", format, status=2)
    problem_text = f"Invalid value for --spreadsheet: needs the format csv, not {format}"
    assert problem_text in result.stderr


@EVERY_FORMAT
def test_an_export_without_removals(make_app: MakeApp, format: str) -> None:
    """A file without removals is sent, too."""
    response = get(open_history(make_app), f"{EXPORT}?format={format}")
    assert response.status_code == 200
    assert rows_of(format, response.data) == []


@EVERY_FORMAT
def test_an_error_at_the_start_is_a_problem(make_app: MakeApp, format: str) -> None:
    """An error before the first byte is answered with a problem, and not with a file."""
    response = get(open_history(make_app, migrate=False), f"{EXPORT}?format={format}")
    assert "flask db upgrade" in assert_problem(response, 503)["detail"]
    assert "Content-Disposition" not in response.headers


def test_without_pyarrow(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """The response 501 and the command say what to install."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    app = open_history(make_app)
    problem = assert_problem(get(app, f"{EXPORT}?format=parquet"), 501)
    assert "Parquet needs PyArrow: run pip install pyarrow" in problem["detail"]
    result = export(app, "-", "--format", "parquet", status=1)
    assert "Parquet needs PyArrow: run pip install pyarrow" in result.stderr


BAD: list[tuple[str, Any]] = [
    *(("format", value) for value in ("", "xml", "CSV", "x" * 10_000, "\0", "é", ["csv", "csv"])),
    *(("formulas", value) for value in ("", "yes", "x" * 10_000, "\0", ["keep", "keep"])),
    *(("spreadsheet", value) for value in ("", "true", "yes", ["no", "no"])),
    *(("manifest", value) for value in ("", "yes", "no", ["append", "append"])),
    *(("order", value) for value in ("", "ASC", ["asc", "desc"])),
    *((name, moment) for name in ("since", "until") for moment in BAD_TIMES),
    *(("delivery_id", value) for value in ("", "0", "-1", "x", "9" * 10_000, ["1", "x"])),
    *((name, "x" * 10_000) for name in ("owner_id", "platform", "app_id")),
    *((name, "\0") for name in ("owner_id", "platform", "app_id", "request_id")),
    ("peer_id", "x"),
    *((name, "1") for name in ("limit", "cursor", "bucket", "tz", "status", "", "é")),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda v: ascii(v)[:40])
def test_a_bad_parameter_is_named(make_app: MakeApp, name: str, value: Any) -> None:
    """A parameter that is malformed, unknown or wrongly repeated is refused by its name."""
    app = open_history(make_app, migrate=False)
    problem = assert_problem(get(app, EXPORT, query_string={name: value}), 400)
    assert problem["parameter"] == name


@pytest.mark.parametrize(
    ("kind", "formats"), [("postgresql", FORMATS), ("mariadb", ["ndjson"])], ids=str
)
def test_a_database_that_fails_in_the_middle(
    database_servers: dict[str, servers.Server],
    make_app: MakeApp,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    formats: list[str],
) -> None:
    """The response breaks off before the manifest, and the failure is logged."""
    with servers.database(database_servers[kind]) as url, faults.proxy(url.port or 0) as proxy:
        app = open_history(make_app, url.set(port=proxy.port))
        if kind == "postgresql":
            fill(url, 110_000)
        else:
            with app.app_context():
                store_many(CHUNK_REMOVALS * 2)
        for format in formats:
            caplog.clear()
            parts = get(app, f"{EXPORT}?format={format}&manifest=append").iter_encoded()
            file = next(parts)
            rest: list[bytes] = []
            with proxy.refusing(), pytest.raises(StorageError):
                rest.extend(parts)
            file += b"".join(rest)
            assert "A file was cut off" in caplog.text
            assert not is_whole(format, file)


def is_whole(format: str, file: bytes) -> bool:
    """Return True if the file can be read to its end, and ends with a manifest."""
    try:
        rows = rows_of(format, file)
    except Exception:
        return False
    return format == "parquet" or "manifest" in (rows[-1], rows[-1].get("id"))


@pytest.mark.slow
def test_over_a_socket(many: URL, tmp_path: Path) -> None:
    """The file is sent while it is made. If it is cut off, the reader gets an error."""
    tokens = {"FLASK_IMCALLBACK_HISTORY_TOKENS": '["a-token-of-readers"]'}
    headers = {"Authorization": "Bearer a-token-of-readers"}
    engine = create_engine(many)
    with serving(tmp_path, url=many, upgrade=False, **tokens) as running:
        for is_cut in (False, True):
            connection = HTTPConnection("127.0.0.1", running.port, timeout=60)
            connection.request("GET", f"{EXPORT}?format=ndjson", headers=headers)
            response = connection.getresponse()
            assert response.status == 200
            file = response.read(1000)
            if is_cut:
                with engine.begin() as database:
                    database.exec_driver_sql("ALTER TABLE imcallback_source RENAME TO away")
                with pytest.raises(IncompleteRead):
                    response.read()
                with engine.begin() as database:
                    database.exec_driver_sql("ALTER TABLE away RENAME TO imcallback_source")
            else:
                file += response.read()
                assert file.count(b"\n") == MANY
            connection.close()
        assert "A file was cut off" in running.log()
    engine.dispose()


def export(app: Flask, *arguments: str, status: int = 0) -> Result:
    result = app.test_cli_runner().invoke(args=["imcallback", "export", *arguments])
    assert result.exit_code == status, result.output
    return result


@pytest.mark.parametrize(
    ("name", "options", "format"),
    [
        ("removals.ndjson", (), "ndjson"),
        ("removals.csv", (), "csv"),
        ("REMOVALS.CSV", (), "csv"),
        ("removals.parquet", (), "parquet"),
        ("removals.jsonl", (), "ndjson"),
        ("removals", (), "ndjson"),
        ("removals.csv", ("--format", "ndjson"), "ndjson"),
        ("removals.xlsx", ("--format", "csv"), "csv"),
        ("removals.old", ("--format", "parquet"), "parquet"),
    ],
)
def test_the_name_selects_the_format(
    make_app: MakeApp, tmp_path: Path, name: str, options: tuple[str, ...], format: str
) -> None:
    """The ending of the file selects the format, unless an option does. No other file is left."""
    app = open_history(make_app)
    with app.app_context():
        store(("=o", "1"), ("o", "2"), at=PAST)
    folder = tmp_path / "exports"
    folder.mkdir()
    file = folder / name
    file.write_text("the file before")
    result = export(app, str(file), "--order", "asc", *options)
    assert (result.stdout, result.stderr) == ("", "")
    assert [row["target_id"] for row in rows_of(format, file.read_bytes())] == ["1", "2"]
    assert list(folder.iterdir()) == [file]
    assert file.read_bytes() == get(app, f"{EXPORT}?order=asc&format={format}").data or (
        format == "parquet"
    )


@pytest.mark.parametrize(
    ("name", "ending"),
    [("a.xlsx", ".xlsx"), ("a.json", ".json"), ("a.csv.gz", ".gz"), ("A.CVS", ".cvs")],
)
def test_an_unknown_ending_is_refused(
    make_app: MakeApp, tmp_path: Path, name: str, ending: str
) -> None:
    """The error names the endings that work, and no file is made."""
    app = open_history(make_app, migrate=False)
    folder = tmp_path / "exports"
    folder.mkdir()
    result = export(app, str(folder / name), status=2)
    assert result.stderr.endswith(
        f"Error: Invalid value for FILE: no format has the ending {ending}. "
        "Use .csv, .ndjson, .jsonl or .parquet, or name the format with --format. "
        "A spreadsheet opens .csv, best with --spreadsheet\n"
    )
    assert list(folder.iterdir()) == []


@EVERY_FORMAT
def test_to_stdout(make_app: MakeApp, format: str) -> None:
    """The command writes to stdout for -, with the same filters as over HTTP."""
    app = open_history(make_app)
    with app.app_context():
        store(("a", "1"), ("b", "2"), ("c", "3"), at=PAST)
    result = export(app, "-", "--format", format, "--owner-id", "a", "--owner-id", "c")
    assert [row["owner_id"] for row in rows_of(format, result.stdout_bytes)] == ["c", "a"]
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("error", "said"),
    [(OperationalError("x", {}, Exception("gone")), "database"), (KeyboardInterrupt(), "Aborted")],
    ids=["database", "ctrl-c"],
)
@pytest.mark.parametrize("before", [[], ["the file before"]])
def test_a_failed_export_leaves_no_file(
    make_app: MakeApp, tmp_path: Path, error: BaseException, said: str, before: list[str]
) -> None:
    """An export that fails or is interrupted leaves the folder as it was."""
    app = open_history(make_app)
    folder = tmp_path / "exports"
    folder.mkdir()
    file = folder / "removals.ndjson"
    for text in before:
        file.write_text(text)
    with app.app_context():
        store_many(CHUNK_REMOVALS * 2)
        engine = get_runtime().engine()
    reads = 0

    def fail(_: object, __: object, statement: str, *___: object) -> None:
        nonlocal reads
        reads += "FROM imcallback_removal" in statement
        if reads == 2:
            raise error

    event.listen(engine, "before_cursor_execute", fail)
    result = export(app, str(file), status=1)
    assert reads == 2
    assert said in result.stderr
    assert [path.read_text() for path in folder.iterdir()] == before


def test_a_file_that_cannot_be_written(make_app: MakeApp, tmp_path: Path) -> None:
    """The error names the file, and no other file is left."""
    folder = tmp_path / "exports"
    folder.mkdir()
    for file in (folder / "none" / "removals.csv", folder):
        result = export(open_history(make_app), str(file), status=1)
        assert str(file) in result.stderr
        assert "Traceback" not in result.stderr
    assert list(folder.iterdir()) == []
    assert not folder.with_name("exports.part").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--format", value) for value in ("xml", "", "x" * 10_000)),
        *(("--formulas", value) for value in ("", "no")),
        *(("--since", "yesterday"), ("--order", "up"), ("--limit", "5"), ("--delivery-id", "x")),
        *(("--owner-id", ""), ("--peer-id", "x"), ("--cursor", "x")),
    ],
)
def test_a_wrong_option_is_named(
    make_app: MakeApp, tmp_path: Path, option: str, value: str
) -> None:
    """A wrong option ends the command with exit status 2 before a file is made."""
    file = tmp_path / "removals.csv"
    result = export(open_history(make_app, migrate=False), str(file), f"{option}={value}", status=2)
    assert f"Invalid value for {option}: " in result.stderr or "No such option" in result.stderr
    assert option in result.stderr
    assert not list(tmp_path.glob("removals*"))


def test_missing_tables(make_app: MakeApp, tmp_path: Path) -> None:
    """Without tables, the command names the remedy, exits with status 1 and leaves no file."""
    app = open_history(make_app, migrate=False)
    result = export(app, str(tmp_path / "removals.csv"), status=1)
    assert "flask db upgrade" in result.stderr
    assert not list(tmp_path.glob("removals*"))


@pytest.mark.slow
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_a_progress_bar_on_a_terminal(many: URL, tmp_path: Path, order: str) -> None:
    """The bar grows to 100 %, and the file is the same as without a bar."""
    terminal, child = pty.openpty()
    file = tmp_path / "removals.ndjson"
    until = (PAST + timedelta(microseconds=30_000)).isoformat()
    options = ["--order", order, "--until", until]
    output = b""

    def read() -> None:
        nonlocal output
        while True:
            try:
                part = os.read(terminal, 4096)
            except OSError:  # Linux raises it when the other end is closed
                return
            output += part

    reader = threading.Thread(target=read)
    reader.start()
    run_flask(many, "imcallback", "export", str(file), *options, capture_output=False, stderr=child)
    os.close(child)
    reader.join(30)
    os.close(terminal)
    steps = [int(percent) for percent in re.findall(rb"(\d+)%", output)]
    assert steps == sorted(steps)
    assert steps[-1] == 100
    assert len(set(steps)) > 3
    silent = run_flask(many, "imcallback", "export", "-", *options)
    assert silent.stdout == file.read_bytes()
    assert b"%" not in silent.stderr
    assert len(rows_of("ndjson", silent.stdout)) == 30_000


@pytest.mark.slow
def test_a_progress_bar_without_removals(many: URL, tmp_path: Path) -> None:
    """The bar is complete at once."""
    terminal, child = pty.openpty()
    file = tmp_path / "removals.csv"
    options = ["--owner-id", "nobody"]
    run_flask(many, "imcallback", "export", str(file), *options, capture_output=False, stderr=child)
    os.close(child)
    assert b"100%" in os.read(terminal, 4096)
    os.close(terminal)
    assert rows_of("csv", file.read_bytes()) == []


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("format", ["ndjson", "csv"])
def test_memory_is_flat(many: URL, format: str) -> None:
    """Ten times the removals take no more memory."""

    def peak_memory(removals: int) -> int:
        until = (PAST + timedelta(microseconds=removals)).isoformat()
        options = ["--format", format, "--until", until]
        command = [sys.executable, "-m", "flask", "--app", "example_app", "imcallback", "export"]
        process = subprocess.Popen(
            [*command, "-", *options],
            cwd=ROOT,
            env=environment(many),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        return usage.ru_maxrss

    few = peak_memory(MANY // 10)
    assert peak_memory(MANY) < few + 8_000  # in KiB, less than a tenth of the removals takes
