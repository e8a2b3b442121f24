"""A host with plain SQLAlchemy and plain Alembic. Its models are in `plain_models.py`."""

from flask import Flask
from plain_models import engine, metadata  # type: ignore[import-not-found]

from flask_imcallback import ImCallback

app = Flask(__name__)
app.config.from_prefixed_env()
ImCallback(app, engine=engine)

__all__ = ["app", "metadata"]
