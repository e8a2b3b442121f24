"""What the pages take from the code: `<!-- settings -->` and the like become Markdown."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterator
from dataclasses import fields
from itertools import pairwise
from typing import cast

import click
from flask import Flask
from sphinx.application import Sphinx

from flask_imcallback import ImCallback, Settings
from flask_imcallback.settings import PREFIX


def settings() -> Iterator[str]:
    """Each setting with its default, and what stands below it in the code."""
    texts = dict(_attribute_docstrings(Settings))
    for setting in fields(Settings):
        default = setting.metadata["default"]
        in_json = json.dumps(default)
        yield f"## `{PREFIX}{setting.name.upper()}`\n"
        yield f"{texts[setting.name]}\n"
        yield (
            f"Default: `{default!r}`"
            + (f", in JSON `{in_json}`" if in_json != str(default) else "")
            + "\n"
        )


def _attribute_docstrings(of: type) -> Iterator[tuple[str, str]]:
    tree = ast.parse(inspect.getsource(of))
    (definition,) = (node for node in tree.body if isinstance(node, ast.ClassDef))
    for pair in pairwise(definition.body):
        match pair:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                yield name, inspect.cleandoc(text)


def command_line() -> Iterator[str]:
    """Each command of `flask imcallback` with its arguments and options."""
    app = Flask("docs")
    app.config["IMCALLBACK_SECRETS"] = ["a-secret-of-the-docs"]
    ImCallback(app)
    group = cast("click.Group", app.cli.commands["imcallback"])
    for name, command in group.commands.items():
        context = click.Context(command, info_name=f"flask imcallback {name}")
        yield f"## `flask imcallback {name}`\n"
        yield f"{command.help}\n"
        yield f"```text\n{command.get_usage(context).removeprefix('Usage: ')}\n```\n"
        records = [parameter.get_help_record(context) for parameter in command.params]
        rows = [record for record in records if record]
        if rows:
            yield "| option | what |\n|---|---|"
            yield from (f"| `{_cell(option)}` | {_cell(text)} |" for option, text in rows)
            yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


MARKS = {"<!-- settings -->": settings, "<!-- command line -->": command_line}


def _fill(app: Sphinx, name: str, source: list[str]) -> None:
    for mark, make in MARKS.items():
        if mark in source[0]:
            source[0] = source[0].replace(mark, "\n".join(make()))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", _fill)
    return {"parallel_read_safe": True}
