"""`make` names what is missing on a machine, and how to get it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support import ROOT
from support.prerequisites import PRIVATE_MOUNTS

CHECK = [sys.executable, "-I", str(ROOT / "tests/support/prerequisites.py")]


def run(command: list[str], **variables: str) -> tuple[int, str]:
    """Run a command, and return its exit status and its errors."""
    # `make test` tells a make that it starts to print its folder.
    env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")} | variables
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert not done.stdout
    return done.returncode, done.stderr


def test_a_machine_with_everything() -> None:
    """Nothing is printed on the machine that runs these tests."""
    assert run([*CHECK, "test"]) == (0, "")


def test_a_missing_program(tmp_path: Path) -> None:
    """The command that installs all missing programs is printed."""
    assert run([*CHECK, "test"], PATH=str(tmp_path)) == (
        1,
        "Programs are missing. Debian and Ubuntu: apt install git util-linux\n",
    )
    assert run([*CHECK, "run"], PATH=str(tmp_path)) == (0, "")


def test_a_system_without_user_namespaces() -> None:
    """The tests run. A sentence says which tests will fail, and how to change the system."""
    refuse = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    namespace = [PRIVATE_MOUNTS[0], "--user", "--map-root-user", "sh", "-c", refuse, "sh"]
    status, errors = run([*namespace, *CHECK, "test"])
    assert status == 0
    assert errors.startswith("Tests with a full disk need user namespaces, and fail without them (")
    assert "As root: sysctl user.max_user_namespaces=10000." in errors


def test_a_missing_python() -> None:
    """`make run` says which Python is needed, and leaves no virtual environment."""
    status, errors = run(["make", "run", "PYTHON=no-such-python", "VENV=build/no-venv"])
    assert status == 2
    assert errors.startswith(
        "Python 3.11 or newer is missing. Debian and Ubuntu: apt install python3-venv\n"
    )
    assert not (ROOT / "build/no-venv").exists()
