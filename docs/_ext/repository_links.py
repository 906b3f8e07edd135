"""Links in Markdown between pages, and to other files of the repository.

A page links to any file by its path from the page, as on GitHub: ``[tool](../tools/train.py)``.
The site has only pages. So a link to another file or folder of the repository leads to the home of
the project instead. In a file that a page includes, links start at the folder of the file.

A link to a file that does not exist is one warning with the page, the line and the target. So is a
link to a missing heading.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from docutils import nodes
from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode
from myst_parser.mdit_to_docutils.base import compute_unique_slug
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)


def headings(page: Path) -> set[str]:
    """Anchors of the headings of a Markdown file, as GitHub makes them.

    Args:
        page: the file.
    """
    found: set[str] = set()
    for node in SyntaxTreeNode(MarkdownIt().parse(page.read_text())).walk():
        if node.type == "heading":
            found.add(compute_unique_slug(node, found))
    return found


class RepositoryLinks(SphinxTransform):
    """Decide for each local link whether it leads to a page, to a download or to the home."""

    default_priority = 700  # MyST has made the links, and nothing has resolved them

    def apply(self, **kwargs: Any) -> None:
        for node in list(self.document.findall(nodes.Element)):
            if node.get("reftype") == "myst":
                node.replace_self(self._lead(node))

    def _lead(self, node: nodes.Element) -> nodes.Element | list[nodes.Node]:
        """The node that takes the place of a link."""
        path, anchor = self._target(node)
        root, sources = Path(self.config.repository_root), Path(self.env.srcdir)
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else ""
        page = self.config.repository_pages.get(name) or self.env.path2doc(path)
        common = dict(refdoc=self.env.docname, reftype="myst", refexplicit=node["refexplicit"])
        if page in self.env.found_docs:
            new = addnodes.pending_xref(
                refdomain="doc", reftarget=page, reftargetid=anchor or None, **common
            )
        elif not (name and path.exists()):
            return self._refuse(node, f"there is no {name or path}")
        elif path.is_relative_to(sources) and path.is_file() and path.suffix != ".md":
            target = path.relative_to(sources).as_posix()
            new = addnodes.download_reference(refdomain=None, reftarget=f"/{target}", **common)
        elif anchor and path.suffix == ".md" and anchor not in headings(path):
            return self._refuse(node, f"{name} has no heading #{anchor}")
        else:
            kind = "tree" if path.is_dir() else "blob"
            url = f"{self.config.repository_url}/{kind}/{self.config.repository_branch}/{name}"
            new = nodes.reference(refuri=url + (f"#{anchor}" if anchor else ""))
        new.source, new.line = node.source, node.line
        new.extend(node.children)
        return new

    def _target(self, node: nodes.Element) -> tuple[Path, str]:
        """Path and anchor of a link."""
        page = Path(self.env.doc2path(self.env.docname))
        target, _, anchor = node["reftarget"].partition("#")
        found = None
        if node["refdomain"] == "doc":
            # MyST has found this file, from the folder of the page, and has cut its suffix off.
            found = Path(self.env.srcdir, f"{target}.md")
            target, anchor = os.path.relpath(found, page.parent), node["reftargetid"] or ""
        path = Path(os.path.normpath(Path(node.source or page).parent / target))
        return (path if found is None or path.is_file() else found), anchor

    def _refuse(self, node: nodes.Element, reason: str) -> list[nodes.Node]:
        """Warn of a link, and return its text."""
        LOGGER.warning("broken link: %s", reason, location=node)
        return node[0].children


def setup(app: Sphinx) -> dict[str, bool]:
    for name in ("repository_root", "repository_url", "repository_branch"):
        app.add_config_value(name, "", "env", [str])
    app.add_config_value("repository_pages", {}, "env", [dict])
    app.add_transform(RepositoryLinks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
