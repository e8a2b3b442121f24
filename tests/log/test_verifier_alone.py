"""The verifier works as a single file, without the package."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from flask import Flask

from flask_imcallback.log import verifier
from support.apps import MakeApp
from support.deliveries import store
from support.log import SECRET, run, seal, write_evidence


@pytest.fixture
def app(make_app: MakeApp) -> Flask:
    app = make_app(IMCALLBACK_SEAL_KEY=SECRET.text())
    with app.app_context():
        store(("alice", "bob"))
        seal()
    return app


@pytest.fixture
def files(app: Flask, tmp_path: Path) -> Path:
    """A folder with the copied verifier, the evidence, and a checkpoint."""
    shutil.copy(verifier.__file__, tmp_path / "verifier.py")
    write_evidence(app, tmp_path / "evidence.ndjson")
    (tmp_path / "kept.txt").write_text(run(app, "checkpoint").output)
    return tmp_path


def run_alone(folder: Path, *arguments: str, options: str = "-SI") -> tuple[int, str]:
    """Run the copied file in an empty environment."""
    command = [sys.executable, options, "verifier.py", *arguments]
    done = subprocess.run(command, cwd=folder, env={}, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_the_copied_file_verifies_without_any_package(files: Path) -> None:
    """Python alone checks all hashes: no site-packages, no environment."""
    status, output = run_alone(files, "evidence.ndjson", "--checkpoint", "kept.txt")
    assert (status, "All of it holds." in output) == (0, True), output
    (files / "evidence.ndjson").write_bytes(
        (files / "evidence.ndjson").read_bytes().replace(b"alice", b"mallo")
    )
    status, output = run_alone(files, "evidence.ndjson")
    assert (status, "TAMPERED: the delivery" in output) == (1, True), output


def test_signatures_need_one_package(files: Path) -> None:
    """Without `cryptography`, a signature is not checked, and the exit status says so."""
    arguments = ("evidence.ndjson", "--checkpoint", "kept.txt", "--key", str(SECRET.key))
    status, output = run_alone(files, *arguments)
    assert (status, "pip install 'flask-imcallback[seal]'" in output) == (2, True), output
    status, output = run_alone(files, "evidence.ndjson", "--key", str(SECRET.key))
    assert (status, "TAMPERED" in output) == (2, False), output
    status, output = run_alone(files, *arguments, options="-I")
    assert (status, "All of it holds." in output) == (0, True), output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.ndjson"], "No such file"),
        (["verifier.py"], "this is not evidence"),
        (["evidence.ndjson", "--key", "a b+1+x"], "'a b+1+x' is not a public key"),
        (["evidence.ndjson", "--key", "x"], "the key is damaged"),
        (["evidence.ndjson", "--key", SECRET.text()], "the key is a secret key"),
        (["evidence.ndjson", "--checkpoint", "verifier.py"], "verifier.py: this is not"),
        (["evidence.ndjson", "--newer-than", "1"], "not a period such as 90m, 12h or 7d"),
        (["evidence.ndjson", "--unknown"], "unrecognized arguments"),
    ],
    ids=str,
)
def test_what_cannot_be_checked_has_its_own_exit_status(
    files: Path, arguments: list[str], words: str
) -> None:
    """The exit status 2 tells a wrong call or file from tampering."""
    status, output = run_alone(files, *arguments, options="-I")
    assert (status, words in output) == (2, True), output
    assert SECRET.text() not in output


def test_evidence_on_stdin(files: Path) -> None:
    """`cut -f1 evidence.ndjson | python verifier.py -` checks evidence that names nobody."""
    nameless = subprocess.run(
        ["cut", "-f1", files / "evidence.ndjson"], capture_output=True, check=True
    ).stdout
    assert b"alice" not in nameless
    command = [sys.executable, "-SI", str(files / "verifier.py"), "-"]
    done = subprocess.run(command, input=nameless, capture_output=True, check=False)
    assert (done.returncode, b"0 removals with their accounts" in done.stdout) == (0, True)
