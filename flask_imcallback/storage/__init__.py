"""The only room that changes the database.

It has the tables, ids, recorder, writer, spool, drain, counters and migrations.
"""

from .autogenerate import is_our_table, protect_tables
from .counters import ACCEPTED, EXIT_SECONDS, REFUSED, CallbackCount, CallbackCounters
from .database_errors import DeadlineError, Fault, classify, concerns_entry, describe
from .drain import Drain
from .engines import Engines, create_private_file, describe_url, has_file
from .entries import Delivery, Entry
from .ids import EPOCH, MAX_ID, MAX_REMOVALS, MICROSECOND, id_at, moment_of
from .inspection import (
    DatabaseState,
    Inspector,
    check_write,
    inspect_database,
    is_delivery_stored,
    read_clock,
)
from .kept_deliveries import change_kept_delivery
from .key_conflicts import AlreadyStored, TakenId, find_key_conflict
from .lost_callbacks import LostCallbacks, LostEntry, is_log_visible
from .migrations import (
    VERSION_TABLE,
    current_revision,
    is_at_head,
    is_of_newer_release,
    run_alembic,
)
from .recorder import Recorder
from .spool import SetAside, Spool, Waiting
from .sqlite import sqlite_path, use_wal
from .tables import SourceKey, delivery, metadata, removal, source
from .threads import PerProcess, new_lock
from .writer import FIRST_ID_STEP_MICROSECONDS, Writer

__all__ = [
    "ACCEPTED",
    "EPOCH",
    "EXIT_SECONDS",
    "FIRST_ID_STEP_MICROSECONDS",
    "MAX_ID",
    "MAX_REMOVALS",
    "MICROSECOND",
    "REFUSED",
    "VERSION_TABLE",
    "AlreadyStored",
    "CallbackCount",
    "CallbackCounters",
    "DatabaseState",
    "DeadlineError",
    "Delivery",
    "Drain",
    "Engines",
    "Entry",
    "Fault",
    "Inspector",
    "LostCallbacks",
    "LostEntry",
    "PerProcess",
    "Recorder",
    "SetAside",
    "SourceKey",
    "Spool",
    "TakenId",
    "Waiting",
    "Writer",
    "change_kept_delivery",
    "check_write",
    "classify",
    "concerns_entry",
    "create_private_file",
    "current_revision",
    "delivery",
    "describe",
    "describe_url",
    "find_key_conflict",
    "has_file",
    "id_at",
    "inspect_database",
    "is_at_head",
    "is_delivery_stored",
    "is_log_visible",
    "is_of_newer_release",
    "is_our_table",
    "metadata",
    "moment_of",
    "new_lock",
    "protect_tables",
    "read_clock",
    "removal",
    "run_alembic",
    "source",
    "sqlite_path",
    "use_wal",
]
