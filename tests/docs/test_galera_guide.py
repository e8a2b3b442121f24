"""The code of the guide to Galera connects to whichever node is there."""

from __future__ import annotations

import re
from typing import Any

from flask_imcallback.runtime import get_runtime
from support import ROOT, servers
from support.apps import MakeApp, rows
from support.deliveries import DELIVERY, record

GUIDE = (ROOT / "docs" / "galera.md").read_text("utf-8")
(CODE,) = re.findall(r"```python\n(.+?)```", GUIDE, re.DOTALL)
NODES = '"127.0.0.2", "127.0.0.1", "127.0.0.3"'
"""The server listens on 127.0.0.1 alone."""


def test_a_node_that_is_away_is_passed_by(
    database_servers: dict[str, servers.Server], make_app: MakeApp
) -> None:
    """Each connection is made, though only one of the addresses has a server."""
    with servers.database(database_servers["mariadb"]) as url:
        app = make_app(url)
        with app.app_context():
            db = get_runtime().database.open()
            names: dict[str, Any] = {"app": app, "db": db}
            exec(CODE.replace('"db1.example", "db2.example", "db3.example"', NODES), names)
            for _ in range(5):
                db.engine.dispose()
                with db.engine.connect() as connection:
                    assert connection.exec_driver_sql("SELECT 1").scalar_one() == 1
        record(app, DELIVERY)
        assert len(rows(app)[1]) == 2
