"""The pages on the HTTP API and on errors list exactly what the code has."""

from __future__ import annotations

import json
import re

import pytest
from marshmallow import Schema

import flask_imcallback
from flask_imcallback import Record
from flask_imcallback.history import schemas
from flask_imcallback.web.problems import PREFIX, PROBLEM_TYPES
from support import ROOT
from support.apps import MakeApp

DOCS = ROOT / "docs"
HTTP = (DOCS / "http.md").read_text("utf-8")
ERRORS = (DOCS / "errors.md").read_text("utf-8")


def section(heading: str, page: str = HTTP) -> str:
    """Return the text below a heading, up to the next heading of its level."""
    _, separator, rest = page.partition(f"\n{heading}\n")
    assert separator, heading
    level = len(heading.split(maxsplit=1)[0])
    return re.split(rf"^#{{1,{level}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def names(text: str) -> set[str]:
    """Return the code words in the first column of the tables."""
    cells = re.findall(r"^\| (`.+?) \|", text, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(.+?)`", cell)}


FILTERS = names(section("### Filters"))
PARAMETERS = [
    (FILTERS | names(section("### Order, limit and cursor")), schemas.HISTORY_QUERY),
    (FILTERS | names(section("## Count removals")), schemas.STATS_QUERY),
    (
        FILTERS | names((DOCS / "export.md").read_text("utf-8").partition("\n## ")[0]),
        schemas.EXPORT_QUERY,
    ),
    (names(section("## List deliveries").split("| member |")[0]), schemas.DELIVERY_QUERY),
    (names(section("## List deliveries").split("| member |")[1]), schemas.DELIVERY),
]


@pytest.mark.parametrize(
    ("documented", "schema"), PARAMETERS, ids=[type(schema).__name__ for _, schema in PARAMETERS]
)
def test_tables_have_every_parameter_and_member(documented: set[str], schema: Schema) -> None:
    """A table of the page has the names of the schema, and no others."""
    assert documented == set(schema.fields)


def test_the_sample_removal_has_every_member() -> None:
    """The sample response has the members of a removal in their order."""
    (sample,) = re.findall(r"```json\n(.+?)```", section("### Response"), re.DOTALL)
    assert list(json.loads(sample)["data"][0]) == list(Record._fields)


def test_every_problem_type_is_documented() -> None:
    """The table has each problem type with its status, and no others."""
    text = section("## HTTP problems", ERRORS)
    rows = re.findall(r"^\| (\d+) \| `(.+?)` \|", text, re.MULTILINE)
    assert [(int(status), name) for status, name in rows] == [
        (kind.status, kind.name) for kind in PROBLEM_TYPES
    ]
    assert f"`{PREFIX}`" in text


def test_the_sample_problem_is_a_response(make_app: MakeApp) -> None:
    """A query with a wrong limit gets exactly the problem that the page shows."""
    app = make_app(IMCALLBACK_HISTORY_TOKENS=["a-token-for-readers"])
    (sample,) = re.findall(r"```json\n(.+?)```", section("## HTTP problems", ERRORS), re.DOTALL)
    headers = {"Authorization": "Bearer a-token-for-readers"}
    response = app.test_client().get("/imcallback/history?limit=0", headers=headers)
    assert response.get_json() == json.loads(sample)


def test_every_exception_is_documented() -> None:
    """The page on errors has a row for each public exception."""
    exceptions = {
        name
        for name in flask_imcallback.__all__
        if isinstance(thing := getattr(flask_imcallback, name), type)
        and issubclass(thing, Exception)
    }
    rows = set(re.findall(r"^\| `(\w+)` \|", section("## Python exceptions", ERRORS), re.MULTILINE))
    assert rows == exceptions - {"ImCallbackError"}


def test_every_url_is_documented(make_app: MakeApp) -> None:
    """The first table has the URLs that the extension serves, and no others."""
    app = make_app(IMCALLBACK_SECRETS=["a-secret-of-the-tests"])
    rules = {
        re.sub("<(path:)?.+?>", "<id>", rule.rule)
        for rule in app.url_map.iter_rules()
        if rule.endpoint.startswith("imcallback_")
        and not rule.endpoint.startswith("imcallback_callbacks.")
        and not rule.endpoint.startswith("imcallback_page.")  # page.md documents the page
    }
    documented = re.findall(r"^\| `GET (/imcallback/\S+)` \|", HTTP, re.MULTILINE)
    assert set(documented) == rules
