"""Generate the lists of settings and commands from the code.

The pages contain marks, for example `<!-- settings -->`, and Sphinx replaces them with Markdown.
"""

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
    """Yield a section for each setting: its docstring and its default."""
    docstrings = dict(_attribute_docstrings(Settings))
    for setting in fields(Settings):
        default = setting.metadata["default"]
        json_default = json.dumps(default)
        yield f"## `{PREFIX}{setting.name.upper()}`\n"
        yield f"{docstrings[setting.name]}\n"
        yield (
            f"Default: `{default!r}`"
            + (f", in JSON `{json_default}`" if json_default != str(default) else "")
            + "\n"
        )


def _attribute_docstrings(class_: type) -> Iterator[tuple[str, str]]:
    """Yield the name and the docstring of each attribute, read from the source of the class."""
    tree = ast.parse(inspect.getsource(class_))
    (definition,) = (node for node in tree.body if isinstance(node, ast.ClassDef))
    for pair in pairwise(definition.body):
        match pair:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                yield name, inspect.cleandoc(text)


def command_line() -> Iterator[str]:
    """Yield a section for each command of `flask imcallback`: help, usage and options."""
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
            yield "| option | meaning |\n|---|---|"
            yield from (f"| `{_escape(option)}` | {_escape(text)} |" for option, text in rows)
            yield ""


def _escape(text: str) -> str:
    """Return the text without a bar that would end a table cell."""
    return text.replace("|", "\\|")


MARKS = {"<!-- settings -->": settings, "<!-- command line -->": command_line}


def _replace_marks(app: Sphinx, page: str, source: list[str]) -> None:
    for mark, generate in MARKS.items():
        if mark in source[0]:
            source[0] = source[0].replace(mark, "\n".join(generate()))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register this module as a Sphinx extension."""
    app.connect("source-read", _replace_marks)
    return {"parallel_read_safe": True}
