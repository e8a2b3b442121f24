"""Configuration of Sphinx. `make docs` builds the site."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from sphinx.application import Sphinx

from flask_imcallback import __version__

project = "flask-imcallback"
copyright = "2026 the flask-imcallback developers"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "pallets_sphinx_themes", "generated"]
myst_heading_anchors = 3
# A text in single backticks is code.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True

html_theme = "flask"
html_title = f"flask-imcallback {version}"
html_show_sourcelink = False
html_copy_source = False
html_sidebars = {
    "index": ["searchbox.html"],
    "**": ["localtoc.html", "relations.html", "searchbox.html"],
}


def set_language(_app: Sphinx, page: str, _template: str, context: dict[str, Any], *_: Any) -> None:
    """Tell browsers that a translated page is Chinese."""
    if page.endswith(".zh-CN"):
        context["language"] = "zh-CN"


def setup(app: Sphinx) -> None:
    """Connect the functions of this file to Sphinx."""
    app.connect("html-page-context", set_language)
