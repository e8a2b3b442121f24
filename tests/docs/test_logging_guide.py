"""The logging configuration of the deployment page."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from support import ROOT

# The block is marked as "py", because other tests would run "python" blocks in this process.
(CODE,) = re.findall(
    r"^```py\n(.*?)^```$",
    (ROOT / "docs/deployment.md").read_text("utf-8"),
    re.MULTILINE | re.DOTALL,
)
APP = """
import logging
from flask import Flask
from flask_imcallback import ImCallback
logging.getLogger("flask_imcallback")
{code}
ImCallback(Flask("host"))
"""


@pytest.mark.slow
def test_the_configuration_shows_time_and_level() -> None:
    """A warning of the extension becomes one line, although its logger existed before."""
    code = APP.format(code=CODE)
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    line = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} WARNING flask_imcallback: No provider is enabled,"
    assert re.match(line, result.stderr), result.stderr
    assert len(result.stderr.splitlines()) == 1
