"""Database and spool may fail in any order. When one of them is back, the next callback is stored.

Each test is a pair of a way in which the spool fails, and a way in which the database fails.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import URL

from flask_imcallback import StorageError
from flask_imcallback.storage.spool import Spool
from support import ROOT, faults, servers
from support.apps import MakeApp, rows, wait_until
from support.callbacks import BODY, SECRET
from support.clusters import ask

CALLBACK_URL = f"/imcallback/openim/{SECRET}/callbackAfterRemoveBlackCommand"
Break = Callable[[Path], AbstractContextManager[object]]


@contextmanager
def no_folder(path: Path) -> Iterator[None]:
    """The folder of the spool cannot be created, because a file has its name."""
    path.parent.write_text("a file")
    yield
    path.parent.unlink()


@contextmanager
def folder(path: Path) -> Iterator[None]:
    """A folder has the name of the spool."""
    path.mkdir(parents=True)
    yield
    path.rmdir()


@contextmanager
def not_a_database(path: Path) -> Iterator[None]:
    """The spool is another file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"not a database" * 1000)
    yield
    path.unlink()


@contextmanager
def corrupt(path: Path) -> Iterator[None]:
    """The pages of the spool are damaged."""
    path.parent.mkdir(parents=True)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE imcallback_spool_update (id INTEGER)")
    content = bytearray(path.read_bytes())
    content[100:] = b"\xff" * (len(content) - 100)
    path.write_bytes(content)
    yield
    path.unlink()


@contextmanager
def locked_spool(path: Path) -> Iterator[None]:
    """Another program holds a lock on the spool."""
    path.parent.mkdir(parents=True)
    with faults.locked(URL.create("sqlite", database=str(path))):
        yield


@contextmanager
def special_file(path: Path) -> Iterator[None]:
    """The spool is a device, to which every write fails."""
    path.parent.mkdir(parents=True)
    path.symlink_to("/dev/full")
    yield
    path.unlink()


SPOOLS: dict[str, Break] = {
    "no_folder": no_folder,
    "folder": folder,
    "not_a_database": not_a_database,
    "corrupt": corrupt,
    "locked": locked_spool,
    "device": special_file,
}


def spool_of(app: Flask) -> Spool:
    drain = app.extensions["imcallback"].drain
    assert drain
    spool: Spool = drain.spool
    return spool


def post(app: Flask, owner: str) -> int:
    packet = BODY | {"ownerUserID": owner}
    return app.test_client().post(CALLBACK_URL, json=packet).status_code


def owners(app: Flask) -> set[str]:
    return {row["owner_id"] for row in rows(app)[1]}


class Hosts:
    """The ways in which the database of an app fails."""

    def __init__(self, url: URL, proxy: faults.Proxy) -> None:
        self._url = url
        self._proxy = proxy

    def locked(self) -> AbstractContextManager[object]:
        """Another program locks the table."""
        return faults.locked(self._url)

    def away(self) -> AbstractContextManager[object]:
        """The network delivers nothing."""
        return self._proxy.holding()

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """The table is missing."""
        self._execute("ALTER TABLE imcallback_delivery RENAME TO elsewhere")
        yield
        self._execute("ALTER TABLE elsewhere RENAME TO imcallback_delivery")

    def _execute(self, statement: str) -> None:
        ask(self._url, statement)


@pytest.fixture
def hosts(
    database_servers: dict[str, servers.Server],
) -> Iterator[tuple[Hosts, URL]]:
    with (
        servers.database(database_servers["postgresql"]) as url,
        faults.proxy(url.port or 0) as proxy,
    ):
        yield Hosts(url, proxy), url.set(port=proxy.port)


def make_app_with_spool(make_app: MakeApp, url: URL, folder: Path) -> tuple[Flask, Path]:
    """Return an app with a short deadline, and the path of its spool."""
    spool = folder / "spool" / "imcallback_spool.db"
    settings: dict[str, Any] = {"IMCALLBACK_SPOOL": str(spool), "IMCALLBACK_DEADLINE": 0.4}
    return make_app(url, IMCALLBACK_SECRETS=[SECRET], **settings), spool


