"""Migrated databases for the tests of servers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL

from support import servers
from support.serving import environment, upgrade_tables


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with empty tables, for copying."""
    folder = tmp_path_factory.mktemp("migrated")
    file = folder / "test.db"
    upgrade_tables(environment(folder, URL.create("sqlite", database=str(file))))
    return file


@pytest.fixture
def sqlite_url(migrated_file: Path, tmp_path: Path) -> URL:
    """A SQLite file with empty tables."""
    file = shutil.copy(migrated_file, tmp_path / "test.db")
    return URL.create("sqlite", database=str(file))


@pytest.fixture
def postgresql_url(database_servers: dict[str, servers.Server], tmp_path: Path) -> Iterator[URL]:
    """A PostgreSQL database with empty tables."""
    with servers.database(database_servers["postgresql"]) as url:
        upgrade_tables(environment(tmp_path, url))
        yield url


@pytest.fixture
def mariadb_url(database_servers: dict[str, servers.Server], tmp_path: Path) -> Iterator[URL]:
    """A MariaDB database with empty tables."""
    with servers.database(database_servers["mariadb"]) as url:
        upgrade_tables(environment(tmp_path, url))
        yield url
