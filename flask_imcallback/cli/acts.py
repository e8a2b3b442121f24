"""The command `acts`, and the acts of the other commands."""

from __future__ import annotations

import json
from typing import Any

import click

from ..history import utc_text
from ..log import ActKind, FileActs, read_acts, user_actor
from ..runtime import get_runtime
from .output import echo_table, make_command

UNLOGGED_OPTIONS = ("cursor",)


def export_acts(command: str, filters: dict[str, list[str]]) -> FileActs:
    """Return the acts of an export by the user of this command."""
    detail = _describe_command(command, filters)
    return FileActs(get_runtime().store_act, ActKind.EXPORT, user_actor(), detail)


def log_read(command: str, filters: dict[str, list[str]], affected: int) -> None:
    """Store that the user of this command reads, if the app wants that. Raises `StorageError`."""
    get_runtime().log_read(user_actor(), affected, _describe_command(command, filters))


def _describe_command(command: str, filters: dict[str, list[str]]) -> dict[str, Any]:
    shown = {name: values for name, values in filters.items() if name not in UNLOGGED_OPTIONS}
    return {"command": command, "filters": shown}


def _acts(limit: int) -> None:
    rows = [
        {
            "at": utc_text(act.at),
            "kind": act.kind,
            "actor": act.actor,
            "affected": act.affected,
            "detail": json.dumps(act.detail, ensure_ascii=False),
        }
        for act in read_acts(get_runtime().engine(), limit)
    ]
    echo_table(rows, ("at", "kind", "actor", "affected", "detail"))


acts = make_command(
    "acts",
    "List who read, exported or erased what, newest first.",
    _acts,
    click.Option(
        ["--limit"],
        type=click.IntRange(1, 1000),
        default=100,
        show_default=True,
        help="The number of acts.",
    ),
)
