"""The HTTP API for programs: an OpenAPI document made of the schemas that read and write it.

And for people, if Swagger UI is installed: a page that shows the document.
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from flask import Blueprint, Response, request, url_for
from marshmallow import Schema, fields

from ..history import FORMATS, schemas
from ..providers import AccountId, Callback, Provider, openim, tencent
from ..runtime import Runtime, get_runtime
from ..storage import MAX_ID
from ..text import MAX_TEXT_LENGTH
from .access import add_reader_views
from .problems import (
    BAD_PARAMETER,
    CLOSED,
    METHOD_NOT_ALLOWED,
    NOT_FOUND,
    NOT_INSTALLED,
    PROBLEM_TYPES,
    TOO_WIDE,
    UNAUTHORIZED,
    UNAVAILABLE,
    ProblemError,
    ProblemType,
    answer_with_problems,
    json_response,
)

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>flask-imcallback</title>
<link rel="icon" href="{files}favicon-32x32.png">
<link rel="stylesheet" href="{files}swagger-ui.css">
<div id="swagger-ui"></div>
<script src="{files}swagger-ui-bundle.js"></script>
<script src="{files}docs.js"></script>
"""
FILES = {
    "docs.js": "text/javascript",
    "favicon-32x32.png": "image/png",
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
}
"""What the page consists of; the first is ours, the others are Swagger UI's."""


def make_blueprint(decorators: Sequence[Callable[..., Any]]) -> Blueprint:
    blueprint = Blueprint("imcallback_openapi", __name__)
    add_reader_views(blueprint, ROUTES, decorators, browser_views=ROUTES.values())
    answer_with_problems(blueprint)
    return blueprint


def _document() -> Response:
    runtime = get_runtime()
    address = request.script_root + runtime.settings.url_prefix
    return json_response(describe(runtime) | {"servers": [{"url": address or "/"}]})


def _page() -> Response:
    _swagger_ui()
    address = url_for(".file", name="docs.js").removesuffix("docs.js")
    return Response(PAGE.format(files=address), mimetype="text/html")


def _file(name: str) -> Response:
    if name not in FILES:
        raise ProblemError(NOT_FOUND, "The page has no such file.")
    swagger_ui = _swagger_ui()
    ours = importlib.resources.files(__package__ or "") / "page/static"
    content = ((ours if name == "docs.js" else swagger_ui) / name).read_bytes()
    return Response(content, mimetype=FILES[name])


def _swagger_ui() -> Any:
    """The folder of its files. Raises a problem if it is not installed."""
    try:
        return importlib.resources.files("flask_swagger_ui") / "dist"
    except ImportError as error:
        problem = "The page needs flask-swagger-ui: install flask-imcallback[swagger]"
        raise ProblemError(NOT_INSTALLED, problem) from error


ROUTES: dict[str, Callable[..., Response]] = {
    "/openapi.json": _document,
    "/docs": _page,
    "/docs/<imcallback_rest:name>": _file,
}


