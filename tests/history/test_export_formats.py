"""NDJSON, CSV and Parquet files: content, escaping, spreadsheets, manifest and memory."""

from __future__ import annotations

import csv
import io
import json
import sys
import tracemalloc
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from flask_imcallback.errors import ConfigError, HistoryQueryError
from flask_imcallback.history.export import FORMATS, FileOptions, encode
from flask_imcallback.removals import Cause, Record, Relation
from support.api import MEMBERS

FIRST = 1_795_197_900_123_456
PART = 1000
EVERY_FORMAT = pytest.mark.parametrize("format", FORMATS)
WITH_MANIFEST = pytest.mark.parametrize("format", ["ndjson", "csv"])


def made(count: int, part: int = PART) -> Iterator[list[Record]]:
    """Yield removals in chunks, which are made on demand."""
    for first in range(0, count, part):
        yield [removal(FIRST + n) for n in range(first, min(first + part, count))]


def removal(id_: int, *texts: str, position: int = 0) -> Record:
    """Return a removal. `texts` replace the values that a stranger can choose."""
    command, owner_id, target_id, actor_id, client_ip, platform, request_id = texts or (
        *("Sns.CallbackFriendDelete", f"owner{id_ * 7919 % 1_000_003}", f"target{id_}", ""),
        *(f"203.0.113.{id_ % 250}", "iOS", f"2ea4e023-{id_}"),
    )
    return Record(
        id=id_ + position,
        provider="tencent",
        app_id="1400000000",
        command=command,
        relation=Relation.FRIEND,
        owner_id=owner_id,
        target_id=target_id,
        actor_id=actor_id,
        cause=list(Cause)[id_ % 4],
        position=position,
        delivery_id=id_,
        client_ip=client_ip,
        platform=platform,
        request_id=request_id,
        received_at=datetime.fromtimestamp(0, UTC) + timedelta(microseconds=id_),
    )


def as_json(record: Record) -> dict[str, Any]:
    """Return the members of a removal's JSON, written without our own code."""
    moment = record.received_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return dict(zip(MEMBERS, (*record[:-1], moment), strict=True))


FORMULAS = [f"{start}1+1" for start in "=+-@\t\r\n＝＋－＠"]
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
REMOVALS = st.builds(
    removal,
    st.integers(0, 2**52),
    *[TEXTS | st.sampled_from(FORMULAS)] * 7,
    position=st.integers(0, 2**20),
)
PARTS = st.lists(st.lists(REMOVALS, max_size=4), max_size=3)
HARD = removal(
    FIRST, '"\\\b\f\n\r\t\x01\x1f\x7f', "\u2028\x85", "\u202e😀", "a,b;", "'", "á\ufeff", "\u200d"
)
lasting = settings(max_examples=200, deadline=None, database=None)


def whole(format: str, parts: Iterable[Sequence[Record]], **options: Any) -> bytes:
    return b"".join(encode(FileOptions(format=format, **options), parts))


def flat(parts: Iterable[Sequence[Record]]) -> list[Record]:
    return [row for part in parts for row in part]


def records(file: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(file.decode(), newline=""), strict=True))


def has_manifest(format: str, file: bytes, count: int) -> bool:
    """Return True if a reader would find the manifest at the end of the file."""
    try:
        if format == "csv":
            return records(file)[-1] == ["manifest", str(count), *[""] * (len(MEMBERS) - 2)]
        return bool(json.loads(file.splitlines()[-1]) == {"manifest": {"removals": count}})
    except (IndexError, ValueError, csv.Error):
        return False


@lasting
@given(PARTS)
@example([[HARD]])
def test_ndjson_equals_json_dumps(parts: list[list[Record]]) -> None:
    """Each line equals `json.dumps`, byte for byte, for any texts. There are no other lines."""
    lines = [json.dumps(as_json(record), ensure_ascii=False) for record in flat(parts)]
    assert whole("ndjson", parts).decode() == "".join(f"{line}\n" for line in lines)


@lasting
@given(PARTS)
@example([[HARD]])
def test_csv_is_read_back(parts: list[list[Record]]) -> None:
    """Every cell is read back unchanged if formulas are kept. There are no other records."""
    names, *rows = records(whole("csv", parts, formulas="keep"))
    assert names == MEMBERS
    assert rows == [[str(cell) for cell in as_json(record).values()] for record in flat(parts)]


