"""Makes the screenshots of the documentation, always from the same removals: `make screenshots`."""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from support import ROOT, browsers
from support.browsing import PAGE, PHONE_WIDTH, BrowserUser, site
from support.serving import PACKET, PATH

FOLDER = ROOT / "docs/images"
DAYS = 30
SEED = 2
"""With this seed no callback has 500 removals. Such a peak would make all other bars tiny."""
UNTIL = datetime(2026, 11, 1, tzinfo=UTC)
TIME_RANGE = {"since": f"{UNTIL - timedelta(days=DAYS):%FT%R}", "until": f"{UNTIL:%FT%R}"}
ALL = f"{PAGE}?{urlencode({**TIME_RANGE, 'tz': 'UTC', 'lang': 'en'})}"
SCREENSHOTS: dict[str, tuple[str, dict[str, Any]]] = {
    "page": (ALL, {"height": 1000}),
    "page-dark": (ALL, {"height": 1000, "color_scheme": "dark"}),
    "page-phone": (ALL, {"height": 1000, "width": PHONE_WIDTH}),
    "removal": (PAGE + "removal/{id}?tz=UTC&lang=en", {"height": 1100}),
}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        running = stack.enter_context(site(folder, UNTIL, days=DAYS, random_seed=SEED))
        browser = stack.enter_context(browsers.chromium(browsers.find()))
        user = BrowserUser(browser, running, stack)
        assert running.ask("POST", PATH, body=json.dumps(PACKET))[0] == 200
        page = user.open(ALL)
        while not page.get_by_text("Last callback").count():  # counters are saved after the answer
            page.reload()
        tencent_removal = user.removals(provider="tencent", until=UNTIL.isoformat())[0]
        for name, (url, options) in SCREENSHOTS.items():
            page = user.open(url.format(**tencent_removal), **options)
            page.screenshot(path=FOLDER / f"{name}.png")
        assert user.problems == []


if __name__ == "__main__":
    main()
