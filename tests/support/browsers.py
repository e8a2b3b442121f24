"""A Chromium that belongs to the tests alone, and what they put into it.

`python -m support.browsers` obtains it and says what it is. As with the servers, a browser that
cannot be had is an error, never a skip.

It is looked for in this order: a program named in `IMCALLBACK_TEST_CHROMIUM`, programs on this
system, then packages of Debian, unpacked into the cache without root. Playwright, of the `test`
extra, drives it and downloads none of its own.
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
"""Without a window, thus without its libraries; fonts, of which a server may have none; and what
Playwright's own Node.js needs."""
NODE = Path(playwright.__file__).parent / "driver/node"
PROGRAM = "usr/lib/chromium/chromium-headless-shell"
REMEDY = "install Chromium (Debian: apt-get install chromium)"
FLAGS = ("--disable-gpu", "--disable-quic")
"""Besides Playwright's, with which nothing is asked of the network and nothing sandboxed."""
AXE = "4.14.1"
AXE_HASH = (
    "sha512-FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09"
    "a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ=="
)


class BrowserError(Exception):
    """A browser cannot be had or does not start; the message says what to do."""


@dataclass(frozen=True)
class Program:
    path: Path
    source: str
    """Where it was found."""
    variables: dict[str, str] = field(default_factory=dict)
    """Those of its environment that it needs."""

    def runs(self) -> bool:
        """Whether it and Playwright are there with all their libraries."""
        env = os.environ | self.variables
        try:
            for program in (self.path, NODE):
                subprocess.run([program, "--version"], env=env, capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return False
        return True


def find() -> Program:
    """Raises BrowserError, ServerError."""
    if given := os.environ.get(VARIABLE):
        return Program(Path(given), VARIABLE)
    for name in PROGRAMS:
        # Ubuntu has a program of that name that only asks for another package.
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
    places = ("lib/*-linux-gnu*", "usr/lib/*-linux-gnu*", "usr/lib/*-linux-gnu*/pulseaudio")
    libraries = [str(path) for place in places for path in cache.glob(place)]
    variables = {"LD_LIBRARY_PATH": ":".join(libraries), "XDG_DATA_HOME": str(cache / "usr/share")}
    if (fonts := cache / "etc/fonts").exists():
        variables["FONTCONFIG_PATH"] = str(fonts)
    return Program(cache / PROGRAM, f"packages in {cache}", variables)


@contextmanager
def chromium(program: Program) -> Iterator[Browser]:
    """A browser without a window, and without anything from before or left behind."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    with ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory())
        with patch.dict(os.environ, program.variables):  # Playwright's Node.js gets them
            driver = stack.enter_context(sync_playwright())
        try:
            browser = driver.chromium.launch(
                executable_path=program.path,
                args=FLAGS,
                # What it knows of the fonts is kept.
                env={**os.environ, "HOME": home, "XDG_CACHE_HOME": cache, **program.variables},
            )
        except Error as error:
            raise BrowserError(f"{program.path} does not start: {error}") from error
        stack.callback(browser.close)
        yield browser


def axe() -> str:
    """The script of axe-core, which finds what makes a page hard to use: from the cache, or npm."""
    kept = servers.cache_folder() / f"axe-core-{AXE}.js"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as new:
            new.write(vendor.files_of("axe-core", AXE, AXE_HASH)["axe.min.js"])
        Path(new.name).replace(kept)
    return kept.read_text("utf-8")


def main() -> int:
    """Say which browser the tests get, or why none can be had."""
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
