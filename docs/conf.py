"""Tells Sphinx how to make pages of this folder: make docs."""

project = "clip-ood"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_title = "clip-ood"
html_theme_options = {"page_width": "1150px", "fixed_sidebar": True}
highlight_language = "none"
autodoc_typehints = "none"
myst_heading_anchors = 3