SCHEMAS: dict[str, type[Schema]] = {
    "Removal": schemas.RemovalSchema,
    "Delivery": schemas.DeliverySchema,
    "Count": schemas.StatsSchema,
    "CallbackCounters": schemas.CallbackCountSchema,
    "Waiting": schemas.WaitingSchema,
    "HistoryPage": schemas.HistoryPageSchema,
    "OneRemoval": schemas.OneRemovalSchema,
    "DeliveryPage": schemas.DeliveryPageSchema,
    "OneDelivery": schemas.OneDeliverySchema,
    "Counts": schemas.CountsSchema,
    "Health": schemas.HealthSchema,
    "Problem": schemas.ProblemSchema,
}
"""The components by name; apispec refers to them wherever they are used."""
TAGS = {
    "history": "What was recorded: GET, for readers.",
    "callbacks": "What IM servers call: POST.",
    "service": "Whether it works.",
    "document": "This document.",
}
TEXT = {"type": "string"}
MOMENT = {"format": "date-time"}
NO_STORE = {"Cache-Control": {"required": True, "schema": {"type": "string", "const": "no-store"}}}
LINK = {
    "Link": {"description": 'The next page: `<…>; rel="next"`; on the last, none.', "schema": TEXT}
}
RESUME_CURSOR = {
    "Resume-Cursor": {
        "description": "On the last page of order=asc: the cursor to ask with later for what is "
        "new.",
        "schema": TEXT,
    }
}
RETRY_AFTER = {
    "Retry-After": {
        "description": "With order=asc and an empty page: the seconds to wait before the next.",
        "schema": TEXT,
    }
}
ATTACHMENT = {"Content-Disposition": {"required": True, "schema": TEXT}}
ALLOW = {"Allow": {"required": True, "schema": TEXT}}
WWW_AUTHENTICATE = {"WWW-Authenticate": {"required": True, "schema": TEXT}}
OF_PROBLEMS = {UNAUTHORIZED: WWW_AUTHENTICATE, METHOD_NOT_ALLOWED: ALLOW}
OF_ALL = (UNAUTHORIZED, CLOSED, METHOD_NOT_ALLOWED)
"""What every guarded address may answer."""
OF_FILES = {
    "ndjson": "A removal a line; the last line is the manifest.",
    "csv": "A removal a record, after that of the names; the last record is the manifest.",
    "parquet": "A removal a row.",
}


def _answer(
    description: str, content: Mapping[str, Any], *headers: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "description": description,
        "headers": {name: about for some in (NO_STORE, *headers) for name, about in some.items()},
        "content": {media_type: {"schema": schema} for media_type, schema in content.items()},
    }


def _json(description: str, schema: Any, *headers: Mapping[str, Any]) -> dict[str, Any]:
    return _answer(description, {"application/json": schema}, *headers)


def _problem(kind: ProblemType) -> dict[str, Any]:
    members = {"type": {"const": kind.uri}, "status": {"const": kind.status}}
    schema = {"allOf": [schemas.ProblemSchema, {"type": "object", "properties": members}]}
    content = {"application/problem+json": schema}
    return _answer(kind.meaning, content, OF_PROBLEMS.get(kind, {}))


