"""The facts about a request that every template needs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

from flask import request, url_for

from ...errors import HistoryQueryError
from ...history import load_zone
from ...removals import Record
from .files import URL_PATHS
from .text import LANGUAGES

Parameters = Mapping[str, list[str]]
"""The query parameters of a page, each with all its values."""


@dataclass(frozen=True, kw_only=True)
class PageContext:
    """The language, the time zone and the parameters of one page, and the links on it."""

    language: str
    zone: ZoneInfo
    parameters: Parameters
    kept_parameters: Parameters
    """The chosen language and time zone. Every link to another page keeps them."""

    @classmethod
    def from_request(cls, parameters: Parameters) -> PageContext:
        """Read the language and the time zone of a request.

        A wrong value is replaced by the default, because the error page also needs a language and a
        time zone.
        """
        zone = ZoneInfo("UTC")
        kept = {}
        language = parameters.get("lang", [""])[0]
        if language in LANGUAGES:
            kept["lang"] = [language]
        else:
            language = _language_of_browser()
        if "tz" in parameters:
            with suppress(HistoryQueryError):
                zone = read_zone(parameters)
            # page.js would add the time zone of the browser to a link without a time zone.
            kept["tz"] = [zone.key]
        return cls(language=language, zone=zone, parameters=parameters, kept_parameters=kept)

    def link(self, endpoint: str, query: Mapping[str, Any] | None = None, **path: Any) -> str:
        """Return the URL of another page. `query` has its query parameters."""
        parameters = urlencode({**self.kept_parameters, **(query or {})}, doseq=True)
        return url_for(endpoint, **path) + (f"?{parameters}" if parameters else "")

    def account_link(self, record: Record, *account_ids: str) -> str:
        """Return the URL of the page of one or two accounts, in the Tencent app of a removal.

        In another Tencent app, the same account id is another account.
        """
        query = dict(zip(("account_id", "peer_id"), account_ids, strict=False))
        return self.link(".account", query | _app_of(record))

    def group_link(self, record: Record, *account_ids: str) -> str:
        """Return the URL of the page of the group of a removal, or of one of its members."""
        query = {"group_id": record.owner_id} | dict(
            zip(("account_id",), account_ids, strict=False)
        )
        return self.link(".group", query | _app_of(record))

    def this_page(self, **changes: Any) -> str:
        """Return the URL of the current page with some changed parameters."""
        url = url_for(request.endpoint or "", **(request.view_args or {}))
        return f"{url}?{urlencode({**self.parameters, **changes}, doseq=True)}"

    def file(self, name: str) -> str:
        """Return the URL of a style sheet or a script."""
        return url_for(".file", name=URL_PATHS[name])

    def local_time(self, moment: datetime) -> datetime:
        """Return a time in the zone of the page, or unchanged if `datetime` cannot hold it."""
        try:
            return moment.astimezone(self.zone)
        except OverflowError:
            return moment

    def input_value(self, moment: datetime | None) -> str:
        """Return a time as the value of an HTML field `datetime-local`."""
        if moment is None:
            return ""
        local = self.local_time(moment).replace(tzinfo=None)
        shortest = "seconds" if local.second else "minutes"
        return local.isoformat(timespec="milliseconds" if local.microsecond else shortest)


def _app_of(record: Record) -> dict[str, str]:
    """Return the query parameters of the provider and the Tencent app of a removal."""
    parameters = {"provider": record.provider}
    return parameters | ({"app_id": record.app_id} if record.app_id else {})


def read_zone(parameters: Parameters) -> ZoneInfo:
    """Return the time zone of the parameters. Raises `HistoryQueryError` if it is unknown."""
    return load_zone(parameters.get("tz", ["UTC"])[0])


def _language_of_browser() -> str:
    preferred = (tag.partition("-")[0] for tag in request.accept_languages.values())
    return next((language for language in preferred if language in LANGUAGES), "en")
