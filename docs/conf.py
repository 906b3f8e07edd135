"""The settings of the documentation site, which ``make docs`` builds with Sphinx.

docs/design.md says why Sphinx. Every warning is an error, so each link and each name leads
somewhere.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]

from mmlocal.version import __version__  # noqa: E402

project = "mmlocal"
author = copyright = "the mmlocal authors"
version = release = __version__

extensions = [
    "myst_parser",  # pages in Markdown, as GitHub shows them
    "sphinx.ext.autodoc",  # reads docstrings and types
    "sphinx.ext.autosummary",  # the table at the top of each part of the API reference
    "sphinx.ext.napoleon",  # docstrings in Google style
    "sphinx.ext.viewcode",  # "[source]" shows the code within the site
    "sphinx_copybutton",
    "sphinx_design",  # cards
    "api_pages",  # the directive `api`, and names in docstrings; in _ext
    "repository_links",  # links from a page to files of the repository; in _ext
]
# These folders hold files that pages show or link, and no pages.
exclude_patterns = ["_ext", "_static", "benchmarks", "images"]
highlight_language = "none"  # a block without a language is commands, output or a formula
smartquotes_action = "D"  # dashes, and no curly quotes
nitpicky = True  # a name in a docstring without an entry is an error

# Markdown
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 6  # links to headings work as on GitHub, and are checked

# Links to files that are no pages lead to the project's home. These files are pages.
repository_root = str(ROOT)
repository_url = "https://github.com/mmlocal/mmlocal"
repository_branch = "main"
repository_pages = {
    "CHANGELOG.md": "changelog",
    "CONTRIBUTING.md": "contributing",
    "configs/mmdet/README.md": "configs/mmdet",
    "configs/mmpretrain/README.md": "configs/mmpretrain",
    "configs/mmseg/README.md": "configs/mmseg",
}

# API reference
autosummary_generate = False
autodoc_typehints = "description"  # types stand beside the text of each argument
autodoc_member_order = "bysource"
# A method whose docstring is in another library says nothing new.
autodoc_inherit_docstrings = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Source"]
viewcode_line_numbers = True
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

# Looks. Furo and the extensions bring their own scripts and styles, and use the fonts of the
# system, so a page loads nothing from another host.
html_theme = "furo"
html_title = f"mmlocal {__version__}"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_copy_source = False
html_theme_options = {
    "source_repository": repository_url,
    "source_branch": repository_branch,
    "source_directory": "docs/",
}
