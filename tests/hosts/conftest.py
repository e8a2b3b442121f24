"""Hosts without and with migrations of their own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support.hosts import HOSTS, Site


@pytest.fixture
def bare(tmp_path: Path) -> Site:
    """An app with flask-imcallback and nothing else."""
    shutil.copy(HOSTS / "bare.py", tmp_path)
    return Site(tmp_path, "bare")


@pytest.fixture(scope="session")
def host_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A host with a first revision from Flask-Migrate, never upgraded."""
    folder = tmp_path_factory.mktemp("host")
    shutil.copy(HOSTS / "host.py", folder)
    site = Site(folder, "host")
    site.flask("db", "init")
    site.flask("db", "migrate", "-m", "things")
    shutil.rmtree(folder / "instance")
    return folder


@pytest.fixture
def host(host_folder: Path, tmp_path: Path) -> Site:
    """A host with its own models and one revision, on an empty database."""
    shutil.copytree(host_folder, tmp_path / "host")
    return Site(tmp_path / "host", "host")


@pytest.fixture
def upgraded(host: Site) -> Site:
    """A host after its `flask db upgrade`."""
    host.flask("db", "upgrade")
    return host
