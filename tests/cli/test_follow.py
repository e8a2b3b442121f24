"""`flask imcallback follow`: it prints the feed until it is stopped."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import pytest
from sqlalchemy import URL

from support import ROOT, servers
from support.apps import MakeApp
from support.deliveries import store
from support.serving import environment

COMMAND = [sys.executable, "-m", "flask", "--app", "example_app", "imcallback", "follow"]


@contextmanager
def following(
    url: URL, folder: Path, *options: str
) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """Run the command on a database. Gives the process and its output."""
    with (folder / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            [*COMMAND, *options],
            cwd=ROOT,
            env=environment(folder, url),
            text=True,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
    try:
        yield process, cast("IO[str]", process.stdout)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def url(tmp_path: Path) -> URL:
    return URL.create("sqlite", database=str(tmp_path / "test.db"))


@pytest.mark.slow
def test_new_removals_are_printed_until_ctrl_c(url: URL, make_app: MakeApp, tmp_path: Path) -> None:
    """Each line is a removal with its log position. Ctrl-C ends the command quickly."""
    with make_app(url).app_context():
        store(("a", "1"), ("a", "2"))
        with following(url, tmp_path, "--owner-id", "a") as (process, lines):
            first = [json.loads(lines.readline()) for _ in range(2)]
            store(("b", "3"))
            store(("a", "4"))
            began = time.monotonic()
            last = json.loads(lines.readline())
            assert time.monotonic() - began < 3
            process.send_signal(signal.SIGINT)
            assert process.wait(3) == 130
            assert lines.read() == ""
    assert [row["target_id"] for row in [*first, last]] == ["1", "2", "4"]
    assert [row["log_position"] for row in [*first, last]] == [1, 1, 3]
    assert (tmp_path / "stderr").read_text() == ""


@pytest.mark.slow
def test_following_continues_after_a_position(url: URL, make_app: MakeApp, tmp_path: Path) -> None:
    """The lines are CloudEvents, on request. A reader that ends stops the command."""
    with make_app(url).app_context():
        for number in range(5):
            store(("ä", str(number)), platform="iOS")
    with following(url, tmp_path, "--after", "3", "--format", "cloudevents") as (process, lines):
        events = [json.loads(lines.readline()) for _ in range(2)]
        lines.close()
        with make_app(url).app_context():
            store(("x", "y"))
        assert process.wait(10) != 0
        process.stdout = None
    assert [event.pop("data")["target_id"] for event in events] == ["3", "4"]
    assert [event.pop("sequence") for event in events] == ["4", "5"]
    ids = [event.pop("id") for event in events]
    assert all(id.isdigit() for id in ids)
    assert ids[0] != ids[1]
    assert [event.pop("time")[:20] for event in events] == ["2026-11-20T18:05:00."] * 2
    assert (
        events
        == [
            {
                "specversion": "1.0",
                "source": "urn:imcallback",
                "type": "imcallback.friend.removed",
                "subject": "ä",
                "datacontenttype": "application/json",
            }
        ]
        * 2
    )


@pytest.mark.slow
@pytest.mark.servers
def test_following_survives_a_restart_of_the_database(make_app: MakeApp, tmp_path: Path) -> None:
    """The command says that it waits, and continues where it was."""
    with servers.postgresql(durable=True) as server, servers.database(server) as url:
        app = make_app(url)
        with following(url, tmp_path) as (_, lines), app.app_context():
            store(("a", "1"))
            assert json.loads(lines.readline())["target_id"] == "1"
            assert server.node is not None
            server.node.shut_down()
            time.sleep(3)
            server.node.start()
            store(("a", "2"))
            assert json.loads(lines.readline())["target_id"] == "2"
    message = (tmp_path / "stderr").read_text()
    assert message.startswith("cannot read the feed (")
    assert message.endswith("Trying again until the database answers.\n")
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--after", "x"], "Invalid value for --after: must be a whole number, not 'x'"),
        (["--limit", "5"], "No such option"),
        (["--relation", "x"], "Invalid value for --relation: must be friend, blacklist, follow or"),
        (["--format", "csv"], "Invalid value for '--format': 'csv' is not one of"),
    ],
)
def test_a_wrong_option_is_named(make_app: MakeApp, options: list[str], message: str) -> None:
    """The command ends with status 2 and the name of the option."""
    result = make_app().test_cli_runner().invoke(args=["imcallback", "follow", *options])
    assert result.exit_code == 2
    assert message in result.output
