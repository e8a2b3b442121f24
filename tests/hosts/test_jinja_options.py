"""The page in apps whose Jinja options would break its templates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from jinja2 import DictLoader, StrictUndefined
from jinja2.ext import Extension
from jinja2.nativetypes import NativeEnvironment

from flask_imcallback.removals import Record
from support.apps import MakeApp
from support.deliveries import store
from support.pages import PAGE, open_app, page_urls, read_page, request_page

BRACKETS = {
    "variable_start_string": "[[",
    "variable_end_string": "]]",
    "block_start_string": "[%",
    "block_end_string": "%]",
    "comment_start_string": "[#",
    "comment_end_string": "#]",
}


class Shout(Extension):
    """An extension that changes the source of every template."""

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        return source.upper()


def change_options(**options: Any) -> Callable[[Flask], None]:
    """Return a function that sets options of the host's environment."""

    def change(app: Flask) -> None:
        for name, value in options.items():
            setattr(app.jinja_env, name, value)

    return change


def break_filters(app: Flask) -> None:
    app.jinja_env.filters.clear()
    app.jinja_env.filters["sum"] = lambda *_: "wrong"
    app.jinja_env.tests.clear()
    app.jinja_env.globals["dict"] = None


def use_native_types(app: Flask) -> None:
    app.jinja_environment = NativeEnvironment  # type: ignore[assignment]


def use_own_class(app: Flask) -> None:
    app.jinja_options = {"undefined": StrictUndefined, "trim_blocks": True, "enable_async": True}


def shout(app: Flask) -> None:
    app.jinja_env.add_extension(Shout)


OPTIONS = [
    pytest.param(change_options(undefined=StrictUndefined), id="StrictUndefined"),
    pytest.param(change_options(**BRACKETS), id="delimiters"),
    pytest.param(change_options(line_statement_prefix="<", line_comment_prefix="  "), id="lines"),
    pytest.param(change_options(autoescape=False), id="no autoescape"),
    pytest.param(change_options(trim_blocks=True, lstrip_blocks=True), id="trimmed"),
    pytest.param(change_options(finalize=lambda value: "x"), id="finalize"),
    pytest.param(change_options(loader=DictLoader({})), id="own loader"),
    pytest.param(change_options(loader=None), id="no loader"),
    pytest.param(break_filters, id="filters, tests and globals"),
    pytest.param(use_own_class, id="jinja_options"),
    pytest.param(shout, id="extension"),
]


def store_removal(app: Flask) -> Record:
    with app.app_context():
        return store(("<b>alice", "bob"))[0]


@pytest.mark.parametrize("change", OPTIONS)
def test_the_page_ignores_the_options_of_the_host(
    make_app: MakeApp, change: Callable[[Flask], None]
) -> None:
    """Every page is the same as in an app without options."""
    app = open_app(make_app)
    change(app)
    record = store_removal(app)
    pages = [read_page(app, url) for url in page_urls(record)]
    for page in pages:
        assert "<b>alice" in page.text
        assert "b" not in page.tags
    assert "1 removal from" in read_page(app, f"{PAGE}?since=2026-01-01").words


def test_native_types_do_not_reach_the_page(make_app: MakeApp) -> None:
    """An environment whose templates make Python objects makes no page of ours."""
    app = open_app(make_app)
    use_native_types(app)
    assert "alice" in read_page(app, page_urls(store_removal(app))[0]).text


LAYOUT = """<!doctype html>
<html lang="en"><head>[% block head %][% endblock %]</head>
<body>[[ motto|shout ]] [[ missing ]] {{ braces }}[% block main %][% endblock %]</body></html>"""
BASE = """[% extends "layout.html" %]
[% block main %][% block content %][% endblock %]
[% if undefined_thing is defined %]never[% endif %][% endblock %]"""


def test_a_layout_of_the_host_has_the_options_of_the_host(
    make_app: MakeApp, tmp_path: Path
) -> None:
    """The host's own delimiters, filters and context processors work around our pages."""
    app = open_app(make_app)
    app.root_path, app.template_folder = str(tmp_path), "templates"
    (tmp_path / "templates/imcallback").mkdir(parents=True)
    (tmp_path / "templates/layout.html").write_text(LAYOUT)
    (tmp_path / "templates/imcallback/base.html").write_text(BASE)
    change_options(**BRACKETS)(app)
    app.add_template_filter(str.upper, "shout")
    app.context_processor(lambda: {"motto": "<hello>"})
    record = store_removal(app)
    for url in page_urls(record):
        text = request_page(app, url).text
        assert "&lt;HELLO&gt;" in text
        assert "{{ braces }}" in text
        assert "&lt;b&gt;alice" in text
        assert "never" not in text


def test_globals_of_the_host_can_come_late(make_app: MakeApp, tmp_path: Path) -> None:
    """A global that is set after the first page is known to the next one."""
    app = open_app(make_app)
    app.root_path, app.template_folder = str(tmp_path), "templates"
    (tmp_path / "templates/imcallback").mkdir(parents=True)
    (tmp_path / "templates/imcallback/base.html").write_text("{{ late or 'nothing' }}")
    assert request_page(app).text == "nothing"
    app.jinja_env.globals["late"] = "a late global"
    assert request_page(app).text == "a late global"
