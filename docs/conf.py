"""How Sphinx builds these pages: `python -m nox -s docs` writes them to build/docs/."""

import sys
from pathlib import Path

import matplotlib

import nngeo

sys.path.insert(0, str(Path(__file__).parent / "extensions"))
matplotlib.use("Agg")

project = "nngeo"
author = "the nngeo authors"
release = version = nngeo.__version__
extensions = [
    *("myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_gallery.gen_gallery"),
    *("contents", "docstrings", "formulas", "links", "public_names"),
]
exclude_patterns = ["gallery"]
suppress_warnings = ["config.cache"]  # some settings cannot be stored; nothing depends on it

html_theme = "furo"
html_math_renderer = "mathml"
html_title = f"nngeo {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False
html_show_search_summary = False  # it is fetched, which browsers refuse to a page that is opened as a file

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

default_role = "py:obj"  # docstrings mark code with one backtick: a link where it names something of ours
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_numpy_docstring = False
python_maximum_signature_line_length = 88

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_signature": False,
    "remove_config_comments": True,
    "parallel": 2,
    "write_computation_times": False,
}
