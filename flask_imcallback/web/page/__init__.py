"""The history as HTML pages. They are complete without scripts."""

from .views import make_blueprint

__all__ = ["make_blueprint"]
