"""The search for an account in packets and in the details of acts."""

from __future__ import annotations

import json
import re
from typing import Any

MIN_NUMBER_LENGTH = 6
"""A number in a packet may be an account id if it has this many digits or more."""

ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)


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
        unescaped = _unescape(text)
        return any(pattern.search(part) for part in (text, unescaped, _unescape(unescaped)))
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
            if value == account_id or pattern.search(value):
                return True
            if "\\" in value:  # JSON in JSON
                values.append(_unescape(value))
        elif number is not None and value == number:
            return True
    return False


def _unescape(text: str) -> str:
    """Return the text without the escapes of JSON strings."""

    def replace(match: re.Match[str]) -> str:
        return chr(int(match[1], 16)) if match[1] else match[2]

    plain = ESCAPE.sub(replace, text)
    return plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
