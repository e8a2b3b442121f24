"""The search for an account in packets and in the details of acts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

MIN_NUMBER_LENGTH = 6
"""A number in a packet may be an account id if it has this many digits or more."""

ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
CONTROL_ESCAPES = {"b": " ", "f": " ", "n": " ", "r": " ", "t": " "}
"""Letters after a backslash that stand for a control character, which is no part of an account."""
MAX_DEPTH = 4
"""Maximum depth of JSON in JSON in JSON."""


def names_account(text: str, account_id: str) -> bool:
    """Return True if a text names an account.

    JSON names it by a string, by a name of a member, or by a number. Another text names it if no
    other character of an account id stands beside it.
    """
    pattern = re.compile(rf"(?<![\w.@:+/-]){re.escape(account_id)}(?![\w.@:+/-])")
    try:
        # Pairs also have the members that a packet repeats.
        value = json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError):
        return any(map(pattern.search, _unescaped_texts(text)))
    return _holds(value, pattern, account_id)


def _holds(value: Any, pattern: re.Pattern[str], account_id: str) -> bool:
    may_be_number = account_id.isdecimal() and len(account_id) >= MIN_NUMBER_LENGTH
    number = int(account_id) if may_be_number else None
    values = [value]
    while values:
        value = values.pop()
        if isinstance(value, list | tuple):
            values += value
        elif isinstance(value, str):
            texts = _unescaped_texts(value)
            if any(text == account_id or pattern.search(text) for text in texts):
                return True
        elif number is not None and value == number:
            return True
    return False


def _unescaped_texts(text: str) -> Iterator[str]:
    """Yield the text, and the text without the escapes of JSON in JSON, level by level."""
    for _ in range(MAX_DEPTH):
        yield text
        plain = _unescape(text)
        if plain == text:
            return
        text = plain


def _unescape(text: str) -> str:
    """Return the text without the escapes of one level of JSON strings."""

    def replace(match: re.Match[str]) -> str:
        if match[1]:
            return chr(int(match[1], 16))
        return CONTROL_ESCAPES.get(match[2], match[2])

    plain = ESCAPE.sub(replace, text)
    return plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
