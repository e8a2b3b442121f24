"""Configuration of Sphinx. `make docs` builds the site."""

from __future__ import annotations

from flask_imcallback import __version__

project = "flask-imcallback"
copyright = "2026 the flask-imcallback developers"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "pallets_sphinx_themes"]
myst_heading_anchors = 3
# A text in single backticks is code.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True

html_theme = "flask"
html_title = f"flask-imcallback {version}"
html_show_sourcelink = False
html_copy_source = False
templates_path = ["_templates"]
html_sidebars = {
    "**": ["searchbox.html", "globaltoc.html"],
    "404": ["searchbox.html"],  # this page of the theme has no place in the contents
}
