"""Alembic never proposes to drop our tables, in whatever way a host generates its migrations."""

from __future__ import annotations

import shutil
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from support import ROOT
from support.hosts import HOST_TABLES, HOSTS, OUR_TABLES, Site

pytestmark = pytest.mark.slow

ALEMBIC_HAS_PLUGINS = tuple(map(int, version("alembic").split(".")[:2])) >= (1, 18)

NO_PLUGIN = 'autogenerate_plugins=["alembic.autogenerate.*", "~alembic.autogenerate.imcallback"]'
FILTER = 'include_name=lambda name, kind, parents: kind != "table" or "imcallback" not in name'

GENERATE_IN_PROCESS = """
import sys
if sys.argv[1] == "extension first":
    import plain
    from alembic import command, config
else:
    from alembic import command, config
    import plain
settings = config.Config("alembic.ini")
command.revision(settings, autogenerate=True)
"""


@pytest.fixture
def plain(tmp_path: Path) -> Site:
    """A host with plain Alembic, whose database has our tables, its own, and a second own one."""
    for name in ("plain.py", "plain_models.py"):
        shutil.copy(HOSTS / name, tmp_path)
    site = Site(tmp_path, "plain")
    site.python("-m", "alembic", "init", "migrations")
    ini = (tmp_path / "alembic.ini").read_text("utf-8")
    url = "sqlalchemy.url = driver://user:pass@localhost/dbname"
    assert url in ini
    (tmp_path / "alembic.ini").write_text(
        ini.replace(url, "sqlalchemy.url = sqlite:///instance/host.db"), "utf-8"
    )
    site.flask("imcallback", "upgrade")
    return site


def edit_env(site: Site, module: str, options: str = "") -> None:
    """Let env.py take its models from a module, and configure Alembic with more options."""
    env = site.folder / "migrations/env.py"
    source = env.read_text("utf-8")
    for old, new in (
        ("target_metadata = None", f"from {module} import metadata\ntarget_metadata = metadata"),
        ("connection=connection, ", f"connection=connection, {options + ',' if options else ''}"),
    ):
        assert old in source
        source = source.replace(old, new)
    env.write_text(source, "utf-8")


def create_revision(site: Site) -> None:
    """Generate and apply the revision that creates the host's own table."""
    site.python("-m", "alembic", "revision", "--autogenerate", "-m", "things")
    (revision,) = site.revisions().values()
    assert "op.create_table('thing'" in revision
    assert "imcallback" not in revision
    site.python("-m", "alembic", "upgrade", "head")
    assert site.tables("host.db") == OUR_TABLES | HOST_TABLES


@pytest.mark.parametrize(
    ("module", "options"),
    [
        ("plain", ""),
        ("plain", NO_PLUGIN),
        # Alembic before 1.18 has no plugins, and needs the filter of the docs.
        ("plain_models", "" if ALEMBIC_HAS_PLUGINS else FILTER),
        ("plain_models", f"{FILTER}, {NO_PLUGIN}"),
    ],
    ids=[
        "an env.py that imports the app",
        "an env.py that imports the app and disables the plugin",
        "an env.py that imports the models only",
        "an env.py that imports the models only, with the filter of the docs",
    ],
)
def test_plain_alembic(plain: Site, module: str, options: str) -> None:
    """`alembic revision --autogenerate` and `alembic check` ignore our tables."""
    if not ALEMBIC_HAS_PLUGINS:
        options = options.replace(NO_PLUGIN, "").strip(", ")
    edit_env(plain, module, options)
    create_revision(plain)
    plain.python("-m", "alembic", "check")


def test_the_docs_have_the_filter() -> None:
    """The line that older versions of Alembic need is the one that is tested here."""
    assert f"\n{FILTER},\n" in (ROOT / "docs/deployment.md").read_text("utf-8")


@pytest.mark.parametrize("order", ["extension first", "alembic first"])
def test_alembic_in_a_script(plain: Site, order: str) -> None:
    """A script may import the app before or after Alembic."""
    edit_env(plain, "plain")
    plain.python("-c", GENERATE_IN_PROCESS, order)
    (revision,) = plain.revisions().values()
    assert "op.create_table('thing'" in revision
    assert "imcallback" not in revision


def test_a_host_table_with_our_prefix(plain: Site) -> None:
    """A host may have a table `imcallback_notes` of its own, and drop it from its models."""
    models = plain.folder / "plain_models.py"
    source = models.read_text("utf-8")
    models.write_text(source.replace('"thing"', '"imcallback_notes"'), "utf-8")
    edit_env(plain, "plain")
    plain.python("-m", "alembic", "revision", "--autogenerate", "-m", "notes")
    (revision,) = plain.revisions().values()
    assert "op.create_table('imcallback_notes'" in revision
    assert "imcallback_removal" not in revision


def test_flask_alembic(tmp_path: Path) -> None:
    """`flask db revision` of Flask-Alembic ignores our tables."""
    shutil.copy(HOSTS / "flask_alembic_host.py", tmp_path)
    site = Site(tmp_path, "flask_alembic_host")
    site.flask("imcallback", "upgrade")
    for expected in ("op.create_table('thing'", "pass"):
        before = migration_files(site)
        site.flask("db", "revision", "generated")
        (added,) = migration_files(site) - before
        assert "imcallback" not in added.read_text("utf-8")
        assert expected in added.read_text("utf-8")
        site.flask("db", "upgrade")
        time.sleep(1)  # Flask-Alembic names a revision by the second
    assert site.tables("host.db") == OUR_TABLES | HOST_TABLES


def migration_files(site: Site) -> set[Path]:
    return set((site.folder / "migrations").glob("*.py"))
