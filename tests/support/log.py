"""A numbered and sealed log for tests, and the commands that check it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from click.testing import Result
from flask import Flask

from flask_imcallback.log import Report, Seal, SecretKey, verifier
from flask_imcallback.runtime import get_runtime

SECRET = SecretKey.from_seed("example.com/log", b"the secret seed of all the tests")
"""The key of the apps in tests."""


def number() -> None:
    """Give each stored entry of the current app its log position."""
    get_runtime().sequencer.catch_up(30)


def seal() -> list[Seal]:
    """Number and seal all stored entries of the current app."""
    return get_runtime().seal_log()


def run(app: Flask, *arguments: str | Path) -> Result:
    """Run `flask imcallback`."""
    words = ["imcallback", *map(str, arguments)]
    result = app.test_cli_runner().invoke(args=words)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def write_evidence(app: Flask, file: Path, *options: str) -> Path:
    """Write the evidence of the app to a file."""
    result = run(app, "evidence", file, *options)
    assert result.exit_code == 0, result.output
    return file


def check(file: Path, *kept: str, key: verifier.Key | None = None) -> Report:
    """Verify an evidence file with the texts of kept checkpoints."""
    checkpoints = [verifier.read_checkpoint(note, key) for note in kept]
    return verifier.verify_file(str(file), checkpoints, key)


def problems(file: Path, *kept: str, **options: Any) -> str:
    """Return what the verifier finds in an evidence file, as one text."""
    return "\n".join(check(file, *kept, **options).problems)
