"""The OpenAPI document and the HTTP API agree."""

from __future__ import annotations

import os
import re
from base64 import b64encode
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import pytest
import schemathesis
from flask import Flask
from marshmallow import Schema, fields
from marshmallow.validate import OneOf
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema

from flask_imcallback import Cause, Record, Relation
from flask_imcallback.history import schemas
from flask_imcallback.history.export import COLUMNS, FORMATS
from flask_imcallback.history.schemas import (
    DELIVERY_QUERY,
    EXPORT_QUERY,
    HISTORY_QUERY,
    STATS_QUERY,
    Moment,
)
from flask_imcallback.providers import PROVIDERS
from flask_imcallback.web.problems import PROBLEM_TYPES
from support.api import assert_problem, get, login_required
from support.apps import MakeApp
from support.callbacks import BrokenProvider
from support.deliveries import store

DOCUMENT = "/imcallback/openapi.json"
TOKEN = "a-token-of-readers"
SECRET = "a-secret-of-16-characters"
APP_ID = "1400000000"
GUARDS: dict[str, Any] = {
    "IMCALLBACK_TENCENT_APPS": {APP_ID: []},
    "IMCALLBACK_SECRETS": [SECRET],
    "IMCALLBACK_HISTORY_TOKENS": [TOKEN],
}


def document(app: Flask, address: str = DOCUMENT) -> dict[str, Any]:
    response = get(app, address, TOKEN)
    assert (response.status_code, response.mimetype) == (200, "application/json")
    return dict(response.get_json())


def resolve(found: dict[str, Any], value: dict[str, Any]) -> dict[str, Any]:
    """Follow a `$ref` into the components."""
    if "$ref" not in value:
        return value
    target: Any = found
    for name in value["$ref"].removeprefix("#/").split("/"):
        target = target[name]
    return dict(target)


