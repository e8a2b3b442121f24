"""The OpenAPI document of this app at `/openapi.json`.

The file `openapi.json` describes the URLs for readers. Each provider describes its own callbacks.
`build_document` joins them, and adds the filters, the server, the version and the access rules.
"""

from __future__ import annotations

import importlib.resources
import json
import re
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

from flask import Blueprint, Response, request

from ..history import FILTERS, HISTORY_QUERY
from ..providers import Description, Provider
from ..runtime import Runtime, get_runtime
from .access import add_reader_views
from .problems import answer_with_problems, json_response
from .routing import AnyHostBlueprint

ANSWERS = {
    "200": "The callback is recorded, or is a duplicate, or its command does not remove anybody.",
    "400": "The callback is authentic but cannot be read. Only a packet that is kept is stored.",
    "403": "The callback is not authentic.",
    "404": "The provider is not enabled.",
    "405": "Callbacks are sent by POST.",
    "413": "The body is larger than IMCALLBACK_MAX_BODY.",
    "503": "The callback could not be stored anywhere.",
}
"""HTTP status -> the meaning of the answer to a callback."""
FILTERED_PATHS = ("/history", "/history/stats", "/history/export", "/feed")
"""The paths that take the filters of removals."""
PUBLIC_PATH = "/health"
"""The only path that everybody may read."""


def make_blueprint(decorators: Sequence[Callable[..., Any]]) -> Blueprint:
    """Return the blueprint of the document. A browser can open it with a token as the password."""
    blueprint = AnyHostBlueprint("imcallback_openapi", __name__)
    routes = {"/openapi.json": ("document", _document)}
    add_reader_views(blueprint, routes, decorators)
    answer_with_problems(blueprint)
    return blueprint


def _document() -> Response:
    runtime = get_runtime()
    url = request.script_root + runtime.settings.url_prefix
    return json_response(build_document(runtime, server_url=url or "/"))


def build_document(runtime: Runtime, server_url: str) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of an app. It holds no secrets."""
    file = importlib.resources.files(__package__ or "") / "openapi.json"
    document: dict[str, Any] = json.loads(file.read_text("utf-8"))
    document["servers"] = [{"url": server_url}]
    document["info"]["version"] = version("flask-imcallback")
    _add_filters(document)
    for path, methods in document["paths"].items():
        if path != PUBLIC_PATH:
            _set_access(runtime, methods["get"])
    for provider in runtime.providers.values():
        _add_callbacks(document, provider)
    return document


def _add_filters(document: dict[str, Any]) -> None:
    """Add the parameters of `FILTERS` to the paths that list, count or export removals."""
    for name, row in FILTERS.items():
        field: Any = HISTORY_QUERY.fields[name]
        value = {"type": "integer", "format": "int64"} if row.is_id else {"type": "string"}
        document["components"]["parameters"][name] = {
            "in": "query",
            "name": name,
            "description": f"{row.description[0].upper()}{row.description[1:]}.",
            "schema": {
                "type": "array",
                "maxItems": field.metadata["maxItems"],
                "items": value | field.inner.metadata,
            },
            "explode": True,
            "style": "form",
        }
        for path in FILTERED_PATHS:
            reference = {"$ref": f"#/components/parameters/{name}"}
            document["paths"][path]["get"]["parameters"].append(reference)


def _set_access(runtime: Runtime, operation: dict[str, Any]) -> None:
    """Keep the security schemes that the app accepts.

    `{}` stands for the decorators of the host app, which this document cannot name.
    """
    if not runtime.settings.history_tokens:
        operation["security"] = []
    if runtime.history_decorators:
        operation["security"].append({})
        operation["responses"]["default"] = {
            "description": "The answer of the decorators of the host app."
        }


def _add_callbacks(document: dict[str, Any], provider: Provider) -> None:
    """Add the paths of a provider, and the components that they share."""
    name = provider.name
    description = provider.describe()
    components = document["components"]
    components["schemas"] |= {
        f"{name}_packet": description.packet,
        f"{name}_accepted": description.accepted,
        f"{name}_refused": description.refused,
    }
    components["securitySchemes"] |= description.security_schemes
    for path in description.paths:
        document["paths"][f"/{name}{path}"] = {"post": _post(provider, description, path)}


def _post(provider: Provider, description: Description, path: str) -> dict[str, Any]:
    name = provider.name
    path_names = re.findall(r"{(\w+)}", path)
    words = [word.title() for segment in (name, *path_names) for word in segment.split("_")]
    path_parameters = [
        {
            "in": "path",
            "name": parameter,
            "required": True,
            "description": description.path_parameters[parameter],
            "schema": {"type": "string", "minLength": 1},
        }
        for parameter in path_names
    ]
    query_parameters = [
        {
            "in": "query",
            "name": parameter,
            "required": parameter in description.required_parameters,
            "description": text,
            "schema": {"type": "string"},
        }
        for parameter, text in description.query_parameters.items()
        if parameter not in path_names
    ]
    return {
        "operationId": "receive" + "".join(words),
        "tags": ["callbacks"],
        "summary": f"Receive a callback of {provider.title or name}",
        "parameters": [*path_parameters, *query_parameters],
        "requestBody": {
            "required": True,
            "description": "The body is read as JSON, whatever its media type is.",
            "content": _json_content(f"{name}_packet"),
        },
        "responses": {status: _response(name, status) for status in ANSWERS},
        "security": _security(description),
    }


def _response(name: str, status: str) -> dict[str, Any]:
    schema = f"{name}_accepted" if status == "200" else f"{name}_refused"
    response = {"description": ANSWERS[status], "content": _json_content(schema)}
    if status == "405":
        response["headers"] = {"Allow": {"$ref": "#/components/headers/Allow"}}
    return response


def _json_content(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _security(description: Description) -> list[dict[str, list[str]]]:
    """Return the alternatives. `{}` means that a callback needs none of the schemes."""
    schemes: list[dict[str, list[str]]] = [{scheme: []} for scheme in description.security_schemes]
    return schemes if schemes and description.needs_scheme else [*schemes, {}]
