"""JSON Schemas of packets and answers, for `Provider.describe`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from marshmallow import Schema, fields
from marshmallow.validate import OneOf

from ..storable_text import MAX_TEXT_LENGTH
from .packets import AccountId, OptionalAccountId


def packet_schema(
    command_member: str, schemas: Mapping[str, Schema], other_commands: str
) -> dict[str, Any]:
    """Return the JSON Schema of all packets of a provider.

    `command_member` is the member of the packet that holds the command. `schemas` are the packets
    that the provider reads, by command. `other_commands` says what happens with all other packets.
    """
    known = [
        _object_schema(schema, {command_member: command}) for command, schema in schemas.items()
    ]
    command = {"type": "string", "maxLength": MAX_TEXT_LENGTH, "not": {"enum": [*schemas]}}
    other = {
        "type": "object",
        "description": other_commands,
        "properties": {command_member: command},
    }
    return {"anyOf": [*known, other]}


def answer_schema(body: Mapping[str, Any], free_members: Iterable[str] = ()) -> dict[str, Any]:
    """Return the JSON Schema of an answer with exactly these values.

    The `free_members` may hold any text.
    """
    properties = {
        name: {"type": "string"} if name in free_members else {"const": value}
        for name, value in body.items()
    }
    return {"type": "object", "properties": properties, "required": [*body]}


def _object_schema(schema: Schema, constants: Mapping[str, str]) -> dict[str, Any]:
    members = {field.data_key or name: field for name, field in schema.fields.items()}
    properties = {name: _field_schema(field) for name, field in members.items()}
    required = [name for name, field in members.items() if field.required]
    return {
        "type": "object",
        "properties": {**properties, **{name: {"const": text} for name, text in constants.items()}},
        "required": required,
    }


def _field_schema(field: fields.Field[Any]) -> dict[str, Any]:
    match field:
        case OptionalAccountId():
            schema = {"type": "string", "maxLength": MAX_TEXT_LENGTH}
        case AccountId():
            schema = {"type": "string", "minLength": 1, "maxLength": MAX_TEXT_LENGTH}
        case fields.String():
            schema = {"type": "string"}
        case fields.List():
            schema = {"type": "array", "items": _field_schema(field.inner)}
        case fields.Nested():
            item = _object_schema(field.schema, {})
            schema = {"type": "array", "items": item} if field.many else item
        case _:
            return {}
    for validator in field.validators:
        if isinstance(validator, OneOf):
            schema["enum"] = [*validator.choices]
    return {"anyOf": [schema, {"type": "null"}]} if field.allow_none else schema
