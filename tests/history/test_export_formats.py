"""Removals as NDJSON, CSV and Parquet: what is read back, cut off, neutralised, kept in memory."""

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

from flask_imcallback.errors import ConfigError
from flask_imcallback.history.export import FORMATS, Row, encode
from support.api import MEMBERS

FIRST = 1_795_197_900_123_456
PART = 1000
EVERY_FORMAT = pytest.mark.parametrize("format", FORMATS)
WITH_MANIFEST = pytest.mark.parametrize("format", ["ndjson", "csv"])


def made(count: int, part: int = PART) -> Iterator[list[Row]]:
    """Removals in parts, made when they are asked for."""
    for first in range(0, count, part):
        yield [removal(FIRST + n) for n in range(first, min(first + part, count))]


def removal(id_: int, *texts: str, position: int = 0) -> Row:
    """Texts of its own stand in place of those that a stranger can choose."""
    command, owner_id, target_id, client_ip, platform, request_id = texts or (
        *("Sns.CallbackFriendDelete", f"owner{id_ * 7919 % 1_000_003}", f"target{id_}"),
        *(f"203.0.113.{id_ % 250}", "iOS", f"2ea4e023-{id_}"),
    )
    moment = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=id_)
    return (
        *(id_ + position, "tencent", "1400000000", command, "friend", owner_id, target_id),
        *(position, id_, client_ip, platform, request_id),
        moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    )


FORMULAS = [f"{start}1" for start in "=+-@\t\r\n＝＋－＠"]
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
REMOVALS = st.builds(
    removal,
    st.integers(0, 2**52),
    *[TEXTS | st.sampled_from(FORMULAS)] * 6,
    position=st.integers(0, 2**20),
)
PARTS = st.lists(st.lists(REMOVALS, max_size=4), max_size=3)
HARD = removal(FIRST, '"\\\b\f\n\r\t\x01\x1f\x7f', "\u2028\x85", "\u202e😀", "a,b;", "'", "á\ufeff")
lasting = settings(max_examples=200, deadline=None, database=None)


def whole(format: str, parts: Iterable[Sequence[Row]], **options: Any) -> bytes:
    return b"".join(encode(format, parts, **options))


def flat(parts: Iterable[Sequence[Row]]) -> list[Row]:
    return [row for part in parts for row in part]


def records(file: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(file.decode(), newline=""), strict=True))


def has_manifest(format: str, file: bytes, count: int) -> bool:
    """As who reads the file would find out."""
    if format == "csv":
        last = (records(file) or [[]])[-1]
        return last == ["manifest", str(count), *[""] * (len(MEMBERS) - 2)]
    try:
        return bool(json.loads(file.splitlines()[-1]) == {"manifest": {"removals": count}})
    except (IndexError, ValueError):
        return False


@lasting
@given(PARTS)
@example([[HARD]])
def test_ndjson_is_that_of_json_dumps(parts: list[list[Row]]) -> None:
    """Byte for byte, whatever the texts are; then the manifest."""
    lines = [
        json.dumps(dict(zip(MEMBERS, row, strict=True)), ensure_ascii=False) for row in flat(parts)
    ]
    lines.append(json.dumps({"manifest": {"removals": len(lines)}}))
    assert whole("ndjson", parts).decode() == "".join(f"{line}\n" for line in lines)


@lasting
@given(PARTS)
@example([[HARD]])
def test_csv_is_read_back(parts: list[list[Row]]) -> None:
    """Every cell as it was, if formulas are kept; then the manifest, as long as the others."""
    file = whole("csv", parts, keeps_formulas=True)
    names, *rows, manifest = records(file)
    assert names == MEMBERS
    assert rows == [[str(cell) for cell in row] for row in flat(parts)]
    assert manifest == ["manifest", str(len(rows)), *[""] * 11]


@lasting
@given(PARTS)
@example([[removal(FIRST, *FORMULAS[:6]), removal(FIRST, *FORMULAS[6:], "1=")]])
def test_csv_holds_no_formulas(parts: list[list[Row]]) -> None:
    """An apostrophe stands before what a spreadsheet would run, and nothing else is changed."""
    expected = [
        [
            ("'" if str(cell).startswith(tuple("=+-@\t\r\n＝＋－＠")) else "") + str(cell)
            for cell in row
        ]
        for row in flat(parts)
    ]
    assert records(whole("csv", parts))[1:-1] == expected


def test_csv_as_bytes() -> None:
    """RFC 4180: CRLF, quotes where they are needed, and no mark of the byte order."""
    row = removal(FIRST, "a,b", 'say "á"', "two\nlines", "=1+1", " ", "😀")
    assert whole("csv", [[row]]).decode() == (
        ",".join(MEMBERS) + "\r\n"
        f'{FIRST},tencent,1400000000,"a,b",friend,"say ""á""","two\nlines",0,{FIRST},'
        "'=1+1, ,😀,2026-11-20T18:05:00.123456Z\r\n"
        "manifest,1,,,,,,,,,,,\r\n"
    )
    assert ",=1+1," in whole("csv", [[row]], keeps_formulas=True).decode()


