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
from .history.history import History, Page
from .providers import OpenIMProvider, Provider, TencentProvider
from .removals import Record, Relation, Removal, removals_recorded
from .settings import Settings
from .storage.counters import Count
from .storage.migrations import upgrade

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "Count",
    "History",
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
    "Settings",
    "StorageError",
    "TencentProvider",
    "VerificationError",
    "removals_recorded",
    "upgrade",
]
