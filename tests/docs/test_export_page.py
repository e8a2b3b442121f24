"""The examples of the export page read every removal with the real programs.

The tests need the extra `readers`. A missing program is an error and never a skipped test.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import re
import shlex
from collections.abc import Iterable
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from flask import Flask

from flask_imcallback.history.export import FileOptions, encode, utc_text
from flask_imcallback.removals import Record
from flask_imcallback.runtime import get_runtime
from support import ROOT, servers
from support.apps import MakeApp
from support.callbacks import served
from support.deliveries import make_delivery, store, store_all

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs" / "export.md").read_text("utf-8")
PLAIN = 21_000
"""Number of plain removals. DuckDB derives types and quotes from the first 20,480 records."""
HARD = [
    *("9007199254740993", "12345678901234567890123", "00000007", "1e5", "3-4", "2026-11-20"),
    *("=1+1", "+8613800138000", "@TGS#1", "'", '"', 'a,"b";\r\n\tc', "\\", "\\N", " x ", "张三😀"),
    *("TRUE", "NA", "null", "NaN", "None", "#N/A", "-0", "0x10", "10:30", "inf", "{}", "a|b"),
]


@pytest.fixture
def app(make_app: MakeApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Flask:
    """An app with plain removals and then hard ones. The working directory is empty."""
    monkeypatch.chdir(tmp_path)
    app = make_app(IMCALLBACK_HISTORY_TOKENS=["a-token-for-readers"])
    plain = (
        make_delivery(
            *((str(1344800117571260902 + first + n), "2026-11-20") for n in range(700)),
            request_id=str(UUID(int=first)),
        )
        for first in range(0, PLAIN, 700)
    )
    hard = (make_delivery((text, text), request_id=text, platform=text) for text in HARD)
    with app.app_context():
        store_all(list(plain))
        store_all(list(hard))
    return app


def blocks(language: str) -> list[str]:
    """Return the code blocks of the page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def commands(program: str) -> list[list[str]]:
    """Return the words of each command of a program on the page."""
    text = "".join(blocks("console")).replace("\\\n", " ")
    lines = [shlex.split(line) for line in re.findall(r"^\$ (.+)$", text, re.MULTILINE)]
    return [words for words in lines if words[0] == program]


def export(app: Flask) -> None:
    """Run the export commands of the page."""
    for _, group, name, *arguments in commands("flask"):
        assert (group, name) == ("imcallback", "export")
        if "--since" not in arguments:
            arguments += ["--order", "asc"]
        result = app.test_cli_runner().invoke(args=[group, name, *arguments])
        assert result.exit_code == 0, result.output


def stored(app: Flask) -> list[Record]:
    """Return all removals, the oldest first."""
    with app.app_context():
        return list(get_runtime().history.stream(order="asc"))


def as_texts(rows: Iterable[Iterable[Any]]) -> list[list[str]]:
    """Return rows with times in one form and all other values as texts."""
    return [
        [utc_text(value) if isinstance(value, datetime) else str(value) for value in row]
        for row in rows
    ]


def rows_of(removals: Any) -> list[list[str]]:
    """Return the rows of a pandas or Polars data frame, or of a DuckDB relation."""
    assert tuple(removals.columns) == Record._fields
    match type(removals).__module__.split(".")[0]:
        case "pandas":
            return as_texts(zip(*(removals[name] for name in removals.columns), strict=True))
        case "polars":
            return as_texts(removals.rows())
        case _:
            return as_texts(removals.fetchall())


def test_python_programs_read_every_removal(app: Flask) -> None:
    """pandas, DuckDB and Polars return the stored values from each format."""
    export(app)
    expected = as_texts(stored(app))
    names: dict[str, Any] = {}
    modules = []
    with served(app) as url:
        code = "\n".join(blocks("python")).replace("https://your.host/imcallback", url)
        for statement in ast.parse(code).body:
            exec(compile(ast.Module([statement], []), "export.md", "exec"), names)
            if "removals" in names:
                removals = names.pop("removals")
                modules.append(type(removals).__module__.split(".")[0])
                assert rows_of(removals) == expected, ast.unparse(statement)
    assert len(names["rows"]) == len(expected)
    counts = dict(names["counts"].fetchall())
    assert counts == {row[Record._fields.index("owner_id")]: 1 for row in expected}
    assert sorted(modules) == ["duckdb"] * 2 + ["pandas"] * 3 + ["polars"] * 3


