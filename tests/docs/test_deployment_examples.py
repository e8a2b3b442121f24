"""The examples in `deploy` are valid, and the steps of the image lead to an app that works."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from flask import Flask

from flask_imcallback import ImCallback
from flask_imcallback.runtime import get_runtime
from flask_imcallback.settings import PREFIX, Settings
from support import ROOT
from support.apps import wait_until
from support.servers import free_port

DEPLOY = ROOT / "deploy"
PAGE = (ROOT / "docs/containers.md").read_text("utf-8")
ENVIRONMENT = dict(
    line.split("=", 1)
    for line in (DEPLOY / "imcallback.env").read_text("utf-8").splitlines()
    if not line.startswith("#")
)
KNOWN_KEYS = {
    "FLASK_SECRET_KEY",
    "FLASK_SQLALCHEMY_DATABASE_URI",
    "FLASK_SQLALCHEMY_ENGINE_OPTIONS",
    *(f"FLASK_{PREFIX}{field.name.upper()}" for field in fields(Settings)),
}


def load_all(name: str) -> list[dict[str, Any]]:
    """Return the YAML documents of an example."""
    return list(yaml.safe_load_all((DEPLOY / name).read_text("utf-8")))


def instructions() -> Iterator[tuple[str, str]]:
    """Yield the instructions of the Dockerfile with their arguments."""
    for line in (DEPLOY / "Dockerfile").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, arguments = line.partition(" ")
            yield name, arguments


def test_the_page_names_every_example() -> None:
    """The table of the page has each file of the folder, and no others."""
    files = {f"deploy/{file.name}" for file in DEPLOY.iterdir() if file.name != "secrets.env"}
    assert set(re.findall(r"^\| `(deploy/.+?)` \|", PAGE, re.MULTILINE)) == files - {
        file for file in files if "__pycache__" in file
    }


def test_the_placeholders_start_an_app(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An app starts with the settings file, as Docker and systemd read it."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    app = Flask("deployed", instance_path=str(tmp_path))
    app.config.from_prefixed_env()
    ImCallback(app)
    with app.app_context():
        providers = get_runtime().providers.values()
        assert all(provider.is_enabled for provider in providers)


def test_compose_sets_known_keys() -> None:
    """The variables of the app are settings, and every file and volume exists."""
    (compose,) = load_all("compose.yaml")
    assert compose["services"].keys() == {"app", "upgrade", "database"}
    for name in ("app", "upgrade"):
        service = compose["services"][name]
        assert service["environment"].keys() | ENVIRONMENT.keys() <= KNOWN_KEYS
        json.loads(service["environment"]["FLASK_SQLALCHEMY_ENGINE_OPTIONS"])
        assert service["env_file"] == "secrets.env"
    app = compose["services"]["app"]
    assert (DEPLOY / app["build"]["context"] / app["build"]["dockerfile"]).exists()
    mounts = [*app["volumes"], *compose["services"]["database"]["volumes"]]
    assert {mount.split(":")[0] for mount in mounts} == compose["volumes"].keys()
    assert dict(instructions())["VOLUME"] == app["volumes"][0].split(":")[1]


def test_kubernetes_keeps_the_spool_and_the_pods() -> None:
    """Each pod has a volume for the spool, and no probe asks for the database."""
    job, service, pods = load_all("kubernetes.yaml")
    assert [one["kind"] for one in (job, service, pods)] == ["Job", "Service", "StatefulSet"]
    template = pods["spec"]["template"]
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    (app,) = template["spec"]["containers"]
    (claim,) = pods["spec"]["volumeClaimTemplates"]
    assert app["volumeMounts"] == [
        {"name": claim["metadata"]["name"], "mountPath": dict(instructions())["VOLUME"]}
    ]
    for probe in ("readinessProbe", "livenessProbe"):
        assert app[probe]["httpGet"] == {"path": "/alive", "port": 8000}
    assert template["spec"]["enableServiceLinks"] is False


def test_the_page_uses_names_that_the_examples_have() -> None:
    """The unit and the page name the same files of the machine."""
    unit = (DEPLOY / "flask-imcallback.service").read_text("utf-8")
    assert set(re.findall(r"^(?:User)=(.+)$", unit, re.MULTILINE)) == {"imcallback"}
    for path in re.findall(r"(?<!\w)/(?:srv|etc)/[\w./]+", unit):
        assert path in PAGE or path.endswith("/gunicorn"), path


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="this machine has no systemd")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """systemd finds nothing to complain about."""
    unit = (DEPLOY / "flask-imcallback.service").read_text("utf-8")
    copy = tmp_path / "flask-imcallback.service"
    copy.write_text(unit.replace("/srv/imcallback/.venv/bin/", f"{Path(sys.executable).parent}/"))
    done = subprocess.run(
        ["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False
    )
    assert [line for line in done.stderr.splitlines() if "flask-imcallback" in line] == []
    assert done.returncode == 0


class Image:
    """A folder in place of an image: the instructions of the Dockerfile run on this machine."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.workdir = root
        self.env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("FLASK_", "PYTHON"))
        }
        self.command: list[str] = []
        self.health_command: list[str] = []
        subprocess.run([sys.executable, "-m", "venv", root / "venv"], check=True)
        self.env["PATH"] = f"{root}/venv/bin{os.pathsep}{self.env['PATH']}"

    def path(self, text: str) -> str:
        """Return the text with the paths of the image in this folder."""
        return re.sub(r"(?<![\w.:/])/(app|source|wheels)\b", rf"{self.root}/\1", text)

    def build(self) -> None:
        """Run all instructions."""
        for name, arguments in instructions():
            match name:
                case "RUN" if arguments.startswith("useradd"):
                    (self.root / "app/instance").mkdir(parents=True)
                case "RUN":
                    script = ["/bin/sh", "-ec", self.path(arguments)]
                    subprocess.run(script, cwd=self.workdir, env=self.env, check=True)
                case "COPY" if arguments == ". /source":
                    self.copy_checkout()
                case "COPY" if not arguments.startswith("--from"):
                    *_, source, target = arguments.split()
                    shutil.copy(ROOT / source, self.path(target))
                case "ENV":
                    assert arguments == "HOME=/tmp"
                    self.env["HOME"] = str(self.root)  # so that nothing stays in /tmp
                case "WORKDIR":
                    self.workdir = Path(self.path(arguments))
                case "CMD":
                    self.command = json.loads(arguments)
                case "HEALTHCHECK":
                    self.health_command = json.loads(arguments.partition(" CMD ")[2])
                case _:
                    assert name in ("FROM", "COPY", "VOLUME", "USER", "EXPOSE")

    def copy_checkout(self) -> None:
        """Copy what git has, as the context of the build has it."""
        listed = subprocess.check_output(
            ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, text=True
        )
        for name in filter(None, listed.split("\0")):
            target = self.root / "source" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).exists():
                shutil.copy(ROOT / name, target)

    def run(self, *command: str, **variables: str) -> str:
        """Run a command in the image, as `docker run` and `docker exec` do."""
        done = subprocess.run(
            command,
            cwd=self.workdir,
            env=self.env | ENVIRONMENT | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.mark.long
@pytest.mark.slow
def test_the_image_records_a_callback(tmp_path: Path) -> None:
    """The steps of the Dockerfile install an app that records, is alive, and stops in order."""
    image = Image(tmp_path)
    image.build()
    image.run("flask", "db", "upgrade")
    port = str(free_port())
    command = shlex.join(image.command).replace("0.0.0.0:8000", f"127.0.0.1:{port}")
    server = subprocess.Popen(shlex.split(command), cwd=image.workdir, env=image.env | ENVIRONMENT)
    try:
        wait_until(lambda: is_alive(port))
        health, *words = image.health_command
        image.run(health, *(word.replace(":8000", f":{port}") for word in words))
        url = f"http://127.0.0.1:{port}/imcallback"
        image.run("flask", "imcallback", "send", "Sns.CallbackFriendDelete", "--url", url)
        history = image.run("flask", "imcallback", "history", "--format", "ndjson")
        assert json.loads(history)["owner_id"] == "alice"
        assert (image.workdir / "instance/imcallback.db").exists()
    finally:
        server.send_signal(signal.SIGTERM)
    assert server.wait(40) == 0


def is_alive(port: str) -> bool:
    """Return True if the app answers its probe."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/alive") as response:
            return bool(response.read() == b"alive\n")
    except OSError:
        return False
