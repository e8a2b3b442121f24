"""Commands that read the history."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ..history import (
    COLUMNS,
    EXPORT_QUERY,
    HISTORY_QUERY,
    STATS_QUERY,
    FileOptions,
    HistoryQuery,
    csv_records,
    encode,
    join_choices,
    json_lines,
    load_export_query,
    load_history_query,
    load_stats_query,
    removal_csv,
    removal_json,
    stats_json,
)
from ..removals import Record
from ..runtime import get_runtime
from .acts import export_acts, log_read
from .output import (
    FORMAT_OPTION,
    echo_table,
    make_command,
    query_parameters,
    report_wrong_options,
    schema_options,
)


@report_wrong_options
def _history(format: str, **filters: Any) -> None:
    parameters = query_parameters(filters)
    page = get_runtime().history.read_page(load_history_query(parameters))
    log_read("history", parameters, len(page.data))
    if format == "ndjson":
        for line in json_lines(page.data):
            click.echo(line)
    elif format == "csv":
        rows = removal_csv(page.data, FileOptions(format="csv"))
        click.echo(csv_records([COLUMNS]) + rows, nl=False)
    else:
        echo_table([removal_json(record) for record in page.data], TABLE)
    if page.next_cursor:
        click.echo(f"There are more: --cursor {page.next_cursor}", err=True)


@report_wrong_options
def _stats(format: str, **parameters: Any) -> None:
    filters = query_parameters(parameters)
    counts = get_runtime().history.read_counts(*load_stats_query(filters))
    log_read("stats", filters, sum(count.count for count in counts))
    rows = stats_json(counts)
    columns = ("bucket", "group", "count")
    if format == "ndjson":
        for row in rows:
            click.echo(json.dumps(row, ensure_ascii=False))
    elif format == "csv":
        cells = [[row[name] for name in columns] for row in rows]
        click.echo(csv_records([columns]) + csv_records(cells), nl=False)
    else:
        echo_table([row | {"group": row["group"] or "-"} for row in rows], columns)


@report_wrong_options
def _export(file: str, **parameters: Any) -> None:
    if parameters["format"] is None:
        parameters["format"] = _format_of_name(file)
    filters = query_parameters(parameters)
    query, options = load_export_query(filters)
    chunks = get_runtime().history.read_chunks(query)
    if sys.stderr.isatty():
        chunks = _with_progress_bar(chunks, query)
    acts = export_acts("export", filters)
    parts = encode(options, acts.count(chunks, len))
    acts.begin()
    if file == "-":
        for part in parts:
            click.echo(part, nl=False)
    else:
        write_file(file, parts)


def _format_of_name(file: str) -> str | None:
    """Return the format that the ending of a file selects, or None if there is no ending."""
    ending = Path(file).suffix.lower()
    if ending and ending not in ENDINGS:
        raise click.BadParameter(
            f"no format has the ending {ending}. Use {join_choices(ENDINGS)}, "
            "or name the format with --format. A spreadsheet opens .csv, best with --spreadsheet",
            param_hint="FILE",
        )
    return ENDINGS.get(ending)


def write_file(file: str, parts: Iterable[bytes]) -> None:
    """Write the parts to a file. Until the last part is written, its name ends in `.part`."""
    unfinished = f"{file}.part"
    try:
        with open(unfinished, "wb") as target, ExitStack() as cleanup:
            cleanup.callback(os.unlink, unfinished)
            target.writelines(parts)
            target.close()
            os.replace(unfinished, file)
            cleanup.pop_all()
    except OSError as error:
        raise click.FileError(file, str(error)) from error


def _with_progress_bar(
    chunks: Iterable[list[Record]], query: HistoryQuery
) -> Iterator[list[Record]]:
    """Yield the chunks, and show the covered part of the period on a progress bar."""
    first, last = _first_and_last_id(query)
    length = max(1, last - first)
    with click.progressbar(length=length, file=sys.stderr) as bar:
        for chunk in chunks:
            yield chunk
            last_id = chunk[-1].id
            covered = last - last_id if query.is_descending else last_id - first
            bar.update(max(0, covered - bar.pos))
        bar.update(length - bar.pos)


def _first_and_last_id(query: HistoryQuery) -> tuple[int, int]:
    """Return the smallest and the largest id that match, or zeros."""
    history = get_runtime().history
    pages = [history.read_page(replace(query, order=order, limit=1)) for order in ("asc", "desc")]
    ids = [record.id for page in pages for record in page.data]
    return min(ids, default=0), max(ids, default=0)


ENDINGS = {".csv": "csv", ".ndjson": "ndjson", ".jsonl": "ndjson", ".parquet": "parquet"}
"""Ending of a file -> the format that it selects."""
TABLE = (
    *("id", "received_at", "provider", "relation", "owner_id", "target_id", "platform"),
    *("cause", "actor_id"),
)

history = make_command(
    "history",
    "List the recorded removals, newest first.",
    _history,
    *schema_options(HISTORY_QUERY),
    FORMAT_OPTION,
)

stats = make_command(
    "stats",
    "Count the recorded removals by time and group.",
    _stats,
    *schema_options(STATS_QUERY),
    FORMAT_OPTION,
)

export = make_command(
    "export",
    "Write all removals that match the filters to FILE, or to stdout if FILE is -. The ending of "
    "FILE selects the format: .ndjson, .jsonl, .csv or .parquet. --format takes precedence.",
    _export,
    click.Argument(["file"]),
    *schema_options(EXPORT_QUERY),
)
