"""Runs `flask` commands in processes that have imported Flask and SQLAlchemy already.

The imports take most of the time of a command. A process of its own imports the packages once and
forks for each command.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from support import ROOT

OUTPUT_FILES = ("out", "err")


@cache
def _start(process_id: int) -> subprocess.Popen[str]:
    """Start the process that forks, once for each process of the tests."""
    return subprocess.Popen(
        [sys.executable, "-m", "support.commands"],
        cwd=ROOT / "tests",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def run_flask(
    arguments: list[str], cwd: Path, env: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run `python -m flask` with arguments. Returns its exit status, output and messages."""
    parent = _start(os.getpid())
    assert parent.stdin
    assert parent.stdout
    with TemporaryDirectory() as folder:
        job = {"arguments": arguments, "cwd": str(cwd), "env": dict(env), "folder": folder}
        print(json.dumps(job), file=parent.stdin, flush=True)
        status = int(parent.stdout.readline())
        out, err = (Path(folder, name).read_text() for name in OUTPUT_FILES)
    return subprocess.CompletedProcess(arguments, status, out, err)


def _serve() -> None:
    """Fork for each job that arrives at stdin, and print the exit status of the command."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _become_command(**json.loads(line))
            return
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _become_command(arguments: list[str], cwd: str, env: dict[str, str], folder: str) -> None:
    from flask.cli import main

    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, name in enumerate(OUTPUT_FILES, 1):
        os.dup2(os.open(Path(folder, name), os.O_WRONLY | os.O_CREAT), descriptor)
    sys.dont_write_bytecode = "PYTHONDONTWRITEBYTECODE" in env
    sys.path[0] = cwd
    sys.argv = ["flask", *arguments]
    main()


if __name__ == "__main__":
    import flask_imcallback  # noqa: F401

    gc.freeze()  # the children do not copy the modules
    _serve()