@settings(max_examples=50, deadline=None, database=None)
@given(PARTS)
@example([[HARD]])
def test_parquet_is_read_back(parts: list[list[Row]]) -> None:
    """With types: ids are whole numbers, and the time is one that equals the delivery's id."""
    table = parquet.read_table(io.BytesIO(whole("parquet", parts)))
    types = {"id": "int64", "position": "int32", "delivery_id": "int64"}
    types["received_at"] = "timestamp[us, tz=UTC]"
    assert [(field.name, str(field.type)) for field in table.schema] == [
        (name, types.get(name, "string")) for name in MEMBERS
    ]
    rows = flat(parts)
    names = MEMBERS[:-1]
    assert table.select(names).to_pylist() == [dict(zip(names, row, strict=False)) for row in rows]
    assert table["received_at"].cast(pyarrow.int64()).to_pylist() == [row[8] for row in rows]
    moments = [
        moment.isoformat(timespec="microseconds") for moment in table["received_at"].to_pylist()
    ]
    assert moments == [row[-1].replace("Z", "+00:00") for row in rows]


@pytest.mark.parametrize("part", [PART, 130_000])
def test_row_groups_are_bounded(part: int) -> None:
    """However many removals come together."""
    file = parquet.ParquetFile(io.BytesIO(whole("parquet", made(130_000, part))))
    metadata = file.metadata
    sizes = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
    assert sizes == [50_000, 50_000, 30_000]
    assert file.read(["id"])["id"].to_pylist() == list(range(FIRST, FIRST + 130_000))


@pytest.mark.parametrize("parts", [[], [[]], [[], []]])
def test_nothing_is_a_file_too(parts: list[list[Row]]) -> None:
    """With names and a manifest, or types, and no removals."""
    assert whole("ndjson", parts) == b'{"manifest": {"removals": 0}}\n'
    assert [row[:2] for row in records(whole("csv", parts))] == [MEMBERS[:2], ["manifest", "0"]]
    table = parquet.read_table(io.BytesIO(whole("parquet", parts)))
    assert table.num_rows == 0
    assert table.column_names == MEMBERS


@WITH_MANIFEST
def test_a_file_cut_off_has_no_manifest(format: str) -> None:
    """Wherever it was cut, and the count is that of the file."""
    file = whole(format, made(12, part=5))
    assert has_manifest(format, file, 12)
    text = file.rstrip()
    assert not [end for end in range(len(text)) if has_manifest(format, text[:end], 12)]


def test_parquet_cut_off_cannot_be_opened() -> None:
    """Wherever it was cut."""
    file = whole("parquet", made(12))
    for end in range(len(file)):
        with pytest.raises(pyarrow.ArrowInvalid):
            parquet.ParquetFile(io.BytesIO(file[:end]))


@EVERY_FORMAT
def test_a_failure_ends_no_file(format: str) -> None:
    """When a database goes away in the middle, neither a manifest follows nor Parquet's end."""

    def failing() -> Iterator[list[Row]]:
        yield from made(60 * PART)
        raise ConnectionError

    stream = encode(format, failing())
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
    """Nothing is read before the first byte is asked for, and then little ahead."""
    read = 0

    def counted() -> Iterator[list[Row]]:
        nonlocal read
        for part in made(120 * PART):
            read += 1
            yield part

    stream = encode(format, counted())
    assert read == 0
    for chunks in (1, 2):
        assert next(stream)
        assert read == at_most * chunks


@EVERY_FORMAT
def test_nothing_comes_before_the_first_part(format: str) -> None:
    """A database that is away at once can still be answered with a status of its own."""

    def failing() -> Iterator[list[Row]]:
        raise ConnectionError
        yield []

    with pytest.raises(ConnectionError):
        next(encode(format, failing()))


@EVERY_FORMAT
def test_memory_is_flat(format: str) -> None:
    """Five times the removals take no more of it, in Python and in Arrow."""
    _, *rest = HARD

    def peak(count: int) -> int:
        of_arrow = 0

        def watched() -> Iterator[list[Row]]:
            nonlocal of_arrow
            for first in range(0, count, PART):
                yield [(n, *rest) for n in range(first, first + PART)]
                of_arrow = max(of_arrow, pyarrow.total_allocated_bytes())

        tracemalloc.start()
        try:
            for _ in encode(format, watched()):
                pass
            return of_arrow + tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few = peak(60 * PART)
    assert peak(300 * PART) < few * 1.1 + 500_000
    assert few < (40_000_000 if format == "parquet" else 5_000_000)


def test_an_unknown_format() -> None:
    """It is refused at once, with those that there are."""
    with pytest.raises(ValueError, match="ndjson, csv, parquet, not 'xml'"):
        encode("xml", [])


def test_parquet_without_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The remedy is named before anything is sent, and the other formats need it not."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"install flask-imcallback\[parquet\]"):
        encode("parquet", [])
    assert whole("ndjson", [])


def test_media_types() -> None:
    """Those by which a format is announced."""
    assert {name: format.media_type for name, format in FORMATS.items()} == {
        "ndjson": "application/x-ndjson",
        "csv": "text/csv; charset=utf-8; header=present",
        "parquet": "application/vnd.apache.parquet",
    }
