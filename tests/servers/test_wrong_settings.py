"""A wrong setting, and what each command and server prints about it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import URL

from support.servers import free_port
from support.serving import environment
from support.wsgi_servers import GUNICORN, UWSGI, WsgiServer, python_path

pytestmark = pytest.mark.slow

PROBLEM = (
    'IMCALLBACK_SECRETS must be a list of non-empty strings, such as ["16 or more letters and '
    'digits"], not a text of 19 characters: this is not JSON: use double quotes'
)


def run(command: str, folder: Path, url: URL) -> tuple[int, str]:
    """Run a command with single quotes in a setting. Return its exit status and its output."""
    words = WsgiServer(name="wrong", command=command).command_for_tests(free_port())
    env = environment(folder, url) | python_path()
    env |= {"FLASK_IMCALLBACK_SECRETS": "['single-quotes-1']", "FLASK_APP": "example_app"}
    result = subprocess.run(
        words, cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    return result.returncode, result.stdout + result.stderr


@pytest.mark.parametrize(
    "command",
    [
        "flask db upgrade",
        "flask imcallback status",
        "flask run --port 8000",
        "flask --debug run --port 8000",
        f"{GUNICORN} app:app",
        f"{GUNICORN} --worker-class gevent app:app",
    ],
)
def test_a_wrong_setting_is_one_line(command: str, sqlite_url: URL, tmp_path: Path) -> None:
    """The line is complete, and there is no traceback."""
    status, output = run(command, tmp_path, sqlite_url)
    assert status == (1 if "gunicorn" in command else 2)
    assert output.strip() == f"Error: {PROBLEM}"


@pytest.mark.parametrize(
    "command",
    [
        "gunicorn app:app",
        "waitress-serve --listen 127.0.0.1:8000 app:app",
        f"{UWSGI} --http-socket 127.0.0.1:8000 --threads 2",
        # Before Flask 3.1.1, `flask --help` does not load the app of FLASK_APP.
        "flask --app example_app --help",
    ],
    ids=lambda command: command.partition(" ")[0],
)
def test_a_traceback_ends_with_the_whole_problem(
    command: str, sqlite_url: URL, tmp_path: Path
) -> None:
    """Other servers print a traceback. It shows no line of the extension behind `init_app`."""
    _, output = run(command, tmp_path, sqlite_url)
    line = rf"^flask_imcallback\.errors\.ConfigError: {re.escape(PROBLEM)}$"
    assert re.search(line, output, re.MULTILINE), output
    assert output.count("Traceback") == 1
    assert "in init_app" in output
    assert "in build_runtime" not in output


def test_the_example_app_names_a_wrong_setting(sqlite_url: URL, tmp_path: Path) -> None:
    """`python example_app.py` prints one line, and no curl command before it."""
    script = python_path()["PYTHONPATH"].partition(":")[0] + "/example_app.py"
    env = environment(tmp_path, sqlite_url) | {"FLASK_IMCALLBACK_SECRETS": "['single-quotes-1']"}
    result = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"Error: {PROBLEM}\n"
