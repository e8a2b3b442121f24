"""The code of README and docs runs: Python, `flask imcallback …`, curl and settings.

`providers.md`, `galera.md` and `export.md` have tests of their own.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import re
import shlex
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from werkzeug.serving import WSGIRequestHandler, make_server

from flask_imcallback import ImCallback, upgrade
from flask_imcallback.removals import Status
from flask_imcallback.runtime import get_runtime
from support import ROOT
from support.apps import close_connections, join
from support.deliveries import ANONYMOUS, record
from support.lost import line_of
from support.translations import SUFFIX

PAGES = {
    page.name: page.read_text("utf-8")
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md")]
    if not page.name.endswith(SUFFIX)  # test_docs_chinese.py compares their code
}
PAGES_WITH_OWN_TESTS = {"providers.md", "galera.md", "export.md"}
SETTINGS = {
    "FLASK_SECRET_KEY": "a secret key of the tests",
    "FLASK_IMCALLBACK_TENCENT_APPS": '{"1400000000": ["the token"]}',
    "FLASK_IMCALLBACK_SECRETS": '["a-secret-path-segment"]',
    "FLASK_IMCALLBACK_HISTORY_TOKENS": '["a-token-for-readers"]',
}
APP_NAME = "app_of_the_docs"
"""No module has this name, so the instance folder is in the working directory."""
SERVER_URL = re.compile(r"https://your\.host|http://127\.0\.0\.1:8000")
"""The URLs of the server in the pages."""


def blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of a page in a language."""
    return re.findall(rf"^ *```{language}\n(.*?)^ *```$", PAGES[page], re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """Return the words of each command after a `$`. Continued lines are joined."""
    lines = re.findall(r"^ *\$ (.+)$", text.replace("\\\n", " "), re.MULTILINE)
    return [shlex.split(line) for line in lines]


def pages_with(language: str, pattern: str = "") -> list[str]:
    """Return the names of the pages that have a matching code block in a language."""
    return [page for page in PAGES if any(re.search(pattern, b) for b in blocks(page, language))]


class SilentHandler(WSGIRequestHandler):
    def log(self, *_: Any) -> None:
        """Log nothing."""


class LiveApp:
    """An app on a real socket, with two removals of alice and one of carol.

    It also has an unreadable delivery, and a log with a lost callback.
    """

    def __init__(self) -> None:
        self.apps: list[Flask] = []
        self.app = Flask(APP_NAME)
        self.app.config.from_prefixed_env()
        self.imcallback = ImCallback(self.app)
        self.migrate(self.app)
        self.server = make_server(
            "127.0.0.1", 0, self.app, threaded=True, request_handler=SilentHandler
        )
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), name="docs-server").start()
        for command, *options in (
            ("Sns.CallbackFriendDelete", "--target", "bob", "--target", "dave"),
            ("callbackAfterRemoveBlackCommand", "--owner", "carol"),
        ):
            self.run("send", command, *options)
        unreadable = replace(ANONYMOUS, removals=(), status=Status.UNREADABLE)
        record(self.app, unreadable)
        Path("app.log").write_text(line_of(self.app, unreadable))

    def migrate(self, app: Flask) -> None:
        """Create the tables of an app, and remember it for `close`."""
        assert Path(app.instance_path).is_relative_to(Path.cwd())
        self.apps.append(app)
        with app.app_context():
            upgrade()

    def run(self, name: str, *arguments: str) -> str:
        """Run `flask imcallback …` against this server, and return its output."""
        words = [SERVER_URL.sub(self.url, argument) for argument in arguments]
        if name == "send" and "--url" not in words:
            words += ["--url", f"{self.url}/imcallback"]
        if name == "doctor":
            words += ["--idle", "0"]
        result = self.app.test_cli_runner().invoke(args=["imcallback", name, *words])
        assert result.exit_code == 0, result.output
        return result.output

    def close(self) -> None:
        """Stop the server and close all connections."""
        self.server.shutdown()
        self.server.server_close()
        join("docs-server", "imcallback-drain", "imcallback-health")
        for app in self.apps:
            close_connections(app)


