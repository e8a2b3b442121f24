"""The Chromium of the tests, and axe-core, which checks accessibility.

`python -m support.browsers` obtains both and prints their versions. A missing browser is an error,
never a skipped test.

The search order is: the program in `IMCALLBACK_TEST_CHROMIUM`, programs of this system, packages of
Debian, unpacked into the cache without root. Playwright drives the browser and downloads no browser
of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import playwright
from playwright.sync_api import Browser, Error, sync_playwright

from support import servers, vendor

VARIABLE = "IMCALLBACK_TEST_CHROMIUM"
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
PACKAGES = ("chromium-headless-shell", "fonts-dejavu-core", "fonts-wqy-microhei", "libatomic1")
"""A Chromium without a window, fonts, and a library that the Node.js of Playwright needs."""
NODE = Path(playwright.__file__).parent / "driver/node"
PROGRAM = "usr/lib/chromium/chromium-headless-shell"
REMEDY = "install Chromium (Debian: apt-get install chromium)"
FLAGS = ("--disable-gpu", "--disable-quic")
"""Flags beside those of Playwright, which switch off background requests and the sandbox."""
AXE = "4.14.1"
AXE_HASH = (
    "sha512-FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09"
    "a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ=="
)


class BrowserError(Exception):
    """A browser that is missing or does not start. The message has the remedy."""


@dataclass(frozen=True)
class Program:
    """A Chromium on this machine."""

    path: Path
    source: str
    """The place where the program was found."""
    variables: dict[str, str] = field(default_factory=dict)
    """Environment variables that the program needs."""

    def runs(self) -> bool:
        """Check whether the program and Playwright start, with all their libraries."""
        env = os.environ | self.variables
        try:
            for program in (self.path, NODE):
                subprocess.run([program, "--version"], env=env, capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return False
        return True


def find() -> Program:
    """Return the Chromium of this machine. Raises `BrowserError` and `ServerError`."""
    if path_in_variable := os.environ.get(VARIABLE):
        return Program(Path(path_in_variable), VARIABLE)
    for name in PROGRAMS:
        # On Ubuntu, a program of this name only asks to install another package.
        if (path := shutil.which(name)) and Program(Path(path), path).runs():
            return Program(Path(path), path)
    cache = servers.unpacked(
        "chromium",
        lambda usr: _unpacked_in(usr.parent).runs(),
        packages=PACKAGES,
        remedy=REMEDY,
    )
    if not (program := _unpacked_in(cache)).runs():
        raise BrowserError(f"{program.path} does not run: {REMEDY}")
    return program


def _unpacked_in(cache: Path) -> Program:
    patterns = ("lib/*-linux-gnu*", "usr/lib/*-linux-gnu*", "usr/lib/*-linux-gnu*/pulseaudio")
    libraries = [str(path) for pattern in patterns for path in cache.glob(pattern)]
    variables = {"LD_LIBRARY_PATH": ":".join(libraries), "XDG_DATA_HOME": str(cache / "usr/share")}
    if (fonts := cache / "etc/fonts").exists():
        variables["FONTCONFIG_PATH"] = str(fonts)
    return Program(cache / PROGRAM, f"packages in {cache}", variables)


@contextmanager
def chromium(program: Program) -> Iterator[Browser]:
    """Start a browser without a window and with an empty home folder, and stop it."""
    cache = str(servers.cache_folder())
    with ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory())
        with patch.dict(os.environ, program.variables):  # for the Node.js of Playwright
            driver = stack.enter_context(sync_playwright())
        try:
            browser = driver.chromium.launch(
                executable_path=program.path,
                args=FLAGS,
                # The font cache is kept, because it takes seconds to build.
                env={**os.environ, "HOME": home, "XDG_CACHE_HOME": cache, **program.variables},
            )
        except Error as error:
            raise BrowserError(f"{program.path} does not start: {error}") from error
        stack.callback(browser.close)
        yield browser


def axe() -> str:
    """Return the script of axe-core, from the cache or from npm."""
    cached = servers.cache_folder() / f"axe-core-{AXE}.js"
    if not cached.exists():
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cached.parent, delete=False) as download:
            download.write(vendor.files_of("axe-core", AXE, AXE_HASH)["axe.min.js"])
        Path(download.name).replace(cached)
    return cached.read_text("utf-8")


def main() -> int:
    """Print which browser the tests use, or why there is none."""
    try:
        program = find()
        with chromium(program) as browser:
            print(f"Chromium: {browser.version}, from {program.source}")
        axe()
    except (BrowserError, servers.ServerError, vendor.PackageError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"axe-core: {AXE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
