"""The text that every supported database can store unchanged."""

from __future__ import annotations

import re

MAX_TEXT_LENGTH = 255
"""Maximum length of an account id or a command, in code points. The columns have this length."""

REPLACEMENT_CHARACTER = "\ufffd"

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
"""PostgreSQL refuses U+0000 in a text. A lone surrogate has no UTF-8 form."""


def is_storable(text: str) -> bool:
    """Return True if every database stores the text unchanged in a column of `MAX_TEXT_LENGTH`."""
    return len(text) <= MAX_TEXT_LENGTH and not _UNSTORABLE.search(text)


def make_storable(text: str, length: int | None = None) -> str:
    """Return the text cut to `length` code points, with U+FFFD for each unstorable character."""
    return _UNSTORABLE.sub(REPLACEMENT_CHARACTER, text[:length])
