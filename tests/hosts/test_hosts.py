"""The commands `flask db` and `flask imcallback`, without and with migrations of the host."""

from __future__ import annotations

import os
import pty
import shutil
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import pytest
from sqlalchemy import NullPool, create_engine, text

from support.hosts import HEAD, HOST_TABLES, OUR_TABLES, Result, Site

pytestmark = pytest.mark.slow


# An app without migrations of its own


@pytest.mark.parametrize("group", ["db", "imcallback"])
def test_bare_upgrade_and_back(bare: Site, group: str) -> None:
    """An upgrade creates the tables, a second one is silent, and a downgrade drops the tables."""
    result = bare.flask(group, "upgrade")
    assert result.out == ""
    assert result.err == f"flask-imcallback: <empty> -> {HEAD}\n"
    assert bare.files() == {"bare.py", "instance/imcallback.db"}
    assert bare.tables("imcallback.db") == OUR_TABLES
    assert bare.flask(group, "upgrade") == Result(0, "", "")
    result = bare.flask(group, "downgrade", "base", "--yes")
    assert result.err == f"flask-imcallback: {HEAD} -> <empty>\n"
    assert bare.tables("imcallback.db") == {"alembic_version_imcallback"}
    assert bare.flask(group, "stamp").err == f"flask-imcallback: <empty> -> {HEAD}\n"
    assert bare.tables("imcallback.db") == {"alembic_version_imcallback"}
    result = bare.flask(group, "check", status=1)
    assert "imcallback_removal" in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("group", ["db", "imcallback"])
def test_a_downgrade_needs_a_confirmation(bare: Site, group: str) -> None:
    """Without a terminal, the command deletes nothing and names the option."""
    bare.flask(group, "upgrade")
    url = f"sqlite:///{(bare.folder / 'instance/imcallback.db').resolve()}"
    assert bare.flask(group, "downgrade", "base", status=1).err == (
        f"Error: A downgrade deletes tables or columns of {url} with their rows, such as the whole "
        "history: add --yes if you want this\n"
    )
    assert bare.tables("imcallback.db") == OUR_TABLES
    assert "DROP TABLE" in bare.flask(group, "downgrade", f"{HEAD}:base", "--sql").out
    assert bare.tables("imcallback.db") == OUR_TABLES


@pytest.mark.parametrize("answer", ["n", "y"])
def test_a_downgrade_asks_on_a_terminal(bare: Site, answer: str) -> None:
    """Only y deletes the tables."""
    bare.flask("imcallback", "upgrade")
    terminal, stdin = pty.openpty()
    os.write(terminal, f"{answer}\n".encode())
    code = (
        "import os, sys; from flask.cli import main; "
        f"os.dup2(os.open({os.ttyname(stdin)!r}, os.O_RDWR), 0); "
        "sys.argv = ['flask', '--app', 'bare', 'imcallback', 'downgrade', 'base']; main()"
    )
    err = bare.python("-c", code, status=0 if answer == "y" else 1).err
    os.close(terminal)
    os.close(stdin)
    assert "such as the whole history. Continue? [y/N]:" in err
    tables = {"alembic_version_imcallback"} if answer == "y" else OUR_TABLES
    assert bare.tables("imcallback.db") == tables


def test_bare_app_shows_our_revisions(bare: Site) -> None:
    """Without migrations of the host, `flask db` shows our revisions."""
    assert bare.flask("db", "current") == Result(0, "", "")
    assert "not up to date" in bare.flask("db", "check", status=1).err
    bare.flask("db", "upgrade")
    assert bare.flask("db", "current") == Result(0, f"{HEAD} (head)\n", "")
    assert bare.flask("imcallback", "current") == Result(0, f"{HEAD} (head)\n", "")
    assert bare.flask("db", "heads").out == f"{HEAD} (head)\n"
    assert HEAD in bare.flask("db", "show").out
    history = bare.flask("db", "history").out
    assert [line.partition(",")[0] for line in history.splitlines()] == [
        f"0001_tables -> {HEAD} (head)",
        "<base> -> 0001_tables",
    ]
    assert bare.flask("imcallback", "revisions").out == history
    assert bare.flask("imcallback", "history").out.startswith("id ")
    result = bare.flask("imcallback", "check")
    assert result == Result(0, "No new upgrade operations detected.\n", "")


def test_bare_sql_changes_nothing(bare: Site) -> None:
    """`--sql` prints the statements and opens no database."""
    result = bare.flask("db", "upgrade", "--sql")
    assert "CREATE TABLE IF NOT EXISTS imcallback_delivery" in result.out
    assert result.err == ""
    assert bare.files() == {"bare.py"}