@pytest.fixture
def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveApp]:
    """Serve an app from an empty folder, with the settings of the pages."""
    monkeypatch.chdir(tmp_path)
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    with contextlib.closing(LiveApp()) as live_app:
        yield live_app


@pytest.mark.parametrize("page", sorted({*pages_with("python")} - PAGES_WITH_OWN_TESTS))
def test_python_code_of_a_page_runs(page: str, live: LiveApp) -> None:
    """The Python blocks of a page run in order, as one program."""
    names: dict[str, Any] = {"__name__": APP_NAME, "app": live.app, "imcallback": live.imcallback}
    for code in blocks(page, "python"):
        exec(compile(SERVER_URL.sub(live.url, code), page, "exec"), names)
        if names["app"] not in live.apps:
            live.migrate(names["app"])
        if page == "following.md":
            assert (len(names["removals"]), names["new"]) == (3, [])
    if "removals_recorded" in names:
        assert "alice removed bob" in live.run("send", "Sns.CallbackFriendDelete")


@pytest.mark.parametrize("page", pages_with("console", r"flask imcallback|curl"))
def test_commands_of_a_page_succeed(page: str, live: LiveApp) -> None:
    """Each `flask` and `curl` command of a page succeeds."""
    for command in [c for text in blocks(page, "console") for c in commands(text)]:
        match command:
            case ["flask", "imcallback", "follow", *_]:
                pass  # it has no end
            case ["flask", "imcallback", *arguments]:
                live.run(*arguments)
            case ["flask", "db", "upgrade"]:
                assert live.app.test_cli_runner().invoke(args=command[1:]).exit_code == 0
            case ["curl", *arguments]:
                get(live, arguments)


@pytest.mark.parametrize("provider", ["tencent", "openim"])
def test_the_page_of_a_provider_shows_the_real_output(provider: str, live: LiveApp) -> None:
    """The page shows what `doctor` prints, and the reasons that `status` shows."""
    (output,) = blocks(f"{provider}.md", "text")
    assert output in live.run("doctor", "--url", f"{live.url}/imcallback")
    rows = re.findall(r"^\| `([^`]+ [^`]+)` \|", PAGES[f"{provider}.md"], re.MULTILINE)
    module = importlib.import_module(f"flask_imcallback.providers.{provider}")
    reasons = re.findall(r'VerificationError\(\s*"([^"]+)"', inspect.getsource(module))
    assert len(rows) > 2
    assert set(rows) - set(reasons) == set()


def get(live: LiveApp, arguments: list[str]) -> None:
    """Send the request that curl would send, and check that it succeeds."""
    (url,) = [argument for argument in arguments if SERVER_URL.match(argument)]
    headers = dict(value.split(": ") for option, value in pairwise(arguments) if option == "-H")
    response = live.app.test_client().get(SERVER_URL.sub("", url), headers=headers)
    assert response.status_code == 200, response.text


EXPORTS = [
    pytest.param(text, id=f"{page}-{number}")
    for page in PAGES
    for number, text in enumerate(blocks(page, "console"))
    if "export FLASK_IMCALLBACK" in text
]


@pytest.mark.parametrize("text", EXPORTS)
def test_settings_of_a_page_start_an_app(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An app starts with the settings of one block, and a provider is on."""
    for name in [name for name in os.environ if name.startswith("FLASK_")]:
        monkeypatch.delenv(name)
    exports = [command[1] for command in commands(text) if command[0] == "export"]
    for name, value in (export.split("=", 1) for export in exports):
        monkeypatch.setenv(name, value)
    app = Flask(APP_NAME, instance_path=str(tmp_path))
    app.config.from_prefixed_env()
    ImCallback(app)
    with app.app_context():
        assert any(provider.is_enabled for provider in get_runtime().providers.values())
