"""Records who removed whom on Tencent Cloud IM and OpenIM, from their callbacks."""

from .errors import (
    ConfigError,
    HistoryQueryError,
    ImCallbackError,
    PacketError,
    StorageError,
    VerificationError,
)
from .extension import ImCallback
from .history import (
    DeliveryDetail,
    DeliveryFilters,
    DeliveryPage,
    DeliveryRecord,
    History,
    HistoryFilters,
    Page,
    RemovalCount,
    RemovalDetail,
    RemovalFilters,
    StreamFilters,
)
from .providers import OpenIMProvider, Provider, TencentProvider
from .removals import Record, Relation, Removal, Status, removals_recorded
from .runtime import upgrade
from .settings import Settings
from .storage import CallbackCount

__version__ = "0.1.0"

__all__ = [
    "CallbackCount",
    "ConfigError",
    "DeliveryDetail",
    "DeliveryFilters",
    "DeliveryPage",
    "DeliveryRecord",
    "History",
    "HistoryFilters",
    "HistoryQueryError",
    "ImCallback",
    "ImCallbackError",
    "OpenIMProvider",
    "PacketError",
    "Page",
    "Provider",
    "Record",
    "Relation",
    "Removal",
    "RemovalCount",
    "RemovalDetail",
    "RemovalFilters",
    "Settings",
    "Status",
    "StorageError",
    "StreamFilters",
    "TencentProvider",
    "VerificationError",
    "removals_recorded",
    "upgrade",
]
