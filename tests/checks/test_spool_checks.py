"""doctor, health and `spool` with spools that cannot be used, and with spools that hold much."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import time_machine
from flask import Flask
from sqlalchemy import URL, QueuePool, create_engine

from flask_imcallback import ImCallback, upgrade
from flask_imcallback.checks import judge_waiting
from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage import Waiting
from support import ROOT
from support.apps import MakeApp, close_connections, rows
from support.callbacks import run_command
from support.deliveries import DELIVERY, MOMENT, entry_of
from support.doctor import NOBODY, diagnose, files_in, has_finding, without_root

WHY_UNUSABLE = "While the database is unavailable, callbacks get 503, and only the log keeps them."
REMEDY = "check the disk, the permissions and IMCALLBACK_SPOOL"
GUARDS: dict[str, Any] = {
    "IMCALLBACK_SECRETS": ["a-secret-of-16-characters"],
    "IMCALLBACK_HISTORY_TOKENS": ["a-token-of-20-characters"],
}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that everybody can reach, unlike pytest's folders of root."""
    with tempfile.TemporaryDirectory(prefix="imcallback-") as name:
        path = Path(name).resolve()
        path.chmod(0o777)
        yield path
        for found in (path, *path.rglob("*")):
            found.chmod(0o777)


RANDOM_NAME = re.compile(r"(?<=/tmp)\w{8}(?=')")
"""The name of a temporary file in an error."""


@contextmanager
def nothing(path: Path) -> Iterator[None]:
    yield


@contextmanager
def folder_is_a_file(path: Path) -> Iterator[None]:
    path.parent.touch()
    yield


@contextmanager
def spool_is_a_folder(path: Path) -> Iterator[None]:
    path.mkdir(parents=True)
    yield


@contextmanager
def garbage(path: Path) -> Iterator[None]:
    path.parent.mkdir()
    path.write_bytes(b"this is not a database" * 1000)
    yield


@contextmanager
def read_only_folder(path: Path) -> Iterator[None]:
    path.parent.mkdir()
    path.parent.chmod(0o555)
    with without_root():
        yield


@contextmanager
def file_of_root(path: Path) -> Iterator[None]:
    path.parent.mkdir()
    path.parent.chmod(0o777)
    path.touch(0o600)
    path.chmod(0o000)
    with without_root():
        yield


@contextmanager
def locked_folder(path: Path) -> Iterator[None]:
    path.parent.mkdir()
    path.touch()
    path.parent.chmod(0o000)
    with without_root():
        yield


UNUSABLE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "the folder is a file": (
        folder_is_a_file,
        "NotADirectoryError: [Errno 20] Not a directory: '{folder}/tmp'",
    ),
    "the spool is a folder": (
        spool_is_a_folder,
        "FileExistsError: {folder}/spool.db is not a regular file",
    ),
    "not a database": (garbage, "DatabaseError: file is not a database"),
    "read-only folder": (
        read_only_folder,
        "PermissionError: [Errno 13] Permission denied: '{folder}/tmp'",
    ),
    "another owner": (file_of_root, "OperationalError: unable to open database file"),
    "locked folder": (
        locked_folder,
        "PermissionError: [Errno 13] Permission denied: '{folder}/tmp'",
    ),
}


@pytest.mark.parametrize(("break_spool", "error"), UNUSABLE.values(), ids=UNUSABLE)
def test_an_unusable_spool_is_named_before_it_is_needed(
    make_app: MakeApp, folder: Path, break_spool: Callable[[Path], Any], error: str
) -> None:
    """doctor exits with 1, health is degraded, and no file is left behind."""
    path = folder / "spool" / "spool.db"
    database = URL.create("sqlite", database=str(folder / "test.db"))
    app = make_app(database, IMCALLBACK_SPOOL=str(path), **GUARDS)
    (folder / "test.db").chmod(0o666)
    client = app.test_client()
    assert client.get("/imcallback/health").get_json()["status"] == "ok"
    diagnose(app)  # imports what nobody may import
    with break_spool(path):
        before = files_in(folder)
        result = diagnose(app)
        assert files_in(folder) == before
        health = client.get("/imcallback/health")
        page = client.get(
            "/imcallback/", headers={"Authorization": "Bearer a-token-of-20-characters"}
        )
        status = run_command(app, "status")
        content = run_command(app, "spool")
    assert result.exit_code == 1
    output = RANDOM_NAME.sub("", result.output)
    error = error.format(folder=path.parent)
    assert has_finding(
        output,
        "FAILURE",
        "The spool cannot be used",
        f"{WHY_UNUSABLE} The error: cannot write the spool {path} ({error}): {REMEDY}.",
        "Let the user of the app write the file and its folder, or set IMCALLBACK_SPOOL to "
        "another file.",
    ), result.output
    assert health.status_code == 200
    assert health.get_json() == {"status": "degraded", "problem": "the spool cannot be used"} | (
        {"spool": {"waiting": 0, "oldest": None, "set_aside": 0, "foreign": 0}}
        if "spool" in health.get_json()
        else {}
    )
    assert page.status_code == 200
    for command in (status, content):
        assert "Traceback" not in command.output
        assert command.exception is None or isinstance(command.exception, SystemExit)


