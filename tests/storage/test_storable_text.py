"""Text that a database would refuse or change is recognized and replaced."""

from __future__ import annotations

import pytest

from flask_imcallback.storable_text import is_storable, make_storable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ("𠮷" * 255, True),
        ("a" * 256, False),
        ("a\0", False),
        ("\ud800", False),
        ("a\udfffb", False),
        ("\ufffd", True),
    ],
    ids=ascii,
)
def test_a_text_is_storable_in_every_database(text: str, expected: bool) -> None:
    """U+0000, lone surrogates and more than 255 code points are not storable."""
    assert is_storable(text) is expected


@pytest.mark.parametrize(
    ("text", "length", "expected"),
    [
        ("abc", None, "abc"),
        ("abc", 2, "ab"),
        ("a\0\ud800b", None, "a\ufffd\ufffdb"),
        ("\0" * 3, 2, "\ufffd\ufffd"),
    ],
    ids=ascii,
)
def test_a_text_is_made_storable(text: str, length: int | None, expected: str) -> None:
    """Unstorable characters become U+FFFD, and a text that is too long is cut."""
    assert make_storable(text, length) == expected
