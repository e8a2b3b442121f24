"""Removals as files, made while they are sent: NDJSON, CSV and Parquet, in flat memory.

No byte comes before the first part has been read: what fails at once can still be answered. What
fails later, or is cut off on the way, is noticed by who reads the file; each format says how.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from json.encoder import encode_basestring as _text  # what json.dumps(ensure_ascii=False) calls
from typing import Any

from ..errors import ConfigError
from ..removals import Record

Row = tuple[Any, ...]
"""The values of a removal's JSON in their order; no text has a NUL or a lone surrogate."""

Parts = Iterator[Sequence[Row]]

COLUMNS = tuple(field.name for field in fields(Record))

FORMULA_STARTS = frozenset("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
"""A spreadsheet may run a cell that begins so; the last four are = + - @ of full width.
https://owasp.org/www-community/attacks/CSV_Injection"""

GROUP_PARTS = 50
GROUP_ROWS = 50_000
"""At most so much is a row group of Parquet, and waits in memory."""


def encode(
    format: str, parts: Iterable[Sequence[Row]], *, keeps_formulas: bool = False
) -> Iterator[bytes]:
    """Make a file of removals that come in parts of about a thousand.

    Raises `ValueError` for an unknown format, and `ConfigError` for one whose package is not
    installed, before anything is read.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, not {format!r}")
    return FORMATS[format].encode(filter(None, parts), keeps_formulas)


def json_lines(part: Sequence[Row]) -> list[str]:
    """Each removal as json.dumps makes it, but in a quarter of its time."""
    return [
        f'{{"id": {id_}, "provider": {_text(provider)}, "app_id": {_text(app_id)}, '
        f'"command": {_text(command)}, "relation": {_text(relation)}, '
        f'"owner_id": {_text(owner_id)}, "target_id": {_text(target_id)}, '
        f'"position": {position}, "delivery_id": {delivery_id}, '
        f'"client_ip": {_text(client_ip)}, "platform": {_text(platform)}, '
        f'"request_id": {_text(request_id)}, "received_at": {_text(received_at)}}}'
        for (
            id_,
            provider,
            app_id,
            command,
            relation,
            owner_id,
            target_id,
            position,
            delivery_id,
            client_ip,
            platform,
            request_id,
            received_at,
        ) in part
    ]


def _ndjson(parts: Parts, keeps_formulas: bool) -> Iterator[bytes]:
    """A line each.

    The last line is `{"manifest": {"removals": N}}`: a file without it was cut off.
    """
    removals = 0
    for part in parts:
        removals += len(part)
        yield "\n".join([*json_lines(part), ""]).encode()
    yield json.dumps({"manifest": {"removals": removals}}).encode() + b"\n"


def _csv(parts: Parts, keeps_formulas: bool) -> Iterator[bytes]:
    """A record each (RFC 4180), after that of the names.

    The last has `manifest` in place of an id, then the number of removals, then empty fields: a
    file without it was cut off. A text that a spreadsheet may run gets an apostrophe before it,
    unless `keeps_formulas`; nothing tells it from one that was there.
    """
    removals = 0
    head = csv_records([COLUMNS])
    for part in parts:
        removals += len(part)
        yield head + csv_records(part, keeps_formulas=keeps_formulas)
        head = b""
    yield head + csv_records([("manifest", removals, *[""] * (len(COLUMNS) - 2))])


def csv_records(rows: Sequence[Sequence[Any]], *, keeps_formulas: bool = False) -> bytes:
    """Records of cells that are, in a column, all texts or all not."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows if keeps_formulas else _without_formulas(rows))
    return text.getvalue().encode()


def _without_formulas(part: Sequence[Sequence[Any]]) -> Iterable[Row]:
    columns = [
        [f"'{cell}" if cell[:1] in FORMULA_STARTS else cell for cell in column]
        if isinstance(column[0], str)
        else column
        for column in zip(*part, strict=True)
    ]
    return zip(*columns, strict=True)


def _parquet(parts: Parts, keeps_formulas: bool) -> Iterator[bytes]:
    """Row groups, and at the end what is needed to read them: a file cut off cannot be opened."""
    try:
        from pyarrow import Table, array, int32, int64, parquet, record_batch, string, timestamp
        from pyarrow import schema as make_schema
    except ImportError as error:
        raise ConfigError("Parquet needs pyarrow: install flask-imcallback[parquet]") from error

    types = {"id": int64(), "position": int32(), "delivery_id": int64()}
    read = make_schema([(name, types.get(name, string())) for name in COLUMNS])
    at = COLUMNS.index("received_at")
    written = read.set(at, read.field(at).with_type(timestamp("us", tz="UTC")))

    def batch(part: Sequence[Row]) -> Any:
        columns = zip(zip(*part, strict=True), read.types, strict=True)
        return record_batch([array(*column) for column in columns], schema=read)

    def row_groups() -> Iterator[bytes]:
        sink = io.BytesIO()
        with parquet.ParquetWriter(sink, written, compression="zstd") as writer:
            while batches := [batch(part) for part in islice(parts, GROUP_PARTS)]:
                table = Table.from_batches(batches).cast(written)
                writer.write_table(table, row_group_size=GROUP_ROWS)
                del batches, table
                yield _taken(sink)
        yield _taken(sink)

    return row_groups()


def _taken(sink: io.BytesIO) -> bytes:
    """What was written since; pyarrow counts for itself where it is in the file."""
    taken = sink.getvalue()
    sink.seek(0)
    sink.truncate()
    return taken


@dataclass(frozen=True, slots=True)
class Format:
    """How a file is announced, and how it is made."""

    media_type: str
    encode: Callable[[Parts, bool], Iterator[bytes]]


FORMATS = {
    "ndjson": Format("application/x-ndjson", _ndjson),
    "csv": Format("text/csv; charset=utf-8; header=present", _csv),
    "parquet": Format("application/vnd.apache.parquet", _parquet),
}
