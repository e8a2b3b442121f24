"""The security page quotes the log as the code writes it."""

from __future__ import annotations

import re

import pytest

from support import ROOT

PAGE = (ROOT / "SECURITY.md").read_text("utf-8")
PROVIDERS = "".join(
    file.read_text("utf-8") for file in (ROOT / "flask_imcallback/providers").glob("*.py")
)
REASONS = re.findall(r'"([^"]+)" in the log', PAGE)


@pytest.mark.parametrize("reason", REASONS)
def test_an_operator_finds_the_quoted_reason_in_the_log(reason: str) -> None:
    """A reason that the page tells operators to look for is the text of a refusal."""
    assert f'VerificationError("{reason}")' in PROVIDERS


def test_the_page_quotes_reasons() -> None:
    """The page names a reason for a Tencent token and for a secret path segment."""
    assert len(REASONS) == 2
