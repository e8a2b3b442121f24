"""The style sheets and scripts of the pages. A URL changes with the content of its file."""

from __future__ import annotations

import hashlib
from pathlib import Path

STATIC = Path(__file__).parent / "static"
MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript"}


def _hash_file(name: str) -> str:
    return hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:8]


URL_PATHS = {
    "bootstrap.min.css": "bootstrap-5.3.8/bootstrap.min.css",
    "uPlot.min.css": "uplot-1.6.32/uPlot.min.css",
    "uPlot.iife.min.js": "uplot-1.6.32/uPlot.iife.min.js",
    **{name: f"{_hash_file(name)}/{name}" for name in ("page.css", "page.js")},
}
"""The end of the URL of each file. It contains the version of the file or a hash of its content."""
FILES = {
    url_path: STATIC / (name if name.startswith("page.") else f"vendor/{url_path}")
    for name, url_path in URL_PATHS.items()
}
