"""The acts of readers over HTTP."""

from __future__ import annotations

from typing import Any

from flask import request

from ..log import APP, ActKind, FileActs, token_actor
from ..runtime import get_runtime
from .access import TokenCheck, check_token
from .requests import read_parameters

UNLOGGED_PARAMETERS = ("cursor", "back", "lang")
"""Query parameters that say nothing to a person who reads the acts."""


def file_acts(kind: ActKind) -> FileActs:
    """Return the acts of a file that the current reader downloads."""
    return FileActs(get_runtime().store_act, kind, _current_actor(), _describe_request())


def begin_file(acts: FileActs) -> None:
    """Store who downloads a file. A HEAD response has no file. Raises `StorageError`."""
    if request.method != "HEAD":
        acts.begin()


def log_read(count: int) -> None:
    """Store who reads, if the app wants that. `count` is the number of removals or deliveries.

    Raises `StorageError`.
    """
    if request.method != "HEAD":
        get_runtime().log_read(_current_actor(), count, _describe_request())


def _current_actor() -> str:
    credentials = request.authorization
    if credentials is None or check_token() is not TokenCheck.VALID:
        return APP
    token = credentials.token if credentials.type == "bearer" else credentials.password
    return token_actor(token or "")


def _describe_request() -> dict[str, Any]:
    """Return the path and the filters of the request. Neither has a secret."""
    filters = {
        name: values
        for name, values in read_parameters().items()
        if name not in UNLOGGED_PARAMETERS and any(values)
    }
    return {"path": request.path, "filters": filters}
