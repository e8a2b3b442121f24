"""The URL rules that Flask would not serve without our help."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, current_app, request
from flask.blueprints import BlueprintSetupState
from werkzeug.routing import PathConverter


class RestOfPath(PathConverter):
    """URL converter for the rest of a path, without the slashes around it.

    It also matches line breaks and doubled slashes. Without it, Flask would answer such a path
    itself, or redirect it.
    """

    regex = r"(?:.|\n)+"
    part_isolating = False

    def to_python(self, value: str) -> str:
        return value.strip("/")


HOST = "imcallback_host"
"""The name of the host in the rules of an app with `host_matching`."""


class AnyHostBlueprint(Blueprint):
    """A blueprint whose URLs work with every host, also in an app with `host_matching`.

    Without a host, such an app would answer 404.
    """

    def __init__(self, name: str, import_name: str) -> None:
        super().__init__(name, import_name)
        self.url_value_preprocessor(_remove_host)
        self.url_defaults(_add_host)

    def make_setup_state(
        self, app: Any, options: dict[str, Any], first_registration: bool = False
    ) -> BlueprintSetupState:
        return AnyHostState(self, app, options, first_registration)


class AnyHostState(BlueprintSetupState):
    """The registration of an `AnyHostBlueprint` on an app."""

    def add_url_rule(self, rule: str, *arguments: Any, **options: Any) -> None:
        if self.app.url_map.host_matching:
            options["host"] = f"<{HOST}>"
        super().add_url_rule(rule, *arguments, **options)


def _remove_host(endpoint: str | None, values: dict[str, Any] | None) -> None:
    """Remove the host from the arguments of the view."""
    if values:
        values.pop(HOST, None)


def _add_host(endpoint: str, values: dict[str, Any]) -> None:
    """Link to the host of the request."""
    if current_app.url_map.is_endpoint_expecting(endpoint, HOST):
        values.setdefault(HOST, request.host)
