"""Copies third-party files into the package: Bootstrap and uPlot, from npm.

`make vendor` writes the files beside `vendor.json`. This list names each package with its version,
its licence and npm's hash of it, and each file with its SHA-256. To change a version, change the
version and the hash in the list (`npm view NAME@VERSION dist.integrity`) and run `make vendor`. It
refuses a package with another hash, and writes the SHA-256 of the copied files.

The tests get axe-core in the same way.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from support import ROOT

FOLDER = ROOT / "flask_imcallback/web/page/static/vendor"
LIST = FOLDER / "vendor.json"
REGISTRY = "https://registry.npmjs.org"


class PackageError(Exception):
    """A package that is unavailable or is not the expected one. The message says which."""


def main() -> None:
    """Copy the files of all packages in the list, and remove old versions."""
    packages = json.loads(LIST.read_text("utf-8"))
    for package in packages:
        contents = files_of(package["package"], package["version"], package["integrity"])
        licence = json.loads(contents["package.json"])["license"]
        if licence != package["licence"]:
            raise PackageError(f"{package['package']} has the licence {licence}")
        folder = folder_of(package)
        folder.mkdir(exist_ok=True)
        for name in package["files"]:
            (folder / Path(name).name).write_bytes(contents[name])
            package["files"][name] = hashlib.sha256(contents[name]).hexdigest()
    LIST.write_text(json.dumps(packages, indent=2) + "\n", "utf-8")
    folders = {path for path in FOLDER.iterdir() if path.is_dir()}
    for old_folder in folders - {*map(folder_of, packages)}:
        shutil.rmtree(old_folder)


def folder_of(package: dict[str, Any]) -> Path:
    return FOLDER / f"{package['package']}-{package['version']}"


def files_of(name: str, version: str, integrity: str) -> dict[str, bytes]:
    """Return the files of a package by path. Raises `PackageError` if npm's hash differs."""
    archive = _download(name, version)
    algorithm, _, expected_hash = integrity.partition("-")
    actual_hash = base64.b64encode(hashlib.new(algorithm, archive).digest()).decode()
    if actual_hash != expected_hash:
        raise PackageError(
            f"{name} {version} has the hash {algorithm}-{actual_hash}, not {integrity}"
        )
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {
            member.name.partition("/")[2]: content.read()
            for member in tar
            if (content := tar.extractfile(member))
        }


def _download(name: str, version: str) -> bytes:
    """Return the archive of a package from npm, or from its registry if npm is not installed."""
    if not (npm := shutil.which("npm")):
        with urlopen(f"{REGISTRY}/{name}/-/{name}-{version}.tgz", timeout=60) as response:
            archive: bytes = response.read()
            return archive
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", "--silent", f"--pack-destination={folder}", f"{name}@{version}"]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise PackageError(f"npm has no {name} {version}: {result.stderr}")
        (archive_path,) = Path(folder).glob("*.tgz")
        return archive_path.read_bytes()


if __name__ == "__main__":
    try:
        main()
    except (PackageError, OSError) as error:
        sys.exit(str(error))
