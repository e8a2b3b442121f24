"""The objects that the history returns."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ..removals import Record, Status


@dataclass(frozen=True, slots=True)
class Page:
    """A page of removals."""

    data: list[Record]
    next_cursor: str | None
    """The cursor of the next page. None on the last page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryRecord:
    """A stored delivery. Its fields are named as the members of its JSON."""

    id: int
    provider: str
    app_id: str
    """Tencent's SDKAppID. Empty for OpenIM."""
    command: str
    """The provider's name of the callback."""
    status: Status
    duplicate_of: int | None
    """The id of the first delivery of the same callback, if the status is `duplicate`."""
    error: str
    """The reason why the packet is unreadable. Empty for every other status."""
    removal_count: int
    remote_addr: str
    """The IP address that sent the request."""
    authenticated_by: str
    """The guards that the request passed, for example `signature`."""
    client_ip: str
    platform: str
    request_id: str
    query: str
    """The stored part of the query string. It never holds a secret."""
    headers: dict[str, str]
    """The stored headers by lower-case name. They never hold a secret."""
    body: bytes
    """The raw packet."""
    received_at: datetime
    """The time by our clock, aware, in UTC."""


@dataclass(frozen=True, slots=True)
class DeliveryPage:
    """A page of deliveries."""

    data: list[DeliveryRecord]
    next_cursor: str | None
    """The cursor of the next page. None on the last page."""


@dataclass(frozen=True, slots=True)
class RemovalDetail:
    """A removal with its delivery."""

    removal: Record
    delivery: DeliveryRecord


@dataclass(frozen=True, slots=True)
class DeliveryDetail:
    """A delivery with its removals, in the order of the packet."""

    delivery: DeliveryRecord
    removals: list[Record]


@dataclass(frozen=True, slots=True)
class RemovalCount:
    """The number of removals in a time bucket."""

    bucket: datetime
    """The start of the bucket, aware, in the time zone of the query."""
    group: str | None
    """The value of the `group_by` filter that these removals share. None without `group_by`."""
    count: int
