"""The only room that writes SQL: tables, ids, recorder, writer, spool, counters, migrations."""

from .autogenerate import is_our_table, protect_tables
from .counters import ACCEPTED, REFUSED, CallbackCount, CallbackCounters
from .drain import Drain
from .entries import Delivery
from .ids import EPOCH, MAX_ID, MAX_REMOVALS, MICROSECOND, id_at, moment_of
from .migrations import VERSION_TABLE, current_revision, is_at_head, run_alembic
from .recorder import Recorder
from .spool import Spool, Waiting
from .sqlite import set_durable_pragmas
from .tables import delivery, metadata, removal, source

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
    "Delivery",
    "Drain",
    "Recorder",
    "Spool",
    "Waiting",
    "current_revision",
    "delivery",
    "id_at",
    "is_at_head",
    "is_our_table",
    "metadata",
    "moment_of",
    "protect_tables",
    "removal",
    "run_alembic",
    "set_durable_pragmas",
    "source",
]
