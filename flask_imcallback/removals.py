"""What happened, in plain values: the removal, our one event, and its record."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from blinker import Namespace

logger = logging.getLogger("flask_imcallback")

removals_recorded = Namespace().signal("imcallback-removals-recorded")
"""Sent after the commit: the sender is the app, `removals` a list of `Record`."""


class Relation(StrEnum):
    """Which of the owner's lists lost the target."""

    FRIEND = "friend"
    BLACKLIST = "blacklist"


class Status(StrEnum):
    """What became of a delivery."""

    RECORDED = "recorded"
    DUPLICATE = "duplicate"
    """The provider repeated a callback; its removals are kept with the first delivery."""
    IGNORED = "ignored"
    """Authentic, but of a command that removes nobody."""
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Removal:
    """An owner's list lost a target."""

    relation: Relation
    owner_id: str
    target_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A removal in the database; the fields are those of its JSON, in their order."""

    id: int
    provider: str
    app_id: str
    """Tencent's SDKAppID; empty for OpenIM."""
    command: str
    relation: Relation
    owner_id: str
    target_id: str
    position: int
    """Counted from 0 within the delivery."""
    delivery_id: int
    client_ip: str
    """Of the user who removed, as the provider tells it; empty if it does not."""
    platform: str
    request_id: str
    received_at: datetime
    """By our clock, aware, UTC: neither provider tells when the removal happened."""


def announce(sender: object, make_records: Callable[[], list[Record]]) -> None:
    """Send `removals_recorded` for removals that were stored together.

    Each receiver is told, whatever the others do.
    """
    receivers = list(removals_recorded.receivers_for(sender))
    records = make_records() if receivers else []
    for receiver in receivers if records else ():
        try:
            receiver(sender, removals=list(records))
        except Exception:
            logger.exception("A receiver of removals_recorded failed; the removals are stored")
