"""Many rows in the tables, written by one statement, for tests of costs."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, text

from flask_imcallback.storage import id_at
from support.deliveries import MOMENT

FIRST_ID = id_at(MOMENT)

SERIES = {
    "sqlite": "WITH RECURSIVE series(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM series"
    " WHERE n + 1 < {count}) SELECT {columns} FROM series",
    "postgresql": "SELECT {columns} FROM generate_series(0, CAST({last} AS BIGINT)) AS series(n)",
    "mysql": "SELECT {columns} FROM (SELECT seq AS n FROM seq_0_to_{last}) AS series",
    "mariadb": "SELECT {columns} FROM (SELECT seq AS n FROM seq_0_to_{last}) AS series",
}
"""By the name of the dialect: numbers from 0 on, as the column `n`."""


def insert_series(connection: Connection, table: str, count: int, **columns: Any) -> None:
    """Insert `count` rows. Each column is an SQL expression of the number `n`."""
    select = SERIES[connection.dialect.name].format(
        count=count, last=count - 1, columns=", ".join(columns.values())
    )
    connection.execute(text(f"INSERT INTO {table} ({', '.join(columns)}) {select}"))


def insert_removals(connection: Connection, count: int, **changes: str) -> None:
    """Insert removals of "alice" and "bob", one for each second, and their deliveries.

    `changes` are SQL expressions.
    """
    removal = {
        "id": f"{FIRST_ID} + n * 1000000",
        "source_id": "1",
        "position": "0",
        "owner_id": "'alice'",
        "target_id": "'bob'",
        "actor_id": "''",
    }
    removal |= {name: value for name, value in changes.items() if name in removal}
    insert_series(connection, "imcallback_removal", count, **removal)
    delivery = {name: removal[name] for name in ("id", "source_id")} | {"removal_count": "1"}
    delivery |= {"client_ip": "'203.0.113.7'", "request_id": "'many'"}
    delivery |= {name: value for name, value in changes.items() if name in delivery}
    insert_deliveries(connection, count, **delivery)


def insert_deliveries(connection: Connection, count: int, **changes: str) -> None:
    """Insert deliveries, one for each second. `changes` are SQL expressions."""
    texts = (
        *("error", "command", "platform", "remote_addr", "authenticated_by", "client_ip"),
        *("request_id", "query"),
    )
    columns = {
        "id": f"{FIRST_ID} + n * 1000000",
        "source_id": "1",
        "removal_count": "0",
        "status": "'recorded'",
        **dict.fromkeys(texts, "''"),
        "headers": "'{}'",
        "body": r"'\x7b7d'" if connection.dialect.name == "postgresql" else "X'7B7D'",
    }
    insert_series(connection, "imcallback_delivery", count, **columns | changes)


def insert_sources(connection: Connection, count: int, **changes: str) -> None:
    """Insert sources with the ids 1, 2, 3, … and a platform of their own.

    `changes` are SQL expressions.
    """
    is_mysql = connection.dialect.name in ("mysql", "mariadb")
    platform = "CONCAT('p', n)" if is_mysql else "'p' || n"
    columns = {
        "id": "CAST(n + 1 AS SIGNED)" if is_mysql else "n + 1",
        "provider": "'openim'",
        "app_id": "''",
        "command": "'callbackX'",
        "relation": "'friend'",
        "cause": "''",
        "platform": platform,
    }
    insert_series(connection, "imcallback_source", count, **columns | changes)


def analyze(connection: Connection) -> None:
    """Let the database gather the statistics that it plans with."""
    for table in ("imcallback_removal", "imcallback_delivery", "imcallback_source"):
        verb = "ANALYZE" if connection.dialect.name in ("sqlite", "postgresql") else "ANALYZE TABLE"
        connection.execute(text(f"{verb} {table}"))
