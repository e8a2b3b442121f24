"""The code of the Galera guide connects to a node that answers."""

from __future__ import annotations

import re
from typing import Any

from support import ROOT, servers
from support.apps import MakeApp, rows
from support.deliveries import DELIVERY, record

GUIDE = (ROOT / "docs" / "galera.md").read_text("utf-8")
(CODE,) = re.findall(r"```python\n(.+?)```", GUIDE, re.DOTALL)
NODES = '"127.0.0.2", "127.0.0.1", "127.0.0.3"'
"""Only 127.0.0.1 has a server."""


def test_unavailable_nodes_are_skipped(
    database_servers: dict[str, servers.Server], make_app: MakeApp
) -> None:
    """Each new connection succeeds, although only one of three nodes has a server."""
    with servers.database(database_servers["mariadb"]) as url:
        app = make_app(url)
        with app.app_context():
            db = app.extensions["sqlalchemy"]
            names: dict[str, Any] = {"app": app, "db": db}
            exec(CODE.replace('"db1.example", "db2.example", "db3.example"', NODES), names)
            for _ in range(5):
                db.engine.dispose()
                with db.engine.connect() as connection:
                    assert connection.exec_driver_sql("SELECT 1").scalar_one() == 1
        record(app, DELIVERY)
        assert len(rows(app)[1]) == 2
