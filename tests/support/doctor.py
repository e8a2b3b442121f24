"""The output of `flask imcallback doctor`, and the rights with which it runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from click.testing import Result
from flask import Flask

from support.callbacks import run_command

NOBODY = 65534


def diagnose(app: Flask, *arguments: str) -> Result:
    """Run `flask imcallback doctor`. A traceback fails the test."""
    result = run_command(app, "doctor", *arguments)
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "The check of" not in result.output, result.output
    return result


def has_finding(result: Result | str, level: str, *lines: str) -> bool:
    """Return whether doctor printed a finding with exactly these lines."""
    block = f"{level:<7} " + "\n        ".join(lines) + "\n"
    return block in (result if isinstance(result, str) else result.output)


@contextmanager
def without_root() -> Iterator[None]:
    """Give up the rights of root in this process, because root may write everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def files_in(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the files and folders below a folder, each with its owner and its mode."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_uid, path.lstat().st_mode)
        for path in sorted(folder.rglob("*"))
        # SQLite removes them when a thread closes the last connection.
        if path.name not in ("test.db-shm", "test.db-wal")
    }