@pytest.mark.parametrize(
    "command",
    [["init"], ["migrate", "-m", "x"], ["revision", "--rev-id", "7"], ["merge", "heads"], ["edit"]],
    ids=lambda command: command[0],
)
def test_bare_app_writes_no_revisions(bare: Site, command: list[str]) -> None:
    """Commands that write revisions say what to install, and write nothing."""
    result = bare.flask("db", *command, status=1)
    assert result.err == (
        "Error: this app has no migrations of its own, only those of flask-imcallback: install "
        "Flask-Migrate and call Migrate(app, db) to write migrations\n"
    )
    assert result.out == ""
    assert bare.files() == {"bare.py"}


def test_an_unknown_revision_is_named(bare: Site) -> None:
    """The error is one line with the revision."""
    result = bare.flask("db", "upgrade", "nonesuch", status=1)
    assert "nonesuch" in result.err
    assert len(result.err.splitlines()) == 1


NO_SERVER = "postgresql+psycopg://nobody:secret@127.0.0.1:1/none"


@pytest.mark.parametrize("command", ["upgrade", "downgrade", "current", "check"])
def test_an_unavailable_database(bare: Site, command: str) -> None:
    """The command prints an error without a traceback and without the password."""
    bare = bare.configured(FLASK_SQLALCHEMY_DATABASE_URI=NO_SERVER)
    err = bare.flask("db", command, status=1).err
    assert err.startswith("Error: cannot access the database (")
    assert "Traceback" not in err
    assert "secret" not in err