def test_jq_reads_every_removal(app: Flask) -> None:
    """The commands print each pair, and the number of removals of each owner."""
    export(app)
    jq: Any = import_module("jq")
    results = []
    for _, *options, program, file in commands("jq"):
        text = Path(file).read_text("utf-8")
        results.append(jq.compile(program).input_text(text, slurp="-s" in options).all())
    pairs, (counts,) = results
    removals = stored(app)
    escaped = (
        re.sub(r"[\\\t\r\n]", lambda found: repr(found[0])[1:-1], text)
        for record in removals
        for text in (record.owner_id, record.target_id)
    )
    assert pairs == [f"{owner}\t{target}" for owner, target in zip(escaped, escaped, strict=True)]
    assert {row["owner_id"]: row["count"] for row in counts} == {
        record.owner_id: 1 for record in removals
    }


def test_postgresql_copies_every_removal(
    app: Flask, database_servers: dict[str, servers.Server]
) -> None:
    """`\\copy` fills the table of the page, although no column may be null."""
    export(app)
    (create,) = blocks("sql")
    ((*_, copy),) = commands("psql")
    ((target, file, options),) = re.findall(r"^\\copy (\w+) FROM '(.+?)' (.+)$", copy)
    with servers.database(database_servers["postgresql"]) as url:
        address = url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(address) as connection, connection.cursor() as cursor:
            cursor.execute(create)
            # psql sends the file to this statement.
            with cursor.copy(f"COPY {target} FROM STDIN {options}") as pipe:
                pipe.write(Path(file).read_bytes())
            cursor.execute(f"SELECT * FROM {target} ORDER BY id")
            assert as_texts(cursor.fetchall()) == as_texts(stored(app))


def test_the_file_for_spreadsheets_has_every_removal(app: Flask) -> None:
    """The file begins with a byte order mark, and each long id is a formula with its text."""
    export(app)
    file = Path("for-excel.csv").read_bytes()
    assert file.startswith(b"\xef\xbb\xbf")
    names, *rows = csv.reader(io.StringIO(file.decode("utf-8-sig"), newline=""), strict=True)
    removals = stored(app)
    for row, record in zip(rows, removals, strict=True):
        cells = dict(zip(names, row, strict=True))
        assert cells["id"] == f'="{record.id}"'
        if record.owner_id.isdecimal():
            assert cells["owner_id"] == f'="{record.owner_id}"'
    assert len(removals) == PLAIN + len(HARD)


@pytest.fixture
def record(make_app: MakeApp) -> Record:
    """A stored removal."""
    with make_app().app_context():
        (removal,) = store(("alice", "bob"))
        return removal


def test_the_cells_of_the_page(record: Record) -> None:
    """The table shows the cells that are written."""
    table = re.findall(r"^\| `(.+)` \| `(.+)` \| `(.+)` \|$", PAGE, re.MULTILINE)
    assert len(table) == 8
    for text, *cells in table:
        for formulas, cell in zip(("escape", "keep"), cells, strict=True):
            options = FileOptions(format="csv", spreadsheet="yes", formulas=formulas)
            part = b"".join(encode(options, [[record._replace(owner_id=text)]]))
            (row,) = csv.DictReader(io.StringIO(part.decode("utf-8-sig"), newline=""))
            assert row["owner_id"] == cell


def test_manifests_of_the_page(record: Record) -> None:
    """The manifest of each format is what the page says."""
    assert '| NDJSON | the line `{"manifest": {"removals": 1234}}` |' in PAGE
    assert 'the key `manifest` of the metadata, with the value `{"removals": 1234}`' in PAGE
    removals = [record] * 1234
    options = FileOptions(format="ndjson", manifest="append")
    *_, line = b"".join(encode(options, [removals])).splitlines()
    assert json.loads(line) == {"manifest": {"removals": 1234}}
    parquet: Any = import_module("pyarrow.parquet")
    file = b"".join(encode(FileOptions(format="parquet", manifest="append"), [removals]))
    metadata = parquet.ParquetFile(io.BytesIO(file)).metadata.metadata
    assert metadata[b"manifest"] == b'{"removals": 1234}'
