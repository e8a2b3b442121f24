"""The Jinja environment of the pages. It does not depend on the Jinja options of the host app."""

from __future__ import annotations

from collections import ChainMap
from pathlib import Path
from typing import Any

from flask import Flask
from jinja2 import ChoiceLoader, Environment, FileSystemLoader, nodes
from jinja2.defaults import DEFAULT_NAMESPACE
from jinja2.filters import FILTERS
from jinja2.tests import TESTS

TEMPLATES = Path(__file__).parent / "templates"
EXTENSION_KEY = "imcallback_page"
"""The key of the environment in `app.extensions`."""


class PageEnvironment(Environment):
    """An environment with the default options of Jinja, for our templates.

    The delimiters, undefined values, filters and loaders of the host app would change our templates
    or break them. A template of the host app may extend or replace one of our templates. Such a
    template has the options, filters, tests, globals and extensions of the host app.
    """

    def __init__(self, app: Flask) -> None:
        host = app.jinja_env
        loaders = [*filter(None, [host.loader]), FileSystemLoader(TEMPLATES)]
        super().__init__(
            loader=ChoiceLoader(loaders), autoescape=True, auto_reload=host.auto_reload
        )
        self._host = host
        self.filters = ChainMap(FILTERS, host.filters)  # type: ignore[assignment]
        self.tests = ChainMap(TESTS, host.tests)  # type: ignore[assignment]
        self.globals = ChainMap(DEFAULT_NAMESPACE, host.globals)  # type: ignore[assignment]
        self.policies = host.policies
        self.extensions = host.extensions

    def iter_extensions(self) -> Any:
        """Return no extensions, because those of the host app would change our templates."""
        return iter(())

    def compile(
        self,
        source: str | nodes.Template,
        name: str | None = None,
        filename: str | None = None,
        raw: bool = False,
        defer_init: bool = False,
    ) -> Any:
        if isinstance(source, str) and not _is_ours(filename):
            source = self._host.parse(source, name, filename)
            source.set_environment(self)
        return super().compile(source, name, filename, raw, defer_init)  # type: ignore[call-overload]


def render(app: Flask, template: str, variables: dict[str, Any]) -> str:
    """Return a template as text, with the variables of the context processors of the host app."""
    environment = app.extensions.get(EXTENSION_KEY)
    if environment is None:
        environment = app.extensions[EXTENSION_KEY] = PageEnvironment(app)
    app.update_template_context(variables)
    text: str = environment.get_template(template).render(variables)
    return text


def _is_ours(filename: str | None) -> bool:
    return filename is not None and TEMPLATES in Path(filename).parents
