"""How Sphinx builds these pages: ``make docs``."""

from __future__ import annotations

import sys
from pathlib import Path

_HERE = Path(__file__).parent
sys.path[:0] = [str(_HERE / "extensions"), str(_HERE.parent / "src")]

import radin  # noqa: E402

project = "radin"
author = "The radin authors"
copyright = author
version = release = radin.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "commands", "docstrings", "mathml"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # of the benchmarks' tables, which are programs' output
exclude_patterns = ["extensions", "static"]
highlight_language = "sh"  # what is indented and says no language
smartquotes = False  # what is typed stays as it is typed
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["formulas.css"]
html_title = "radin"
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"source_edit_link": ""}
# From docstrings: in the order of the source, types as they are written.
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
