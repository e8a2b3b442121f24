"""The OpenAPI document says what the HTTP API does, and the HTTP API does what it says."""

from __future__ import annotations

import os
import re
from base64 import b64encode
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from flask import Flask
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema

from flask_imcallback.history.export import COLUMNS, FORMATS
from flask_imcallback.history.schemas import (
    DELIVERY_QUERY,
    EXPORT_QUERY,
    HISTORY_QUERY,
    STATS_QUERY,
)
from flask_imcallback.providers import PROVIDERS
from flask_imcallback.web.problems import KINDS
from support.api import assert_problem, get, login_required
from support.apps import MakeApp
from support.callbacks import MineProvider
from support.deliveries import store

DOCUMENT = "/imcallback/openapi.json"
TOKEN = "a-token"
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


def parameters(of: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {parameter["name"]: parameter for parameter in of.get("parameters", ())}


CONFIGURATIONS: list[dict[str, Any]] = [
    {},
    GUARDS,
    {
        "IMCALLBACK_TENCENT_APPS": {APP_ID: ["token"], "1400000001": []},
        "IMCALLBACK_ALLOW_UNAUTHENTICATED": True,
        "IMCALLBACK_OPENIM_CREDENTIALS": {"openim": "a password"},
    },
    {"IMCALLBACK_URL_PREFIX": ""},
    {"IMCALLBACK_SECRETS": [SECRET], "providers": [*PROVIDERS, MineProvider]},
    {"providers": []},
    {"history_decorators": [login_required]},
]


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda some: "+".join(some)[:60])
def test_the_document_is_valid_and_has_all_addresses(
    make_app: MakeApp, configuration: dict[str, Any]
) -> None:
    """Whatever is configured: it has each rule of our blueprints for programs, and no other."""
    tokens = {"IMCALLBACK_HISTORY_TOKENS": [TOKEN]}
    app = make_app(migrate=False, **tokens | configuration)
    prefix = configuration.get("IMCALLBACK_URL_PREFIX", "/imcallback")
    found = document(app, f"{prefix}/openapi.json")
    OpenAPIV31SpecValidator(found).validate()
    assert found["servers"] == [{"url": prefix or "/"}]
    rules = {
        re.sub("/<.+>$", "/<>", rule.rule)
        for rule in app.url_map.iter_rules()
        if rule.endpoint.startswith("imcallback_")
        and not rule.endpoint.startswith("imcallback_page.")  # for people
    }
    assert {prefix + re.sub(r"(/\{\w+\})+$", "/<>", path) for path in found["paths"]} == rules


def test_what_stands_in_it(make_app: MakeApp) -> None:
    """Some of it, read by eye."""
    found = document(make_app(migrate=False, **GUARDS))
    assert found["openapi"] == "3.1.0"
    history = found["paths"]["/history"]["get"]
    assert parameters(history)["owner_id"] == {
        "in": "query",
        "name": "owner_id",
        "required": False,
        "description": "the account whose list changed",
        "style": "form",
        "explode": True,
        "schema": {
            "type": "array",
            "maxItems": 10_000,
            "items": {"type": "string", "minLength": 1, "maxLength": 255},
        },
    }
    assert parameters(history)["limit"]["schema"] == {
        **{"type": "integer", "format": "int64", "minimum": 1, "maximum": 1000, "default": 100},
    }
    assert parameters(history)["since"]["schema"] == {"type": "string", "format": "date-time"}
    assert history["security"] == [{"token": []}]
    assert list(history["responses"]) == ["200", "400", "401", "403", "405", "503"]
    assert set(history["responses"]["200"]["headers"]) == {
        *("Cache-Control", "Link", "Resume-Cursor", "Retry-After")
    }
    page = history["responses"]["200"]["content"]["application/json"]["schema"]
    assert page == {"$ref": "#/components/schemas/HistoryPage"}
    removal = found["components"]["schemas"]["Removal"]
    assert tuple(removal["properties"]) == COLUMNS
    assert sorted(removal["required"]) == sorted(COLUMNS)
    assert removal["properties"]["received_at"] == {"type": "string", "format": "date-time"}
    tencent = found["paths"]["/tencent/{secret}"]["post"]
    assert parameters(tencent)["SdkAppid"]["required"] is True
    removals, *_ = tencent["requestBody"]["content"]["application/json"]["schema"]["anyOf"]
    assert removals["allOf"][0] == {"$ref": "#/components/schemas/TencentRemoval"}
    openim = found["paths"]["/openim/{secret}/{command}"]["post"]["responses"]["503"]
    assert openim["content"]["application/json"]["schema"]["properties"] == {
        **{"actionCode": {"const": 0}, "errCode": {"const": 0}, "nextCode": {"const": 0}},
        **{"errMsg": {"const": ""}, "errDlt": {"const": ""}},
    }
    export = found["paths"]["/history/export"]["get"]["responses"]["200"]["content"]
    assert list(export) == [f.media_type.partition(";")[0] for f in FORMATS.values()]


