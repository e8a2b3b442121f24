"""The example app as a demo, started in an empty folder."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from flask_imcallback import PROVIDERS
from support import ROOT
from support.apps import wait_until
from support.servers import free_port

pytestmark = pytest.mark.slow

REMOVALS = [  # newest first
    ("openim", "group", "team", "grace"),
    ("openim", "group", "team", "dave"),
    ("openim", "group", "team", "frank"),
    ("openim", "group", "team", "erin"),
    ("openim", "friend", "dave", "erin"),
    ("openim", "blacklist", "dave", "erin"),
    ("tencent", "group", "@TGS#team", "carol"),
    ("tencent", "group", "@TGS#team", "alice"),
    ("tencent", "group", "@TGS#team", "bob"),
    ("tencent", "follow", "alice", "bob"),
    ("tencent", "friend", "alice", "bob"),
    ("tencent", "blacklist", "alice", "carol"),
    ("tencent", "blacklist", "alice", "bob"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with blanks and Chinese characters, in which the demo starts."""
    path = tmp_path / "a demo \u4e2d\u6587"
    path.mkdir()
    for name in ("example_app.py", "gunicorn.conf.py"):
        shutil.copy(ROOT / name, path)
    return path


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """Return the environment of a user whose home is empty, without settings of Flask."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FLASK_")}
    return {**kept, "HOME": str(folder.parent / "home"), **variables}


@contextmanager
def demo(folder: Path, port: int) -> Iterator[str]:
    """Run the demo until Ctrl-C. Yields what it has printed."""
    command = [sys.executable, "example_app.py"]
    env = environment(folder, PORT=str(port))
    log = folder.parent / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=env, stdout=output, stderr=output, start_new_session=True
        )
    try:
        wait_until(lambda: process.poll() is not None or "Booting worker" in log.read_text())
        yield log.read_text()
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(30) == 0, log.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def send(curl: str) -> tuple[int, str]:
    """Send the request of a curl command as curl does. Returns the status and the body."""
    program, *options, url = [part for part in shlex.split(curl) if part != "-w"][:3]
    assert (program, options) == ("curl", [r"\n%{stderr}HTTP %{http_code}\n"])
    flag, value = shlex.split(curl)[-2:]
    target = urlsplit(url)
    assert target.hostname
    with closing(HTTPConnection(target.hostname, target.port, timeout=30)) as connection:
        path = f"{target.path}?{target.query}"
        if flag == "-d":
            form = {"Content-Type": "application/x-www-form-urlencoded"}  # curl sends this type
            connection.request("POST", path, value, form)
        else:
            name, _, header = value.partition(": ")
            connection.request("GET", path, headers={name: header})
        response = connection.getresponse()
        return response.status, response.read().decode()


def run_printed_command_lines(printed: str, folder: Path) -> None:
    """Run each printed command of the app in another folder, after the printed export line."""
    export, *commands = re.findall(r"^export .*$|^flask imcallback .*$", printed, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        done = subprocess.run(
            ["sh", "-c", f"{export}\n{command}"],
            cwd=folder.parent,
            env=environment(folder),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_demo_keeps_its_secrets_private(folder: Path) -> None:
    """The first start creates the secrets. Other users of the machine cannot read them."""
    command = [sys.executable, "-c", "import os; os.umask(0o022); import example_app"]
    contents = []
    for _ in range(2):
        subprocess.run(command, cwd=folder, env=environment(folder), check=True)
        file = folder / "instance/demo.json"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        contents.append(json.loads(file.read_text()))
    assert contents[0] == contents[1]
    assert contents[0].keys() == {"secret", "token", "secret_key"}


def test_variables_of_a_platform_are_no_settings(folder: Path) -> None:
    """Kubernetes sets variables that look like settings. The demo is still a demo."""
    variables = environment(folder, FLASK_IMCALLBACK_PORT="tcp://10.0.0.1:80")
    command = [sys.executable, "-c", "import example_app; print(example_app.is_demo)"]
    done = subprocess.run(
        command, cwd=folder, env=variables, check=True, capture_output=True, text=True
    )
    assert done.stdout == "True\n"


def test_the_demo_shows_what_to_try(folder: Path) -> None:
    """Each printed command works, a restart keeps the data, and nothing is written elsewhere."""
    port = free_port()
    with demo(folder, port) as printed:
        curls = re.findall(r"^curl .*$", printed, re.MULTILINE)
        commands = [command for provider in PROVIDERS for command in provider.commands]
        assert len(curls) == len(commands) + 1
        for command, curl in zip(commands, curls, strict=False):
            assert command in curl
        for curl in curls:
            assert printed.count(curl) == 1
            status, answer = send(curl)
            assert status == 200, answer
        removals = json.loads(answer)["data"]
        names = ("provider", "relation", "owner_id", "target_id")
        assert [tuple(removal[name] for name in names) for removal in removals] == REMOVALS

        refused = curls[-2].replace("/openim/", "/openim/wrong-")
        assert send(refused)[0] == 403

        (page,) = re.findall(r"^http://demo:(.*)@(.*)/imcallback/$", printed, re.MULTILINE)
        assert page == (
            json.loads((folder / "instance/demo.json").read_text())["token"],
            f"127.0.0.1:{port}",
        )

    with closing(sqlite3.connect(folder / "instance/imcallback.db")) as connection:
        (count,) = connection.execute("SELECT count(*) FROM imcallback_removal").fetchone()
    assert count == len(REMOVALS)
    with demo(folder, port) as printed:
        assert json.loads(send(curls[-1])[1])["data"] == removals
        run_printed_command_lines(printed, folder)
    assert not (folder.parent / "home").exists()
    assert {path.name for path in folder.iterdir()} <= {
        *("example_app.py", "gunicorn.conf.py", "instance", "__pycache__")
    }


@pytest.mark.parametrize(
    ("port", "message"),
    [
        ("abc", "PORT is 'abc': use a number from 1 to 65535, for example PORT=8123\n"),
        ("65536", "PORT is '65536': use a number from 1 to 65535, for example PORT=8123\n"),
        (
            "taken",
            "Port {port} cannot be used (Address already in use). Stop the program that uses the "
            "port, or choose another port: PORT=8123 make run\n",
        ),
    ],
    ids=["no number", "too large", "taken"],
)
def test_a_port_that_cannot_be_used(folder: Path, port: str, message: str) -> None:
    """The demo says so in one sentence, before it prints a command for another program's port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        if port == "taken":
            port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "example_app.py"],
            cwd=folder,
            env=environment(folder, PORT=port),
            capture_output=True,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == message.format(port=port)
