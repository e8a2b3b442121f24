"""The page on the HTTP API has all that there is, and no more."""

from __future__ import annotations

import json
import re

import pytest
from marshmallow import Schema

from flask_imcallback.history import schemas
from flask_imcallback.web.problems import PREFIX, PROBLEM_TYPES
from support import ROOT
from support.apps import MakeApp

DOCS = ROOT / "docs"
PAGE = (DOCS / "http.md").read_text("utf-8")


def section(heading: str, page: str = PAGE) -> str:
    """What stands below a heading, up to the next one of its depth."""
    _, found, rest = page.partition(f"\n{heading}\n")
    assert found, heading
    depth = len(heading.split(maxsplit=1)[0])
    return re.split(rf"^#{{1,{depth}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def names(text: str) -> set[str]:
    """Those in the first column of the tables."""
    cells = re.findall(r"^\| (`.+?) \|", text, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(.+?)`", cell)}


FILTERS = names(section("### Filters"))
PARAMETERS = [
    (FILTERS | names(section("### Pages")), schemas.HISTORY_QUERY),
    (FILTERS | names(section("## Counts")), schemas.STATS_QUERY),
    (FILTERS | names((DOCS / "export.md").read_text("utf-8")), schemas.EXPORT_QUERY),
    (names(section("## Deliveries").split("| member |")[0]), schemas.DELIVERY_QUERY),
    (names(section("## Deliveries").split("| member |")[1]), schemas.DELIVERY),
]


@pytest.mark.parametrize(("shown", "schema"), PARAMETERS, ids=lambda given: type(given).__name__)
def test_parameters_and_members(shown: set[str], schema: Schema) -> None:
    """Each is explained in a table, as the schema has it."""
    assert shown == set(schema.fields)


def test_a_removal_is_as_the_page_shows_it() -> None:
    """The sample has the members in their order."""
    (sample,) = re.findall(r"```json\n(.+?)```", section("### The answer"), re.DOTALL)
    assert list(json.loads(sample)["data"][0]) == list(schemas.REMOVAL.fields)


def test_problems() -> None:
    """Each type has its status and stays what it is; the sample is one of them."""
    text = section("## Errors")
    rows = re.findall(r"^\| (\d+) \| `(.+?)` \|", text, re.MULTILINE)
    assert [(int(status), name) for status, name in rows] == [
        (k.status, k.name) for k in PROBLEM_TYPES
    ]
    (sample,) = re.findall(r"```json\n(.+?)```", text, re.DOTALL)
    problem = json.loads(sample)
    found = {k.uri: (k.title, k.status) for k in PROBLEM_TYPES}
    assert found[problem["type"]] == (problem["title"], problem["status"])
    assert f"`{PREFIX}`" in text


def test_addresses(make_app: MakeApp) -> None:
    """All that the extension serves are in the first table, and what it lists is served."""
    app = make_app(IMCALLBACK_SECRETS=["a-secret-of-the-tests"])
    rules = {
        re.sub("<(path:)?.+?>", "<id>", rule.rule)
        for rule in app.url_map.iter_rules()
        if rule.endpoint.startswith("imcallback_")
        and not rule.endpoint.startswith("imcallback_callbacks.")
        and not rule.endpoint.startswith("imcallback_page.")  # for people
        and rule.endpoint != "imcallback_openapi.file"  # what the page consists of
    }
    shown = re.findall(r"^\| `GET (/imcallback/\S+)` \|", PAGE, re.MULTILINE)
    assert set(shown) == rules
