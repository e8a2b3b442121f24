"""The removal, its stored record, and the signal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from blinker import Namespace

from .logger import logger

removals_recorded = Namespace().signal("imcallback-removals-recorded")
"""Sent after the commit. The sender is the app, and `removals` is a list of `Record`."""


class Relation(StrEnum):
    """The list that lost the target."""

    FRIEND = "friend"
    BLACKLIST = "blacklist"
    FOLLOW = "follow"
    """The accounts that the owner follows."""
    GROUP = "group"
    """The members of a group. The owner is the group."""


class Cause(StrEnum):
    """The reason why a member left a group."""

    NONE = ""
    """The removal is not from a group."""
    KICKED = "kicked"
    QUIT = "quit"
    DISMISSED = "dismissed"
    """The group was dismissed, so all members left it."""


class Status(StrEnum):
    """The result of a delivery."""

    RECORDED = "recorded"
    """The removals of the delivery are stored."""
    DUPLICATE = "duplicate"
    """The provider repeated a callback. The first delivery holds its removals."""
    IGNORED = "ignored"
    """The callback is authentic, but its command removes nobody."""
    UNREADABLE = "unreadable"
    """The packet could not be read as its command. The raw bytes are stored."""


@dataclass(frozen=True, slots=True)
class Removal:
    """A removal: the list of an owner lost a target."""

    relation: Relation
    owner_id: str
    """The account whose list changed, or the group that lost a member."""
    target_id: str
    """The account that left the list."""
    actor_id: str = ""
    """The account that removed the target. Empty if the provider does not send it."""
    cause: Cause = Cause.NONE


class Record(NamedTuple):
    """A stored removal. Its fields are the members of its JSON, in the same order."""

    # A named tuple takes a sixth of the time of a frozen dataclass to make. Exports make millions.

    id: int
    provider: str
    """The IM server product, for example `tencent` or `openim`."""
    app_id: str
    """Tencent's SDKAppID. Empty for OpenIM."""
    command: str
    """The provider's name of the callback."""
    relation: Relation
    owner_id: str
    """The account whose list changed, or the group that lost a member."""
    target_id: str
    """The account that left the list."""
    actor_id: str
    """The account that removed the target. Empty if the provider does not send it."""
    cause: Cause
    """The reason why a member left a group. Empty if the removal is not from a group."""
    position: int
    """The index of the removal within its delivery, counted from 0."""
    delivery_id: int
    client_ip: str
    """The IP address of the user who removed the target. Empty if the provider does not send it."""
    platform: str
    """The client platform, for example `iOS`. Empty if the provider does not send it."""
    request_id: str
    """Tencent's RequestId or OpenIM's operationID. Empty if the callback had none."""
    received_at: datetime
    """The time by our clock, aware, in UTC. No provider sends the time of the removal itself."""


def announce(sender: object, make_records: Callable[[], list[Record]]) -> None:
    """Send `removals_recorded` for the removals of one delivery.

    An exception of a receiver is logged, and the other receivers still get the signal.
    """
    receivers = list(removals_recorded.receivers_for(sender))
    records = make_records() if receivers else []
    for receiver in receivers if records else ():
        try:
            receiver(sender, removals=list(records))
        except Exception:
            logger.exception("A receiver of removals_recorded failed. The removals are stored.")
