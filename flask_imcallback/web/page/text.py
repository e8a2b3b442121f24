"""What a page says, in the reader's language, and how it shows what strangers wrote."""

from __future__ import annotations

import gettext
import json
import re
import unicodedata
from datetime import timedelta
from pathlib import Path

from markupsafe import Markup, escape

LANGUAGES = {"en": "English", "zh": "简体中文"}
FOLDER = Path(__file__).parent / "translations"
LOOKS_EMPTY = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0") | frozenset(
    chr(number) for number in (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))
)
"""Letters and marks that nobody sees, which Unicode does not count among the invisible."""
IN_LINE = re.compile(r"[^ -~]|\A | (?= |\Z)")
IN_LINES = re.compile(r"[^ -~\n\t]")
TOKENS = re.compile(
    r'"[^"\\]*(?:\\.[^"\\]*)*"|\{\s*\}|\[\s*\]|[{}\[\],:]|[^\s"{}\[\],:]+', re.DOTALL
)
MAX_INDENT = 20


class Words:
    """The messages in one of `LANGUAGES`; what is put into them is escaped."""

    def __init__(self, language: str) -> None:
        self._catalogue = gettext.translation(
            "imcallback", FOLDER, [language], fallback=language == "en"
        )

    def gettext(self, message: str, **values: object) -> Markup:
        return Markup(self._catalogue.gettext(message)) % values  # noqa: S704

    def ngettext(self, one: str, many: str, n: int, **values: object) -> Markup:
        return Markup(self._catalogue.ngettext(one, many, n)) % {"n": n, **values}  # noqa: S704

    def span(self, time: timedelta) -> Markup:
        """How long it is, in its largest unit."""
        seconds = int(abs(time.total_seconds()))
        if seconds >= 86400:
            return self.ngettext("%(n)s day", "%(n)s days", seconds // 86400)
        if seconds >= 3600:
            return self.ngettext("%(n)s hour", "%(n)s hours", seconds // 3600)
        if seconds >= 60:
            return self.ngettext("%(n)s minute", "%(n)s minutes", seconds // 60)
        return self.ngettext("%(n)s second", "%(n)s seconds", seconds)


def visible(text: str, *, in_lines: bool = False) -> Markup:
    """The text, in which all that cannot be seen, or turns what is around it, has a name.

    So has a blank at an end or beside another, unless the text is `in_lines`.
    """
    pattern = IN_LINES if in_lines else IN_LINE
    return Markup(pattern.sub(_seen, str(escape(text))))  # noqa: S704


def _seen(found: re.Match[str]) -> str:
    char = found[0]
    if char != " " and char.isprintable() and char not in LOOKS_EMPTY:
        return char
    name = unicodedata.name(char, "CONTROL CHARACTER")
    return f'<span class="im-code" title="{name}">U+{ord(char):04X}</span>'


def indented(text: str) -> str:
    """JSON with a member a line and every token as it came; another text as it is."""
    try:
        json.loads(text, parse_int=float)
    except (ValueError, RecursionError):
        return text
    lines = [""]
    depth = 0
    for piece in TOKENS.findall(text):
        if piece in ("}", "]"):
            depth -= 1
            lines.append(_indent(depth))
        lines[-1] += ": " if piece == ":" else piece
        if piece in ("{", "["):
            depth += 1
        if piece in ("{", "[", ","):
            lines.append(_indent(depth))
    return "\n".join(lines)


def _indent(depth: int) -> str:
    return "  " * min(depth, MAX_INDENT)
