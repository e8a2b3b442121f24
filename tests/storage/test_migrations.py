"""The migrations run forward, backward, repeatedly and in parallel on every database."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import URL, Engine, Integer, inspect, select, text
from sqlalchemy.orm import Mapped, mapped_column

from flask_imcallback import StorageError
from flask_imcallback.removals import Relation
from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage.column_types import ExactText
from flask_imcallback.storage.inserts import MAX_CACHE_SECONDS
from flask_imcallback.storage.migrations import (
    VERSION_TABLE,
    current_revision,
    is_at_head,
    make_config,
    run_alembic,
)
from flask_imcallback.storage.tables import metadata, removal
from support import ROOT
from support.apps import MakeApp, close_connections, indexes
from support.deliveries import MOMENT, find, make_delivery, record

pytestmark = pytest.mark.slow

HEAD = "0002_append_only"
TABLES = {
    f"imcallback_{name}"
    for name in (
        "delivery",
        "removal",
        "source",
        "counter",
        "inbox",
        "log",
        "act",
        "seal",
        "erasure",
        "door",
    )
}
MIGRATIONS = ROOT / "migrations"
REVISIONS = sorted((MIGRATIONS / "versions").glob("[0-9]*.py"))

UPGRADE_ON_A_SIGNAL = """
import sys
from flask import Flask
from flask_imcallback import ImCallback, upgrade
app = Flask("host")
app.config["SQLALCHEMY_DATABASE_URI"] = sys.argv[1]
ImCallback(app)
with app.app_context():
    import alembic.command  # takes longer than the upgrade
    print("ready", flush=True)
    sys.stdin.readline()
    upgrade()
"""


@pytest.fixture
def engine(database_url: URL, make_app: MakeApp) -> Any:
    """The engine of an app without tables, within the app's context."""
    app = make_app(database_url, migrate=False)
    with app.app_context():
        yield get_runtime().engine()


def table_names(engine: Engine) -> set[str]:
    return set(inspect(engine).get_table_names())


def schema(engine: Engine) -> dict[str, Any]:
    """Return what the database says about our tables, without the names of their keys."""
    inspector = inspect(engine)
    return {
        table: {
            "columns": [{**c, "type": repr(c["type"])} for c in inspector.get_columns(table)],
            "key": inspector.get_pk_constraint(table)["constrained_columns"],
            "unique": inspector.get_unique_constraints(table),
            "indexes": indexes(inspector, table),
        }
        for table in TABLES
    }


def test_upgrade_downgrade_upgrade(engine: Engine) -> None:
    """A downgrade leaves nothing but an empty version table, and a second upgrade works."""
    for _ in range(2):
        run_alembic(engine, "upgrade", "head")
        assert table_names(engine) == {*TABLES, VERSION_TABLE}
        assert current_revision(engine) == HEAD
        assert is_at_head(engine)
        run_alembic(engine, "downgrade", "base")
        assert table_names(engine) == {VERSION_TABLE}
        assert current_revision(engine) is None
        assert not is_at_head(engine)


def test_tables_that_replace_others_get_their_own_sources(
    make_app: MakeApp, engine: Engine, database_url: URL
) -> None:
    """A running app does not write the ids of sources that were in the old tables."""
    running, other = make_app(database_url), make_app(database_url)
    for number in range(3):
        record(running, make_delivery(("alice", "bob"), at=MOMENT + timedelta(seconds=number)))
    run_alembic(engine, "downgrade", "base")
    run_alembic(engine, "upgrade", "head")
    record(other, make_delivery(("carol", "dave"), relation=Relation.BLACKLIST))
    time.sleep(MAX_CACHE_SECONDS)
    for number in range(3):
        record(running, make_delivery(("erin", "frank"), at=MOMENT + timedelta(minutes=number)))
    with running.app_context():
        relations = {removal.owner_id: removal.relation for removal in find().data}
    assert relations == {"carol": Relation.BLACKLIST, "erin": Relation.FRIEND}


