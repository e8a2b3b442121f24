"""Removals as NDJSON, CSV and Parquet files. A file is written while it is sent, in bounded memory.

The first chunk is read before the first byte is written, so an error at the start still gets a
status.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from json.encoder import encode_basestring as _quote
from typing import Any, get_type_hints

from ..errors import ConfigError, HistoryQueryError
from ..removals import Record
from ..storage import EPOCH, MICROSECOND
from .queries import check_choice

Chunks = Iterator[Sequence[Record]]

TYPES: dict[str, type] = get_type_hints(Record)
"""Column -> its type."""
COLUMNS = tuple(TYPES)
TEXT_COLUMNS = frozenset(name for name, type_ in TYPES.items() if issubclass(type_, str))
EPOCH_WITHOUT_ZONE = EPOCH.replace(tzinfo=None)

FORMULA_STARTS = frozenset("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
"""First characters of cells that a spreadsheet may run. The last four are full-width = + - @.
https://owasp.org/www-community/attacks/CSV_Injection"""
CONVERTED = re.compile(r"[\0-\uffff]*\d[\0-\uffff]*|true|false|#.*", re.IGNORECASE | re.DOTALL)
"""Texts that a spreadsheet may convert into a number, a date, a time, a truth value or an error.
Languages differ in the form of a date, so each text with a digit counts. Numbers and dates have no
characters above U+FFFF."""
NO_FORMULA = re.compile(r"[+-]\d+|[@\w#]+")
"""Account and group ids that are no formulas: phone numbers, and Tencent's groups, as `@TGS#1ABC`.
Without a bracket or an operator, nothing can run."""
SPREADSHEET_DIGITS = 15
"""Number of digits that a spreadsheet keeps of a number."""

ROW_GROUP_CHUNKS = 50
"""Maximum number of chunks in a row group of Parquet. The group waits in memory."""
ROW_GROUP_REMOVALS = 50_000
"""Maximum number of removals in a row group of Parquet."""


FORMULAS = ("escape", "keep")
SPREADSHEETS = ("no", "yes")
MANIFESTS = ("omit", "append")


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """The checked options of an exported file. Raises `HistoryQueryError`."""

    format: str = "ndjson"
    """One of `FORMATS`."""
    formulas: str = "escape"
    """`escape` puts an apostrophe before the CSV cells that a spreadsheet would run."""
    spreadsheet: str = "no"
    """`yes` writes CSV for people who open the file in a spreadsheet."""
    manifest: str = "omit"
    """`append` adds the number of removals at the end of the file."""

    def __post_init__(self) -> None:
        check_choice("format", self.format, tuple(FORMATS))
        check_choice("formulas", self.formulas, FORMULAS)
        check_choice("spreadsheet", self.spreadsheet, SPREADSHEETS)
        check_choice("manifest", self.manifest, MANIFESTS)
        if self.is_for_spreadsheet and self.format != "csv":
            raise HistoryQueryError("spreadsheet", f"needs the format csv, not {self.format}")

    @property
    def keeps_formulas(self) -> bool:
        return self.formulas == "keep"

    @property
    def is_for_spreadsheet(self) -> bool:
        return self.spreadsheet == "yes"

    @property
    def has_manifest(self) -> bool:
        return self.manifest == "append"


def encode(options: FileOptions, chunks: Iterable[Sequence[Record]]) -> Iterator[bytes]:
    """Return the parts of a file with all removals in the chunks, and nothing else.

    Raises `ConfigError` if the package of the format is not installed, before anything is read.
    """
    return FORMATS[options.format].encode(filter(None, chunks), options)


def utc_text(moment: datetime) -> str:
    """Return an aware time as RFC 3339 in UTC, with microseconds and `Z`."""
    text = moment.astimezone(UTC).isoformat(timespec="microseconds")
    return text.removesuffix("+00:00") + "Z"


def removal_json(record: Record) -> dict[str, Any]:
    """Return the members of a removal's JSON."""
    return record._asdict() | {"received_at": utc_text(record.received_at)}


