"""The only room that writes SQL: tables, ids, recorder, writer, spool, counters, migrations."""

from .counters import ACCEPTED, REFUSED, CallbackCount, CallbackCounters
from .drain import Drain
from .engines import Engines, create_private_file, describe_url
from .entries import Delivery
from .ids import EPOCH, MAX_ID, MAX_REMOVALS, MICROSECOND, id_at, moment_of
from .inspection import DatabaseState, Inspector, check_write, inspect_database
from .lost_callbacks import is_log_visible, log_lost_callback
from .migrations import VERSION_TABLE, current_revision, is_at_head, run_alembic
from .recorder import Recorder
from .spool import SetAside, Spool, Waiting
from .sqlite import use_wal
from .tables import delivery, metadata, removal, source
from .threads import PerProcess, new_lock

__all__ = [
    "ACCEPTED",
    "EPOCH",
    "MAX_ID",
    "MAX_REMOVALS",
    "MICROSECOND",
    "REFUSED",
    "VERSION_TABLE",
    "CallbackCount",
    "CallbackCounters",
    "DatabaseState",
    "Delivery",
    "Drain",
    "Engines",
    "Inspector",
    "PerProcess",
    "Recorder",
    "SetAside",
    "Spool",
    "Waiting",
    "check_write",
    "create_private_file",
    "current_revision",
    "delivery",
    "describe_url",
    "id_at",
    "inspect_database",
    "is_at_head",
    "is_log_visible",
    "log_lost_callback",
    "metadata",
    "moment_of",
    "new_lock",
    "removal",
    "run_alembic",
    "source",
    "use_wal",
]