def test_a_second_upgrade_keeps_the_rows(engine: Engine) -> None:
    """An upgrade of tables at the newest revision changes nothing."""
    run_alembic(engine, "upgrade", "head")
    insert_targets(engine, ["bob"])
    before = schema(engine)
    run_alembic(engine, "upgrade", "head")
    assert schema(engine) == before
    assert find_targets(engine, "bob") == ["bob"]


def test_the_migrated_schema_equals_the_models(engine: Engine) -> None:
    """Neither Alembic's check nor SQLAlchemy's inspector finds a difference."""
    run_alembic(engine, "upgrade", "head")
    run_alembic(engine, "check")
    migrated = schema(engine)
    run_alembic(engine, "downgrade", "base")
    metadata.create_all(engine)
    assert migrated == schema(engine)


def test_check_fails_where_the_tables_differ(engine: Engine) -> None:
    """The `check` command reports missing tables and missing indexes."""
    with pytest.raises(CommandError):
        run_alembic(engine, "check")
    run_alembic(engine, "upgrade", "head")
    drop_index(engine)
    with pytest.raises(CommandError, match="ix_imcallback_removal_owner_id"):
        run_alembic(engine, "check")


def insert_targets(engine: Engine, targets: list[str]) -> None:
    """Insert a removal of each target. All other texts are empty, and all other numbers are 0."""
    empty: dict[str, Any] = {c.name: "" if isinstance(c.type, ExactText) else 0 for c in removal.c}
    rows = [{**empty, "id": number, "target_id": id} for number, id in enumerate(targets)]
    with engine.begin() as connection:
        connection.execute(removal.insert(), rows)


def find_targets(engine: Engine, target: str) -> list[str]:
    with engine.connect() as connection:
        query = select(removal.c.target_id).where(removal.c.target_id == target)
        return list(connection.scalars(query))


def test_account_ids_are_compared_byte_by_byte(engine: Engine) -> None:
    """A query separates ids that differ by case, accent, blanks, composition or width."""
    run_alembic(engine, "upgrade", "head")
    ids = ["a", "A", "á", "a\u0301", "ä", "a ", " a", "a\t", "\uff41", "ß", "ss", "😀", "😁"]
    insert_targets(engine, ids)
    assert [find_targets(engine, target) for target in ids] == [[target] for target in ids]


