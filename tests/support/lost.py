"""Apps that lose callbacks, and logs that hold the lost callbacks."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flask import Flask

from flask_imcallback.runtime import get_runtime
from flask_imcallback.storage.entries import Delivery
from support.apps import MakeApp
from support.callbacks import SECRET

MARK = "flask_imcallback_lost"


def losing_app(make_app: MakeApp, **settings: Any) -> Flask:
    """Return an app that can store nothing until its tables are created."""
    settings = {"IMCALLBACK_SECRETS": [SECRET], "IMCALLBACK_SPOOL": None} | settings
    return make_app(settings.pop("url", None), migrate=False, **settings)


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the lines of lost callbacks in the log, in order."""
    return [line for line in caplog.messages if line.startswith(f'{{"{MARK}"')]


def line_of(app: Flask, delivery: Delivery) -> str:
    """Return the line that the app would log for a delivery."""
    with app.app_context():
        runtime = get_runtime()
        return runtime.lost_callbacks.encode(runtime.recorder.make_entry(delivery), "a problem")


def docker(text: str, size: int = 16 * 1024) -> str:
    """Return a line as Docker writes it into its log file, in parts of 16 KiB."""
    text += "\n"
    parts = [text[start : start + size] for start in range(0, len(text), size)]
    return "".join(
        json.dumps({"log": part, "stream": "stderr", "time": "2026-11-20T18:05:00.1Z"}) + "\n"
        for part in parts
    )


def kubernetes(text: str, size: int = 16 * 1024) -> str:
    """Return a line as Kubernetes writes it into its log file, in parts of 16 KiB."""
    parts = [text[start : start + size] for start in range(0, len(text), size)]
    flags = ["P"] * (len(parts) - 1) + ["F"]
    return "".join(
        f"2026-11-20T18:05:00.123456789Z stderr {flag} {part}\n"
        for flag, part in zip(flags, parts, strict=True)
    )


def journal(text: str) -> str:
    """Return a line as `journalctl -o json` prints it."""
    return json.dumps({"_PID": "42", "MESSAGE": text, "PRIORITY": "3"}) + "\n"


def json_logger(text: str) -> str:
    """Return a line as a logger with a JSON formatter writes it."""
    return json.dumps({"time": "18:05", "level": "ERROR", "message": text})
