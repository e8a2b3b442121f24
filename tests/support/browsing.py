"""A user who opens the pages in a real browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from playwright.sync_api import Browser, ConsoleMessage, Dialog, Page, Request

import seed
from support.serving import Running, serving

TOKEN = "a-token-of-readers"
PAGE = "/imcallback/"
REMOVALS = 2000
WIDTH, HEIGHT = 1100, 900
PHONE_WIDTH = 360
"""Pixels."""

# Without scripts, Chromium itself writes violations of the policy to the console.
LOG_VIOLATIONS = """
document.addEventListener("securitypolicyviolation", (event) =>
  console.error("blocked:", event.effectiveDirective, event.blockedURI));
"""

FOCUS = """selector => {
  const focused = document.activeElement, style = getComputedStyle(focused);
  const isVisible = style.outlineStyle !== "none" || style.boxShadow !== "none";
  // In a time field, the button inside the field has the focus.
  const isHidden = focused.matches(":focus") && !isVisible;
  return [isHidden ? focused.outerHTML : "", focused.matches(selector)];
}"""
"""Returns the element whose focus is not visible, and whether the selector has the focus."""


@contextmanager
def site(
    folder: Path, until: datetime, *, days: float = 20, random_seed: int = 1
) -> Iterator[Running]:
    """Serve the example app with removals of the `days` before `until`."""
    with serving(folder, FLASK_IMCALLBACK_HISTORY_TOKENS=json.dumps([TOKEN])) as running:
        seed.fill(running.url, REMOVALS, accounts=1000, days=days, until=until, seed=random_seed)
        yield running


class BrowserUser:
    """A user with the token. The browser collects every problem of a page in `problems`."""

    def __init__(self, browser: Browser, running: Running, stack: ExitStack) -> None:
        self.problems: list[str] = []
        self._browser = browser
        self._running = running
        self._origin = f"http://127.0.0.1:{running.port}"
        self._stack = stack
        self._expected = ""

    def open(
        self,
        url: str = PAGE,
        *,
        width: int = WIDTH,
        height: int = HEIGHT,
        status: int = 200,
        **options: Any,
    ) -> Page:
        """Open a URL in a new browser window without history or cookies, and check the status."""
        self._expected = f"status of {status} "
        defaults = {"timezone_id": "UTC", "locale": "en"}
        context = self._browser.new_context(
            base_url=self._origin,
            http_credentials={"username": "reader", "password": TOKEN},
            viewport={"width": width, "height": height},
            **{**defaults, **options},
        )
        self._stack.callback(context.close)
        context.add_init_script(LOG_VIOLATIONS)
        context.on("console", self._note_message)
        context.on("request", self._note_request)
        context.on("weberror", lambda event: self.problems.append(str(event.error)))
        context.on("dialog", self._note_dialog)
        page = context.new_page()
        response = page.goto(url)
        assert response
        assert response.status == status
        return page

    def removals(self, **filters: str) -> list[dict[str, Any]]:
        """Return the newest removals from the API, at most 1000."""
        query = urlencode({"limit": 1000, **filters})
        headers = {"Authorization": f"Bearer {TOKEN}"}
        status, answer = self._running.ask("GET", f"{PAGE}history?{query}", headers=headers)
        assert status == 200
        removals: list[dict[str, Any]] = answer["data"]
        return removals

    def ids(self, **filters: str) -> list[int]:
        return [removal["id"] for removal in self.removals(**filters)]

    def _note_message(self, message: ConsoleMessage) -> None:
        # Blocked and missing files are errors in the console.
        if message.type in ("error", "warning") and self._expected not in message.text:
            self.problems.append(message.text)

    def _note_dialog(self, dialog: Dialog) -> None:
        self.problems.append(dialog.message)
        dialog.dismiss()

    def _note_request(self, request: Request) -> None:
        if not request.url.startswith((f"{self._origin}/", "data:")):
            self.problems.append(f"requests {request.url}")
