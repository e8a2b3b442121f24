"""Makes the pictures of the documentation, always of the same removals: `make screenshots`."""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from support import ROOT, browsers
from support.browsing import PAGE, PHONE, Reader, site
from support.serving import PACKET, PATH

FOLDER = ROOT / "docs/images"
DAYS = 30
SEED = 2
"""One that has no callback with 500 removals, beside which all others look like none."""
UNTIL = datetime(2026, 11, 1, tzinfo=UTC)
TIMES = {"since": f"{UNTIL - timedelta(days=DAYS):%FT%R}", "until": f"{UNTIL:%FT%R}"}
ALL = f"{PAGE}?{urlencode({**TIMES, 'tz': 'UTC', 'lang': 'en'})}"
PICTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "page": (ALL, {"height": 1000}),
    "page-dark": (ALL, {"height": 1000, "color_scheme": "dark"}),
    "page-phone": (ALL, {"height": 1000, "width": PHONE}),
    "removal": (PAGE + "removal/{id}?tz=UTC&lang=en", {"height": 1100}),
}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        running = stack.enter_context(site(folder, UNTIL, days=DAYS, random_seed=SEED))
        browser = stack.enter_context(browsers.chromium(browsers.find()))
        reader = Reader(browser, running, stack)
        assert running.ask("POST", PATH, body=json.dumps(PACKET))[0] == 200
        page = reader.open(ALL)
        while not page.get_by_text("Last callback").count():  # it is counted behind the answer
            page.reload()
        of_tencent = reader.removals(provider="tencent", until=UNTIL.isoformat())
        for name, (address, options) in PICTURES.items():
            page = reader.open(address.format(**of_tencent[0]), **options)
            page.screenshot(path=FOLDER / f"{name}.png")
        assert reader.problems == []


if __name__ == "__main__":
    main()
