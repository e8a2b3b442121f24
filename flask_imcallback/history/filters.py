"""The filters of the history. Queries, URLs and the command line share this table."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias, TypedDict

from ..removals import Cause, Relation
from ..storage import SourceKey

Texts: TypeAlias = str | Sequence[str] | AbstractSet[str] | None
"""One text, or several alternatives. None means that the filter is not used."""
Ids: TypeAlias = int | Sequence[int] | AbstractSet[int] | None
"""One id, or several alternatives. None means that the filter is not used."""


@dataclass(frozen=True, kw_only=True)
class Filter:
    """A filter that compares a value of the removal for equality."""

    description: str
    """Help text for the command line and for OpenAPI."""
    may_be_empty: bool = False
    choices: tuple[str, ...] = ()
    """The only values that are allowed. Empty if every text is allowed."""
    is_id: bool = False
    """Whether the values are ids. All other values are texts."""


FILTERS: dict[str, Filter] = {
    "provider": Filter(description="the provider, such as tencent or openim"),
    "app_id": Filter(description="Tencent's SDKAppID", may_be_empty=True),
    "command": Filter(description="the provider's name of the callback", may_be_empty=True),
    "relation": Filter(description=" or ".join(Relation), choices=tuple(Relation)),
    "owner_id": Filter(description="the account or group whose list changed"),
    "target_id": Filter(description="the account that left the list"),
    "account_id": Filter(description="the account on either side, never a group"),
    "peer_id": Filter(description="the account on the other side, only with account_id"),
    "actor_id": Filter(description="the account that removed the target"),
    "group_id": Filter(description="the group that lost the target"),
    "cause": Filter(
        description="kicked, quit or dismissed for groups, empty for other lists",
        choices=tuple(Cause),
    ),
    "platform": Filter(description="the client platform, such as iOS", may_be_empty=True),
    "client_ip": Filter(
        description="the IP address that the provider sent for the user", may_be_empty=True
    ),
    "request_id": Filter(
        description="Tencent's RequestId or OpenIM's operationID", may_be_empty=True
    ),
    "delivery_id": Filter(description="the id of the delivery", is_id=True),
}
"""Filter -> its properties. The values of one filter are alternatives."""

TEXT_FILTERS = tuple(name for name, row in FILTERS.items() if not row.is_id)

GROUPS = SourceKey._fields
"""Filters by which removals can be grouped. The source table holds their values."""


class RemovalFilters(TypedDict, total=False):
    """Filters of removals. A removal must match all filters that are given.

    Each filter except `since` and `until` takes one value or a sequence of alternatives.
    None means that the filter is not used.
    """

    provider: Texts
    """The provider, for example `tencent` or `openim`."""
    app_id: Texts
    """Tencent's SDKAppID. OpenIM has none: use the empty text."""
    command: Texts
    """The provider's name of the callback."""
    relation: Texts
    """A `Relation`, or its text: `friend`, `blacklist`, `follow` or `group`."""
    owner_id: Texts
    """The account whose list changed, or the group that lost a member."""
    target_id: Texts
    """The account that left the list."""
    account_id: Texts
    """The account on either side: as owner or as target. A group is not an account."""
    peer_id: Texts
    """The account on the other side of `account_id`, which must be given too."""
    actor_id: Texts
    """The account that removed the target, if the provider sent it."""
    group_id: Texts
    """The group that lost the target: the owner of a removal with the relation `group`."""
    cause: Texts
    """A `Cause`, or its text: `kicked`, `quit` or `dismissed`. Empty if it is not a group."""
    platform: Texts
    """The client platform as the provider sent it, for example `iOS`."""
    client_ip: Texts
    """The IP address that the provider sent for the user who removed the target."""
    request_id: Texts
    """Tencent's RequestId or OpenIM's operationID."""
    delivery_id: Ids
    """The id of the delivery."""
    since: datetime | None
    """Only removals received at this time or later. The time must be aware."""
    until: datetime | None
    """Only removals received before this time. The time must be aware."""


class StreamFilters(RemovalFilters, total=False):
    """Filters of removals, and the order in which they are returned."""

    order: str | None
    """`"desc"` returns the newest removal first and is the default. `"asc"` reverses the order."""


class HistoryFilters(StreamFilters, total=False):
    """Filters of removals, their order, and the page to return."""

    limit: int
    """Maximum number of removals in the page, 1 to 1000. The default is 100."""
    cursor: str | None
    """The `next_cursor` of the page before, with the same filters and order."""


class DeliveryFilters(TypedDict, total=False):
    """Filters of deliveries, their order, and the page to return."""

    status: Texts
    """A `Status` or its text, or a sequence of alternatives."""
    command: Texts
    """The provider's name of the callback, or a sequence of alternatives."""
    since: datetime | None
    """Only deliveries received at this time or later. The time must be aware."""
    until: datetime | None
    """Only deliveries received before this time. The time must be aware."""
    order: str | None
    """`"desc"` returns the newest delivery first and is the default. `"asc"` reverses the order."""
    limit: int
    """Maximum number of deliveries in the page, 1 to 1000. The default is 100."""
    cursor: str | None
    """The `next_cursor` of the page before, with the same filters and order."""
