"""The page in a real browser."""

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
PHONE = 360


# What the policy of a page refuses is an event of it, and with scripts off still in the console.
TELL_VIOLATIONS = """
document.addEventListener("securitypolicyviolation", (event) =>
  console.error("refused:", event.effectiveDirective, event.blockedURI));
"""


FOCUS = """what => {
  const focused = document.activeElement, style = getComputedStyle(focused);
  const isSeen = style.outlineStyle !== "none" || style.boxShadow !== "none";
  // The button in a field of a time has the focus in its stead.
  return [focused.matches(":focus") && !isSeen ? focused.outerHTML : "", focused.matches(what)];
}"""
"""What has the focus and does not look so, and whether the focus is there."""


@contextmanager
def site(
    folder: Path, until: datetime, *, days: float = 20, random_seed: int = 1
) -> Iterator[Running]:
    """The example app under gunicorn, with removals of the days before that moment."""
    with serving(folder, FLASK_IMCALLBACK_HISTORY_TOKENS=json.dumps([TOKEN])) as running:
        seed.fill(running.url, REMOVALS, accounts=1000, days=days, until=until, seed=random_seed)
        yield running


class Reader:
    """Somebody with the token, whose browser notes whatever a page should not do."""

    def __init__(self, browser: Browser, running: Running, stack: ExitStack) -> None:
        self.problems: list[str] = []
        self._browser = browser
        self._running = running
        self._origin = f"http://127.0.0.1:{running.port}"
        self._stack = stack
        self._expected = ""

    def open(
        self,
        address: str = PAGE,
        *,
        width: int = WIDTH,
        height: int = HEIGHT,
        status: int = 200,
        **options: Any,
    ) -> Page:
        """That address in a browser that has seen nothing, of that size."""
        self._expected = f"status of {status} "
        defaults = {"timezone_id": "UTC", "locale": "en"}
        context = self._browser.new_context(
            base_url=self._origin,
            http_credentials={"username": "reader", "password": TOKEN},
            viewport={"width": width, "height": height},
            **{**defaults, **options},
        )
        self._stack.callback(context.close)
        context.add_init_script(TELL_VIOLATIONS)
        context.on("console", self._note_message)
        context.on("request", self._note_request)
        context.on("weberror", lambda event: self.problems.append(str(event.error)))
        context.on("dialog", self._note_dialog)
        page = context.new_page()
        response = page.goto(address)
        assert response
        assert response.status == status
        return page

    def removals(self, **filters: str) -> list[dict[str, Any]]:
        """What the API says, the newest first, 1000 at most."""
        query = urlencode({"limit": 1000, **filters})
        headers = {"Authorization": f"Bearer {TOKEN}"}
        status, answer = self._running.ask("GET", f"{PAGE}history?{query}", headers=headers)
        assert status == 200
        found: list[dict[str, Any]] = answer["data"]
        return found

    def ids(self, **filters: str) -> list[int]:
        return [removal["id"] for removal in self.removals(**filters)]

    def _note_message(self, message: ConsoleMessage) -> None:
        # What is refused and what is not there come as errors.
        if message.type in ("error", "warning") and self._expected not in message.text:
            self.problems.append(message.text)

    def _note_dialog(self, dialog: Dialog) -> None:
        self.problems.append(dialog.message)
        dialog.dismiss()

    def _note_request(self, request: Request) -> None:
        if not request.url.startswith((f"{self._origin}/", "data:")):
            self.problems.append(f"asks for {request.url}")