def test_doctor_creates_no_spool(make_app: MakeApp, tmp_path: Path) -> None:
    """A spool of root would lock the app out."""
    app = make_app(**GUARDS)
    rows(app)  # SQLite creates its own files at the first use
    before = files_in(tmp_path)
    result = diagnose(app)
    assert result.exit_code == 0
    assert f"ok      The spool {tmp_path}/instance/imcallback_spool.db can be written" in (
        result.output
    )
    for command in ("status", "spool"):
        assert run_command(app, command).exit_code == 0
    assert app.test_client().get("/imcallback/health").status_code == 200
    assert files_in(tmp_path) == before


@pytest.mark.slow
def test_commands_of_root_leave_no_file_of_root(tmp_path: Path) -> None:
    """The app runs as another user, and could not write such a file."""
    env = os.environ | {
        "FLASK_APP": str(tmp_path / "bare.py"),
        "FLASK_IMCALLBACK_SECRETS": '["a-secret-of-16-characters"]',
    }
    shutil.copy(ROOT / "tests/hosts/bare.py", tmp_path)

    def run(*command: str) -> None:
        flask = [sys.executable, "-m", "flask", "imcallback", *command]
        subprocess.run(flask, cwd=tmp_path, env=env, check=True, capture_output=True)

    run("upgrade")
    if os.geteuid() == 0:
        for path in (tmp_path / "instance", *(tmp_path / "instance").iterdir()):
            os.chown(path, NOBODY, NOBODY)
    before = files_in(tmp_path / "instance")
    for command in ("doctor", "status", "spool"):
        run(command)
        assert files_in(tmp_path / "instance") == before


def test_an_app_without_a_spool_is_a_warning(make_app: MakeApp) -> None:
    """Some hosts have no disk."""
    result = diagnose(make_app(**GUARDS, IMCALLBACK_SPOOL=None))
    assert has_finding(
        result,
        "WARNING",
        "There is no spool",
        WHY_UNUSABLE,
        "Set IMCALLBACK_SPOOL to a file on a disk that outlives the process.",
    ), result.output
    assert result.exit_code == 0


def put(app: Flask, count: int = 1) -> None:
    """Put deliveries into the spool of an app, as if the database were away."""
    with app.app_context():
        drain = get_runtime().drain
        assert drain
        for _ in range(count):
            drain.spool.put(entry_of(app, DELIVERY))


def test_waiting_callbacks_are_a_warning(make_app: MakeApp) -> None:
    """The app stores them by itself. `spool --drain` does it now."""
    app = make_app(**GUARDS)
    put(app, 2)
    with time_machine.travel(MOMENT + timedelta(minutes=1)):
        result = diagnose(app)
    lines = (
        "2 callbacks wait in the spool",
        "The oldest was received at 2026-11-20 18:05:00 UTC. The history does not show it yet.",
        "Run flask imcallback spool --drain. It stores the callbacks or prints the reason.",
    )
    assert has_finding(result, "WARNING", *lines), result.output
    assert result.exit_code == 0
    status = run_command(app, "status")
    assert status.exit_code == 0
    assert lines[0] in status.stderr
    assert lines[0] not in status.stdout
    assert run_command(app, "spool", "--drain").exit_code == 0
    assert len(rows(app)[0]) == 2


def refuse_some(app: Flask) -> None:
    """Let the database refuse deliveries from one address, and store all others."""
    with app.app_context(), get_runtime().engine().begin() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER refuse BEFORE INSERT ON imcallback_delivery "
            "WHEN NEW.remote_addr = '192.0.2.66' BEGIN SELECT raise(ABORT, 'on purpose'); END"
        )


def test_refused_callbacks_are_set_aside_and_named(make_app: MakeApp) -> None:
    """doctor, health, `status` and `spool` show them, with the error of the database."""
    app = make_app(**GUARDS)
    refuse_some(app)
    with app.app_context():
        runtime = get_runtime()
        assert runtime.drain
        runtime.drain.spool.put(
            runtime.recorder.make_entry(replace(DELIVERY, remote_addr="192.0.2.66"))
        )
    put(app)
    drained = run_command(app, "spool", "--drain")
    assert drained.exit_code == 1
    assert "1 drained" in drained.stderr
    assert "the callbacks in the spool could not be stored: IntegrityError: on purpose" in (
        drained.stderr
    )
    assert "1 set aside\n  received at 2026-11-20 18:05:00" in drained.stdout
    assert "IntegrityError: on purpose" in drained.stdout
    lines = (
        "1 callback is set aside in the spool",
        "The database refused them, and stored others.",
        "Run flask imcallback spool to see the errors. After the repair, run flask imcallback "
        "spool --drain.",
    )
    result = diagnose(app)
    assert has_finding(result, "FAILURE", *lines), result.output
    assert result.exit_code == 1
    assert lines[0] in run_command(app, "status").stderr
    health = app.test_client().get("/imcallback/health")
    assert health.status_code == 200
    assert health.get_json() == {
        "status": "degraded",
        "problem": lines[0],
        "spool": {
            "waiting": 0,
            "oldest": "2026-11-20T18:05:00.123456Z",
            "set_aside": 1,
            "foreign": 0,
        },
    }
    with app.app_context(), get_runtime().engine().begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER refuse")
    assert run_command(app, "spool", "--drain").exit_code == 0
    assert diagnose(app).exit_code == 0


