"""The providers that come with flask-imcallback."""

from .base import Callback, CallbackRequest, Origin, Provider, Reply
from .openim import OpenIMProvider
from .packets import AccountId, PacketSchema, is_one_of, load_object, read_packet, the_command
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
