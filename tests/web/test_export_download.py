"""The whole result as one file, over HTTP and from a terminal: it equals the pages."""

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
from flask_imcallback.history.history import CHUNK
from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage.ids import id_at
from support import ROOT, faults, servers
from support.api import HISTORY, TIMES, assert_problem, get, open_history
from support.apps import MakeApp
from support.deliveries import MOMENT, delivery_of, store, store_all
from support.serving import serving

EXPORT = f"{HISTORY}/export"
PAST = MOMENT.replace(year=2023)
FORMATS = ("ndjson", "csv", "parquet")
EVERY_FORMAT = pytest.mark.parametrize("format", FORMATS)
Rows = list[dict[str, Any]]


def rows_of(format: str, file: bytes) -> Rows:
    """What a whole file holds, as JSON has it; of CSV all are texts."""
    if format == "ndjson":
        *lines, last = [json.loads(line) for line in file.splitlines()]
        assert last == {"manifest": {"removals": len(lines)}}
        return lines
    if format == "csv":
        *records, last = csv.DictReader(io.StringIO(file.decode(), newline=""), strict=True)
        assert (last["id"], last["provider"]) == ("manifest", str(len(records)))
        return records
    found = parquet.read_table(io.BytesIO(file)).to_pylist()
    for row in found:
        row["received_at"] = row["received_at"].strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return list(found)


def as_in(format: str, rows: Rows) -> Rows:
    """Rows of a page as a file of the format has them."""
    if format != "csv":
        return rows
    return [{name: str(value) for name, value in row.items()} for row in rows]


