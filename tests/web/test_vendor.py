"""The third-party files of the pages are the files that their authors published."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from base64 import b64encode
from pathlib import Path

import pytest

from support import vendor

PACKAGES = json.loads(vendor.LIST.read_text("utf-8"))


def test_every_file_is_in_the_list() -> None:
    """The list has the SHA-256 of each file. Each package has its licence in its folder."""
    expected = {"vendor.json": hashlib.sha256(vendor.LIST.read_bytes()).hexdigest()}
    for package in PACKAGES:
        folder = f"{package['package']}-{package['version']}"
        expected |= {
            f"{folder}/{Path(name).name}": digest for name, digest in package["files"].items()
        }
        assert "LICENSE" in package["files"]
        assert package["licence"] == "MIT", "setup.cfg names MIT as the licence of the wheel"
    actual = {
        str(path.relative_to(vendor.FOLDER)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in vendor.FOLDER.rglob("*")
        if path.is_file()
    }
    assert actual == expected


def test_a_package_with_another_hash_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """npm may deliver another archive. No file of it is used."""
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
