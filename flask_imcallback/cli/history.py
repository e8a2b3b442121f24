"""Commands that read the history."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ..history import (
    COLUMNS,
    EXPORT_QUERY,
    FORMATS,
    HISTORY_QUERY,
    STATS_QUERY,
    HistoryQuery,
    Values,
    csv_records,
    encode,
    json_lines,
    read_export,
    read_query,
    read_stats,
    stats_json,
)
from ..runtime import get_runtime
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
    page = get_runtime().history.values_page(read_query(query_parameters(filters)))
    if format == "ndjson":
        for line in json_lines(page.data):
            click.echo(line)
    elif format == "csv":
        click.echo(csv_records([COLUMNS]) + csv_records(page.data), nl=False)
    else:
        rows = [dict(zip(COLUMNS, values, strict=True)) for values in page.data]
        echo_table(rows, TABLE)
    if page.next_cursor:
        click.echo(f"There are more: --cursor {page.next_cursor}", err=True)


@report_wrong_options
def _stats(format: str, **parameters: Any) -> None:
    rows = stats_json(get_runtime().history.stats(*read_stats(query_parameters(parameters))))
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
    suffix = Path(file).suffix[1:].lower()
    if parameters["format"] is None and suffix in FORMATS:
        parameters["format"] = suffix
    query, format, keeps_formulas = read_export(query_parameters(parameters))
    parts = get_runtime().history.stream(query)
    if sys.stderr.isatty():
        parts = _shown(parts, query)
    made = encode(format, parts, keeps_formulas=keeps_formulas)
    if file == "-":
        for some in made:
            click.echo(some, nl=False)
        return
    # Under its name it is whole.
    unfinished = f"{file}.part"
    try:
        with open(unfinished, "wb") as target, ExitStack() as stack:
            stack.callback(os.unlink, unfinished)
            target.writelines(made)
            target.close()
            os.replace(unfinished, file)
            stack.pop_all()
    except OSError as error:
        raise click.FileError(file, str(error)) from error


def _shown(parts: Iterator[list[Values]], query: HistoryQuery) -> Iterator[list[Values]]:
    """The same, while a progress bar tells how much of the time is covered."""
    history = get_runtime().history
    ends: list[int] = []
    for order in ("asc", "desc"):
        page = history.values_page(replace(query, order=order, limit=1))
        ends += [values[0] for values in page.data]
    first, last = (min(ends), max(ends)) if ends else (0, 0)
    whole = max(1, last - first)
    with click.progressbar(length=whole, file=sys.stderr) as bar:
        for part in parts:
            yield part
            reached = part[-1][0]
            covered = last - reached if query.order == "desc" else reached - first
            bar.update(max(0, covered - bar.pos))
        bar.update(whole - bar.pos)


TABLE = ("id", "received_at", "provider", "relation", "owner_id", "target_id", "platform")

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
    "Write all that the filters match to FILE, or to stdout for -. Its name tells the format: "
    ".ndjson, .csv or .parquet.",
    _export,
    click.Argument(["file"]),
    *schema_options(EXPORT_QUERY),
)
