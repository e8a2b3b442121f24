"""Flask extension that records who removed whom on Tencent Cloud IM and OpenIM."""

from .errors import (
    ConfigError,
    HistoryQueryError,
    ImCallbackError,
    PacketError,
    StorageError,
    VerificationError,
)
from .extension import ImCallback
from .history import History, Page
from .providers import OpenIMProvider, Provider, TencentProvider
from .removals import Record, Relation, Removal, removals_recorded
from .runtime import upgrade
from .settings import Settings
from .storage import CallbackCount

__version__ = "0.1.0"

__all__ = [
    "CallbackCount",
    "ConfigError",
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