def test_problems_and_parameters_are_those_of_the_code(make_app: MakeApp) -> None:
    """Each type with its status, and each parameter of each address."""
    found = document(make_app(migrate=False, **GUARDS))
    problems = {}
    for name, answer in found["components"]["responses"].items():
        _, members = answer["content"]["application/problem+json"]["schema"]["allOf"]
        problems[name] = {key: value["const"] for key, value in members["properties"].items()}
    assert problems == {kind.name: {"type": kind.type, "status": kind.status} for kind in KINDS}
    for path, schema in QUERIES.items():
        assert set(parameters(found["paths"][path]["get"])) == set(schema.fields)


QUERIES = {
    "/history": HISTORY_QUERY,
    "/history/stats": STATS_QUERY,
    "/history/export": EXPORT_QUERY,
    "/deliveries": DELIVERY_QUERY,
}


def taken(schema: dict[str, Any]) -> Iterator[tuple[Any, bool]]:
    """Values at the bounds of a schema and beyond them, and whether it takes them."""
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


@pytest.mark.parametrize("path", QUERIES)
def test_bounds_are_those_of_the_code(make_app: MakeApp, path: str) -> None:
    """What the document allows is asked of the database, which is away; the rest is refused."""
    app = make_app(migrate=False, **GUARDS)
    tried = defaultdict(list)
    for name, parameter in parameters(document(app)["paths"][path]["get"]).items():
        other = {"account_id": "x"} if name == "peer_id" else {}
        if other:
            parameter["schema"]["maxItems"] -= 1  # all filters together have so many
        for value, is_taken in taken(parameter["schema"]):
            response = get(app, f"/imcallback{path}", TOKEN, query_string={**other, name: value})
            assert response.status_code == (503 if is_taken else 400), (name, str(value)[:80])
            tried[name].append(value)
    assert set(tried) == set(QUERIES[path].fields) - {"cursor", "tz"}


@pytest.mark.parametrize("path", QUERIES)
def test_defaults_are_those_of_the_code(make_app: MakeApp, path: str) -> None:
    """The answer is the same with and without them."""
    app = make_app(**GUARDS)
    with app.app_context():
        store(*(("=owner", str(n)) for n in range(150)))
    asked = {
        name: parameter["schema"]["default"]
        for name, parameter in parameters(document(app)["paths"][path]["get"]).items()
        if "default" in parameter["schema"]
    }
    assert set(asked) == set(QUERIES[path].fields) & {
        *("order", "limit", "bucket", "tz", "format", "formulas")
    }
    for query in ({}, {"format": "csv"} if path == "/history/export" else {}):
        without = get(app, f"/imcallback{path}", TOKEN, query_string=query)
        assert without.status_code == 200
        assert get(app, f"/imcallback{path}", TOKEN, query_string=asked | query).data == (
            without.data
        )


PATHS = pytest.mark.parametrize(
    "path", [DOCUMENT, "/imcallback/docs", "/imcallback/docs/swagger-ui.css", f"{DOCUMENT}/"]
)


def basic(user: str, password: str) -> str:
    return "Basic " + b64encode(f"{user}:{password}".encode()).decode()


@PATHS
@pytest.mark.parametrize(
    "header",
    [f"Bearer {TOKEN}", "bearer old/token==", basic("", TOKEN), basic("é", "old/token==")],
)
def test_a_token_opens_it_in_a_browser_too(make_app: MakeApp, path: str, header: str) -> None:
    """As a bearer token, or as the password of any user."""
    app = make_app(migrate=False, IMCALLBACK_HISTORY_TOKENS=["old/token==", TOKEN])
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
    """Whoever has no token gets 401, and may send one in either way."""
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
def test_it_is_closed_as_the_history_is(make_app: MakeApp, path: str) -> None:
    """403 unless the host opens it, whoever asks, and 405 for whoever would write."""
    app = make_app(migrate=False)
    for password in ("", "None"):
        headers = {"Authorization": basic("x", password)}
        response = app.test_client().get(path, headers=headers)
        assert "IMCALLBACK_HISTORY_TOKENS" in assert_problem(response, 403)["detail"]
    assert_problem(app.test_client().post(path), 405)