def store_many(count: int, each: int = 500) -> None:
    """So many removals, of deliveries that are all like that."""
    store_all(
        [
            delivery_of(
                *((f"owner{n % 7}", f"target{first + n}") for n in range(each)),
                at=PAST + timedelta(minutes=first),
                platform=["iOS", "Android"][first // each % 2],
            )
            for first in range(0, count, each)
        ]
    )


MANY = 200_000


def fill(url: URL, count: int) -> None:
    """So many removals, quicker than by recording them."""
    removal = "imcallback_removal (id, delivery_id, source_id, owner_id, target_id, client_ip,"
    source = "imcallback_source (id, provider, app_id, command, relation, platform)"
    engine = create_engine(url)
    with engine.begin() as connection:
        do = connection.exec_driver_sql
        do(f"INSERT INTO {source} VALUES (999, 'openim', '', 'callbackX', 'friend', 'iOS')")
        do(
            f"WITH RECURSIVE n(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n + 1 < {count})"
            f" INSERT INTO {removal} request_id) SELECT {id_at(PAST)} + n, {id_at(PAST)} + n, 999,"
            " 'owner', 'target', '203.0.113.7', 'a request id' FROM n"
        )
    engine.dispose()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> URL:
    """A SQLite database with many removals."""
    url = URL.create("sqlite", database=str(tmp_path_factory.mktemp("many") / "many.db"))
    run_flask(url, "db", "upgrade")
    fill(url, MANY)
    return url


def run_flask(url: URL, *arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """A command of the example app, in a process of its own."""
    command = [sys.executable, "-m", "flask", "--app", "example_app", *arguments]
    how: dict[str, Any] = {"capture_output": True, "check": True} | options
    done: subprocess.CompletedProcess[bytes]
    done = subprocess.run(command, cwd=ROOT, env=environment(url), **how)  # noqa: PLW1510
    return done


def environment(url: URL) -> dict[str, str]:
    name = "FLASK_SQLALCHEMY_DATABASE_URI"
    return os.environ | {name: url.render_as_string(hide_password=False)}


def test_files_equal_the_pages(database_url: URL, make_app: MakeApp) -> None:
    """In every format and order, with filters, across the parts in which they are read."""
    app = open_history(make_app, database_url)
    with app.app_context():
        store_many(2 * CHUNK + 700)
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
            assert rows_of(format, response.data) == as_in(format, rows)


@pytest.mark.parametrize(
    ("format", "media_type"),
    [
        ("ndjson", "application/x-ndjson"),
        ("csv", "text/csv; charset=utf-8; header=present"),
        ("parquet", "application/vnd.apache.parquet"),
    ],
)
def test_headers(make_app: MakeApp, format: str, media_type: str) -> None:
    """They say what it is, and under which name it is kept; HEAD has them too."""
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
    """In CSV they are escaped unless the reader wants them kept; elsewhere ids are as they are."""
    app = open_history(make_app)
    with app.app_context():
        store(("=1+1", "@t"), at=PAST)
    for query, owner in (
        ("format=csv", "'=1+1"),
        ("format=csv&formulas=escape", "'=1+1"),
        ("format=csv&formulas=keep", "=1+1"),
        ("format=ndjson", "=1+1"),
        ("format=parquet", "=1+1"),
    ):
        format = re.findall("format=([a-z]+)", query)[0]
        (row,) = rows_of(format, get(app, f"{EXPORT}?{query}").data)
        assert row["owner_id"] == owner


@EVERY_FORMAT
def test_what_fails_at_once_is_answered(make_app: MakeApp, format: str) -> None:
    """As a problem, and not as a file."""
    response = get(open_history(make_app, migrate=False), f"{EXPORT}?format={format}")
    assert "flask db upgrade" in assert_problem(response, 503)["detail"]
    assert "Content-Disposition" not in response.headers


def test_without_pyarrow(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """501 says what to install; the command says it, too, and leaves no file."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    app = open_history(make_app)
    problem = assert_problem(get(app, f"{EXPORT}?format=parquet"), 501)
    assert "flask-imcallback[parquet]" in problem["detail"]
    result = export(app, "-", "--format", "parquet", status=1)
    assert "flask-imcallback[parquet]" in result.stderr


BAD: list[tuple[str, Any]] = [
    *(("format", value) for value in ("", "xml", "CSV", "x" * 10_000, "\0", "é", ["csv", "csv"])),
    *(("formulas", value) for value in ("", "yes", "x" * 10_000, "\0", ["keep", "keep"])),
    *(("order", value) for value in ("", "ASC", ["asc", "desc"])),
    *((name, moment) for name in ("since", "until") for moment in TIMES),
    *(("delivery_id", value) for value in ("", "0", "-1", "x", "9" * 10_000, ["1", "x"])),
    *((name, "x" * 10_000) for name in ("owner_id", "platform", "app_id")),
    *((name, "\0") for name in ("owner_id", "platform", "app_id", "request_id")),
    ("peer_id", "x"),
    *((name, "1") for name in ("limit", "cursor", "bucket", "tz", "status", "", "é")),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda v: ascii(v)[:40])
def test_a_bad_parameter_is_named(make_app: MakeApp, name: str, value: Any) -> None:
    """It is malformed, unknown or given twice: 400, and no file."""
    app = open_history(make_app, migrate=False)
    problem = assert_problem(get(app, EXPORT, query_string={name: value}), 400)
    assert problem["parameter"] == name


@pytest.mark.parametrize(
    ("kind", "formats"), [("postgresql", FORMATS), ("mariadb", ["ndjson"])], ids=str
)
def test_a_database_that_goes_away(
    database_servers: dict[str, servers.Server],
    make_app: MakeApp,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    formats: list[str],
) -> None:
    """In the middle: the file ends there, without a manifest, and the log says so."""
    with servers.database(database_servers[kind]) as url, faults.proxy(url.port or 0) as proxy:
        app = open_history(make_app, url.set(port=proxy.port))
        if kind == "postgresql":
            fill(url, 110_000)
        else:
            with app.app_context():
                store_many(CHUNK * 2)
        for format in formats:
            caplog.clear()
            parts = get(app, f"{EXPORT}?format={format}").iter_encoded()
            file = next(parts)
            proxy.cut()
            rest: list[bytes] = []
            with pytest.raises(StorageError):
                rest.extend(parts)
            file += b"".join(rest)
            assert "An export was cut off" in caplog.text
            assert not is_whole(format, file)


def is_whole(format: str, file: bytes) -> bool:
    try:
        rows_of(format, file)
    except Exception:
        return False
    return True


def test_over_a_socket(many: URL, tmp_path: Path) -> None:
    """The answer comes while it is made; cut off in the middle, it is an error for its reader."""
    tokens = {"FLASK_IMCALLBACK_HISTORY_TOKENS": '["a-token"]'}
    headers = {"Authorization": "Bearer a-token"}
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
                assert file.count(b"\n") == MANY + 1
                assert file.endswith(b'{"manifest": {"removals": %d}}\n' % MANY)
            connection.close()
        assert "An export was cut off" in running.log()
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
        ("removals", (), "ndjson"),
        ("removals.csv", ("--format", "ndjson"), "ndjson"),
        ("removals.old", ("--format", "parquet"), "parquet"),
    ],
)
def test_the_name_tells_the_format(
    make_app: MakeApp, tmp_path: Path, name: str, options: tuple[str, ...], format: str
) -> None:
    """Unless an option does; nothing is on stdout, and no other file is left."""
    app = open_history(make_app)
    with app.app_context():
        store(("=o", "1"), ("o", "2"), at=PAST)
    folder = tmp_path / "exports"
    folder.mkdir()
    file = folder / name
    file.write_text("what was there before")
    result = export(app, str(file), "--order", "asc", *options)
    assert (result.stdout, result.stderr) == ("", "")
    assert [row["target_id"] for row in rows_of(format, file.read_bytes())] == ["1", "2"]
    assert list(folder.iterdir()) == [file]
    assert file.read_bytes() == get(app, f"{EXPORT}?order=asc&format={format}").data or (
        format == "parquet"
    )


@EVERY_FORMAT
def test_to_stdout(make_app: MakeApp, format: str) -> None:
    """With the same filters as over HTTP."""
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
@pytest.mark.parametrize("before", [[], ["what was there before"]])
def test_what_remains_after_a_failure(
    make_app: MakeApp, tmp_path: Path, error: BaseException, said: str, before: list[str]
) -> None:
    """Nothing; and what was there before is still there."""
    app = open_history(make_app)
    folder = tmp_path / "exports"
    folder.mkdir()
    file = folder / "removals.ndjson"
    for text in before:
        file.write_text(text)
    with app.app_context():
        store_many(CHUNK * 2)
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
    """Its name is said, and nothing is left beside it."""
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
    """With exit status 2, before a file is made."""
    file = tmp_path / "removals.csv"
    result = export(open_history(make_app, migrate=False), str(file), f"{option}={value}", status=2)
    assert option in result.stderr
    assert not list(tmp_path.glob("removals*"))


def test_missing_tables(make_app: MakeApp, tmp_path: Path) -> None:
    """Exit status 1, the remedy, and no file."""
    app = open_history(make_app, migrate=False)
    result = export(app, str(tmp_path / "removals.csv"), status=1)
    assert "flask db upgrade" in result.stderr
    assert not list(tmp_path.glob("removals*"))


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_a_bar_on_a_terminal(many: URL, tmp_path: Path, order: str) -> None:
    """It goes up to 100 % and never back; the file is the same as without one."""
    ours, its = pty.openpty()
    file = tmp_path / "removals.ndjson"
    until = (PAST + timedelta(microseconds=30_000)).isoformat()
    options = ["--order", order, "--until", until]
    shown = b""

    def read() -> None:
        nonlocal shown
        while True:
            try:
                some = os.read(ours, 4096)
            except OSError:  # that is how Linux says that nobody has the other end
                return
            shown += some

    reader = threading.Thread(target=read)
    reader.start()
    run_flask(many, "imcallback", "export", str(file), *options, capture_output=False, stderr=its)
    os.close(its)
    reader.join(30)
    os.close(ours)
    steps = [int(percent) for percent in re.findall(rb"(\d+)%", shown)]
    assert steps == sorted(steps)
    assert steps[-1] == 100
    assert len(set(steps)) > 3
    silent = run_flask(many, "imcallback", "export", "-", *options)
    assert silent.stdout == file.read_bytes()
    assert b"%" not in silent.stderr
    assert len(rows_of("ndjson", silent.stdout)) == 30_000


def test_a_bar_of_nothing(many: URL, tmp_path: Path) -> None:
    """Is whole at once."""
    ours, its = pty.openpty()
    file = tmp_path / "removals.csv"
    options = ["--owner-id", "nobody"]
    run_flask(many, "imcallback", "export", str(file), *options, capture_output=False, stderr=its)
    os.close(its)
    assert b"100%" in os.read(ours, 4096)
    os.close(ours)
    assert rows_of("csv", file.read_bytes()) == []


@pytest.mark.parametrize("format", ["ndjson", "csv"])
def test_memory_is_flat(many: URL, format: str) -> None:
    """Ten times the removals take no more of it, in a process of their own."""

    def most(removals: int) -> int:
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

    few = most(MANY // 10)
    assert most(MANY) < few + 8_000  # KiB; each tenth is more than that
