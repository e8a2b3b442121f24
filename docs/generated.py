"""Write the lists of settings and commands into their pages: python docs/generated.py.

A list stands between two comments of its page, for example `<!-- settings, from make reference -->`
and `<!-- end -->`.
With `--check`, the program writes nothing and fails if a list is not as the code is.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
from collections.abc import Iterator
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import cast

import click
from flask import Flask

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
        # Old releases of Click have no help for arguments, and the usage shows them.
        options = [one for one in command.params if isinstance(one, click.Option)]
        records = [option.get_help_record(context) for option in options]
        rows = [record for record in records if record]
        if rows:
            yield "| option | meaning |\n|---|---|"
            yield from (f"| `{_escape(option)}` | {_escape(text)} |" for option, text in rows)
            yield ""


def _escape(text: str) -> str:
    """Return the text without a bar that would end a table cell."""
    return text.replace("|", "\\|")


LISTS = {"settings.md": ("settings", settings), "command-line.md": ("command line", command_line)}


def main() -> int:
    """Write all lists, or check them. Return the exit status."""
    status = 0
    for name, (mark, generate) in LISTS.items():
        page = Path(__file__).parent / name
        old = page.read_text("utf-8")
        before, begin, rest = old.partition(f"<!-- {mark}, from make reference -->\n")
        _, end, after = rest.partition("<!-- end -->\n")
        lines = "\n".join(generate()).strip("\n")
        new = f"{before}{begin}\n{lines}\n\n{end}{after}"
        if new == old:
            continue
        if "--check" in sys.argv:
            print(f"docs/{name} is not as the code is: run `make reference`", file=sys.stderr)
            status = 1
        else:
            page.write_text(new, "utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
