"""The IM server products: the callbacks that they send, and the answers that they expect."""

from .base import (
    SECRET_STEP,
    Callback,
    CallbackRequest,
    Description,
    Origin,
    OutgoingCallback,
    Provider,
    Reactions,
    Reply,
    SetupStep,
)
from .json_schemas import answer_schema, packet_schema
from .openim import OpenIMProvider
from .packets import (
    AccountId,
    AccountIds,
    AccountObjects,
    OptionalAccountId,
    PacketSchema,
    agree_on_command,
    compact_json,
    is_one_of,
    load_object,
    read_packet,
)
from .tencent import TencentProvider

PROVIDERS = (TencentProvider, OpenIMProvider)
"""The providers of an app that names none."""

__all__ = [
    "PROVIDERS",
    "SECRET_STEP",
    "AccountId",
    "AccountIds",
    "AccountObjects",
    "Callback",
    "CallbackRequest",
    "Description",
    "OpenIMProvider",
    "OptionalAccountId",
    "Origin",
    "OutgoingCallback",
    "PacketSchema",
    "Provider",
    "Reactions",
    "Reply",
    "SetupStep",
    "TencentProvider",
    "agree_on_command",
    "answer_schema",
    "compact_json",
    "is_one_of",
    "load_object",
    "packet_schema",
    "read_packet",
]