def test_unrelated_migrations_beside_the_app(bare: Site, tmp_path: Path) -> None:
    """A folder `migrations` beside the app and the working directory do not matter."""
    (bare.folder / "migrations").mkdir()
    (bare.folder / "migrations/env.py").write_text("raise SystemExit('this is another folder')\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    absolute = replace(bare, app=str(bare.folder / "bare.py"))
    assert absolute.flask("db", "upgrade", cwd=elsewhere).err.startswith("flask-imcallback: ")
    assert bare.tables("imcallback.db") == OUR_TABLES
    assert list(elsewhere.iterdir()) == []
    assert bare.files() == {"bare.py", "instance/imcallback.db", "migrations/env.py"}


def test_bare_app_becomes_a_host(bare: Site, host_folder: Path) -> None:
    """An app may get its own migrations later. Our tables stay as they are."""
    bare = bare.configured(FLASK_SQLALCHEMY_DATABASE_URI="sqlite:///host.db")
    bare.flask("db", "upgrade")
    shutil.copytree(host_folder, bare.folder, dirs_exist_ok=True)
    replace(bare, app="host").flask("db", "upgrade")
    assert bare.tables("host.db") == OUR_TABLES | HOST_TABLES


# A host with Flask-Migrate

ORDERS = ["".join(order) for order in permutations("dmi")]


@pytest.mark.parametrize(
    ("order", "db_argument"),
    [*product(ORDERS, ["none"]), ("idm", "object"), ("mdi", "object"), ("idm", "init_app")],
)
def test_one_upgrade_for_both(host: Site, order: str, db_argument: str) -> None:
    """In every order of setup, one command creates all tables and two version tables."""
    site = replace(host, app=f"host:create_app('{order}', '{db_argument}')")
    before = site.files()
    site.flask("db", "upgrade")
    assert site.files() == {*before, "instance/host.db"}
    assert site.tables("host.db") == OUR_TABLES | HOST_TABLES
    (revision,) = site.revisions()
    assert site.query("host.db", "SELECT * FROM alembic_version") == [revision.partition("_")[0]]
    assert site.query("host.db", "SELECT * FROM alembic_version_imcallback") == [HEAD]


UPGRADE_IN_A_SCRIPT = """
import sys
import flask_migrate, host
with host.create_app(sys.argv[1]).app_context():
    flask_migrate.upgrade(*sys.argv[2:])
"""


@pytest.mark.parametrize("order", ORDERS)
def test_upgrade_from_python(host: Site, order: str) -> None:
    """`flask_migrate.upgrade()` in a script creates all tables, like `flask db upgrade`."""
    host.python("-c", UPGRADE_IN_A_SCRIPT, order)
    assert host.tables("host.db") == OUR_TABLES | HOST_TABLES


def test_upgrade_from_python_to_a_revision(host: Site) -> None:
    """A script that upgrades the host to one of its revisions leaves our tables alone."""
    (revision,) = host.revisions()
    host.python("-c", UPGRADE_IN_A_SCRIPT, "dmi", "migrations", revision.partition("_")[0])
    assert host.tables("host.db") == HOST_TABLES


def test_upgrade_of_one_app_while_another_exists(host: Site) -> None:
    """The `Migrate` object of two apps upgrades our tables only for the app that has them."""
    script = """
import flask_migrate, host
from flask import Flask
app, other = host.create_app(), Flask("other")
other.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///" + host.__file__ + ".other.db"
host.db.init_app(other)
host.migrate.init_app(other, host.db)
for each in (app, other):
    with each.app_context():
        flask_migrate.upgrade()
"""
    host.python("-c", script)
    assert host.tables("host.db") == OUR_TABLES | HOST_TABLES
    assert host.tables("../host.py.other.db") == HOST_TABLES


def test_autogenerate_of_the_host_ignores_our_tables(host: Site) -> None:
    """`flask db migrate` and `check` find no change, with and without our tables."""
    before = host.revisions()
    assert len(before) == 1
    assert "imcallback" not in "".join(before.values())
    host.configured(FLASK_IMCALLBACK_UPGRADE_WITH_HOST="false").flask("db", "upgrade")
    assert host.tables("host.db") == HOST_TABLES
    for _ in range(2):
        for command in (["check"], ["migrate", "-m", "nothing"]):
            result = host.flask("db", *command)
            assert "imcallback_" not in result.out + result.err
        assert host.revisions() == before
        host.flask("imcallback", "upgrade")
        assert host.tables("host.db") == OUR_TABLES | HOST_TABLES


def test_other_commands_use_the_revisions_of_the_host(upgraded: Site) -> None:
    """`current`, `history`, `heads` and `downgrade` ignore our revisions."""
    (revision,) = upgraded.revisions()
    id = revision.partition("_")[0]
    assert upgraded.flask("db", "current").out == f"{id} (head)\n"
    assert upgraded.flask("db", "heads").out == f"{id} (head)\n"
    assert upgraded.flask("db", "history").out == f"<base> -> {id} (head), things\n"
    upgraded.flask("db", "downgrade", "base")
    assert upgraded.tables("host.db") == OUR_TABLES | {"alembic_version"}
    assert upgraded.query("host.db", "SELECT * FROM alembic_version_imcallback") == [HEAD]
    upgraded.flask("imcallback", "downgrade", "base", "--yes")
    upgraded.flask("db", "upgrade", id)
    assert upgraded.tables("host.db") == HOST_TABLES | {"alembic_version_imcallback"}


def test_upgrade_sql_of_a_host(host: Site) -> None:
    """`--sql` prints our statements, then those of the host, and creates no table."""
    before = host.files()
    out = host.flask("db", "upgrade", "--sql").out
    assert 0 < out.index("CREATE TABLE IF NOT EXISTS imcallback_removal") < out.index("thing")
    assert host.files() == before


def test_host_is_not_upgraded_if_ours_fails(host: Site) -> None:
    """An unknown bind stops the start of the app, before the revisions of the host run."""
    binds = '{"there": "sqlite:///there.db"}'
    host = host.configured(FLASK_SQLALCHEMY_BINDS=binds, FLASK_IMCALLBACK_BIND_KEY="nowhere")
    result = host.flask("db", "upgrade", status=2)
    for part in ("IMCALLBACK_BIND_KEY", "'nowhere'", "'there'", "None"):
        assert part in result.err
    assert host.tables("host.db") == set()


def test_an_unavailable_database_of_a_host(host: Site) -> None:
    """Flask-Migrate prints the error without a traceback."""
    host = host.configured(FLASK_SQLALCHEMY_DATABASE_URI=NO_SERVER)
    err = host.flask("db", "upgrade", status=1).err
    assert "cannot access the database (" in err
    assert "Traceback" not in err


# Binds


def test_bind_of_a_bare_app(bare: Site) -> None:
    """With a bind key, only the database of the bind is used."""
    binds = '{"callbacks": "sqlite:///callbacks.db"}'
    bare = bare.configured(FLASK_SQLALCHEMY_BINDS=binds, FLASK_IMCALLBACK_BIND_KEY="callbacks")
    bare.flask("db", "upgrade")
    assert bare.files() == {"bare.py", "instance/callbacks.db"}
    assert bare.tables("callbacks.db") == OUR_TABLES
    result = bare.configured(FLASK_IMCALLBACK_BIND_KEY="nowhere").flask("db", "upgrade", status=1)
    assert "'nowhere'" in result.err
    assert "'callbacks'" in result.err
    assert "Traceback" not in result.err


def test_bind_of_a_host(host: Site) -> None:
    """The bind has our tables. The default database has the tables of the host."""
    binds = '{"callbacks": "sqlite:///callbacks.db"}'
    host = host.configured(FLASK_SQLALCHEMY_BINDS=binds, FLASK_IMCALLBACK_BIND_KEY="callbacks")
    host.flask("db", "upgrade")
    assert host.tables("callbacks.db") == OUR_TABLES
    assert host.tables("host.db") == HOST_TABLES
    host.flask("db", "check")


@pytest.mark.parametrize("bind", ["", "more"])
def test_host_with_many_databases(host: Site, bind: str) -> None:
    """The multidb template of Flask-Migrate works, too."""
    binds = '{"more": "sqlite:///more.db"}'
    host = host.configured(FLASK_SQLALCHEMY_BINDS=binds, HOST_NOTES="more")
    if bind:
        host = host.configured(FLASK_IMCALLBACK_BIND_KEY=bind)
    shutil.rmtree(host.folder / "migrations")
    host.flask("db", "init", "--multidb")
    host.flask("db", "migrate", "-m", "all")
    host.flask("db", "upgrade")
    assert host.tables("host.db") == HOST_TABLES | (set() if bind else OUR_TABLES)
    more = {"imcallback_notes", "alembic_version"}
    assert host.tables("more.db") == more | (OUR_TABLES if bind else set())
    before = host.revisions()
    host.flask("db", "migrate", "-m", "nothing")
    assert host.revisions() == before


# Special hosts


def test_table_of_the_host_with_our_prefix(upgraded: Site) -> None:
    """The host creates and changes its own table imcallback_notes."""
    notes = upgraded.configured(HOST_NOTES="")
    with_text = notes.configured(HOST_NOTES_TEXT="")
    for site, operation in (
        (notes, "create_table('imcallback_notes'"),
        (with_text, "add_column(sa.Column('text'"),
    ):
        before = site.revisions()
        site.flask("db", "migrate", "-m", "notes")
        (made,) = site.revisions().keys() - before.keys()
        revision = site.revisions()[made]
        assert operation in revision
        assert "imcallback_removal" not in revision
        site.flask("db", "upgrade")
        site.flask("db", "check")
    assert upgraded.tables("host.db") == OUR_TABLES | HOST_TABLES | {"imcallback_notes"}


def test_naming_convention_of_the_host(upgraded: Site, bare: Site) -> None:
    """The naming convention of the host does not change our constraints."""
    bare.flask("db", "upgrade")
    sql = "SELECT sql FROM sqlite_master WHERE tbl_name LIKE '%imcallback%' ORDER BY name"
    ours = upgraded.query("host.db", sql)
    assert ours == bare.query("imcallback.db", sql)
    assert "uq_imcallback_delivery_fingerprint" in "".join(str(line) for line in ours)
    thing = upgraded.query("host.db", "SELECT sql FROM sqlite_master WHERE name = 'thing'")
    assert "host_uq_thing" in thing[0]


def hide(site: Site, name: str) -> Site:
    """Let the host hide its table `hidden`, in env.py or by an argument of Migrate."""
    with create_engine(site.url("host.db"), poolclass=NullPool).begin() as connection:
        connection.execute(text("CREATE TABLE hidden (id INTEGER)"))
    if name == "Migrate":
        return site.configured(HOST_FILTER="")
    env = site.folder / "migrations/env.py"
    source = env.read_text("utf-8")
    filter = f"{name}=lambda thing, *_: 'hidden' not in str(thing), connection=connection,"
    assert "connection=connection," in source
    env.write_text(source.replace("connection=connection,", filter), "utf-8")
    return site


@pytest.mark.parametrize("name", ["include_name", "include_object", "Migrate"])
def test_host_with_a_filter_of_its_own(upgraded: Site, name: str) -> None:
    """The filter of the host still works, and our tables stay hidden."""
    site = hide(upgraded, name)
    before = site.revisions()
    site.flask("db", "check")
    site.flask("db", "migrate", "-m", "nothing")
    site.flask("db", "upgrade")
    assert site.revisions() == before


def test_migrate_under_another_name(host: Site) -> None:
    """`flask database upgrade` upgrades all tables. `flask db` manages our tables only."""
    (host.folder / "migrations").rename(host.folder / "history")
    host = host.configured(HOST_COMMAND="database", HOST_DIRECTORY="history")
    host.flask("database", "upgrade")
    assert host.tables("host.db") == OUR_TABLES | HOST_TABLES
    assert host.flask("db", "current").out == f"{HEAD} (head)\n"


def test_host_without_its_migrations(host: Site) -> None:
    """Our tables are upgraded first. Then Flask-Migrate reports the missing folder."""
    shutil.rmtree(host.folder / "migrations")
    assert "migrations" in host.flask("db", "upgrade", status=1).err
    assert host.tables("host.db") == OUR_TABLES
