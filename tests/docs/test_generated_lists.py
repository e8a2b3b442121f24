"""The lists of settings and commands in the pages are as the code is."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT

pytestmark = pytest.mark.slow


def check(script: Path) -> subprocess.CompletedProcess[str]:
    """Run `python docs/generated.py --check`."""
    command = [sys.executable, str(script), "--check"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_lists_are_as_the_code_is() -> None:
    """`make reference` would change nothing."""
    done = check(ROOT / "docs/generated.py")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["settings.md", "command-line.md"])
def test_a_list_that_differs_is_found(name: str, tmp_path: Path) -> None:
    """The message names the page and the remedy."""
    for file in ("generated.py", "settings.md", "command-line.md"):
        shutil.copy(ROOT / "docs" / file, tmp_path)
    page = tmp_path / name
    page.write_text(page.read_text("utf-8").replace("\n<!-- end -->", "another line\n<!-- end -->"))
    done = check(tmp_path / "generated.py")
    assert done.returncode == 1
    assert done.stderr == f"docs/{name} is not as the code is: run `make reference`\n"
