"""Text from strangers on the pages: nothing of it runs, hides or misleads."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_imcallback.removals import Relation
from flask_imcallback.runtime import get_runtime
from flask_imcallback.web.page.text import indent_json, show_invisible
from support.apps import MakeApp, save_counts
from support.deliveries import MOMENT, store
from support.pages import PAGE, Html, open_app, page_urls, read_page, request_page

HOSTILE_TEXTS = [
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "%s %(owner)s %",
    "</title></code></pre><b>",
    "../../x?a=b&c=d#e;f",
    "a\u202eb\u2066c",
    "\u200b",
    "\x07\x1b[31m\r\n",
    " a  b ",
    "\u3164\ufe0f\u00a0",
    "&lt;&amp;&#0;",
    "\u00e9\U0001f600",
    "x" * 255,
]
INVISIBLE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\xa0\u200b-\u200f\u202a-\u202e\u2066-\u2069]")


@pytest.mark.parametrize("relation", [Relation.FRIEND, Relation.GROUP])
@pytest.mark.parametrize("text", HOSTILE_TEXTS, ids=ascii)
def test_hostile_text_is_only_shown(make_app: MakeApp, text: str, relation: Relation) -> None:
    """On every page the text adds no tag, hides nothing and turns no direction."""
    app = open_app(make_app)
    origin = dict.fromkeys(("client_ip", "platform", "request_id", "command"), text)
    with app.app_context():
        plain = store(
            *[("owner", "target")] * 2,
            at=MOMENT - timedelta(days=1),
            relation=relation,
            actor_id="actor",
        )[0]
        body = json.dumps({"id": text}, ensure_ascii=False).encode()
        record = store(
            *((text, text[:254] + "!"), (text, "x")),
            body=body,
            relation=relation,
            actor_id=text,
            **origin,
        )[0]
        runtime = get_runtime()
        runtime.counters.count_accepted(text[:32], text)
        runtime.counters.count_refused("openim", text)
        save_counts(app)
    visible_text = show_invisible(text).striptags()
    for hostile_url, plain_url in zip(page_urls(record), page_urls(plain), strict=True):
        html = read_page(app, hostile_url)
        assert html.inline == []
        tags = set(read_page(app, plain_url).tags)
        assert set(html.tags) - {"span", "ol", "li", "p", "h2"} <= tags
        assert visible_text in html.words, hostile_url
        assert not INVISIBLE.search(html.text)
        for url in html.urls:
            assert url == "#content" or url.startswith(PAGE)
    links = read_page(app).links
    html = read_page(app, links[next(name for name in links if name.startswith(visible_text))])
    assert {Relation.FRIEND: "friend list", Relation.GROUP: "Group"}[relation] in html.text


@pytest.mark.parametrize("text", HOSTILE_TEXTS, ids=ascii)
def test_hostile_filters_are_only_shown(make_app: MakeApp, text: str) -> None:
    """A filter in the URL comes from strangers, too."""
    names = ("owner_id", "provider", "platform", "request_id", "command")
    html = Html(request_page(open_app(make_app), query_string=dict.fromkeys(names, text)))
    assert html.inline == []
    assert not INVISIBLE.search(html.text)
    if "\r" not in text:  # a form field has one line
        assert html.fields["owner_id"] == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("alice", "alice"),
        ("a b", "a b"),
        ("爱丽丝 😀 é", "爱丽丝 😀 é"),
        ("a\u202eb", "aU+202Eb"),
        ("\x00\x7f\u0085", "U+0000U+007FU+0085"),
        (" a", "U+0020a"),
        ("a ", "aU+0020"),
        ("a  b", "aU+0020 b"),
        (" ", "U+0020"),
        ("a\n", "aU+000A"),
        ("\u200d\ufeff\u3164\u00ad", "U+200DU+FEFFU+3164U+00AD"),
        ("\U000e0001", "U+E0001"),
        ("<&>", "<&>"),
    ],
)
def test_invisible_characters_are_shown_as_code_points(text: str, shown: str) -> None:
    """Controls, direction marks, empty characters and outer spaces are shown, and nothing else."""
    html = show_invisible(text)
    assert html.striptags().replace(" ", "") == shown.replace(" ", "")
    assert html.unescape().count("<span") == shown.count("U+")
    assert "<&" not in html


def test_a_code_point_has_its_unicode_name() -> None:
    """The name is the title of the code point."""
    assert 'title="RIGHT-TO-LEFT OVERRIDE"' in show_invisible("\u202e")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
    st.sampled_from([None, 1, 7]),
)
def test_an_indented_packet_is_the_same_packet(packet: Any, indent: int | None) -> None:
    """Only the white space between the tokens changes."""
    text = json.dumps(packet, indent=indent, allow_nan=True)
    assert json.loads(indent_json(text)) == packet
    assert json.dumps(json.loads(indent_json(text))) == json.dumps(json.loads(text))


@pytest.mark.parametrize(
    ("text", "indented"),
    [
        (
            '{"a":1.10,"a":1e400,"b":"\\u0041\\"}"}',
            '{\n  "a": 1.10,\n  "a": 1e400,\n  "b": "\\u0041\\"}"\n}',
        ),
        ("[]", "[]"),
        ('{"a": { }}', '{\n  "a": { }\n}'),
        ("not JSON", "not JSON"),
        ("", ""),
        ("9" * 10_000, "9" * 10_000),
    ],
    ids=["unusual tokens", "list", "object", "not JSON", "empty", "number"],
)
def test_tokens_stay_as_they_are(text: str, indented: str) -> None:
    """Numbers, escapes and repeated names are not changed."""
    assert indent_json(text) == indented


@pytest.mark.parametrize("depth", [900, 100_000])
def test_a_deep_packet_stays_small(depth: int) -> None:
    """The indent has a limit, so that the text does not grow with the square of the depth."""
    text = "[" * depth + "1" + "]" * depth
    assert len(indent_json(text)) < 100 * len(text)
