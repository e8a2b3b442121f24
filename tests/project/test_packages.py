"""What is published: the source distribution, the wheel made from it, and an app on the wheel."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from support import ROOT

pytestmark = pytest.mark.slow

RECEIVE = """
from bare import app
query = "SdkAppid=1400000000&CallbackCommand=Sns.CallbackFriendDelete&contenttype=json"
pair = {"From_Account": "alice", "To_Account": "bob"}
packet = {"CallbackCommand": "Sns.CallbackFriendDelete", "PairList": [pair]}
response = app.test_client().post(f"/imcallback/tencent?{query}", json=packet)
print(response.status, response.json["ActionStatus"])
"""


@dataclass(frozen=True)
class Packages:
    tree: set[str]
    """The files that were there to build from."""
    sdist: set[str]
    wheel: set[str]
    wheel_path: Path


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """What the command prints; it gets no settings of Python or Flask but those given."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FLASK_", "PYTHON"))}
    env = {**kept, **variables}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """The sdist of a clean copy of the checkout, and the wheel of that sdist."""
    folder = tmp_path_factory.mktemp("packages")
    listed = run("git", "ls-files", "-co", "--exclude-standard", "-z", cwd=ROOT).split("\0")
    tree = {name for name in listed if (ROOT / name).is_file()}
    for name in tree:
        (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "tree" / name)
    run(sys.executable, "-m", "build", "--outdir", folder / "dist", folder / "tree", cwd=folder)
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    (wheel,) = (folder / "dist").glob("*.whl")
    with tarfile.open(sdist) as tar:
        in_sdist = {member.name.partition("/")[2] for member in tar if member.isfile()}
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = set(archive.namelist())
    return Packages(tree, in_sdist, in_wheel, wheel)


def test_wheel_is_the_package_and_its_migrations(packages: Packages) -> None:
    """All files of the package and of `migrations`, which lies inside it, and nothing else."""
    package = {name for name in packages.tree if name.startswith("flask_imcallback/")}
    migrations = {name for name in packages.tree if name.startswith("migrations/")}
    assert "flask_imcallback/py.typed" in package
    assert "migrations/script.py.mako" in migrations
    installed = {name for name in packages.wheel if ".dist-info/" not in name}
    assert installed == package | {f"flask_imcallback/{name}" for name in migrations}


def test_wheel_has_the_licences_of_others(packages: Packages) -> None:
    """Beside our own, that of everything of others which is in it."""
    licences = {name for name in packages.wheel if name.rpartition("/")[2] == "LICENSE"}
    info = {name.partition("licenses/")[2] for name in licences if ".dist-info/licenses/" in name}
    in_tree = {name for name in licences if ".dist-info/" not in name}
    assert len(in_tree) == 2
    assert info == in_tree | {"LICENSE"}


def test_sdist_is_the_checkout(packages: Packages) -> None:
    """All files of the checkout but those for git and CI alone, and only generated ones besides."""
    checkout = {name for name in packages.tree if not name.startswith(".")}
    assert checkout - packages.sdist == set()
    generated = {name for name in packages.sdist if ".egg-info/" in name} | {"PKG-INFO"}
    assert packages.sdist - checkout == generated


def test_app_on_the_wheel(packages: Packages, tmp_path: Path) -> None:
    """In an empty folder: install, upgrade, read the gunicorn settings, receive, list a removal."""
    environment = tmp_path / "100% venv"  # which is no place for paths that are templates
    python = environment / "bin/python"
    run(sys.executable, "-m", "venv", environment, cwd=tmp_path)
    wheel = f"{packages.wheel_path}[serve]"
    run(python, "-m", "pip", "install", "--quiet", wheel, cwd=tmp_path)
    site = tmp_path / "site"
    site.mkdir()
    shutil.copy(ROOT / "tests/hosts/bare.py", site)
    settings = {
        "FLASK_APP": "bare",
        "FLASK_IMCALLBACK_TENCENT_APPS": '{"1400000000": []}',
        "FLASK_IMCALLBACK_ALLOW_UNAUTHENTICATED": "true",
        "PYTHONWARNINGS": "error",
    }
    flask = (python, "-m", "flask")
    assert run(*flask, "db", "upgrade", cwd=site, **settings) == ""
    gunicorn = (python, "-m", "gunicorn", "-c", "python:flask_imcallback.gunicorn")
    configuration = run(*gunicorn, "--print-config", "bare:app", cwd=site, **settings)
    assert re.search("^preload_app += True$", configuration, re.MULTILINE)
    received = run(python, "-c", RECEIVE, cwd=site, **settings)
    assert received == "200 OK OK\n"
    lines = run(*flask, "imcallback", "history", "--format", "ndjson", cwd=site, **settings)
    (removal,) = [json.loads(line) for line in lines.splitlines()]
    expected = {"relation": "friend", "owner_id": "alice", "target_id": "bob"}
    assert removal == {**removal, **expected}
    assert "No new upgrade operations" in run(*flask, "db", "check", cwd=site, **settings)