@lasting
@given(PARTS)
@example([[removal(FIRST, *FORMULAS[:7]), removal(FIRST, *FORMULAS[7:], "1=", "x", "")]])
def test_csv_holds_no_formulas(parts: list[list[Record]]) -> None:
    """Only a text that a spreadsheet would run is changed: an apostrophe is put before it."""
    for record, cells in zip(flat(parts), records(whole("csv", parts))[1:], strict=True):
        for cell, value in zip(cells, as_json(record).values(), strict=True):
            text = str(value)
            assert cell in (text, f"'{text}")
            if text.startswith(tuple("=\t\r\n＝＋－＠")) or text in FORMULAS:
                assert cell != text
            elif not text.startswith(tuple("+-@")):
                assert cell == text


def test_csv_as_bytes() -> None:
    """CSV follows RFC 4180: CRLF, quotes around every text, and no byte order mark."""
    row = removal(FIRST, "a,b", 'say "á"', "two\nlines", "@m", "=1+1", " ", "😀")
    assert whole("csv", [[row]]).decode() == (
        ",".join(MEMBERS) + "\r\n"
        f'{FIRST},"tencent","1400000000","a,b","friend","say ""á""","two\nlines","@m","",0,{FIRST},'
        '"\'=1+1"," ","😀","2026-11-20T18:05:00.123456Z"\r\n'
    )
    assert ',"=1+1",' in whole("csv", [[row]], formulas="keep").decode()


def test_a_record_does_not_depend_on_other_records() -> None:
    """A reader that derives the form of a file from its first records reads all of them."""
    plain, hard = removal(FIRST), HARD._replace(id=FIRST + 1)
    for format in ("ndjson", "csv"):
        alone = whole(format, [[plain]])
        assert whole(format, [[plain, hard]]).startswith(alone)
    assert b',"",' in whole("csv", [[plain._replace(platform="")]])


SHEET: Any = {"spreadsheet": "yes"}
OWNER = MEMBERS.index("owner_id")
CONVERTED = [
    *("1344800117571260902", "00000007", "7", "1e5", "1E5", "1.5", "1,000", "5%", "$5", "¥5"),
    *("3-4", "3/4", "2026-11-20", "4 Mar", "MAR1", "sept2", "10:30", "10 pm", "3月4日", "１２３"),
    *("TRUE", "false", "#N/A", " 7", "7 ", "(7)", "٣", "user7", '5"', "203.0.113.7", "7" * 255),
]
"""Texts that Excel, LibreOffice or WPS convert, at least in one language, and texts like them."""


@pytest.mark.parametrize("text", CONVERTED)
@pytest.mark.parametrize("formulas", ["escape", "keep"])
def test_a_spreadsheet_keeps_a_text(text: str, formulas: str) -> None:
    """A text that a spreadsheet would convert is a formula that consists of this text."""
    file = whole("csv", [[removal(FIRST)._replace(owner_id=text)]], **SHEET, formulas=formulas)
    inside = text.replace('"', '""')
    assert records(file)[1][OWNER] == f'="{inside}"'


@pytest.mark.parametrize(
    ("text", "escaped", "kept"),
    [
        *((text, f"'{text}", text) for text in FORMULAS if text[0] not in "+-@"),
        ("=1+1", "'=1+1", "=1+1"),
        ("+1+1", "'+1+1", "+1+1"),
        ("@SUM(A1)", "'@SUM(A1)", "@SUM(A1)"),
        ("@TGS#_@TGS#1+1", "'@TGS#_@TGS#1+1", "@TGS#_@TGS#1+1"),
        ("@TGS#1", '="@TGS#1"', '="@TGS#1"'),
        ("@TGS#_@TGS#ab", '="@TGS#_@TGS#ab"', '="@TGS#_@TGS#ab"'),
        ("+8613800138000", '="+8613800138000"', '="+8613800138000"'),
        ("-5", '="-5"', '="-5"'),
        *((text, text, text) for text in ("alice", "张三", "", "a,b", '"', "truest", "😀7")),
    ],
)
def test_formulas_in_a_spreadsheet(text: str, escaped: str, kept: str) -> None:
    """A spreadsheet runs a text only if the reader asks for it. Other texts stay as they are."""
    part = [removal(FIRST)._replace(owner_id=text)]
    for formulas, expected in (("escape", escaped), ("keep", kept)):
        assert records(whole("csv", [part], **SHEET, formulas=formulas))[1][OWNER] == expected


