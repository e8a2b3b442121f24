"""README and example are correct and short."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from flask_imcallback.providers import PROVIDERS
from support import ROOT

README = (ROOT / "README.md").read_text("utf-8")


def test_readme_lists_every_command() -> None:
    """README has a row for each recorded command, with its relation."""
    recorded = {c: r for provider in PROVIDERS for c, r in provider.commands.items()}
    for command, relation in recorded.items():
        assert re.search(rf"^\| `\w+` \| `{command}` \| `{relation}` \|", README, re.MULTILINE)


def test_readme_fits_on_two_screens() -> None:
    """README has at most 110 lines, and leaves the settings to their own page."""
    assert len(README.splitlines()) <= 110
    assert "docs/settings.md" in README
    assert "| `IMCALLBACK_" not in README


@pytest.mark.slow
def test_the_printed_commands_record_and_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The four callbacks that `make run` prints are recorded, and its last command lists them."""
    script = """
import example_app, flask_imcallback
with example_app.app.app_context():
    flask_imcallback.upgrade()
example_app.print_commands()
"""
    (tmp_path / "example_app.py").write_text((ROOT / "example_app.py").read_text())
    printed = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout
    commands = [shlex.split(line) for line in printed.splitlines() if line]
    assert [command[0] for command in commands] == ["curl"] * 5

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "example_app", raising=False)
    import example_app

    client = example_app.app.test_client()
    for _, url, flag, body in commands[:4]:
        assert flag == "-d"
        content_type = "application/x-www-form-urlencoded"  # curl sends this type
        assert client.post(url, data=body, content_type=content_type).status_code == 200
    _, url, flag, header = commands[4]
    assert flag == "-H"
    name, _, value = header.partition(": ")
    removals = client.get(url, headers={name: value}).get_json()["data"]
    assert [(r["provider"], r["relation"], r["owner_id"], r["target_id"]) for r in removals] == [
        ("openim", "friend", "user123", "user456"),
        ("openim", "blacklist", "user123", "user456"),
        *(("tencent", "friend", "id", target) for target in ("id3", "id2", "id1")),
        *(("tencent", "blacklist", "id", target) for target in ("id3", "id2", "id1")),
    ]
    with example_app.app.app_context():
        for engine in example_app.app.extensions["sqlalchemy"].engines.values():
            engine.dispose()