def test_callbacks_of_another_database_are_named_and_adopted(
    make_app: MakeApp, tmp_path: Path
) -> None:
    """Nothing is moved into the wrong database. `--adopt` moves it after the database moved."""
    staging = URL.create("sqlite", database=str(tmp_path / "staging.db"))
    production = URL.create("sqlite", database=str(tmp_path / "production.db"))
    spool = {"IMCALLBACK_SPOOL": str(tmp_path / "spool.db")}
    put(make_app(production, **GUARDS, **spool), 2)
    app = make_app(staging, **GUARDS, **spool)
    mark = f"sqlite:///{tmp_path.resolve()}/production.db"
    result = diagnose(app)
    lines = (
        "2 callbacks belong to another database",
        f"The spool holds them for {mark}. This app leaves them there.",
        "If another deployment shares the spool, give each its own IMCALLBACK_SPOOL. If the "
        f"database has moved, run flask imcallback spool --adopt {mark}",
    )
    assert has_finding(result, "FAILURE", *lines), result.output
    assert result.exit_code == 1
    assert lines[0] in run_command(app, "status").stderr
    health = app.test_client().get("/imcallback/health")
    assert health.status_code == 200
    assert health.get_json()["problem"] == lines[0]
    assert health.get_json()["spool"]["foreign"] == 2
    assert str(tmp_path) not in health.text
    content = run_command(app, "spool")
    assert content.exit_code == 0
    assert f"2 for another database: {mark}\n" in content.stdout
    wrong = run_command(app, "spool", "--adopt", "sqlite:///other.db")
    assert wrong.exit_code == 1
    assert (
        "the spool holds no callbacks of the database 'sqlite:///other.db'. It holds callbacks of "
        f"these other databases:\n  {mark}\n"
    ) in wrong.stderr
    assert rows(app) == ([], [])
    adopted = run_command(app, "spool", "--adopt", mark, "--drain")
    assert adopted.exit_code == 0, adopted.output
    assert adopted.stderr == "2 adopted\n2 drained\n"
    assert len(rows(app)[0]) == 2
    assert diagnose(app).exit_code == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can create files of root")
def test_the_files_of_root_do_not_lock_the_app_out(make_app: MakeApp, folder: Path) -> None:
    """The health check of another user is 200, not 500, beside a spool of root."""
    database = URL.create("sqlite", database=str(folder / "test.db"))
    app = make_app(database, IMCALLBACK_SPOOL=str(folder / "spool.db"), **GUARDS)
    (folder / "test.db").chmod(0o666)
    put(app)
    diagnose(app)
    client = app.test_client()
    client.get("/imcallback/health")
    with without_root():
        answer = client.get("/imcallback/health")
    assert (answer.status_code, answer.get_json()["problem"]) == (200, "the spool cannot be used")


def test_a_mark_that_names_no_database_is_told(folder: Path) -> None:
    """Two deployments whose engines have only a creator would share the entries of a spool."""
    database = str(folder / "test.db")
    engine = create_engine(
        "sqlite://",
        creator=lambda: sqlite3.connect(database, check_same_thread=False),
        poolclass=QueuePool,
    )
    app = Flask("host", instance_path=str(folder))
    app.config.update(GUARDS, IMCALLBACK_SPOOL=str(folder / "spool.db"))
    ImCallback(app, engine=engine)
    with app.app_context():
        upgrade()
    result = diagnose(app)
    assert "in memory" not in result.output
    assert has_finding(
        result,
        "WARNING",
        "The URL of the engine names no database",
        "The spool marks its callbacks with sqlite:///:memory:. Another deployment may have the "
        "same mark and a different database.",
        "Name the database in the URL of the engine, also beside a creator. Or give each "
        "deployment its own IMCALLBACK_SPOOL.",
    )
    close_connections(app)


def test_a_spool_in_the_database_file_is_told(make_app: MakeApp, folder: Path) -> None:
    """A locked database would lock its spool, too."""
    path = folder / "test.db"
    url = URL.create("sqlite", database=str(path))
    assert has_finding(
        diagnose(make_app(url, IMCALLBACK_SPOOL=str(path), **GUARDS)),
        "FAILURE",
        "The spool is the database file",
        f"Both are {path}. While the database is locked or damaged, the spool is too.",
        "Set IMCALLBACK_SPOOL to another file.",
    )


@pytest.mark.parametrize(("minutes", "level"), [(9, "warning"), (11, "failure")])
def test_a_callback_that_waits_too_long_is_a_failure(minutes: int, level: str) -> None:
    """The database works, but the drain does not store an old callback."""
    oldest = datetime.now(UTC) - timedelta(minutes=minutes)
    waiting = Waiting(count=1, oldest=oldest, set_aside=0, foreign={})
    assert [finding.level for finding in judge_waiting(waiting)] == [level]
