"""The room that writes callbacks to the database.

It has the tables, ids, recorder, writer, spool, drain, counters and migrations.
"""

from .append_only import open_door, protect, read_protection
from .autogenerate import is_our_table, protect_tables
from .commitments import commit_to_packet, pack, seed_of
from .counters import ACCEPTED, EXIT_SECONDS, REFUSED, CallbackCount, CallbackCounters
from .database_errors import (
    DeadlineError,
    Fault,
    classify,
    concerns_entry,
    describe,
    is_read_only,
    storage_errors,
)
from .drain import Drain
from .engines import (
    UNKNOWN_DATABASE,
    Engines,
    create_private_file,
    describe_url,
    drop_idle_connections,
    for_reading,
    has_file,
)
from .entries import FINGERPRINT_BYTES, NONCE_BYTES, Delivery, Entry
from .file_lock import LockTakenError, file_lock
from .ids import EPOCH, MAX_ID, MAX_REMOVALS, MICROSECOND, id_at, moment_of
from .inspection import (
    DatabaseState,
    Inspector,
    check_write,
    inspect_database,
    is_delivery_stored,
    read_clock,
)
from .key_conflicts import AlreadyStored, Repetition, TakenId, find_key_conflict
from .lost_callbacks import LostCallbacks, LostEntry, has_handler, is_log_visible
from .marks import engine_mark
from .memory import hold_connection, shares_connection, uses_shared_connection
from .migrations import (
    VERSION_TABLE,
    current_revision,
    is_at_head,
    is_of_newer_release,
    run_alembic,
)
from .recorder import Recorder
from .spool import Spool, Waiting
from .sqlite import use_wal
from .sqlite_files import is_file_missing, sqlite_path
from .tables import (
    DELIVERIES_WITH_SOURCES,
    IS_NOT_RECORDED,
    SHARED_COLUMNS,
    SourceKey,
    act,
    delivery,
    door,
    erasure,
    inbox,
    log,
    metadata,
    removal,
    seal,
    source,
)
from .threads import PerProcess, Signal, new_lock, new_queue, new_signal, start_thread
from .writer import FIRST_ID_STEP_MICROSECONDS, Writer

__all__ = [
    "ACCEPTED",
    "DELIVERIES_WITH_SOURCES",
    "EPOCH",
    "EXIT_SECONDS",
    "FINGERPRINT_BYTES",
    "FIRST_ID_STEP_MICROSECONDS",
    "IS_NOT_RECORDED",
    "MAX_ID",
    "MAX_REMOVALS",
    "MICROSECOND",
    "NONCE_BYTES",
    "REFUSED",
    "SHARED_COLUMNS",
    "UNKNOWN_DATABASE",
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
    "LockTakenError",
    "LostCallbacks",
    "LostEntry",
    "PerProcess",
    "Recorder",
    "Repetition",
    "Signal",
    "SourceKey",
    "Spool",
    "TakenId",
    "Waiting",
    "Writer",
    "act",
    "check_write",
    "classify",
    "commit_to_packet",
    "concerns_entry",
    "create_private_file",
    "current_revision",
    "delivery",
    "describe",
    "describe_url",
    "door",
    "drop_idle_connections",
    "engine_mark",
    "erasure",
    "file_lock",
    "find_key_conflict",
    "for_reading",
    "has_file",
    "has_handler",
    "hold_connection",
    "id_at",
    "inbox",
    "inspect_database",
    "is_at_head",
    "is_delivery_stored",
    "is_file_missing",
    "is_log_visible",
    "is_of_newer_release",
    "is_our_table",
    "is_read_only",
    "log",
    "metadata",
    "moment_of",
    "new_lock",
    "new_queue",
    "new_signal",
    "open_door",
    "pack",
    "protect",
    "protect_tables",
    "read_clock",
    "read_protection",
    "removal",
    "run_alembic",
    "seal",
    "seed_of",
    "shares_connection",
    "source",
    "sqlite_path",
    "start_thread",
    "storage_errors",
    "use_wal",
    "uses_shared_connection",
]
