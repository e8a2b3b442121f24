"""A host that manages its tables with Flask-Alembic."""

from flask import Flask
from flask_alembic import Alembic
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Integer
from sqlalchemy.orm import Mapped, mapped_column

from flask_imcallback import ImCallback

db = SQLAlchemy()


class Thing(db.Model):  # type: ignore[name-defined, misc]
    """A table of the host."""

    id: Mapped[int] = mapped_column(Integer, primary_key=True)


app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///host.db"
app.config.from_prefixed_env()
db.init_app(app)
Alembic(app)
ImCallback(app)
