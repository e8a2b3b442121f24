"""Removals as NDJSON, CSV and Parquet files. A file is written while it is sent, in bounded memory.

The first chunk is read before the first byte is written, so an error at the start still gets a
status. A file that was cut off later can be recognized in every format.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from json.encoder import encode_basestring as _quote
from typing import Any

from ..errors import ConfigError
from ..removals import Record
from ..storage import EPOCH, MICROSECOND

Chunks = Iterator[Sequence[Record]]

COLUMNS = Record._fields
EPOCH_WITHOUT_ZONE = EPOCH.replace(tzinfo=None)

FORMULA_STARTS = frozenset("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
"""First characters of cells that a spreadsheet may run. The last four are full-width = + - @.
https://owasp.org/www-community/attacks/CSV_Injection"""

ROW_GROUP_CHUNKS = 50
"""Maximum number of chunks in a row group of Parquet. The group waits in memory."""
ROW_GROUP_REMOVALS = 50_000
"""Maximum number of removals in a row group of Parquet."""


def encode(
    format: str, chunks: Iterable[Sequence[Record]], *, keeps_formulas: bool = False
) -> Iterator[bytes]:
    """Return the parts of a file with all removals in the chunks.

    Raises `ValueError` for an unknown format, and `ConfigError` if the package of the format is
    not installed. Both are raised before anything is read.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, not {format!r}")
    return FORMATS[format].encode(filter(None, chunks), keeps_formulas)


def utc_text(moment: datetime) -> str:
    """Return an aware time as RFC 3339 in UTC, with microseconds and `Z`."""
    text = moment.astimezone(UTC).isoformat(timespec="microseconds")
    return text.removesuffix("+00:00") + "Z"


def removal_json(record: Record) -> dict[str, Any]:
    """Return the members of a removal's JSON."""
    return record._asdict() | {"received_at": utc_text(record.received_at)}


def json_lines(records: Sequence[Record]) -> list[str]:
    """Return the JSON of each removal, as `json.dumps(..., ensure_ascii=False)` writes it.

    `json.dumps` takes four times as long. `_quote` is the function of `json` for texts.
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


def removal_csv(records: Sequence[Record], *, keeps_formulas: bool = False) -> bytes:
    """Return the removals as CSV records (RFC 4180)."""
    if not records:
        return b""
    *columns, _ = zip(*records, strict=True)
    return _csv_of_columns([*columns, _format_times(records)], keeps_formulas)


def csv_records(rows: Sequence[Sequence[Any]]) -> bytes:
    """Return the rows as CSV records without formulas. The cells of a column have one type."""
    return _csv_of_columns(list(zip(*rows, strict=True)), keeps_formulas=False)


def _csv_of_columns(columns: Iterable[Sequence[Any]], keeps_formulas: bool) -> bytes:
    if not keeps_formulas:
        columns = map(_escape_formulas, columns)
    text = io.StringIO(newline="")
    csv.writer(text).writerows(zip(*columns, strict=True))
    return text.getvalue().encode()


def _escape_formulas(column: Sequence[Any]) -> Sequence[Any]:
    if not column or not isinstance(column[0], str):
        return column
    return [f"'{cell}" if cell[:1] in FORMULA_STARTS else cell for cell in column]


def _format_times(records: Iterable[Record]) -> list[str]:
    """Return `utc_text(record.received_at)` of each removal, in half the time.

    The id of a delivery is its time, and a time without a zone is formatted faster.
    """
    times = [EPOCH_WITHOUT_ZONE + record.delivery_id * MICROSECOND for record in records]
    return [f"{time.isoformat('T', 'microseconds')}Z" for time in times]


def _ndjson(chunks: Chunks, keeps_formulas: bool) -> Iterator[bytes]:
    """Yield one line per removal.

    The last line is `{"manifest": {"removals": N}}`. A file without it was cut off.
    """
    removals = 0
    for chunk in chunks:
        removals += len(chunk)
        yield "\n".join([*json_lines(chunk), ""]).encode()
    yield json.dumps({"manifest": {"removals": removals}}).encode() + b"\n"


def _csv(chunks: Chunks, keeps_formulas: bool) -> Iterator[bytes]:
    """Yield the record of the column names, then one record per removal.

    The last record is `manifest`, the number of removals, and empty fields. A file without it was
    cut off. Without `keeps_formulas`, an apostrophe stands before every text that a spreadsheet may
    run. A reader cannot distinguish it from an apostrophe of the text.
    """
    removals = 0
    head = csv_records([COLUMNS])
    for chunk in chunks:
        removals += len(chunk)
        yield head + removal_csv(chunk, keeps_formulas=keeps_formulas)
        head = b""
    yield head + csv_records([("manifest", removals, *[""] * (len(COLUMNS) - 2))])


def _parquet(chunks: Chunks, keeps_formulas: bool) -> Iterator[bytes]:
    """Yield row groups, then the footer. A file that was cut off cannot be opened without it."""
    try:
        from pyarrow import Table, array, int32, int64, parquet, record_batch, string, timestamp
        from pyarrow import schema as make_schema
    except ImportError as error:
        raise ConfigError("Parquet needs pyarrow: install flask-imcallback[parquet]") from error

    types = {
        "id": int64(),
        "position": int32(),
        "delivery_id": int64(),
        "received_at": timestamp("us", tz="UTC"),
    }
    schema = make_schema([(name, types.get(name, string())) for name in COLUMNS])

    def batch(chunk: Sequence[Record]) -> Any:
        columns = zip(zip(*chunk, strict=True), schema.types, strict=True)
        return record_batch([array(*column) for column in columns], schema=schema)

    def row_groups() -> Iterator[bytes]:
        sink = io.BytesIO()
        with parquet.ParquetWriter(sink, schema, compression="zstd") as writer:
            while batches := [batch(chunk) for chunk in islice(chunks, ROW_GROUP_CHUNKS)]:
                table = Table.from_batches(batches)
                writer.write_table(table, row_group_size=ROW_GROUP_REMOVALS)
                del batches, table
                yield _take_written(sink)
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
    encode: Callable[[Chunks, bool], Iterator[bytes]]


FORMATS = {
    "ndjson": Format("application/x-ndjson", _ndjson),
    "csv": Format("text/csv; charset=utf-8; header=present", _csv),
    "parquet": Format("application/vnd.apache.parquet", _parquet),
}
