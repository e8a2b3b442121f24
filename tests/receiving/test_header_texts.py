"""Header texts of a callback are UTF-8."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flask_imcallback.storage import delivery
from support.serving import BODY, PATH, serving


@pytest.mark.slow
@pytest.mark.parametrize(
    ("header", "stored_text"),
    [
        ("操作-é-😀".encode(), "操作-é-😀"),
        (b"plain", "plain"),
        (b"not utf-8: \xff", "not utf-8: \ufffd"),
    ],
    ids=["utf-8", "ascii", "not utf-8"],
)
def test_an_operation_id_is_stored_as_it_was_sent(
    tmp_path: Path, header: bytes, stored_text: str
) -> None:
    """A real client sends the bytes over a real socket. Bytes that are not UTF-8 are replaced."""
    with serving(tmp_path) as running:
        headers = {"operationID": header, "Content-Type": b"application/json"}
        status, _ = running.ask("POST", PATH, body=BODY, headers=headers)
        assert status == 200
        (row,) = running.rows(delivery)
    assert row["request_id"] == stored_text
    assert "operationid" not in json.loads(row["headers"])  # it would repeat the request id