def _get(
    operation_id: str,
    tag: str,
    summary: str,
    answer: Mapping[str, Any],
    *kinds: ProblemType,
    parameters: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    return {
        "operationId": operation_id,
        "tags": [tag],
        "summary": summary,
        "parameters": list(parameters),
        "responses": {"200": answer, **{str(kind.status): kind.name for kind in kinds}},
    }


def _id_in_path(name: str) -> dict[str, Any]:
    schema = {"type": "integer", "format": "int64", "minimum": 0, "maximum": MAX_ID}
    return {"in": "path", "name": name, "required": True, "schema": schema}


READ: dict[str, dict[str, Any]] = {
    "/history": _get(
        *("listRemovals", "history", "The recorded removals, newest first"),
        _json("A page.", schemas.HistoryPageSchema, LINK, RESUME_CURSOR, RETRY_AFTER),
        *(BAD_PARAMETER, *OF_ALL, UNAVAILABLE),
        parameters=[{"in": "query", "schema": schemas.HistoryQuerySchema}],
    ),
    "/history/{removal_id}": _get(
        *("getRemoval", "history", "One removal with its delivery, the raw packet included"),
        _json("The removal.", schemas.OneRemovalSchema),
        *(BAD_PARAMETER, *OF_ALL, NOT_FOUND, UNAVAILABLE),
        parameters=[_id_in_path("removal_id")],
    ),
    "/history/stats": _get(
        *("countRemovals", "history", "Counts by time and group"),
        _json("All counts, by bucket and group.", schemas.CountsSchema),
        *(BAD_PARAMETER, *OF_ALL, TOO_WIDE, UNAVAILABLE),
        parameters=[{"in": "query", "schema": schemas.StatsQuerySchema}],
    ),
    "/history/export": _get(
        *("exportRemovals", "history", "All that the filters match, as one file"),
        _answer(
            "The file, made while it is sent.",
            {
                format.media_type.partition(";")[0]: {**TEXT, "description": OF_FILES[name]}
                for name, format in FORMATS.items()
            },
            ATTACHMENT,
        ),
        *(BAD_PARAMETER, *OF_ALL, NOT_INSTALLED, UNAVAILABLE),
        parameters=[{"in": "query", "schema": schemas.ExportQuerySchema}],
    ),
    "/deliveries": _get(
        *("listDeliveries", "history", "Every delivery, also those without removals"),
        _json("A page.", schemas.DeliveryPageSchema, LINK),
        *(BAD_PARAMETER, *OF_ALL, UNAVAILABLE),
        parameters=[{"in": "query", "schema": schemas.DeliveryQuerySchema}],
    ),
    "/deliveries/{delivery_id}": _get(
        *("getDelivery", "history", "One delivery with its removals, the raw packet included"),
        _json("The delivery.", schemas.OneDeliverySchema),
        *(BAD_PARAMETER, *OF_ALL, NOT_FOUND, UNAVAILABLE),
        parameters=[_id_in_path("delivery_id")],
    ),
    "/openapi.json": _get(
        *("getDocument", "document", "This document"),
        _json("OpenAPI 3.1.", {"type": "object"}),
        *OF_ALL,
    ),
    "/docs": _get(
        *("showDocument", "document", "This document in a browser"),
        _answer("The page.", {"text/html": TEXT}),
        *(*OF_ALL, NOT_INSTALLED),
    ),
    "/docs/{name}": _get(
        *("getFileOfPage", "document", "What the page consists of"),
        _answer("The file.", dict.fromkeys(FILES.values(), TEXT)),
        *(*OF_ALL, NOT_FOUND, NOT_INSTALLED),
        parameters=[
            {"in": "path", "name": "name", "required": True, "schema": {**TEXT, "enum": [*FILES]}}
        ],
    ),
}
HEALTH = {
    "operationId": "getHealth",
    "tags": ["service"],
    "summary": "Whether callbacks can be recorded; readers see counts, too",
    "responses": {
        "200": _json("They can.", schemas.HealthSchema),
        "503": _json("They cannot; `problem` says why.", schemas.HealthSchema),
    },
}
TOKEN = {"type": "http", "scheme": "bearer", "description": "One of IMCALLBACK_HISTORY_TOKENS."}
PASSWORD = {"type": "http", "scheme": "basic", "description": "A token, and any user name."}


def describe(runtime: Runtime) -> dict[str, Any]:
    """The HTTP API of an app as OpenAPI 3.1, but for the server's address."""
    # Imported here: it takes a fifth of a second.
    from apispec import APISpec
    from apispec.ext.marshmallow import MarshmallowPlugin

    plugin = MarshmallowPlugin()
    spec = APISpec(
        title="flask-imcallback",
        version=version("flask-imcallback"),
        openapi_version="3.1.0",
        plugins=[plugin],
        info={"description": "Who removed whom on Tencent Cloud IM and OpenIM. HEAD is as GET."},
        tags=[{"name": name, "description": text} for name, text in TAGS.items()],
    )
    plugin.converter.add_attribute_function(_more_properties)  # type: ignore[union-attr]
    for name, schema in SCHEMAS.items():
        spec.components.schema(name, schema=schema)
    for kind in PROBLEM_TYPES:
        spec.components.response(kind.name, _problem(kind))
    spec.components.security_scheme("token", TOKEN)
    spec.components.security_scheme("password", PASSWORD)

    for path, operation in READ.items():
        in_browser = operation["tags"] == ["document"] or path == "/history/export"
        schemes = ["token", "password"] if in_browser else ["token"]
        if not runtime.settings.history_tokens:
            schemes = []
        is_open = bool(runtime.history_decorators)  # to whom the host lets in
        described = {**operation, "security": _either(*schemes, nothing=is_open)}
        if is_open:
            refused = {"description": "What the host's own guard answers."}
            described["responses"] = {**operation["responses"], "default": refused}
        spec.path(path, operations={"get": described})
    health = {**HEALTH, "security": _either("token", nothing=True)}
    spec.path("/health", operations={"get": health})

    for name, provider in runtime.providers.items():
        callbacks = DESCRIBED.get(type(provider), _any_callbacks)(provider)
        for schema_name, packet_schema in callbacks.schemas.items():
            spec.components.schema(schema_name, schema=packet_schema)
        for scheme, about in callbacks.schemes.items():
            spec.components.security_scheme(scheme, about)
        for path in callbacks.paths:
            spec.path(f"/{name}{path}", operations={"post": _post(name, path, callbacks)})
    return spec.to_dict()


def _more_properties(_: Any, field: fields.Field[Any], **kwargs: Any) -> dict[str, Any]:
    """What apispec does not know of fields."""
    match field:
        case AccountId():
            return {"minLength": 1, "maxLength": MAX_TEXT_LENGTH}
        case fields.Integer():
            return {"format": "int64"}
        case schemas.Moment():
            return {"type": ["string", "null"] if field.allow_none else "string", **MOMENT}
    return {}


def _either(*schemes: str, nothing: bool) -> list[dict[str, list[str]]]:
    """One of these schemes, or nothing that this document could name."""
    either: list[dict[str, list[str]]] = [{scheme: []} for scheme in schemes]
    return either + ([{}] if nothing else [])


ANSWERS = {
    200: "Recorded, a duplicate, or of a command that removes nobody.",
    400: "Authentic, but it cannot be read; kept with its raw bytes.",
    403: "Not authentic.",
    404: "The provider is off.",
    405: "Callbacks are sent by POST.",
    413: "Larger than IMCALLBACK_MAX_BODY.",
    503: "It could not be stored anywhere.",
}
ANY = Callback(command="", removals=None, packet={})
IN_PATH = {
    "secret": "One of IMCALLBACK_SECRETS.",
    "command": "As in the body.",
    "secret_or_command": "The secret if it equals one, else the command.",
    "rest": "What the provider makes of it.",
}


@dataclass(frozen=True, kw_only=True)
class Callbacks:
    """How a provider calls, and what it is told."""

    paths: Sequence[str]
    """Behind its name, with parameters in braces."""
    query: Mapping[str, str] = field(default_factory=dict)
    """Each parameter, and what it is."""
    required: Sequence[str] = ()
    """Of the query."""
    packet: Mapping[str, Any]
    accepted: Mapping[str, Any]
    refused: Mapping[str, Any]
    schemas: Mapping[str, Any] = field(default_factory=dict)
    """Components of the packet, by name."""
    schemes: Mapping[str, Any] = field(default_factory=dict)
    security: Sequence[Mapping[str, Any]] = ()


def _post(name: str, path: str, callbacks: Callbacks) -> dict[str, Any]:
    in_path = re.findall(r"{(\w+)}", path)
    words = [word.title() for segment in (name, *in_path) for word in segment.split("_")]
    parameters = [
        {
            **{"in": "path", "name": one, "required": True, "description": IN_PATH[one]},
            "schema": {**TEXT, "minLength": 1},
        }
        for one in in_path
    ] + [
        {
            **{"in": "query", "name": one, "required": one in callbacks.required},
            **{"description": about, "schema": TEXT},
        }
        for one, about in callbacks.query.items()
        if one not in in_path
    ]
    responses: dict[str, dict[str, Any]] = {}
    for status, about in ANSWERS.items():
        body = {"schema": callbacks.accepted if status == 200 else callbacks.refused}
        responses[str(status)] = {"description": about, "content": {"application/json": body}}
    responses["405"]["headers"] = ALLOW
    return {
        "operationId": "receive" + "".join(words),
        "tags": ["callbacks"],
        "summary": f"A callback of {name}",
        "parameters": parameters,
        "requestBody": {
            "required": True,
            "description": "Read as JSON whatever its media type.",
            "content": {"application/json": {"schema": callbacks.packet}},
        },
        "responses": responses,
        "security": list(callbacks.security),
    }


def _tencent_callbacks(provider: tencent.TencentProvider) -> Callbacks:
    allowed = {"To_Account": TEXT, "ResultCode": {"const": 0}, "ResultInfo": {"const": ""}}
    accepted = _constants(provider.accept(ANY).body)
    accepted["properties"]["ResultItem"] = {
        "description": "Of the commands that ask: all are allowed.",
        "type": "array",
        "items": {"type": "object", "properties": allowed, "required": [*allowed]},
    }
    schemes = ["tencent_sign"] if any(provider.apps.values()) else []
    return Callbacks(
        paths=["", "/{secret}"],
        query={
            "SdkAppid": "The app, of IMCALLBACK_TENCENT_APPS.",
            "CallbackCommand": "As in the body.",
            "contenttype": "json",
            "ClientIP": "Of the user.",
            "OptPlatform": "Of the user, such as iOS.",
            **dict.fromkeys(tencent.REQUEST_ID, "The same if the callback is repeated."),
            "RequestTime": "Seconds since 1970, for apps that have a token.",
        },
        required=["SdkAppid"],
        packet={
            "anyOf": [
                _of_commands(tencent.RemovalSchema, "CallbackCommand", tencent.RELATIONS),
                *(
                    _of_commands(schema, "CallbackCommand", [command])
                    for command, schema in tencent.ASKED.items()
                ),
                _of_other_commands("CallbackCommand", [*tencent.RELATIONS, *tencent.ASKED]),
            ]
        },
        accepted=accepted,
        refused=_constants(provider.refuse(400, "").body, "ErrorInfo"),
        schemas={
            "TencentPair": tencent.PairSchema,
            "TencentRemoval": tencent.RemovalSchema,
            "TencentAsked": tencent.AskedSchema,
            **{
                f"Tencent{command.partition('.Callback')[2]}": schema
                for command, schema in tencent.ASKED.items()
            },
        },
        schemes={
            "tencent_sign": {
                **{"type": "apiKey", "in": "query", "name": "Sign"},
                "description": "SHA-256 of a token of the app and RequestTime, in hexadecimal.",
            }
        },
        security=_either(*schemes, nothing=not all(provider.apps.values())),
    )


def _openim_callbacks(provider: openim.OpenIMProvider) -> Callbacks:
    schemes = ["openim_password"] if provider.credentials else []
    is_optional = bool(provider.secrets or provider.allow_unauthenticated)
    return Callbacks(
        paths=["", "/{secret_or_command}", "/{secret}/{command}"],
        query={"command": "Of servers before 3.4.2.", "contenttype": "json"},
        packet={
            "anyOf": [
                *(
                    _of_commands(schema, "callbackCommand", [command])
                    for command, (_, schema) in openim.REMOVALS.items()
                ),
                _of_other_commands("callbackCommand", openim.REMOVALS),
            ]
        },
        accepted=_constants(provider.accept(ANY).body),
        refused=_constants(provider.refuse(400, "").body),
        schemas={
            "OpenIMRemoveBlack": openim.RemoveBlackSchema,
            "OpenIMDeleteFriend": openim.DeleteFriendSchema,
        },
        schemes={"openim_password": {"type": "http", "scheme": "basic"}},
        security=_either(*schemes, nothing=is_optional),
    )


def _any_callbacks(provider: Provider) -> Callbacks:
    """Of a provider of the host's own, of which nothing is known here."""
    anything = {"type": "object"}
    return Callbacks(paths=["", "/{rest}"], packet={}, accepted=anything, refused=anything)


DESCRIBED: dict[type[Provider], Callable[[Any], Callbacks]] = {
    tencent.TencentProvider: _tencent_callbacks,
    openim.OpenIMProvider: _openim_callbacks,
}


def _constants(body: Mapping[str, Any], *free: str) -> dict[str, Any]:
    """An object of just these members, of which some may be another text."""
    properties = {name: TEXT if name in free else {"const": body[name]} for name in body}
    return {"type": "object", "properties": properties, "required": [*body]}


def _of_commands(schema: Any, member: str, commands: Iterable[str]) -> dict[str, Any]:
    named = {"type": "object", "properties": {member: {"enum": [*commands]}}}
    return {"allOf": [schema, named]}


def _of_other_commands(member: str, commands: Iterable[str]) -> dict[str, Any]:
    other = {**TEXT, "maxLength": MAX_TEXT_LENGTH, "not": {"enum": [*commands]}}
    about = "Of any other command: acknowledged, and kept without removals."
    return {"type": "object", "properties": {member: other}, "description": about}