def test_a_spreadsheet_as_bytes() -> None:
    """The file has a byte order mark, plain names, numbers of 15 digits, and text in quotes."""
    row = removal(999_999_999_999_999, position=1)._replace(
        command="c", owner_id="007", target_id="a;b", client_ip="", request_id="r"
    )
    assert whole("csv", [[row]], **SHEET).decode() == (
        "\ufeff" + ",".join(MEMBERS) + "\r\n"
        '"=""1000000000000000""","tencent","=""1400000000""","c","friend","=""007""","a;b",'
        '"","dismissed",1,999999999999999,"","iOS","r","2001-09-09T01:46:39.999999Z"\r\n'
    )


@lasting
@given(PARTS)
@example([[HARD]])
def test_a_spreadsheet_file_loses_nothing(parts: list[list[Record]]) -> None:
    """Every value can be read back from the cells, unless an apostrophe was already in the text."""
    for record, cells in zip(flat(parts), records(whole("csv", parts, **SHEET))[1:], strict=True):
        for cell, value in zip(cells, as_json(record).values(), strict=True):
            text = cell[2:-1].replace('""', '"') if cell.startswith('="') else cell
            assert str(value) in (text, text.removeprefix("'"))


@EVERY_FORMAT
def test_only_csv_has_a_form_for_spreadsheets(format: str) -> None:
    """The error names the parameter and the format that it needs."""
    if format == "csv":
        assert FileOptions(format=format, spreadsheet="yes").is_for_spreadsheet
        return
    with pytest.raises(HistoryQueryError) as caught:
        FileOptions(format=format, spreadsheet="yes")
    assert str(caught.value) == f"spreadsheet needs the format csv, not {format}"


@EVERY_FORMAT
def test_the_manifest_counts_the_removals(format: str) -> None:
    """The manifest is appended on request, and changes nothing else of the file."""
    for count in (0, 12):
        without = whole(format, made(count, part=5))
        file = whole(format, made(count, part=5), manifest="append")
        if format == "parquet":
            read = parquet.ParquetFile(io.BytesIO(file))
            assert json.loads(read.metadata.metadata[b"manifest"]) == {"removals": count}
            assert read.read().to_pylist() == parquet.read_table(io.BytesIO(without)).to_pylist()
            metadata = parquet.ParquetFile(io.BytesIO(without)).metadata
            assert b"manifest" not in metadata.metadata
        else:
            manifest = {
                "ndjson": b'{"manifest": {"removals": %d}}\n' % count,
                "csv": b"manifest,%d" % count + (len(MEMBERS) - 2) * b"," + b"\r\n",
            }
            assert file == without + manifest[format]


@settings(max_examples=50, deadline=None, database=None)
@given(PARTS)
@example([[HARD]])
def test_parquet_is_read_back(parts: list[list[Record]]) -> None:
    """Parquet has types: ids are whole numbers, and the time equals the id of the delivery."""
    table = parquet.read_table(io.BytesIO(whole("parquet", parts)))
    types = {"id": "int64", "position": "int32", "delivery_id": "int64"}
    types["received_at"] = "timestamp[us, tz=UTC]"
    assert [(field.name, str(field.type)) for field in table.schema] == [
        (name, types.get(name, "string")) for name in MEMBERS
    ]
    assert table.to_pylist() == [record._asdict() for record in flat(parts)]
    times = table["received_at"].cast(pyarrow.int64()).to_pylist()
    assert times == [record.delivery_id for record in flat(parts)]


@pytest.mark.parametrize("part", [PART, 130_000])
def test_row_groups_are_bounded(part: int) -> None:
    """A row group has at most 50,000 removals, however long the chunks are."""
    file = parquet.ParquetFile(io.BytesIO(whole("parquet", made(130_000, part))))
    metadata = file.metadata
    sizes = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
    assert sizes == [50_000, 50_000, 30_000]
    assert file.read(["id"])["id"].to_pylist() == list(range(FIRST, FIRST + 130_000))


@pytest.mark.parametrize("parts", [[], [[]], [[], []]])
def test_an_empty_export_is_a_file(parts: list[list[Record]]) -> None:
    """NDJSON without removals is empty. CSV and Parquet have column names."""
    assert whole("ndjson", parts) == b""
    assert records(whole("csv", parts)) == [MEMBERS]
    assert whole("csv", parts, **SHEET).decode("utf-8-sig") == ",".join(MEMBERS) + "\r\n"
    table = parquet.read_table(io.BytesIO(whole("parquet", parts)))
    assert table.num_rows == 0
    assert table.column_names == MEMBERS


