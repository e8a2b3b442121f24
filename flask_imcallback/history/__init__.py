"""The only room that reads the database for users: queries, plans, pages, counts and exports."""

from .export import COLUMNS, FORMATS, csv_records, encode, json_lines, removal_csv, removal_json
from .filters import FILTERS, DeliveryFilters, HistoryFilters, RemovalFilters, StreamFilters
from .history import History
from .queries import HistoryQuery, StatsQuery, load_zone, shorten
from .results import (
    DeliveryDetail,
    DeliveryPage,
    DeliveryRecord,
    Page,
    RemovalCount,
    RemovalDetail,
)
from .schemas import (
    CALLBACK_COUNT,
    DELIVERY,
    EXPORT_QUERY,
    HISTORY_QUERY,
    STATS_QUERY,
    WAITING,
    HistoryQuerySchema,
    load_delivery_query,
    load_export_query,
    load_history_query,
    load_parameters,
    load_stats_query,
    stats_json,
)

__all__ = [
    "CALLBACK_COUNT",
    "COLUMNS",
    "DELIVERY",
    "EXPORT_QUERY",
    "FILTERS",
    "FORMATS",
    "HISTORY_QUERY",
    "STATS_QUERY",
    "WAITING",
    "DeliveryDetail",
    "DeliveryFilters",
    "DeliveryPage",
    "DeliveryRecord",
    "History",
    "HistoryFilters",
    "HistoryQuery",
    "HistoryQuerySchema",
    "Page",
    "RemovalCount",
    "RemovalDetail",
    "RemovalFilters",
    "StatsQuery",
    "StreamFilters",
    "csv_records",
    "encode",
    "json_lines",
    "load_delivery_query",
    "load_export_query",
    "load_history_query",
    "load_parameters",
    "load_stats_query",
    "load_zone",
    "removal_csv",
    "removal_json",
    "shorten",
    "stats_json",
]
