"""The providers that come with flask-imcallback."""

from .base import (
    AccountId,
    Callback,
    CallbackRequest,
    Origin,
    PacketSchema,
    Provider,
    Reply,
    is_one_of,
    load_object,
    read_packet,
    the_command,
)
from .openim import OpenIMProvider
from .tencent import TencentProvider

PROVIDERS = (TencentProvider, OpenIMProvider)

__all__ = [
    "PROVIDERS",
    "AccountId",
    "Callback",
    "CallbackRequest",
    "OpenIMProvider",
    "Origin",
    "PacketSchema",
    "Provider",
    "Reply",
    "TencentProvider",
    "is_one_of",
    "load_object",
    "read_packet",
    "the_command",
]
