"""The revisions themselves, run forward, backward, twice and at once on every database."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from conftest import MakeApp
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import URL, Engine, Integer, inspect, select, text
from sqlalchemy.orm import Mapped, mapped_column

from flask_imcallback.migration import VERSION_TABLE, current_revision, make_config, run
from flask_imcallback.models import ExactText, metadata, moment_of, removal
from flask_imcallback.state import get_state

HEAD = "0003_delivery_nonce"
OURS = {"imcallback_delivery", "imcallback_removal", "imcallback_tally"}
MIGRATIONS = Path(__file__).parents[1] / "migrations"
REVISIONS = sorted((MIGRATIONS / "versions").glob("[0-9]*.py"))

UPGRADE_ON_A_SIGN = """
import sys
from flask import Flask
from flask_imcallback import ImCallback, upgrade
app = Flask("host")
app.config["SQLALCHEMY_DATABASE_URI"] = sys.argv[1]
ImCallback(app)
with app.app_context():
    import alembic.command  # which takes longer than the upgrade
    print("ready", flush=True)
    sys.stdin.readline()
    upgrade()
"""


@pytest.fixture
def engine(database_url: URL, make_app: MakeApp) -> Any:
    """The engine of an app without tables, within the app's context."""
    app = make_app(database_url, migrate=False)
    with app.app_context():
        yield get_state().engine()


def tables(engine: Engine) -> set[str]:
    return set(inspect(engine).get_table_names())


def schema(engine: Engine) -> dict[str, Any]:
    """What the database says of our tables; only a revision names their keys."""
    inspector = inspect(engine)
    return {
        table: {
            "columns": [{**c, "type": repr(c["type"])} for c in inspector.get_columns(table)],
            "key": inspector.get_pk_constraint(table)["constrained_columns"],
            "unique": inspector.get_unique_constraints(table),
            "indexes": sorted(inspector.get_indexes(table), key=lambda index: str(index["name"])),
        }
        for table in OURS
    }


def test_upgrade_downgrade_upgrade(engine: Engine) -> None:
    """The tables come, go without a trace but an empty version table, and come again."""
    for _ in range(2):
        run("upgrade", "head")
        assert tables(engine) == {*OURS, VERSION_TABLE}
        assert current_revision(engine) == HEAD
        run("downgrade", "base")
        assert tables(engine) == {VERSION_TABLE}
        assert current_revision(engine) is None


def test_upgrade_again_keeps_the_rows(engine: Engine) -> None:
    """An upgrade of tables that are at the newest revision changes nothing."""
    run("upgrade", "head")
    insert_targets(engine, ["bob"])
    before = schema(engine)
    run("upgrade", "head")
    assert schema(engine) == before
    assert matches(engine, "bob") == ["bob"]


def test_migrated_schema_is_that_of_the_models(engine: Engine) -> None:
    """Alembic's check finds no difference, nor does all that the inspector shows."""
    run("upgrade", "head")
    run("check")
    migrated = schema(engine)
    run("downgrade", "base")
    metadata.create_all(engine)
    assert migrated == schema(engine)


def test_check_fails_where_the_tables_differ(engine: Engine) -> None:
    """`check` reports an index that is gone, and tables that were never made."""
    with pytest.raises(CommandError):
        run("check")
    run("upgrade", "head")
    drop_index(engine)
    with pytest.raises(CommandError, match="ix_imcallback_removal_owner_id_id"):
        run("check")


def insert_targets(engine: Engine, targets: list[str]) -> None:
    """A removal of each target, with the columns that are not asked about left empty."""
    empty: dict[str, Any] = {c.name: "" if isinstance(c.type, ExactText) else 0 for c in removal.c}
    empty["received_at"] = moment_of(0)
    rows = [{**empty, "id": number, "target_id": id} for number, id in enumerate(targets)]
    with engine.begin() as connection:
        connection.execute(removal.insert(), rows)


def matches(engine: Engine, target: str) -> list[str]:
    with engine.connect() as connection:
        found = select(removal.c.target_id).where(removal.c.target_id == target)
        return list(connection.scalars(found))


