"""A host with models and migrations of its own, set up in any order."""

import os
from collections.abc import Callable

from flask import Flask
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Integer, MetaData, String
from sqlalchemy.orm import Mapped, mapped_column

from flask_imcallback import ImCallback

CONVENTION = {"pk": "host_pk_%(table_name)s", "uq": "host_uq_%(table_name)s", "ix": "host_ix"}

db = SQLAlchemy(metadata=MetaData(naming_convention=CONVENTION))
migrate = Migrate(
    command=os.environ.get("HOST_COMMAND", "db"),
    directory=os.environ.get("HOST_DIRECTORY", "migrations"),
    **({"include_name": lambda name, *_: name != "hidden"} if "HOST_FILTER" in os.environ else {}),
)


class Thing(db.Model):  # type: ignore[name-defined, misc]
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(String(40), unique=True)


if "HOST_NOTES" in os.environ:

    class Note(db.Model):  # type: ignore[name-defined, misc]
        """A table of the host that happens to be named like one of ours."""

        __tablename__ = "imcallback_notes"
        __bind_key__ = os.environ["HOST_NOTES"] or None
        id: Mapped[int] = mapped_column(Integer, primary_key=True)
        if "HOST_NOTES_TEXT" in os.environ:
            text: Mapped[str | None] = mapped_column(String(40))


def create_app(order: str = "dmi", given: str = "nowhere") -> Flask:
    """`order` is that of db, migrate and imcallback; `given` is where ImCallback is told of db."""
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///host.db"
    app.config.from_prefixed_env()
    imcallback = ImCallback(db=db) if given == "object" else ImCallback()
    steps: dict[str, Callable[[], None]] = {
        "d": lambda: db.init_app(app),
        "m": lambda: migrate.init_app(app, db),
        "i": lambda: imcallback.init_app(app, db=db if given == "init_app" else None),
    }
    for step in order:
        steps[step]()
    return app
