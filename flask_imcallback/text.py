"""Which text every database can store as it is."""

from __future__ import annotations

import re

MAX_TEXT_LENGTH = 255
"""Code points of an account id or a command, and of the columns that hold them."""

UNSTORABLE = re.compile("[\0\ud800-\udfff]")
"""PostgreSQL refuses U+0000 in a text, and a lone surrogate has no UTF-8."""


def is_storable(text: str) -> bool:
    """Whether every database keeps the text as it is."""
    return len(text) <= MAX_TEXT_LENGTH and not UNSTORABLE.search(text)