def test_ids_are_equal_only_if_their_bytes_are(engine: Engine) -> None:
    """A WHERE tells ids apart that differ by case, accent, blanks, composition or width."""
    run("upgrade", "head")
    ids = ["a", "A", "á", "a\u0301", "ä", "a ", " a", "a\t", "\uff41", "ß", "ss", "😀", "😁"]
    insert_targets(engine, ids)
    assert [matches(engine, target) for target in ids] == [[target] for target in ids]


def drop_index(engine: Engine) -> None:
    on = " ON imcallback_removal" if engine.dialect.name in ("mysql", "mariadb") else ""
    with engine.begin() as connection:
        connection.execute(text(f"DROP INDEX ix_imcallback_removal_owner_id_id{on}"))


def drop_removals(engine: Engine) -> None:
    removal.drop(engine)


@pytest.mark.parametrize("undo", [drop_index, drop_removals])
def test_half_an_upgrade_is_finished_by_the_next(engine: Engine, undo: Any) -> None:
    """A first run that stopped between two steps is healed by running it again."""
    run("upgrade", "head")
    whole = schema(engine)
    undo(engine)
    with engine.begin() as connection:
        connection.execute(text(f"DELETE FROM {VERSION_TABLE}"))
    run("upgrade", "head")
    assert schema(engine) == whole
    assert current_revision(engine) == HEAD


def test_six_upgrades_at_once(engine: Engine, database_url: URL) -> None:
    """Of six processes that start to upgrade an empty database together, none fails."""
    command = [sys.executable, "-c", UPGRADE_ON_A_SIGN]
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
    run("check")
    with engine.connect() as connection:
        assert connection.scalars(text(f"SELECT * FROM {VERSION_TABLE}")).all() == [HEAD]


def test_sql_is_printed_and_nothing_done(
    engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    """`upgrade --sql` leaves the database alone; what it prints makes the tables."""
    run("upgrade", "head", sql=True)
    assert tables(engine) == set()
    script = capsys.readouterr().out
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in script.split(";\n"):
            lines = [line for line in statement.splitlines() if not line.startswith("--")]
            if sql := "\n".join(lines).strip():
                connection.exec_driver_sql(sql)
    run("check")
    assert current_revision(engine) == HEAD


def test_revisions_are_one_line(make_app: MakeApp) -> None:
    """Ids fit the version column, look like no count of steps, and lead to a single head."""
    with make_app(migrate=False).app_context():
        script = ScriptDirectory.from_config(make_config(get_state().engine()))
    revisions = [revision.revision for revision in script.walk_revisions()]
    assert len(revisions) == len(REVISIONS) > 0
    assert all(len(revision) <= 32 and not revision.isdigit() for revision in revisions)
    assert sorted(revisions) == [path.stem for path in REVISIONS]
    assert script.get_heads() == [revisions[0]]


@pytest.mark.parametrize("path", REVISIONS, ids=lambda path: path.stem)
def test_revisions_import_nothing_of_ours(path: Path) -> None:
    """What a revision does is frozen: later changes of the package do not reach it."""
    roots = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            roots |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots.add("" if node.level else str(node.module).partition(".")[0])
    assert roots == {"alembic", "sqlalchemy"}


def test_create_all_of_the_host_does_not_reach_our_tables(tmp_path: Path) -> None:
    """A host that calls `db.create_all()` gets its own tables only, and can still upgrade."""
    app = Flask("host")
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path / 'test.db'}"
    db = SQLAlchemy(app)

    class Thing(db.Model):  # type: ignore[name-defined, misc]
        id: Mapped[int] = mapped_column(Integer, primary_key=True)

    from flask_imcallback import ImCallback, upgrade

    ImCallback(app)
    with app.app_context():
        db.create_all()
        assert tables(db.engine) == {"thing"}
        upgrade()
        db.drop_all()
        assert tables(db.engine) == {*OURS, VERSION_TABLE}
        db.engine.dispose()


def alembic(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "alembic", "-c", str(MIGRATIONS / "alembic.ini"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_alembic_without_an_app(tmp_path: Path) -> None:
    """A developer runs plain alembic with `-x url=`; without it, it says what to do."""
    url = f"url=sqlite:///{tmp_path / 'test.db'}"
    for command in (["upgrade", "head"], ["check"]):
        done = alembic("-x", url, *command)
        assert done.returncode == 0, done.stderr
    refused = alembic("upgrade", "head")
    assert refused.returncode != 0
    assert "alembic -x url=" in refused.stderr + refused.stdout