def execute(engine: Engine, *statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def drop_index(engine: Engine) -> None:
    on = " ON imcallback_removal" if engine.dialect.name in ("mysql", "mariadb") else ""
    execute(engine, f"DROP INDEX ix_imcallback_removal_owner_id{on}")


def drop_last_table(engine: Engine) -> None:
    execute(engine, "DROP TABLE imcallback_counter")


def drop_all_but_the_first_table(engine: Engine) -> None:
    names = TABLES - {"imcallback_delivery"}
    execute(engine, *(f"DROP TABLE {name}" for name in sorted(names)))


@pytest.mark.parametrize("undo", [drop_index, drop_last_table, drop_all_but_the_first_table])
def test_an_interrupted_upgrade_can_be_repeated(
    engine: Engine, undo: Callable[[Engine], None]
) -> None:
    """An upgrade that stopped between two steps is completed by the next upgrade."""
    run_alembic(engine, "upgrade", "head")
    complete = schema(engine)
    undo(engine)
    execute(engine, f"DELETE FROM {VERSION_TABLE}")
    run_alembic(engine, "upgrade", "head")
    assert schema(engine) == complete
    assert table_names(engine) == {*TABLES, VERSION_TABLE}
    assert current_revision(engine) == HEAD


def test_an_interrupted_downgrade_can_be_repeated(engine: Engine) -> None:
    """A downgrade that stopped between two steps is completed by the next downgrade."""
    run_alembic(engine, "upgrade", "head")
    drop_last_table(engine)
    run_alembic(engine, "downgrade", "base")
    assert table_names(engine) == {VERSION_TABLE}


def test_parallel_upgrades_do_not_fail(engine: Engine, database_url: URL) -> None:
    """Six processes start to upgrade an empty database at the same time."""
    command = [sys.executable, "-c", UPGRADE_ON_A_SIGNAL]
    command.append(database_url.render_as_string(hide_password=False))
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(6)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    ends = [(process.communicate(timeout=120)[1], process.returncode) for process in processes]
    assert [status for _, status in ends] == [0] * 6, ends
    run_alembic(engine, "check")
    with engine.connect() as connection:
        assert connection.scalars(text(f"SELECT * FROM {VERSION_TABLE}")).all() == [HEAD]


def test_upgrade_sql_only_prints(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    """`upgrade --sql` changes nothing, and the printed statements create the tables."""
    run_alembic(engine, "upgrade", "head", sql=True)
    assert table_names(engine) == set()
    script = capsys.readouterr().out
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in script.split(";\n"):
            lines = [line for line in statement.splitlines() if not line.startswith("--")]
            if sql := "\n".join(lines).strip():
                connection.exec_driver_sql(sql)
    run_alembic(engine, "check")
    assert current_revision(engine) == HEAD


def test_a_database_that_does_not_answer_is_an_error_with_a_remedy(make_app: MakeApp) -> None:
    """The message names the reason and the settings to check, and never the password."""
    url = URL.create("postgresql+psycopg", "user", "pass-word", "127.0.0.1", 1, "database")
    app = make_app(url, migrate=False)
    message = (
        r"^cannot access the database \(OperationalError: connection failed: .*\): check the "
        r"server, the URL of the database and the permissions of the database user, or run flask "
        r"imcallback doctor$"
    )
    with app.app_context(), pytest.raises(StorageError, match=message) as caught:
        current_revision(get_runtime().engine())
    assert "pass-word" not in str(caught.value)


def test_the_revisions_form_one_line(make_app: MakeApp) -> None:
    """Revision ids fit the version column, are no plain numbers, and lead to a single head."""
    with make_app(migrate=False).app_context():
        script = ScriptDirectory.from_config(make_config(get_runtime().engine()))
    revisions = [revision.revision for revision in script.walk_revisions()]
    assert len(revisions) == len(REVISIONS) > 0
    assert all(len(revision) <= 32 and not revision.isdigit() for revision in revisions)
    assert sorted(revisions) == [path.stem for path in REVISIONS]
    assert script.get_heads() == [revisions[0]]


@pytest.mark.parametrize("path", REVISIONS, ids=lambda path: path.stem)
def test_a_revision_imports_nothing_of_the_package(path: Path) -> None:
    """Later changes of the package must not change what an old revision does."""
    roots = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            roots |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots.add("" if node.level else str(node.module).partition(".")[0])
    assert roots.isdisjoint({"", "flask_imcallback"})


def test_create_all_of_the_host_leaves_our_tables_alone(tmp_path: Path) -> None:
    """A host that calls `db.create_all()` gets only its own tables, and can still upgrade."""
    app = Flask("host")
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path / 'test.db'}"
    db = SQLAlchemy(app)

    class Thing(db.Model):  # type: ignore[name-defined, misc]
        id: Mapped[int] = mapped_column(Integer, primary_key=True)

    from flask_imcallback import ImCallback, upgrade

    ImCallback(app)
    with app.app_context():
        db.create_all()
        assert table_names(db.engine) == {"thing"}
        upgrade()
        db.drop_all()
        assert table_names(db.engine) == {*TABLES, VERSION_TABLE}
    close_connections(app)


def alembic(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "alembic", "-c", str(MIGRATIONS / "alembic.ini"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_alembic_works_without_an_app(tmp_path: Path) -> None:
    """A developer passes a URL with `-x url=`. Without a URL the error shows how to pass one."""
    url = f"url=sqlite:///{tmp_path / 'test.db'}"
    for command in (["upgrade", "head"], ["check"]):
        done = alembic("-x", url, *command)
        assert done.returncode == 0, done.stderr
    refused = alembic("upgrade", "head")
    assert refused.returncode != 0
    assert (
        "no database is given: use `flask imcallback upgrade`, or pass a database URL as in "
        "`alembic -x url=sqlite:///new.db`"
    ) in refused.stderr + refused.stdout