def parameters(found: dict[str, Any], operation: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the parameters of an operation by name."""
    resolved = [resolve(found, parameter) for parameter in operation.get("parameters", ())]
    return {parameter["name"]: parameter for parameter in resolved}


CONFIGURATIONS: list[dict[str, Any]] = [
    {},
    GUARDS,
    {
        "IMCALLBACK_TENCENT_APPS": {APP_ID: ["token"], "1400000001": []},
        "IMCALLBACK_ALLOW_UNAUTHENTICATED": True,
        "IMCALLBACK_OPENIM_CREDENTIALS": {"openim": "a password"},
    },
    {"IMCALLBACK_URL_PREFIX": ""},
    {"IMCALLBACK_SECRETS": [SECRET], "providers": [*PROVIDERS, BrokenProvider]},
    {"providers": []},
    {"history_decorators": [login_required]},
]


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda some: "+".join(some)[:60])
def test_the_document_is_valid_and_has_every_url(
    make_app: MakeApp, configuration: dict[str, Any]
) -> None:
    """With any settings, it has all URLs for programs and no others."""
    tokens = {"IMCALLBACK_HISTORY_TOKENS": [TOKEN]}
    app = make_app(migrate=False, **tokens | configuration)
    prefix = configuration.get("IMCALLBACK_URL_PREFIX", "/imcallback")
    found = document(app, f"{prefix}/openapi.json")
    OpenAPIV31SpecValidator(found).validate()
    assert found["servers"] == [{"url": prefix or "/"}]
    assert found["info"]["version"] == version("flask-imcallback")
    rules = {
        re.sub("/<.+>$", "/<>", rule.rule)
        for rule in app.url_map.iter_rules()
        if rule.endpoint.startswith("imcallback_")
        and not rule.endpoint.startswith("imcallback_page.")  # for people
    }
    assert {prefix + re.sub(r"(/\{\w+\})+$", "/<>", path) for path in found["paths"]} == rules


def test_a_query_is_described(make_app: MakeApp) -> None:
    """The parameters, the answers and the headers of the history."""
    found = document(make_app(migrate=False, **GUARDS))
    assert found["openapi"] == "3.1.0"
    history = found["paths"]["/history"]["get"]
    assert parameters(found, history)["owner_id"] == {
        "in": "query",
        "name": "owner_id",
        "description": "The account or group whose list changed.",
        "schema": {
            "type": "array",
            "maxItems": 10_000,
            "items": {"type": "string", "minLength": 1, "maxLength": 255},
        },
        "explode": True,
        "style": "form",
    }
    assert history["security"] == [{"token": []}, {"password": []}]
    assert list(history["responses"]) == ["200", "400", "401", "403", "405", "503"]
    assert set(history["responses"]["200"]["headers"]) == {"Cache-Control", "Link"}
    feed = found["paths"]["/feed"]["get"]
    assert parameters(found, feed)["after"]["schema"]["minimum"] == 0
    in_feed = {*parameters(found, feed)} - {"after"}
    assert in_feed == {*parameters(found, history)} - {"order", "cursor"}
    removal = found["components"]["schemas"]["Removal"]
    assert tuple(removal["properties"]) == COLUMNS
    fed = found["components"]["schemas"]["FeedRemoval"]
    assert [*fed["properties"]] == fed["required"] == [*COLUMNS, "log_position"]
    export = found["paths"]["/history/export"]["get"]["responses"]["200"]["content"]
    assert list(export) == [f.media_type.partition(";")[0] for f in FORMATS.values()]


def test_the_callbacks_of_tencent_are_described(make_app: MakeApp) -> None:
    """The packet, the query, the signature and the answers."""
    app = make_app(migrate=False, **GUARDS | {"IMCALLBACK_TENCENT_APPS": {APP_ID: ["the token"]}})
    found = document(app)
    post = found["paths"]["/tencent/{secret}"]["post"]
    assert parameters(found, post)["SdkAppid"]["required"] is True
    assert post["security"] == [{"tencent_sign": []}]
    components = found["components"]["schemas"]
    account_id = {"type": "string", "minLength": 1, "maxLength": 255}
    pair = {
        "type": "object",
        "properties": {"From_Account": account_id, "To_Account": account_id},
        "required": ["From_Account", "To_Account"],
    }
    assert components["tencent_packet"]["anyOf"][0] == {
        "type": "object",
        "properties": {
            "CallbackCommand": {"const": "Sns.CallbackBlackListDelete"},
            "PairList": {"type": "array", "items": pair},
        },
        "required": ["CallbackCommand", "PairList"],
    }
    assert components["tencent_refused"]["properties"] == {
        "ActionStatus": {"const": "FAIL"},
        "ErrorCode": {"const": 1},
        "ErrorInfo": {"type": "string"},
    }


def test_the_callbacks_of_openim_are_described(make_app: MakeApp) -> None:
    """The packet, the path, the password and the one answer."""
    credentials = {"IMCALLBACK_OPENIM_CREDENTIALS": {"openim": "a password"}}
    found = document(make_app(migrate=False, **GUARDS, **credentials))
    post = found["paths"]["/openim/{secret}/{command}"]["post"]
    assert list(parameters(found, post)) == ["secret", "command", "contenttype"]
    assert post["security"] == [{"openim_password": []}, {}]
    components = found["components"]["schemas"]
    assert components["openim_packet"]["anyOf"][0]["required"] == [
        *("callbackCommand", "ownerUserID", "blackUserID")
    ]
    assert components["openim_refused"]["properties"] == {
        **{"actionCode": {"const": 0}, "errCode": {"const": 0}, "nextCode": {"const": 0}},
        **{"errMsg": {"const": ""}, "errDlt": {"const": ""}},
    }
    content = post["responses"]["503"]["content"]["application/json"]
    assert content == {"schema": {"$ref": "#/components/schemas/openim_refused"}}


def test_problems_are_those_of_the_code(make_app: MakeApp) -> None:
    """Each type of problem has its status."""
    found = document(make_app(migrate=False, **GUARDS))
    problems = {}
    for name, answer in found["components"]["responses"].items():
        _, members = answer["content"]["application/problem+json"]["schema"]["allOf"]
        problems[name] = {key: value["const"] for key, value in members["properties"].items()}
    assert problems == {
        kind.name: {"type": kind.uri, "status": kind.status} for kind in PROBLEM_TYPES
    }


SCHEMAS: dict[str, type[Schema]] = {
    "CallbackCounters": schemas.CallbackCountSchema,
    "Count": schemas.StatsSchema,
    "Delivery": schemas.DeliverySchema,
    "Waiting": schemas.WaitingSchema,
}
QUERIES = {
    "/history": HISTORY_QUERY,
    "/history/stats": STATS_QUERY,
    "/history/export": EXPORT_QUERY,
    "/deliveries": DELIVERY_QUERY,
}


@pytest.mark.parametrize("path", QUERIES)
def test_parameters_are_those_of_the_schemas(make_app: MakeApp, path: str) -> None:
    """Each parameter has the name, the type and the choices of the field that reads it."""
    found = document(make_app(migrate=False, **GUARDS))
    described = parameters(found, found["paths"][path]["get"])
    assert set(described) == set(QUERIES[path].fields)
    for name, field in QUERIES[path].fields.items():
        schema = described[name]["schema"]
        assert (schema["type"] == "array") == isinstance(field, fields.List), name
        inner = field.inner if isinstance(field, fields.List) else field
        check_type(schema.get("items", schema), inner, name)


def check_type(schema: dict[str, Any], field: fields.Field[Any], name: str) -> None:
    """Compare a JSON Schema with a field that is neither a list nor nested."""
    expected: dict[str, Any] = {}
    if isinstance(field, fields.Integer):
        expected = {"type": "integer", "format": "int64"}
    if isinstance(field, Moment):
        expected = {"type": "string", "format": "date-time"}
    if isinstance(field, fields.String):
        expected = {"type": "string"}
    if choices := [list(v.choices) for v in field.validators if isinstance(v, OneOf)]:
        expected["enum"] = choices[0]
    if isinstance(field, fields.Enum):
        expected = {"type": "string", "enum": [member.value for member in field.enum]}
    if field.allow_none and "type" in expected:
        expected["type"] = [expected["type"], "null"]
    assert expected.items() <= schema.items(), name


@pytest.mark.parametrize("name", SCHEMAS)
def test_members_are_those_of_the_schemas(make_app: MakeApp, name: str) -> None:
    """Each answer has the members that the code writes, with their types."""
    found = document(make_app(migrate=False, **GUARDS))
    component = found["components"]["schemas"][name]
    schema_fields = SCHEMAS[name]().fields
    assert list(component["properties"]) == list(schema_fields)
    assert component["required"] == list(schema_fields)
    for member, field in schema_fields.items():
        check_type(component["properties"][member], field, member)


def test_a_removal_has_the_members_of_a_record(make_app: MakeApp) -> None:
    """The members stand in the order of the fields of a record."""
    component = document(make_app(migrate=False, **GUARDS))["components"]["schemas"]["Removal"]
    assert list(component["properties"]) == list(Record._fields)
    assert component["required"] == list(Record._fields)
    assert component["properties"]["relation"]["enum"] == list(Relation)
    assert component["properties"]["cause"]["enum"] == list(Cause)


def taken(schema: dict[str, Any]) -> Iterator[tuple[Any, bool]]:
    """Yield values at the bounds of a schema and beyond them, and whether they are valid."""
    for choice in schema.get("enum", ()):
        yield choice, True
    if "enum" in schema:
        yield "x", False
    if "minimum" in schema:
        yield from ((schema["minimum"], True), (schema["minimum"] - 1, False))
        yield from ((schema["maximum"], True), (schema["maximum"] + 1, False))
    if "maxLength" in schema:
        yield from ((length * "x", True) for length in (schema["minLength"], schema["maxLength"]))
        yield (schema["maxLength"] + 1) * "x", False
        if schema["minLength"]:
            yield (schema["minLength"] - 1) * "x", False
    if schema["type"] == "array":
        values = list(taken(schema["items"]))
        yield from (([value], is_taken) for value, is_taken in values)
        some = next(value for value, is_taken in values if is_taken)
        if "maxItems" in schema:
            yield [some] * schema["maxItems"], True
            yield [some] * (schema["maxItems"] + 1), False
    if schema.get("format") == "date-time":
        yield from (("2026-11-20T18:05:00.123456+08:00", True), ("2026-11-20T18:05:00", False))


@pytest.mark.slow
@pytest.mark.parametrize("path", QUERIES)
def test_bounds_are_those_of_the_code(make_app: MakeApp, path: str) -> None:
    """A valid value reaches the database, which is unavailable. An invalid value is refused."""
    app = make_app(migrate=False, **GUARDS)
    tried = defaultdict(list)
    found = document(app)
    for name, parameter in parameters(found, found["paths"][path]["get"]).items():
        needed = {"peer_id": {"account_id": "x"}, "spreadsheet": {"format": "csv"}}
        other = needed.get(name, {})
        if name == "peer_id":
            parameter["schema"]["maxItems"] -= 1  # The limit counts all filters together.
        for value, is_taken in taken(parameter["schema"]):
            response = get(app, f"/imcallback{path}", TOKEN, query_string={**other, name: value})
            assert response.status_code == (503 if is_taken else 400), (name, str(value)[:80])
            tried[name].append(value)
    assert set(tried) == set(QUERIES[path].fields) - {"cursor", "tz"}


@pytest.mark.parametrize("path", QUERIES)
def test_defaults_are_those_of_the_code(make_app: MakeApp, path: str) -> None:
    """The answer is the same with and without the defaults."""
    app = make_app(**GUARDS)
    with app.app_context():
        store(*(("=owner", str(n)) for n in range(150)))
    found = document(app)
    defaults = {
        name: parameter["schema"]["default"]
        for name, parameter in parameters(found, found["paths"][path]["get"]).items()
        if "default" in parameter["schema"]
    }
    assert set(defaults) == set(QUERIES[path].fields) & {
        *("order", "limit", "bucket", "tz", "format", "formulas", "spreadsheet", "manifest")
    }
    for query in ({}, {"format": "csv"} if path == "/history/export" else {}):
        without = get(app, f"/imcallback{path}", TOKEN, query_string=query)
        assert without.status_code == 200
        assert get(app, f"/imcallback{path}", TOKEN, query_string=defaults | query).data == (
            without.data
        )


PATHS = pytest.mark.parametrize("path", [DOCUMENT, f"{DOCUMENT}/"])


def basic(user: str, password: str) -> str:
    return "Basic " + b64encode(f"{user}:{password}".encode()).decode()


@PATHS
@pytest.mark.parametrize(
    "header",
    [
        f"Bearer {TOKEN}",
        "bearer old/token/of/readers==",
        basic("", TOKEN),
        basic("é", "old/token/of/readers=="),
    ],
)
def test_a_token_opens_the_document(make_app: MakeApp, path: str, header: str) -> None:
    """The token is a bearer token, or the password of any user."""
    app = make_app(migrate=False, IMCALLBACK_HISTORY_TOKENS=["old/token/of/readers==", TOKEN])
    response = app.test_client().get(path, headers={"Authorization": header})
    assert response.status_code == 200


@PATHS
@pytest.mark.parametrize(
    "header",
    [
        *("", "Basic", "Basic !", "Bearer x", f"Token {TOKEN}", basic(TOKEN, ""), basic("x", "")),
        *(basic(TOKEN, "x"), basic("x", TOKEN + "x"), basic("x", TOKEN[:-1]), basic("x", "é")),
    ],
)
def test_a_browser_is_asked_for_a_password(make_app: MakeApp, path: str, header: str) -> None:
    """A wrong or missing token is 401, and the answer names both ways to send one."""
    app = make_app(migrate=False, **GUARDS)
    headers = {"Authorization": header} if header else {}
    response = app.test_client().get(path, headers=headers)
    assert_problem(response, 401)
    assert response.headers.getlist("WWW-Authenticate") == [
        'Basic realm="imcallback"',
        'Bearer realm="imcallback"',
    ]
    assert response.headers["Cache-Control"] == "no-store"


@PATHS
def test_the_document_is_closed_unless_the_host_opens_it(make_app: MakeApp, path: str) -> None:
    """Without tokens and decorators the answer is 403. Another method is 405."""
    app = make_app(migrate=False)
    for password in ("", "None"):
        headers = {"Authorization": basic("x", password)}
        response = app.test_client().get(path, headers=headers)
        assert "IMCALLBACK_HISTORY_TOKENS" in assert_problem(response, 403)["detail"]
    assert_problem(app.test_client().post(path), 405)


@PATHS
@pytest.mark.parametrize("tokens", [[], [TOKEN]])
def test_decorators_decide(make_app: MakeApp, path: str, tokens: list[str]) -> None:
    """Basic credentials that hold no token of ours are left to the host."""
    app = make_app(
        migrate=False, IMCALLBACK_HISTORY_TOKENS=tokens, history_decorators=[login_required]
    )
    headers = {"Authorization": basic("host", "its own password")}
    assert app.test_client().get(path, headers=headers).status_code == 401
    response = app.test_client().get(path, headers={**headers, "X-User": "1"})
    assert response.status_code == 200
    history = response.get_json()["paths"]["/history"]["get"]
    schemes: list[Any] = [{"token": []}, {"password": []}] if tokens else []
    assert history["security"] == [*schemes, {}]
    assert "default" in history["responses"]


@PATHS
def test_the_headers_are_strict(make_app: MakeApp, path: str) -> None:
    """A browser neither guesses the type nor runs anything from elsewhere."""
    app = make_app(migrate=False, **GUARDS)
    for token in (TOKEN, None):
        headers = get(app, path, token).headers
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; ")
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"


def test_the_document_holds_no_secret(make_app: MakeApp) -> None:
    """No token, path segment, password or app id is in it."""
    app = make_app(migrate=False, **GUARDS, IMCALLBACK_OPENIM_CREDENTIALS={"a-user": "a-pass-word"})
    text = get(app, DOCUMENT, TOKEN).text
    for secret in (TOKEN, SECRET, APP_ID, "a-user", "a-pass-word"):
        assert secret not in text


def test_the_server_url_has_the_mount_path(make_app: MakeApp) -> None:
    """A proxy or a dispatcher may mount the app below a path."""
    app = make_app(migrate=False, **GUARDS)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    base = "http://localhost/im"
    found = app.test_client().get(DOCUMENT, base_url=base, headers=headers).get_json()
    assert found["servers"] == [{"url": "/im/imcallback"}]


EXAMPLES = int(os.environ.get("IMCALLBACK_OPENAPI_EXAMPLES", "8"))
"""Random requests for each URL. The default is small, so that `make test` is quick."""
CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "unsupported_method",
]


def explore(app: Flask, *, guarded: bool, checks: list[str] = CHECKS, **phases: bool) -> Any:
    """Have Schemathesis try the whole document. Return the HTTP statuses of each operation."""
    found = document(app)
    for name, component in found["components"]["schemas"].items():
        if not name.startswith(("tencent_", "openim_")):
            component["additionalProperties"] = False  # No member may be undocumented.
    for parameter in found["components"]["parameters"].values():
        parameter["schema"].pop("maxItems", None)  # Another test tries it, because it takes long.
    right = {"query.SdkAppid": APP_ID, "path.secret": SECRET}
    configuration = {
        "seed": 1,
        "cache": {"enabled": False},
        "headers": {"Authorization": f"Bearer {TOKEN}"} if guarded else {},
        "parameters": right if guarded else {},
        "checks": {"enabled": False, **{name: {"enabled": True} for name in checks}},
        "generation": {"max-examples": EXAMPLES, "database": "none"},
        "phases": {name: {"enabled": is_enabled} for name, is_enabled in phases.items()},
    }
    schema = schemathesis.openapi.from_dict(
        found, config=SchemathesisConfig.from_dict(configuration)
    )
    schema.app = app
    statuses, problems = defaultdict(set), []
    for event in from_schema(schema).execute():
        assert not isinstance(event, events.NonFatalError | events.FatalError), event
        if isinstance(event, events.ScenarioFinished):
            for interaction in event.recorder.interactions.values():
                assert interaction.response is not None
                statuses[event.recorder.label].add(interaction.response.status_code)
            for check in [one for some in event.recorder.checks.values() for one in some]:
                if check.failure_info:
                    problems.append((check.failure_info.failure, check.failure_info.code_sample))
    assert problems == []
    paths = found["paths"].items()
    operations = {f"{method.upper()} {path}" for path, methods in paths for method in methods}
    assert set(statuses) == operations
    return statuses


@pytest.mark.slow
def test_schemathesis_finds_no_undocumented_answer(make_app: MakeApp) -> None:
    """Readers and IM servers send values at the bounds, beyond the bounds, and at random."""
    app = make_app(**GUARDS, IMCALLBACK_ALLOW_UNAUTHENTICATED=True, IMCALLBACK_MAX_BODY=2000)
    with app.app_context():
        store(("owner", "1"), ("owner", "2"), command="callbackX")
        store(("owner", "3"), body=b"\xff", platform="iOS")
    found = explore(app, guarded=True, coverage=True, fuzzing=True, stateful=False)
    assert all(200 in statuses for statuses in found.values())
    assert found["GET /history"] >= {200, 400, 405}
    assert found["GET /history/{removal_id}"] >= {200, 404}
    assert found["POST /tencent/{secret}"] >= {200, 400, 405}


@pytest.mark.slow
def test_schemathesis_without_a_guard(make_app: MakeApp) -> None:
    """A request without a token or secret gets the documented refusal."""
    app = make_app(**GUARDS)
    found = explore(app, guarded=False, coverage=False, fuzzing=True, stateful=False)
    for operation, statuses in found.items():
        expected = 200 if "/health" in operation else 401 if "GET" in operation else 403
        assert statuses == {expected}, operation


@pytest.mark.slow
def test_schemathesis_without_tables(make_app: MakeApp) -> None:
    """If nothing can be read, the answer is 503. Random packets are seldom stored, so none may."""
    app = make_app(
        migrate=False,
        **GUARDS,
        IMCALLBACK_ALLOW_UNAUTHENTICATED=True,
        IMCALLBACK_SPOOL=None,
    )
    checks = [name for name in CHECKS if name != "not_a_server_error"]
    found = explore(app, guarded=True, checks=checks, coverage=False, fuzzing=True, stateful=False)
    for operation, statuses in found.items():
        if operation.startswith("GET"):
            assert (503 in statuses) != ("json" in operation), operation
