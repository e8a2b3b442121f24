"""The texts of the pages: translations, invisible characters, indented packets."""

from __future__ import annotations

import gettext
import json
import re
import unicodedata
from datetime import timedelta
from pathlib import Path

from markupsafe import Markup, escape

LANGUAGES = {"en": "English", "zh": "简体中文"}
TRANSLATIONS_FOLDER = Path(__file__).parent / "translations"
BLANK_CHARACTERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0") | frozenset(
    chr(number) for number in (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))
)
"""Printable characters of Unicode that look empty."""
SUSPICIOUS_IN_LINE = re.compile(r"[^ -~]|\A | (?= |\Z)")
"""Non-ASCII and control characters, and spaces at the ends or beside another space."""
SUSPICIOUS_IN_LINES = re.compile(r"[^ -~\n\t]")
JSON_TOKENS = re.compile(
    r'"[^"\\]*(?:\\.[^"\\]*)*"|\{\s*\}|\[\s*\]|[{}\[\],:]|[^\s"{}\[\],:]+', re.DOTALL
)
MAX_INDENT_LEVELS = 20


class Translations:
    """The messages of the pages in one of the `LANGUAGES`. Inserted values are escaped."""

    def __init__(self, language: str) -> None:
        self._catalog = gettext.translation(
            "imcallback", TRANSLATIONS_FOLDER, [language], fallback=language == "en"
        )

    def gettext(self, message: str, **values: object) -> Markup:
        """Return a message as HTML, with the values in it."""
        return Markup(self._catalog.gettext(message)) % values  # noqa: S704

    def ngettext(self, singular: str, plural: str, n: int, **values: object) -> Markup:
        """Return the message for `n` things as HTML, with `n` and the values in it."""
        message = self._catalog.ngettext(singular, plural, n)
        return Markup(message) % {"n": n, **values}  # noqa: S704

    def duration(self, time: timedelta) -> Markup:
        """Return a duration as text, in the largest unit that fits."""
        seconds = int(abs(time.total_seconds()))
        if seconds >= 86400:
            return self.ngettext("%(n)s day", "%(n)s days", seconds // 86400)
        if seconds >= 3600:
            return self.ngettext("%(n)s hour", "%(n)s hours", seconds // 3600)
        if seconds >= 60:
            return self.ngettext("%(n)s minute", "%(n)s minutes", seconds // 60)
        return self.ngettext("%(n)s second", "%(n)s seconds", seconds)


def show_invisible(text: str, *, in_lines: bool = False) -> Markup:
    """Escape a text for HTML, and show invisible and direction-changing characters as `U+XXXX`.

    Leading, trailing and repeated spaces are shown, too, unless `in_lines`. With `in_lines`, line
    breaks and tabs stay as they are.
    """
    pattern = SUSPICIOUS_IN_LINES if in_lines else SUSPICIOUS_IN_LINE
    return Markup(pattern.sub(_show_character, str(escape(text))))  # noqa: S704


def _show_character(match: re.Match[str]) -> str:
    character = match[0]
    if character != " " and character.isprintable() and character not in BLANK_CHARACTERS:
        return character
    name = unicodedata.name(character, "CONTROL CHARACTER")
    return f'<span class="im-code" title="{name}">U+{ord(character):04X}</span>'


def indent_json(text: str) -> str:
    """Return JSON with one member per line. Text that is not JSON is returned as it is.

    Every token stays as it is. `json.dumps` would change repeated names and unusual numbers.
    """
    try:
        json.loads(text, parse_int=float)
    except (ValueError, RecursionError):
        return text
    lines = [""]
    level = 0
    for piece in JSON_TOKENS.findall(text):
        if piece in ("}", "]"):
            level -= 1
            lines.append(_indent(level))
        lines[-1] += ": " if piece == ":" else piece
        if piece in ("{", "["):
            level += 1
        if piece in ("{", "[", ","):
            lines.append(_indent(level))
    return "\n".join(lines)


def _indent(level: int) -> str:
    return "  " * min(level, MAX_INDENT_LEVELS)
