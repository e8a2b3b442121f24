"""A host app with its own models and migrations. Tests set it up in every order."""

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
        """A table of the host whose name begins like the tables of the extension."""

        __tablename__ = "imcallback_notes"
        __bind_key__ = os.environ["HOST_NOTES"] or None
        id: Mapped[int] = mapped_column(Integer, primary_key=True)
        if "HOST_NOTES_TEXT" in os.environ:
            text: Mapped[str | None] = mapped_column(String(40))


def create_app(order: str = "dmi", db_argument: str = "none") -> Flask:
    """Set up db, migrate and imcallback in an order, such as "dmi".

    `db_argument` says where ImCallback gets the db: in its constructor ("object"), in `init_app`
    ("init_app"), or from the app ("none").
    """
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///host.db"
    app.config.from_prefixed_env()
    imcallback = ImCallback(db=db) if db_argument == "object" else ImCallback()
    steps: dict[str, Callable[[], None]] = {
        "d": lambda: db.init_app(app),
        "m": lambda: migrate.init_app(app, db),
        "i": lambda: imcallback.init_app(app, db=db if db_argument == "init_app" else None),
    }
    for step in order:
        steps[step]()
    return app
