"""The revisions themselves, run forward, backward, twice and at once on every database."""

from __future__ import annotations

import ast
import subprocess
import sys
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import URL, Engine, Integer, MetaData, Table, inspect, select, text
from sqlalchemy.orm import Mapped, mapped_column

from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage.column_types import ExactText
from flask_imcallback.storage.ids import moment_of
from flask_imcallback.storage.migrations import (
    VERSION_TABLE,
    current_revision,
    make_config,
    run_alembic,
)
from flask_imcallback.storage.tables import metadata, removal
from support import ROOT
from support.apps import MakeApp, stored_removals

HEAD = "0004_source_and_indexes"
BEFORE = "0003_delivery_nonce"
OURS = {"imcallback_delivery", "imcallback_removal", "imcallback_source", "imcallback_counter"}
MIGRATIONS = ROOT / "migrations"
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
        yield get_runtime().engine()


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
        run_alembic(get_runtime().engine(), "upgrade", "head")
        assert tables(engine) == {*OURS, VERSION_TABLE}
        assert current_revision(engine) == HEAD
        run_alembic(get_runtime().engine(), "downgrade", "base")
        assert tables(engine) == {VERSION_TABLE}
        assert current_revision(engine) is None


def test_upgrade_again_keeps_the_rows(engine: Engine) -> None:
    """An upgrade of tables that are at the newest revision changes nothing."""
    run_alembic(get_runtime().engine(), "upgrade", "head")
    insert_targets(engine, ["bob"])
    before = schema(engine)
    run_alembic(get_runtime().engine(), "upgrade", "head")
    assert schema(engine) == before
    assert matches(engine, "bob") == ["bob"]


def test_migrated_schema_is_that_of_the_models(engine: Engine) -> None:
    """Alembic's check finds no difference, nor does all that the inspector shows."""
    run_alembic(get_runtime().engine(), "upgrade", "head")
    run_alembic(get_runtime().engine(), "check")
    migrated = schema(engine)
    run_alembic(get_runtime().engine(), "downgrade", "base")
    metadata.create_all(engine)
    assert migrated == schema(engine)


def test_check_fails_where_the_tables_differ(engine: Engine) -> None:
    """`check` reports an index that is gone, and tables that were never made."""
    with pytest.raises(CommandError):
        run_alembic(get_runtime().engine(), "check")
    run_alembic(get_runtime().engine(), "upgrade", "head")
    drop_index(engine)
    with pytest.raises(CommandError, match="ix_imcallback_removal_owner_id"):
        run_alembic(get_runtime().engine(), "check")


def insert_targets(engine: Engine, targets: list[str]) -> None:
    """A removal of each target, with the columns that are not asked about left empty."""
    empty: dict[str, Any] = {c.name: "" if isinstance(c.type, ExactText) else 0 for c in removal.c}
    rows = [{**empty, "id": number, "target_id": id} for number, id in enumerate(targets)]
    with engine.begin() as connection:
        connection.execute(removal.insert(), rows)


def matches(engine: Engine, target: str) -> list[str]:
    with engine.connect() as connection:
        found = select(removal.c.target_id).where(removal.c.target_id == target)
        return list(connection.scalars(found))


def test_ids_are_equal_only_if_their_bytes_are(engine: Engine) -> None:
    """A WHERE tells ids apart that differ by case, accent, blanks, composition or width."""
    run_alembic(get_runtime().engine(), "upgrade", "head")
    ids = ["a", "A", "á", "a\u0301", "ä", "a ", " a", "a\t", "\uff41", "ß", "ss", "😀", "😁"]
    insert_targets(engine, ids)
    assert [matches(engine, target) for target in ids] == [[target] for target in ids]


def drop_index(engine: Engine) -> None:
    on = " ON imcallback_removal" if engine.dialect.name in ("mysql", "mariadb") else ""
    with engine.begin() as connection:
        connection.execute(text(f"DROP INDEX ix_imcallback_removal_owner_id{on}"))


def leave_table(engine: Engine) -> None:
    """The removals as they were before they were replaced."""
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE imcallback_removal_old (id INTEGER)"))


