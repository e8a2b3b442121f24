"""The example app as a demo, started in an empty folder."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

from support import ROOT


def test_the_demo_keeps_its_secrets_private(tmp_path: Path) -> None:
    """The first start creates the secrets. Other users of the machine cannot read them."""
    shutil.copy(ROOT / "example_app.py", tmp_path)
    env = {name: value for name, value in os.environ.items() if not name.startswith("FLASK_")}
    command = [sys.executable, "-c", "import os; os.umask(0o022); import example_app"]
    contents = []
    for _ in range(2):
        subprocess.run(command, cwd=tmp_path, env=env, check=True)
        file = tmp_path / "instance/demo.json"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        contents.append(json.loads(file.read_text()))
    assert contents[0] == contents[1]
    assert contents[0].keys() == {"secret", "token", "secret_key"}