@WITH_MANIFEST
def test_a_file_cut_off_has_no_manifest(format: str) -> None:
    """No part of a file ends in a manifest. The manifest counts the removals of the file."""
    file = whole(format, made(12, part=5), manifest="append")
    assert has_manifest(format, file, 12)
    text = file.rstrip()
    assert not [end for end in range(len(text)) if has_manifest(format, text[:end], 12)]


def test_parquet_cut_off_cannot_be_opened() -> None:
    """A Parquet file cannot be opened, wherever it was cut off."""
    file = whole("parquet", made(12))
    for end in range(len(file)):
        with pytest.raises(pyarrow.ArrowInvalid):
            parquet.ParquetFile(io.BytesIO(file[:end]))


@EVERY_FORMAT
def test_a_failure_completes_no_file(format: str) -> None:
    """A file has neither a manifest nor a Parquet footer if the database fails in the middle."""

    def failing() -> Iterator[list[Record]]:
        yield from made(60 * PART)
        raise ConnectionError

    stream = encode(FileOptions(format=format, manifest="append"), failing())
    chunks: list[bytes] = []
    with pytest.raises(ConnectionError):
        chunks.extend(stream)
    file = b"".join(chunks)
    assert len(file) > PART
    assert list(stream) == []
    if format == "parquet":
        with pytest.raises(pyarrow.ArrowInvalid):
            parquet.ParquetFile(io.BytesIO(file))
    else:
        assert not has_manifest(format, file, 60 * PART)


@pytest.mark.parametrize(("format", "at_most"), [("ndjson", 1), ("csv", 1), ("parquet", 50)])
def test_a_file_is_made_while_it_is_sent(format: str, at_most: int) -> None:
    """Nothing is read before the first byte is requested, and then only one part ahead."""
    read = 0

    def counted() -> Iterator[list[Record]]:
        nonlocal read
        for part in made(120 * PART):
            read += 1
            yield part

    stream = encode(FileOptions(format=format), counted())
    assert read == 0
    for chunks in (1, 2):
        assert next(stream)
        assert read == at_most * chunks


@EVERY_FORMAT
def test_no_byte_comes_before_the_first_chunk(format: str) -> None:
    """An error of the first read is raised before any byte, so that it can have a status."""

    def failing() -> Iterator[list[Record]]:
        raise ConnectionError
        yield []

    with pytest.raises(ConnectionError):
        next(encode(FileOptions(format=format), failing()))


@pytest.mark.long
@pytest.mark.slow
@EVERY_FORMAT
def test_memory_is_flat(format: str) -> None:
    """Five times the removals take no more memory, in Python and in Arrow."""

    def peak(count: int) -> int:
        of_arrow = 0

        def watched() -> Iterator[list[Record]]:
            nonlocal of_arrow
            for first in range(0, count, PART):
                yield [HARD._replace(id=n) for n in range(first, first + PART)]
                of_arrow = max(of_arrow, pyarrow.total_allocated_bytes())

        tracemalloc.start()
        try:
            for _ in encode(FileOptions(format=format), watched()):
                pass
            return of_arrow + tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few = peak(60 * PART)
    assert peak(300 * PART) < few * 1.1 + 500_000
    assert few < (45_000_000 if format == "parquet" else 5_000_000)


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("format", "ndjson, csv or parquet"),
        ("formulas", "escape or keep"),
        ("spreadsheet", "no or yes"),
        ("manifest", "omit or append"),
    ],
)
def test_an_unknown_option(name: str, choices: str) -> None:
    """An unknown option is refused at once, and the error lists the choices."""
    with pytest.raises(HistoryQueryError) as caught:
        FileOptions(**{name: "xml"})
    assert str(caught.value) == f"{name} must be {choices}, not 'xml'"


def test_parquet_without_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install before anything is sent. Other formats still work."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"^Parquet needs PyArrow: run pip install pyarrow$"):
        whole("parquet", [])
    assert whole("csv", [])


def test_media_types() -> None:
    """Each format has its media type."""
    assert {name: format.media_type for name, format in FORMATS.items()} == {
        "ndjson": "application/x-ndjson",
        "csv": "text/csv; charset=utf-8; header=present",
        "parquet": "application/vnd.apache.parquet",
    }
