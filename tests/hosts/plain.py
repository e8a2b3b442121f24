"""A host with plain SQLAlchemy and plain Alembic. Its models are in `plain_models.py`."""

from flask import Flask
from plain_models import engine, metadata  # type: ignore[import-not-found]

from flask_imcallback import ImCallback

app = Flask(__name__)
app.config.from_prefixed_env()
app.config["SQLALCHEMY_DATABASE_URI"] = engine.url
ImCallback(app)

__all__ = ["app", "metadata"]