@pytest.mark.parametrize("database_fault", ["locked", "away", "refusing"])
@pytest.mark.parametrize("spool_fault", SPOOLS)
def test_when_the_database_is_back_the_next_callback_is_stored(
    spool_fault: str,
    database_fault: str,
    hosts: tuple[Hosts, URL],
    tmp_path: Path,
    make_app: MakeApp,
) -> None:
    """While both fail, callbacks get 503. Afterwards no process still believes in the fault."""
    faulty, url = hosts
    app, spool = make_app_with_spool(make_app, url, tmp_path)
    assert post(app, "before") == 200
    with SPOOLS[spool_fault](spool):
        with getattr(faulty, database_fault)():
            assert [post(app, "lost") for _ in range(2)] == [503, 503]
        assert post(app, "after") == 200
        assert owners(app) >= {"before", "after"}
        with pytest.raises(StorageError, match="cannot write the spool"):
            spool_of(app).check_writable()


@pytest.mark.parametrize("database_fault", ["locked", "away", "refusing"])
@pytest.mark.parametrize("spool_fault", SPOOLS)
def test_when_the_spool_is_back_the_next_callback_waits_in_it(
    spool_fault: str,
    database_fault: str,
    hosts: tuple[Hosts, URL],
    tmp_path: Path,
    make_app: MakeApp,
) -> None:
    """The database is still away. The callback waits, and is stored when the database is back."""
    faulty, url = hosts
    app, spool = make_app_with_spool(make_app, url, tmp_path)
    with getattr(faulty, database_fault)():
        with SPOOLS[spool_fault](spool):
            assert [post(app, "lost") for _ in range(2)] == [503, 503]
        assert [post(app, f"after{number}") for number in range(2)] == [200, 200]
    wait_until(lambda: owners(app) >= {"after0", "after1"})


@pytest.mark.slow
@pytest.mark.parametrize("spool_fault", SPOOLS)
def test_a_broken_spool_is_no_server_error(
    spool_fault: str, tmp_path: Path, make_app: MakeApp
) -> None:
    """Health, status, page, `spool --drain` and `doctor` name the problem, without a traceback."""
    spool = tmp_path / "spool" / "imcallback_spool.db"
    app = make_app(
        IMCALLBACK_SPOOL=str(spool),
        IMCALLBACK_SECRETS=[SECRET],
        IMCALLBACK_HISTORY_TOKENS=["a-long-random-token"],
    )
    run = app.test_cli_runner().invoke
    headers = {"Authorization": "Bearer a-long-random-token"}
    with SPOOLS[spool_fault](spool):
        assert post(app, "direct") == 200
        get = app.test_client().get
        assert get("/imcallback/health").status_code in (200, 503)
        assert get("/imcallback/", headers=headers).status_code == 200
        for command in (["status"], ["spool"], ["spool", "--drain"], ["doctor"]):
            result = run(args=["imcallback", *command])
            assert result.exception is None or isinstance(result.exception, SystemExit), command
    assert owners(app) == {"direct"}


def test_looking_creates_no_file(tmp_path: Path, make_app: MakeApp) -> None:
    """Health, page, status, spool and doctor leave the folder of the spool as it was."""
    folder = tmp_path / "spool"
    folder.mkdir()
    app = make_app(
        IMCALLBACK_SPOOL=str(folder / "imcallback_spool.db"),
        IMCALLBACK_SECRETS=[SECRET],
        IMCALLBACK_HISTORY_TOKENS=["a-long-random-token"],
    )
    app.test_client().get("/imcallback/health")
    with app.app_context():
        spool_of(app).check_writable()
        assert spool_of(app).waiting().count == 0
        assert spool_of(app).list_set_aside() == []
    for command in (["status"], ["spool"]):
        app.test_cli_runner().invoke(args=["imcallback", *command])
    assert list(folder.iterdir()) == []


CHECK_ON_A_FULL_DISK = """
import sys
from pathlib import Path
from flask_imcallback import StorageError
from flask_imcallback.storage.spool import Spool

spool = Spool(Path(sys.argv[1], "spool.db"), lambda: "")
spool.check_writable()
with suppress(OSError), open(Path(sys.argv[1], "filling"), "wb", buffering=0) as file:
    while file.write(bytes(4096)):
        pass
try:
    spool.check_writable()
except StorageError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_full_disk_is_found_before_the_spool_is_needed(tmp_path: Path) -> None:
    """The check writes to the disk, and leaves nothing behind."""
    disk = tmp_path / "disk"
    disk.mkdir()
    code = "from contextlib import suppress" + CHECK_ON_A_FULL_DISK
    command = [*faults.small_disk(disk, 1), sys.executable, "-c", code, str(disk)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    spool = disk / "spool.db"
    assert result.stdout.startswith(f"cannot write the spool {spool} (OSError: [Errno 28] No space")
