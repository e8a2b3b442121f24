"""The only room that reads SQL for users: queries, plans, pages, counts, exports."""

from .counts import RemovalCount
from .export import COLUMNS, FORMATS, csv_records, encode, json_lines
from .history import History, Page, Values
from .queries import HistoryQuery, StatsQuery
from .schemas import (
    CALLBACK_COUNT,
    DELIVERY,
    EXPORT_QUERY,
    HISTORY_QUERY,
    STATS_QUERY,
    WAITING,
    HistoryQuerySchema,
    read,
    read_deliveries,
    read_export,
    read_query,
    read_stats,
    removal_json,
    stats_json,
)

__all__ = [
    "CALLBACK_COUNT",
    "COLUMNS",
    "DELIVERY",
    "EXPORT_QUERY",
    "FORMATS",
    "HISTORY_QUERY",
    "STATS_QUERY",
    "WAITING",
    "History",
    "HistoryQuery",
    "HistoryQuerySchema",
    "Page",
    "RemovalCount",
    "StatsQuery",
    "Values",
    "csv_records",
    "encode",
    "json_lines",
    "read",
    "read_deliveries",
    "read_export",
    "read_query",
    "read_stats",
    "removal_json",
    "stats_json",
]
