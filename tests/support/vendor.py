"""Copies the files of others that the page consists of, out of their packages on npm.

`make vendor` writes them beside `vendor.json`, which names each package with its version, its
licence and npm's hash of it, and each file with its SHA-256. For another version, change the
version and the hash there (`npm view NAME@VERSION dist.integrity`), and run it: it refuses a
package that has another hash, and writes the SHA-256 of what it copied.

It is kept with the tests, whose browser gets axe-core in the same way; it is not in the wheel.
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
    """A package cannot be had, or is another than was asked for; the message says which."""


def main() -> None:
    packages = json.loads(LIST.read_text("utf-8"))
    for package in packages:
        found = files_of(package["package"], package["version"], package["integrity"])
        if (licence := json.loads(found["package.json"])["license"]) != package["licence"]:
            raise PackageError(f"{package['package']} has the licence {licence}")
        folder = folder_of(package)
        folder.mkdir(exist_ok=True)
        for name in package["files"]:
            (folder / Path(name).name).write_bytes(found[name])
            package["files"][name] = hashlib.sha256(found[name]).hexdigest()
    LIST.write_text(json.dumps(packages, indent=2) + "\n", "utf-8")
    for old in {path for path in FOLDER.iterdir() if path.is_dir()} - {*map(folder_of, packages)}:
        shutil.rmtree(old)


def folder_of(package: dict[str, Any]) -> Path:
    return FOLDER / f"{package['package']}-{package['version']}"


def files_of(name: str, version: str, integrity: str) -> dict[str, bytes]:
    """All files of that version of the package, if npm's hash of it is this."""
    archive = _download(name, version)
    algorithm, _, expected = integrity.partition("-")
    found = base64.b64encode(hashlib.new(algorithm, archive).digest()).decode()
    if found != expected:
        raise PackageError(f"{name} {version} has the hash {algorithm}-{found}, not {integrity}")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {
            member.name.partition("/")[2]: content.read()
            for member in tar
            if (content := tar.extractfile(member))
        }


def _download(name: str, version: str) -> bytes:
    """The package as npm packs it; without npm, as its registry has it."""
    if not (npm := shutil.which("npm")):
        with urlopen(f"{REGISTRY}/{name}/-/{name}-{version}.tgz", timeout=60) as response:
            archive: bytes = response.read()
            return archive
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", "--silent", f"--pack-destination={folder}", f"{name}@{version}"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise PackageError(f"npm has no {name} {version}: {done.stderr}")
        (packed,) = Path(folder).glob("*.tgz")
        return packed.read_bytes()


if __name__ == "__main__":
    try:
        main()
    except (PackageError, OSError) as error:
        sys.exit(str(error))
