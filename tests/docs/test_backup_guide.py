"""The commands that back up and restore keep every callback, while callbacks arrive."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import URL, NullPool, create_engine

from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage.tables import metadata
from support import ROOT, clients, servers
from support.apps import MakeApp, close_connections, rows
from support.deliveries import DELIVERY, MOMENT, entry_of
from support.load import SETTINGS, Callback, Load, check
from support.serving import Running, environment, serving

PAGE = (ROOT / "docs/backup.md").read_text("utf-8")


def section(heading: str) -> str:
    """Return the text below a heading, up to the next heading."""
    _, found, rest = PAGE.partition(f"\n{heading}\n")
    assert found, heading
    return re.split(r"^#+ ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def blocks(language: str, text: str) -> list[str]:
    """Return the code blocks in a language, without the indentation of a list."""
    found = re.findall(rf"^ *```{language}\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(code) for code in found]


def commands(text: str) -> list[str]:
    """Return each console block as a shell script."""
    return [re.sub(r"^\$ ", "", code, flags=re.MULTILINE) for code in blocks("console", text)]


def shell(script: str, folder: Path, env: Mapping[str, str]) -> str:
    """Run a script as a user would, and return its output."""
    programs = [str(folder / "bin"), str(Path(sys.executable).parent), env["PATH"]]
    done = subprocess.run(
        ["/bin/sh", "-ec", script],
        cwd=folder,
        env={**env, "PATH": os.pathsep.join(programs)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
    return done.stdout


def execute(url: URL, sql: str, names: Callable[[str], str]) -> None:
    """Run the statements of the page one by one, each in its own transaction."""
    engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in filter(str.strip, names(sql).split(";")):
            connection.exec_driver_sql(statement)


def new_load(running: Running) -> Load:
    """Return clients that leave time for the other programs of the test."""
    return Load(running.port, clients=4, pause=0.02)


def assert_kept(callbacks: list[Callback], *databases: URL | Path) -> None:
    """Check that the databases have the acknowledged callbacks, each once and whole."""
    report = check(callbacks, *databases)
    assert report.acknowledged > 50
    assert report.faults == 0, report


SQLITE = section("## SQLite")
WITH_VACUUM, WITH_BACKUP, CHECK = commands(SQLITE)
(WITH_PYTHON,) = blocks("python", SQLITE)
SQLITE_BACKUPS = (WITH_VACUUM, WITH_BACKUP, f"python - <<'EOF'\n{WITH_PYTHON}EOF\n")


@pytest.mark.slow
def test_sqlite_is_restored(tmp_path: Path) -> None:
    """Each backup has everything that was stored before it, and so has the restored history."""
    for folder in ("instance", "bin"):
        (tmp_path / folder).mkdir()
    clients.add_program(tmp_path / "bin", "sqlite3")
    url = URL.create("sqlite", database=str(tmp_path / "instance/imcallback.db"))
    env = environment(tmp_path, url) | SETTINGS
    env |= {"FLASK_APP": "example_app", "PYTHONPATH": str(ROOT)}
    backup = tmp_path / "backup.db"
    copy, restore = commands(section("### Restore SQLite"))
    before: list[Callback] = []
    with serving(tmp_path, url=url, upgrade=True, **SETTINGS) as running:
        with new_load(running).running() as load:
            load.wait_for(60)
            for script in SQLITE_BACKUPS:
                backup.unlink(missing_ok=True)
                started = time.monotonic()
                before = [one for one in load.callbacks if one.acknowledged_at]
                assert all(one.acknowledged_at < started for one in before)
                shell(script, tmp_path, env)
                load.wait_for(20)
                assert_kept(before, URL.create("sqlite", database=str(backup)))
                assert backup.stat().st_mode & 0o077 == 0
        integrity, count = shell(CHECK, tmp_path, env).split()
        assert integrity == "ok"
        assert int(count) > 100
        shell(copy, tmp_path, env)
    shell(restore, tmp_path, env)
    with serving(tmp_path, url=url, upgrade=False, **SETTINGS) as running:
        with new_load(running).running() as later:
            later.wait_for(20)
        assert_kept([*before, *later.callbacks], running.url, running.spool)


def test_a_spool_is_restored(tmp_path: Path, make_app: MakeApp) -> None:
    """Callbacks of a lost spool are stored, and the callbacks that were stored are not doubled."""
    (tmp_path / "bin").mkdir()
    clients.add_program(tmp_path / "bin", "sqlite3")
    app = make_app()
    spool_file = tmp_path / "instance/imcallback_spool.db"
    backup, restore = commands(section("## The spool"))
    with app.app_context():
        drain = get_runtime().drain
        assert drain
        entries = [
            entry_of(app, replace(DELIVERY, received_at=MOMENT.replace(second=second), body=body))
            for second, body in enumerate((b"\xff first", b"second"))
        ]
        for entry in entries:
            drain.spool.put(entry)
    shell(backup, tmp_path, os.environ)
    invoke = app.test_cli_runner().invoke
    assert invoke(args=["imcallback", "spool", "--drain"]).exit_code == 0
    expected = rows(app)
    assert len(expected[0]) == 2
    close_connections(app)
    for file in spool_file.parent.glob(f"{spool_file.name}*"):
        file.unlink()
    shell(restore.partition("flask")[0], tmp_path, os.environ)
    with app.app_context():
        assert drain.spool.waiting().count == 2
    assert invoke(args=["imcallback", "spool", "--drain"]).exit_code == 0
    assert rows(app) == expected
    with app.app_context():
        assert drain.spool.waiting().count == 0


@pytest.mark.slow
def test_postgresql_is_restored(
    database_servers: dict[str, servers.Server], tmp_path: Path
) -> None:
    """The app keeps running, and callbacks that arrive during the restore are stored later."""
    server = database_servers["postgresql"]
    (tmp_path / "bin").mkdir()
    clients.add_postgresql_programs(tmp_path / "bin", server, "pg_dump", "pg_restore", "createdb")
    (backup,) = commands(section("## PostgreSQL"))
    (load_backup,) = commands(section("### Restore PostgreSQL"))
    (swap,) = blocks("sql", section("### Restore PostgreSQL"))
    with servers.database(server) as url:
        name = str(url.database)
        address = url.set(drivername="postgresql", database="").render_as_string(
            hide_password=False
        )

        def in_shell(script: str) -> None:
            script = script.replace("postgresql://user@db.example/", address.rstrip("/") + "/")
            script = re.sub(r"/app(?=[_\s])", f"/{name}", script)
            script = script.replace("--owner=user", f"--owner={url.username}")
            shell(script.replace("app_restored", f"{name}_restored"), tmp_path, os.environ)

        def with_names(sql: str) -> str:
            return re.sub(r"\bapp(?=\b|_)", name, sql)

        def restore() -> float:
            in_shell(load_backup)
            execute(server.url, swap, with_names)
            return time.monotonic()

        restore_under_load(url, tmp_path, lambda: in_shell(backup), restore)
        execute(server.url, "DROP DATABASE app_damaged WITH (FORCE)", with_names)


@pytest.mark.slow
def test_mariadb_is_restored(database_servers: dict[str, servers.Server], tmp_path: Path) -> None:
    """The app keeps running, and callbacks that arrive during the restore are stored later."""
    server = database_servers["mariadb"]
    (tmp_path / "bin").mkdir()
    for program in ("mariadb", "mariadb-dump"):
        login = [f"--port={server.url.port}", f"--password={server.url.password or ''}"]
        clients.add_program(tmp_path / "bin", program, "--no-defaults", *login)
    (backup,) = commands(section("## MariaDB"))
    lock, unlock = blocks("sql", section("### Restore MariaDB"))
    (load_backup,) = commands(section("### Restore MariaDB"))
    for table in [*metadata.tables, "alembic_version_imcallback"]:
        assert f"    app.{table} TO app_damaged.{table}" in lock
    with servers.database(server) as administrator:
        name = str(administrator.database)

        def with_names(text: str) -> str:
            return re.sub(r"\bapp(?=\b|_)", name, text)

        def in_shell(script: str) -> None:
            script = with_names(script).replace("db.example", str(server.url.host))
            script = re.sub(r"--user=\w+", f"--user={server.url.username}", script)
            shell(script, tmp_path, os.environ)

        def restore() -> float:
            execute(server.url, lock, with_names)
            locked_at = time.monotonic()
            in_shell(load_backup)
            execute(server.url, unlock, with_names)
            return locked_at

        execute(server.url, "CREATE USER app; GRANT ALL ON app.* TO app", with_names)
        url = administrator.set(username=name, password=None)
        try:
            restore_under_load(url, tmp_path, lambda: in_shell(backup), restore)
        finally:
            execute(server.url, "DROP DATABASE IF EXISTS app_damaged; DROP USER app", with_names)


def restore_under_load(
    url: URL, folder: Path, back_up: Callable[[], None], restore: Callable[[], float]
) -> None:
    """Back up and restore while callbacks arrive, and check that the right ones are stored.

    `restore` returns the time from which every callback must be stored. The callbacks between the
    backup and this time are not in the history.
    """
    with serving(folder, url=url, upgrade=True, **SETTINGS) as running:
        with new_load(running).running() as load:
            load.wait_for(60)
            backup_at = time.monotonic()
            back_up()
            load.wait_for(20)
            kept_since = restore()
            load.wait_for(50)
        running.wait_until_drained()
        assert load.count() == len(load.callbacks)
        kept = [
            callback
            for callback in load.callbacks
            if callback.acknowledged_at < backup_at or callback.sent_at > kept_since
        ]
        assert_kept(kept, running.url, running.spool)