@PATHS
@pytest.mark.parametrize("tokens", [[], [TOKEN]])
def test_decorators_decide(make_app: MakeApp, path: str, tokens: list[str]) -> None:
    """Basic credentials that are no token of ours may be the host's."""
    app = make_app(
        migrate=False, IMCALLBACK_HISTORY_TOKENS=tokens, history_decorators=[login_required]
    )
    headers = {"Authorization": basic("host", "its own password")}
    assert app.test_client().get(path, headers=headers).status_code == 401
    response = app.test_client().get(path, headers={**headers, "X-User": "1"})
    assert response.status_code == 200
    if path == DOCUMENT:
        history = response.get_json()["paths"]["/history"]["get"]
        assert history["security"] == [*({"token": []} for _ in tokens), {}]
        assert "default" in history["responses"]


def test_no_secret_stands_in_it(make_app: MakeApp) -> None:
    """Neither a token nor a path segment nor a password nor an app."""
    app = make_app(migrate=False, **GUARDS, IMCALLBACK_OPENIM_CREDENTIALS={"a-user": "a-pass-word"})
    text = get(app, DOCUMENT, TOKEN).text
    for secret in (TOKEN, SECRET, APP_ID, "a-user", "a-pass-word"):
        assert secret not in text


def test_the_server_is_where_the_app_is_mounted(make_app: MakeApp) -> None:
    """Below the path that a proxy or a dispatcher takes off."""
    app = make_app(migrate=False, **GUARDS)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    base = "http://localhost/im"
    found = app.test_client().get(DOCUMENT, base_url=base, headers=headers).get_json()
    assert found["servers"] == [{"url": "/im/imcallback"}]
    page = app.test_client().get("/imcallback/docs", base_url=base, headers=headers)
    assert 'src="/im/imcallback/docs/docs.js"' in page.text


EXAMPLES = int(os.environ.get("IMCALLBACK_OPENAPI_EXAMPLES", "8"))
"""Random requests at each address; `make test` has few."""
CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "unsupported_method",
]


def explore(app: Flask, *, guarded: bool, checks: list[str] = CHECKS, **phases: bool) -> Any:
    """Have Schemathesis try all that the document tells: statuses by address."""
    found = document(app)
    for name, component in found["components"]["schemas"].items():
        if not name.startswith(("Tencent", "OpenIM")):
            component["additionalProperties"] = False  # so that no member is undocumented
    for methods in found["paths"].values():
        for parameter in parameters(methods.get("get", {})).values():
            parameter["schema"].pop("maxItems", None)  # which takes long, and is tried above
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


def test_schemathesis_finds_no_other_answer(make_app: MakeApp) -> None:
    """Of readers and IM servers: at the bounds, beyond them, and at random."""
    app = make_app(**GUARDS, IMCALLBACK_ALLOW_UNAUTHENTICATED=True, IMCALLBACK_MAX_BODY=2000)
    with app.app_context():
        store(("owner", "1"), ("owner", "2"), command="callbackX")
        store(("owner", "3"), body=b"\xff", platform="iOS")
    found = explore(app, guarded=True, coverage=True, fuzzing=True, stateful=False)
    assert all(200 in statuses for statuses in found.values())
    assert found["GET /history"] >= {200, 400, 401, 405}
    assert found["GET /history/{removal_id}"] >= {200, 404}
    assert found["POST /tencent/{secret}"] >= {200, 400, 405}


def test_schemathesis_without_a_guard(make_app: MakeApp) -> None:
    """Strangers get what the document says."""
    app = make_app(**GUARDS)
    found = explore(app, guarded=False, coverage=False, fuzzing=True, stateful=False)
    for operation, statuses in found.items():
        expected = 200 if "/health" in operation else 401 if "GET" in operation else 403
        assert statuses == {expected}, operation


def test_schemathesis_without_tables(make_app: MakeApp) -> None:
    """So it is when nothing can be read or stored."""
    app = make_app(
        migrate=False,
        **GUARDS,
        IMCALLBACK_ALLOW_UNAUTHENTICATED=True,
        IMCALLBACK_SPOOL=None,
    )
    checks = [name for name in CHECKS if name != "not_a_server_error"]
    found = explore(app, guarded=True, checks=checks, coverage=False, fuzzing=True, stateful=False)
    for operation, statuses in found.items():
        is_document = "/docs" in operation or "json" in operation
        assert (503 in statuses) != is_document, operation
