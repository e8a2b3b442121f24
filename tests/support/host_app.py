"""A host app with a page of its own, for the tests under real servers.

It queries its database when it is imported. A server that forks after the import therefore gives
its workers the connections of the host.
"""

from __future__ import annotations

from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import text

from example_app import app

__all__ = ["app"]

db = SQLAlchemy(app)

with app.app_context():
    db.session.execute(text("SELECT count(*) FROM imcallback_delivery"))
    db.session.remove()


@app.get("/host-page")
def host_page() -> dict[str, bool]:
    """Answer without the database."""
    return {"host": True}
