"""What this system lacks for `make run` and `make test`.

Old Pythons without packages run this file: `python3 -I tests/support/prerequisites.py`. With the
argument `test`, it also names what only the tests need. Each problem names its remedy.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec

PRIVATE_MOUNTS = ("unshare", "--user", "--map-current-user", "--keep-caps", "--mount")
"""The start of a command that can mount disks for itself. No root is needed."""

PROGRAMS = {"git": "git", "unshare": "util-linux", "setpriv": "util-linux"}
"""Programs that the tests start, and their packages. `servers` and `browsers` obtain the others."""


def missing_for_run() -> list[str]:
    """Return what keeps `make` from creating a virtual environment."""
    if sys.version_info < (3, 11):  # noqa: UP036
        version = ".".join(map(str, sys.version_info[:3]))
        return [
            f"Python 3.11 or newer is needed, but {sys.executable} is {version}. "
            "Install a newer Python and name it, for example: make run PYTHON=python3.13"
        ]
    # Without `ensurepip`, `python3 -m venv` writes nine lines and leaves a broken folder.
    if not (find_spec("venv") and find_spec("ensurepip")):
        return [
            f"{sys.executable} cannot create virtual environments. "
            "Debian and Ubuntu: apt install python3-venv"
        ]
    return []


def missing_for_tests() -> list[str]:
    """Return what the tests need from the system, and do not find."""
    if sys.platform != "linux":
        return ["make test needs Linux. On other systems, use make check."]
    packages = {package for name, package in PROGRAMS.items() if not shutil.which(name)}
    if packages:
        names = " ".join(sorted(packages))
        return [f"Programs are missing. Debian and Ubuntu: apt install {names}"]
    return []


def mount_problem() -> str:
    """Return why no small disk can be mounted for tests, or an empty text."""
    command = [*PRIVATE_MOUNTS, "mount", "-t", "tmpfs", "tmpfs", "/tmp"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode == 0:
        return ""
    return (
        f"Tests with a full disk need user namespaces, and fail without them "
        f"({done.stderr.strip()}). As root: sysctl user.max_user_namespaces=10000. Ubuntu: also "
        "kernel.apparmor_restrict_unprivileged_userns=0. Docker: run the container with "
        "--security-opt seccomp=unconfined --security-opt apparmor=unconfined"
    )


def main() -> int:
    """Print what is missing. The status is 1 if nothing can run without it."""
    is_test = "test" in sys.argv[1:]
    missing = missing_for_run() or (missing_for_tests() if is_test else [])
    warnings = [mount_problem()] if is_test and not missing else []
    for problem in filter(None, missing + warnings):
        print(problem, file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