@pytest.mark.parametrize("undo", [drop_index, leave_table])
def test_half_an_upgrade_is_finished_by_the_next(engine: Engine, undo: Any) -> None:
    """A first run that stopped between two steps is healed by running it again."""
    run_alembic(get_runtime().engine(), "upgrade", "head")
    whole = schema(engine)
    undo(engine)
    run_alembic(get_runtime().engine(), "stamp", BEFORE)
    run_alembic(get_runtime().engine(), "upgrade", "head")
    assert schema(engine) == whole
    assert tables(engine) == {*OURS, VERSION_TABLE}
    assert current_revision(engine) == HEAD


OLD_ROWS = [
    (100, 0, "tencent", "1400000000", "Sns.CallbackFriendDelete", "friend", "iOS", "r"),
    (100, 1, "tencent", "1400000000", "Sns.CallbackFriendDelete", "friend", "iOS", "r"),
    (200, 0, "tencent", "1400000000", "Sns.CallbackFriendDelete", "friend", "ios", "R"),
    (300, 0, "openim", "", "callbackAfterRemoveBlackCommand", "blacklist", "", ""),
]


def test_removals_survive_both_ways(engine: Engine) -> None:
    """What all of them say before 0004 is what they say after it, and after the way back."""
    run_alembic(get_runtime().engine(), "upgrade", BEFORE)
    old = MetaData()
    old.reflect(engine, only=["imcallback_delivery", "imcallback_removal"])
    delivery, removal = old.tables["imcallback_delivery"], old.tables["imcallback_removal"]
    with engine.begin() as connection:
        for id, position, provider, app_id, command, relation, platform, request_id in OLD_ROWS:
            row: dict[str, Any] = {
                "id": id,
                "delivery_id": id,
                "position": position,
                "provider": provider,
                "app_id": app_id,
                "command": command,
                "relation": relation,
                "owner_id": "á",
                "target_id": f"t{position}",
                "client_ip": "",
                "platform": platform,
                "request_id": request_id,
                "received_at": moment_of(id).replace(tzinfo=None),
            }
            if position == 0:
                empty = {c.name: "" for c in delivery.c if not c.nullable}
                others = {"removal_count": 1, "body": b"", **row}
                values = {k: v for k, v in (empty | others).items() if k in delivery.c}
                connection.execute(delivery.insert().values(values))
            connection.execute(removal.insert().values(row | {"id": id + position}))
    before = dump(engine, removal)
    run_alembic(get_runtime().engine(), "upgrade", "head")
    with engine.connect() as connection:
        after = stored_removals(connection)
        assert connection.scalar(text("SELECT COUNT(*) FROM imcallback_source")) == 3
    assert sorted(map(sorted_items, after)) == sorted(map(sorted_items, before))
    run_alembic(get_runtime().engine(), "downgrade", BEFORE)
    assert dump(engine, removal) == before


def sorted_items(row: dict[str, Any]) -> list[tuple[str, Any]]:
    return sorted(row.items())


def dump(engine: Engine, table: Table) -> list[dict[str, Any]]:
    with engine.connect() as connection:
        rows = connection.execute(select(table).order_by(table.c.id)).mappings()
        return [{**row, "received_at": row["received_at"].replace(tzinfo=UTC)} for row in rows]


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
    run_alembic(get_runtime().engine(), "check")
    with engine.connect() as connection:
        assert connection.scalars(text(f"SELECT * FROM {VERSION_TABLE}")).all() == [HEAD]


def test_sql_is_printed_and_nothing_done(
    engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    """`upgrade --sql` leaves the database alone; what it prints makes the tables."""
    run_alembic(get_runtime().engine(), "upgrade", "head", sql=True)
    assert tables(engine) == set()
    script = capsys.readouterr().out
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in script.split(";\n"):
            lines = [line for line in statement.splitlines() if not line.startswith("--")]
            if sql := "\n".join(lines).strip():
                connection.exec_driver_sql(sql)
    run_alembic(get_runtime().engine(), "check")
    assert current_revision(engine) == HEAD


def test_revisions_are_one_line(make_app: MakeApp) -> None:
    """Ids fit the version column, look like no count of steps, and lead to a single head."""
    with make_app(migrate=False).app_context():
        script = ScriptDirectory.from_config(make_config(get_runtime().engine()))
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
