"""The room of the numbered log. Other systems follow the log, and seals cover it."""

from .acts import APP, ActKind, FileActs, read_acts, store_act, token_actor, user_actor
from .entries import LogEntry, find_last_position, find_unnumbered, read_entries
from .evidence import count_deliveries, stream_evidence, verify_database
from .feed import Feed, FeedPage, FeedRecord, cloud_events, feed_lines
from .mentions import names_account
from .queries import FOLLOW_QUERY, FeedQuery, load_feed_query
from .retention import MIN_AGE, Retained, Retention
from .sealer import Sealer, SealState
from .sequencer import Sequencer
from .verifier import Checkpoint, Key, NotEvidenceError, Report, Seal, SecretKey, read_secret_key

__all__ = [
    "APP",
    "FOLLOW_QUERY",
    "MIN_AGE",
    "ActKind",
    "Checkpoint",
    "Feed",
    "FeedPage",
    "FeedQuery",
    "FeedRecord",
    "FileActs",
    "Key",
    "LogEntry",
    "NotEvidenceError",
    "Report",
    "Retained",
    "Retention",
    "Seal",
    "SealState",
    "Sealer",
    "SecretKey",
    "Sequencer",
    "cloud_events",
    "count_deliveries",
    "feed_lines",
    "find_last_position",
    "find_unnumbered",
    "load_feed_query",
    "names_account",
    "read_acts",
    "read_entries",
    "read_secret_key",
    "store_act",
    "stream_evidence",
    "token_actor",
    "user_actor",
    "verify_database",
]
