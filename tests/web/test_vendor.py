"""What the page has of others is what its authors published, and little."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from base64 import b64encode
from pathlib import Path

import pytest

from support import vendor
from support.apps import MakeApp
from support.html import Found

PACKAGES = json.loads(vendor.LIST.read_text("utf-8"))
FIRST_VIEW = 100_000
"""Bytes at most, compressed, that a browser loads to show the page for the first time."""


def test_files_are_those_that_were_copied() -> None:
    """Each is listed with its hash, and lies beside its licence in a folder of its version."""
    expected = {"vendor.json": hashlib.sha256(vendor.LIST.read_bytes()).hexdigest()}
    for package in PACKAGES:
        folder = f"{package['package']}-{package['version']}"
        expected |= {f"{folder}/{Path(name).name}": sum_ for name, sum_ in package["files"].items()}
        assert "LICENSE" in package["files"]
        assert package["licence"] == "MIT", "as setup.cfg says of the wheel"
    found = {
        str(path.relative_to(vendor.FOLDER)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in vendor.FOLDER.rglob("*")
        if path.is_file()
    }
    assert found == expected


def test_a_package_with_another_hash_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever npm delivers, and nothing is taken out of it."""
    content = b"the licence"
    with tarfile.open(packed := tmp_path / "packed", "w:gz") as tar:
        member = tarfile.TarInfo("package/LICENSE")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    npm = tmp_path / "npm"
    npm.write_text(f'#!/bin/sh\n/bin/cp {packed} "${{3#--pack-destination=}}/one.tgz"\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    digest = b64encode(hashlib.sha512(packed.read_bytes()).digest()).decode()
    assert vendor.files_of("one", "1.0", f"sha512-{digest}") == {"LICENSE": content}
    with pytest.raises(vendor.PackageError, match=r"one 1\.0 has the hash sha512-.*, not sha512-x"):
        vendor.files_of("one", "1.0", "sha512-x")


def test_the_first_view_is_small(make_app: MakeApp) -> None:
    """The page and all the styles and scripts that it names."""
    client = make_app(IMCALLBACK_HISTORY_TOKENS=["a-token"]).test_client()
    headers = {"Authorization": "Bearer a-token"}
    page = client.get("/imcallback/", headers=headers)
    files = {file for file in Found(page.text).files if file.endswith((".css", ".js"))}
    assert len(files) >= 4
    served = [page, *(client.get(file, headers=headers) for file in files)]
    assert [response.status_code for response in served] == [200] * len(served)
    assert sum(len(gzip.compress(response.data)) for response in served) < FIRST_VIEW