def json_lines(records: Sequence[Record]) -> list[str]:
    """Return the JSON of each removal, as `json.dumps(..., ensure_ascii=False)` writes it.

    `json.dumps` takes four times as long, and a template filled by `%` a fifth longer. `_quote` is
    the function of `json` for texts.
    """
    return [
        f'{{"id": {id}, "provider": {_quote(provider)}, "app_id": {_quote(app_id)}, '
        f'"command": {_quote(command)}, "relation": {_quote(relation)}, '
        f'"owner_id": {_quote(owner_id)}, "target_id": {_quote(target_id)}, '
        f'"actor_id": {_quote(actor_id)}, "cause": {_quote(cause)}, '
        f'"position": {position}, "delivery_id": {delivery_id}, '
        f'"client_ip": {_quote(client_ip)}, "platform": {_quote(platform)}, '
        f'"request_id": {_quote(request_id)}, "received_at": "{received_at}"}}'
        for (
            id,
            provider,
            app_id,
            command,
            relation,
            owner_id,
            target_id,
            actor_id,
            cause,
            position,
            delivery_id,
            client_ip,
            platform,
            request_id,
            _,
        ), received_at in zip(records, _format_times(records), strict=True)
    ]


def csv_records(rows: Sequence[Sequence[Any]]) -> bytes:
    """Return the rows as CSV records (RFC 4180) without formulas. None is an empty cell."""
    text = io.StringIO(newline="")
    cells = ([_escape(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    csv.writer(text).writerows(cells)
    return text.getvalue().encode()


CSV_RECORD = ",".join("%s" if TYPES[name] is int else '"%s"' for name in COLUMNS) + "\r\n"
"""The form of a removal in CSV. Readers derive the form of a file from its first records, so every
text has quotes."""


def removal_csv(records: Sequence[Record], options: FileOptions) -> bytes:
    """Return the removals as CSV records (RFC 4180)."""
    if not records:
        return b""
    columns: dict[str, Iterable[Any]] = dict(zip(COLUMNS, zip(*records, strict=True), strict=True))
    columns["received_at"] = _format_times(records)
    change = _choose_change(options)
    for name in TEXT_COLUMNS:
        texts = columns[name] if change is None else map(change, columns[name])
        columns[name] = [text.replace('"', '""') for text in texts]
    if options.is_for_spreadsheet:
        for name in COLUMNS:
            if TYPES[name] is int:
                columns[name] = [_keep_digits(number) for number in columns[name]]
    return "".join(map(CSV_RECORD.__mod__, zip(*columns.values(), strict=True))).encode()


def _choose_change(options: FileOptions) -> Callable[[str], str] | None:
    """Return the function that changes the texts of a CSV file, or None if they stay."""
    if options.is_for_spreadsheet:
        return _keep_text_and_formula if options.keeps_formulas else _keep_text
    return None if options.keeps_formulas else _escape


def _is_formula(text: str) -> bool:
    """Return True if a spreadsheet may run the text."""
    return text[:1] in FORMULA_STARTS and not NO_FORMULA.fullmatch(text)


def _escape(text: str) -> str:
    """Return the text with an apostrophe before it if a spreadsheet would run it."""
    return f"'{text}" if _is_formula(text) else text


def _keep_text(text: str) -> str:
    """Return the cell that a spreadsheet shows as this text and never runs."""
    return f"'{text}" if _is_formula(text) else _keep_unconverted(text)


def _keep_text_and_formula(text: str) -> str:
    """Return the cell that a spreadsheet shows as this text, or runs if it is a formula."""
    return text if _is_formula(text) else _keep_unconverted(text)


def _keep_unconverted(text: str) -> str:
    """Return the cell that a spreadsheet does not convert, for example into a number.

    Quotes do not help, because spreadsheets also convert quoted cells. A formula that consists of
    the text is exact.
    """
    if not CONVERTED.fullmatch(text) and text[:1] not in FORMULA_STARTS:
        return text
    quoted = text.replace('"', '""')
    return f'="{quoted}"'


def _keep_digits(number: int) -> int | str:
    """Return the cell that a spreadsheet shows with all digits of the number."""
    return number if number < 10**SPREADSHEET_DIGITS else f'"=""{number}"""'


def _format_times(records: Iterable[Record]) -> list[str]:
    """Return `utc_text(record.received_at)` of each removal, in half the time.

    The id of a delivery is its time, and a time without a zone is formatted faster.
    """
    times = [EPOCH_WITHOUT_ZONE + record.delivery_id * MICROSECOND for record in records]
    return [f"{time.isoformat('T', 'microseconds')}Z" for time in times]


def _ndjson(chunks: Chunks, options: FileOptions) -> Iterator[bytes]:
    """Yield one line per removal. The manifest is the line `{"manifest": {"removals": N}}`."""
    removals = 0
    for chunk in chunks:
        removals += len(chunk)
        yield "\n".join([*json_lines(chunk), ""]).encode()
    if options.has_manifest:
        yield json.dumps({"manifest": {"removals": removals}}).encode() + b"\n"


def _csv(chunks: Chunks, options: FileOptions) -> Iterator[bytes]:
    """Yield the record of the column names, then one record per removal.

    The manifest is the record `manifest`, the number of removals, and empty cells. A reader cannot
    distinguish the apostrophe before a formula from an apostrophe of the text.
    """
    removals = 0
    head = b"\xef\xbb\xbf" if options.is_for_spreadsheet else b""
    head += csv_records([COLUMNS])
    for chunk in chunks:
        removals += len(chunk)
        yield head + removal_csv(chunk, options)
        head = b""
    if options.has_manifest:
        head += csv_records([("manifest", removals, *[""] * (len(COLUMNS) - 2))])
    if head:
        yield head


def _parquet(chunks: Chunks, options: FileOptions) -> Iterator[bytes]:
    """Yield row groups, then the footer. The manifest is in the metadata of the footer."""
    try:
        from pyarrow import Table, array, int32, int64, parquet, record_batch, string, timestamp
        from pyarrow import schema as make_schema
    except ImportError as error:
        raise ConfigError("Parquet needs PyArrow: run pip install pyarrow") from error

    types = {int: int64(), datetime: timestamp("us", tz="UTC")}
    columns = {name: types.get(type_, string()) for name, type_ in TYPES.items()}
    schema = make_schema(columns | {"position": int32()})

    def batch(chunk: Sequence[Record]) -> Any:
        columns = zip(zip(*chunk, strict=True), schema.types, strict=True)
        return record_batch([array(*column) for column in columns], schema=schema)

    def row_groups() -> Iterator[bytes]:
        sink = io.BytesIO()
        removals = 0
        with parquet.ParquetWriter(sink, schema, compression="zstd") as writer:
            while batches := [batch(chunk) for chunk in islice(chunks, ROW_GROUP_CHUNKS)]:
                table = Table.from_batches(batches)
                writer.write_table(table, row_group_size=ROW_GROUP_REMOVALS)
                removals += table.num_rows
                del batches, table
                yield _take_written(sink)
            if options.has_manifest:
                manifest = json.dumps({"removals": removals})
                writer.add_key_value_metadata({"manifest": manifest})
        yield _take_written(sink)

    return row_groups()


def _take_written(sink: io.BytesIO) -> bytes:
    """Return the bytes written since the last call. pyarrow counts its own offset in the file."""
    written = sink.getvalue()
    sink.seek(0)
    sink.truncate()
    return written


@dataclass(frozen=True, slots=True)
class Format:
    """A file format: its media type and its encoder."""

    media_type: str
    encode: Callable[[Chunks, FileOptions], Iterator[bytes]]


FORMATS = {
    "ndjson": Format("application/x-ndjson", _ndjson),
    "csv": Format("text/csv; charset=utf-8; header=present", _csv),
    "parquet": Format("application/vnd.apache.parquet", _parquet),
}
