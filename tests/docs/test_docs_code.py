"""The code of README and docs is run: Python, `flask imcallback …`, curl and settings.

`providers.md` and `galera.md` have tests of their own.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from werkzeug.serving import WSGIRequestHandler, make_server

from flask_imcallback import ImCallback, upgrade
from flask_imcallback.runtime import get_runtime
from support import ROOT
from support.apps import join

PAGES = {
    page.name: page.read_text("utf-8") for page in [ROOT / "README.md", *ROOT.glob("docs/*.md")]
}
GUIDES = ("providers.md", "galera.md")
SETTINGS = {
    "FLASK_SECRET_KEY": "a secret key of the tests",
    "FLASK_IMCALLBACK_TENCENT_APPS": '{"1400000000": ["the token"]}',
    "FLASK_IMCALLBACK_SECRETS": '["a-secret-path-segment"]',
    "FLASK_IMCALLBACK_HISTORY_TOKENS": '["a-token-for-readers"]',
}
NAME = "app_of_the_docs"
"""No module has it, so that the instance folder is in the working directory."""
HERE = re.compile(r"https://your\.host|http://127\.0\.0\.1:8000")
"""What the pages call the server."""


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```$", PAGES[page], re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """What stands behind each `$`, continued lines joined."""
    lines = re.findall(r"^ *\$ (.+)$", text.replace("\\\n", " "), re.MULTILINE)
    return [shlex.split(line) for line in lines]


def pages_with(language: str, pattern: str = "") -> list[str]:
    return [page for page in PAGES if any(re.search(pattern, b) for b in blocks(page, language))]


class Quiet(WSGIRequestHandler):
    def log(self, *_: Any) -> None:
        """Nothing."""


class Live:
    """An app that is served, with two removals of alice and one of carol."""

    def __init__(self) -> None:
        self.apps: list[Flask] = []
        self.app = Flask(NAME)
        self.app.config.from_prefixed_env()
        self.imcallback = ImCallback(self.app)
        self.migrate(self.app)
        self.server = make_server("127.0.0.1", 0, self.app, threaded=True, request_handler=Quiet)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), name="docs-server").start()
        for command, *options in (
            ("Sns.CallbackFriendDelete", "--target", "bob", "--target", "dave"),
            ("callbackAfterRemoveBlackCommand", "--owner", "carol"),
        ):
            self.run("send", command, *options)

    def migrate(self, app: Flask) -> None:
        assert Path(app.instance_path).is_relative_to(Path.cwd())
        self.apps.append(app)
        with app.app_context():
            upgrade()

    def run(self, name: str, *arguments: str) -> str:
        """Run `flask imcallback …` against this server."""
        given = [HERE.sub(self.url, argument) for argument in arguments]
        if name == "send" and "--url" not in given:
            given += ["--url", f"{self.url}/imcallback"]
        if name == "doctor":
            given += ["--idle", "0"]
        result = self.app.test_cli_runner().invoke(args=["imcallback", name, *given])
        assert result.exit_code == 0, result.output
        return result.output

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        join("docs-server", "imcallback-drain", "imcallback-health", "imcallback-counters")
        for app in self.apps:
            with app.app_context():
                runtime = get_runtime()
                spools = [runtime.drain.spool.engine] if runtime.drain else []
                for engine in [*runtime.database.open().engines.values(), *spools]:
                    engine.dispose()


@pytest.fixture
def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    """In an empty folder, with settings as the pages have them."""
    monkeypatch.chdir(tmp_path)
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    with contextlib.closing(Live()) as made:
        yield made


@pytest.mark.parametrize("page", sorted({*pages_with("python")} - {*GUIDES}))
def test_python(page: str, live: Live) -> None:
    """A page's blocks run one after the other, as one program in an app of its own or ours."""
    names: dict[str, Any] = {"__name__": NAME, "app": live.app, "imcallback": live.imcallback}
    for code in blocks(page, "python"):
        exec(compile(HERE.sub(live.url, code), page, "exec"), names)
        if names["app"] not in live.apps:
            live.migrate(names["app"])
        if page == "following.md":
            assert (len(names["removals"]), names["new"]) == (3, [])
    if "removals_recorded" in names:
        assert "alice removed bob" in live.run("send", "Sns.CallbackFriendDelete")


@pytest.mark.parametrize("page", pages_with("console", r"flask imcallback|curl"))
def test_commands(page: str, live: Live) -> None:
    """Each command that a page shows does not fail."""
    for command in [c for text in blocks(page, "console") for c in commands(text)]:
        match command:
            case ["flask", "imcallback", *arguments]:
                live.run(*arguments)
            case ["flask", "db", "upgrade"]:
                assert live.app.test_cli_runner().invoke(args=command[1:]).exit_code == 0
            case ["curl", *arguments]:
                get(live, arguments)


def get(live: Live, arguments: list[str]) -> None:
    """What curl would ask for, with the headers that it would send."""
    (url,) = [a for a in arguments if HERE.match(a)]
    headers = dict(b.split(": ") for a, b in pairwise(arguments) if a == "-H")
    response = live.app.test_client().get(HERE.sub("", url), headers=headers)
    assert response.status_code == 200, response.text


EXPORTS = [
    pytest.param(text, id=f"{page}-{number}")
    for page in PAGES
    for number, text in enumerate(blocks(page, "console"))
    if "export FLASK_IMCALLBACK" in text
]


@pytest.mark.parametrize("text", EXPORTS)
def test_settings(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An app with just the settings that stand together in a block starts."""
    for name in [name for name in os.environ if name.startswith("FLASK_")]:
        monkeypatch.delenv(name)
    exports = [command[1] for command in commands(text) if command[0] == "export"]
    for name, value in (export.split("=", 1) for export in exports):
        monkeypatch.setenv(name, value)
    app = Flask(NAME, instance_path=str(tmp_path))
    app.config.from_prefixed_env()
    ImCallback(app)
    with app.app_context():
        assert any(provider.is_enabled for provider in get_runtime().providers.values())
