"""The space on a disk. SQLite notices a full disk only when a transaction is committed."""

from __future__ import annotations

import os
import shutil

MIN_FREE_BYTES = 1024 * 1024


def is_disk_full(path: str) -> bool:
    """Return True if the disk of a file has almost no free space. The file need not exist."""
    while not os.path.lexists(path):
        path = os.path.dirname(path) or "."
    try:
        return shutil.disk_usage(path).free < MIN_FREE_BYTES
    except OSError:
        return False
