"""The command `deliveries`: what arrived, also without removals."""

from __future__ import annotations

import json
from typing import Any

import click

from ..history import (
    DELIVERY,
    DELIVERY_QUERY,
    DeliveryDetail,
    csv_records,
    load_delivery_query,
    removal_json,
)
from ..runtime import get_runtime
from .acts import log_read
from .output import (
    FORMAT_OPTION,
    echo_table,
    escape,
    make_command,
    query_parameters,
    report_wrong_options,
    schema_options,
)

TABLE = ("id", "received_at", "provider", "command", "status", "removal_count", "error")


@report_wrong_options
def _deliveries(id: int | None, format: str, **filters: Any) -> None:
    """List the deliveries that match the filters, or show one delivery."""
    parameters = query_parameters(filters)
    if id is not None:
        if parameters:
            raise click.UsageError("a delivery that is named by its id takes no filters")
        _show(id, format)
        return
    page = get_runtime().history.read_delivery_page(load_delivery_query(parameters))
    log_read("deliveries", parameters, len(page.data))
    _echo_rows(DELIVERY.dump(page.data, many=True), format)
    if page.next_cursor:
        click.echo(f"There are more: --cursor {page.next_cursor}", err=True)


def _echo_rows(rows: list[dict[str, Any]], format: str) -> None:
    if format == "ndjson":
        for row in rows:
            click.echo(json.dumps(row, ensure_ascii=False))
    elif format == "csv":
        cells = [[_cell(value) for value in row.values()] for row in rows]
        click.echo(csv_records([tuple(DELIVERY.fields)]) + csv_records(cells), nl=False)
    else:
        echo_table(rows, TABLE)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return "" if value is None else str(value)


def _show(delivery_id: int, format: str) -> None:
    """Print one delivery. The table format shows its packet with line breaks."""
    detail = get_runtime().history.get_delivery(delivery_id)
    if detail is None:
        raise click.ClickException(f"no delivery has the id {delivery_id}")
    log_read("deliveries", {"id": [str(delivery_id)]}, 1)
    row = DELIVERY.dump(detail.delivery)
    if format == "ndjson":
        removals = [removal_json(record) for record in detail.removals]
        click.echo(json.dumps(row | {"removals": removals}, ensure_ascii=False))
    elif format == "csv":
        _echo_rows([row], format)
    else:
        _echo_detail(detail, row)


def _echo_detail(detail: DeliveryDetail, row: dict[str, Any]) -> None:
    values = {name: _cell(value) for name, value in row.items() if not name.startswith("body")}
    width = max(map(len, values))
    for name, value in values.items():
        click.echo(f"{name.ljust(width)}  {escape(value)}".rstrip())
    for record in detail.removals:
        sides = f"{escape(record.owner_id)} lost {escape(record.target_id)}"
        click.echo(f"{'removal'.ljust(width)}  {record.id} {record.relation}: {sides}")
    click.echo()
    for line in _readable(detail.delivery.body).split("\n"):
        click.echo(escape(line))


def _readable(body: bytes) -> str:
    """Return the packet as indented JSON if it is JSON. Bytes that are not UTF-8 are escaped."""
    try:
        return json.dumps(json.loads(body), ensure_ascii=False, indent=2)
    except (ValueError, RecursionError):
        return body.decode(errors="backslashreplace")


deliveries = make_command(
    "deliveries",
    "List the deliveries, newest first: also callbacks that are unreadable, repeated or without "
    "removals. With ID, show one delivery with its packet.",
    _deliveries,
    click.Argument(["id"], type=int, required=False),
    *schema_options(DELIVERY_QUERY),
    FORMAT_OPTION,
)
