"""The pages on hosts name every server that is tested, and no other."""

from __future__ import annotations

import re

import pytest

from support import ROOT
from support.wsgi_servers import WSGI_SERVERS, WsgiServer

DEPLOYMENT = (ROOT / "docs/deployment.md").read_text("utf-8")
HOSTS = (ROOT / "docs/servers.md").read_text("utf-8")


@pytest.mark.parametrize("server", WSGI_SERVERS, ids=str)
def test_the_documented_command_is_tested(server: WsgiServer) -> None:
    """The deployment page has the command that the tests run."""
    lines = re.sub(r" \\\n +", " ", DEPLOYMENT).splitlines()
    assert f"$ {server.command}" in lines


def test_the_table_names_every_test() -> None:
    """Each cell is a case of the test, and each case has its cell."""
    cells = re.findall(r"`([a-z0-9-]+-(?:sqlite|postgresql|mariadb))`", HOSTS)
    cases = [f"{server}-{database}" for server in WSGI_SERVERS for database in server.databases]
    assert cells == cases


@pytest.mark.parametrize("server", WSGI_SERVERS, ids=str)
def test_the_table_says_whether_pages_answer(server: WsgiServer) -> None:
    """The last column agrees with what the test checks."""
    row, *_ = re.findall(rf"^\| {server} \|.*\|$", HOSTS, re.MULTILINE)
    assert row.endswith("| yes |" if server.has_concurrency else "| after the deadline |")
