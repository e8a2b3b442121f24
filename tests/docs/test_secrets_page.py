"""The page and the picture of the secrets show every secret, each with the same number."""

from __future__ import annotations

import re
from dataclasses import fields

from flask_imcallback.settings import PREFIX, Settings
from support import ROOT

PAGE = (ROOT / "docs/secrets.md").read_text("utf-8")
PICTURE = (ROOT / "docs/images/secrets.svg").read_text("utf-8")
OTHER_SECRETS = {"SECRET_KEY", "SQLALCHEMY_DATABASE_URI"}


def test_the_page_has_every_secret() -> None:
    """A setting that hides its value is a secret, and has a row and a place in the picture."""
    secrets = {PREFIX + field.name.upper() for field in fields(Settings) if not field.repr}
    rows = re.findall(r"^\| (\d) \| .+? \| `(\w+)` \|", PAGE, re.MULTILINE)
    assert {setting for _, setting in rows} == secrets | OTHER_SECRETS
    assert [number for number, _ in rows] == [str(number) for number, _ in enumerate(rows, 1)]
    in_picture = re.findall(r">((?:IMCALLBACK|SQLALCHEMY|SECRET)_\w+)<", PICTURE)
    assert in_picture == [setting for _, setting in rows]
    description = re.sub(r"\s+", " ", PICTURE.partition('<desc id="desc">')[2].partition("<")[0])
    for number, setting in rows:
        assert re.search(rf"{number}: [^.:]*{setting}", description)
