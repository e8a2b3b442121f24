"""The languages of the pages."""

from __future__ import annotations

import gettext
import io
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from babel.messages.extract import extract
from babel.messages.pofile import read_po
from jinja2 import Environment
from jinja2.ext import extract_from_ast

from flask_imcallback import providers
from flask_imcallback.web.page import text as page_text
from flask_imcallback.web.page.text import LANGUAGES, TRANSLATIONS_FOLDER
from support.apps import MakeApp
from support.deliveries import store
from support.pages import open_app, read_page

PAGE_FOLDER = Path(page_text.__file__).parent
PLACEHOLDER = re.compile(r"%\(\w+\)s")


@pytest.mark.parametrize(
    ("query", "accept_language", "html_language"),
    [
        ({}, None, "en"),
        ({}, "zh-CN,zh;q=0.9,en;q=0.8", "zh-Hans"),
        ({}, "zh", "zh-Hans"),
        ({}, "fr", "en"),
        ({}, "en-GB,zh;q=0.5", "en"),
        ({"lang": "zh"}, "en", "zh-Hans"),
        ({"lang": "en"}, "zh", "en"),
    ],
)
def test_the_language_of_a_page(
    make_app: MakeApp, query: dict[str, str], accept_language: str | None, html_language: str
) -> None:
    """The URL decides, then the browser, then it is English. Links keep a chosen language."""
    app = open_app(make_app)
    with app.app_context():
        store(("alice", "bob"))
    headers = {} if accept_language is None else {"Accept-Language": accept_language}
    html = read_page(app, query_string=query, headers=headers)
    assert html.language == html_language
    assert ("移除记录" in html.text) == (html_language != "en")
    link_language = parse_qs(urlsplit(html.links["alice"]).query).get("lang")
    assert link_language == ([query["lang"]] if query else None)
    chinese = read_page(app, html.links["简体中文"], headers=headers)
    assert "好友列表" in chinese.text


def messages() -> Iterator[tuple[str, ...]]:
    """Yield every message of the templates and of the code, with its plural if it has one."""
    for template in PAGE_FOLDER.glob("templates/imcallback/*.html"):
        tree = Environment(autoescape=True).parse(template.read_text("utf-8"))
        for _, _, texts in extract_from_ast(tree, ("_", "ngettext"), babel_style=False):
            if message := tuple(text for text in texts or () if isinstance(text, str)):
                yield message
    for module in Path(providers.__file__).parent.glob("*.py"):
        for _, step, *_ in extract("python", io.BytesIO(module.read_bytes()), {"SetupStep": (1,)}):
            yield (str(step),)
    code = (PAGE_FOLDER / "text.py").read_bytes()
    for _, texts, *_ in extract("python", io.BytesIO(code), {"ngettext": (1, 2)}):
        yield tuple(str(text) for text in texts or ())


@pytest.mark.parametrize("language", [language for language in LANGUAGES if language != "en"])
def test_translations_are_complete(language: str) -> None:
    """Every message is translated with the same placeholders, and the .mo file is up to date."""
    with (TRANSLATIONS_FOLDER / language / "LC_MESSAGES/imcallback.po").open("rb") as file:
        catalog = [message for message in read_po(file) if message.id]
    compiled = gettext.translation("imcallback", TRANSLATIONS_FOLDER, [language])
    used = set(messages())
    assert len(used) > 90
    ids = [(m.id,) if isinstance(m.id, str) else tuple(map(str, m.id or ())) for m in catalog]
    assert sorted(ids) == sorted(used)
    for (singular, *plural), message in zip(ids, catalog, strict=True):
        texts = [message.string] if isinstance(message.string, str) else [*(message.string or ())]
        compiled_text = (
            compiled.ngettext(singular, plural[0], 1) if plural else compiled.gettext(singular)
        )
        assert texts[0] == compiled_text
        for text in texts:
            assert text
            assert sorted(PLACEHOLDER.findall(text)) == sorted(PLACEHOLDER.findall(singular))
