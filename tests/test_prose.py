"""Docstrings and pages keep to the rules for prose that a test can hold."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = sorted(
    path
    for folder in ("mmlocal", "configs", "tools", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
)
PAGES = sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("configs/*/README.md")])


def docstrings(path: Path) -> list[str]:
    nodes = ast.walk(ast.parse(path.read_text()))
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [doc for node in nodes if isinstance(node, owners) if (doc := ast.get_docstring(node))]


def test_docstrings():
    """They begin with a verb or a noun, not with "What"."""
    found = [f"{path}: {doc.splitlines()[0]}" for path in CODE for doc in docstrings(path)]
    assert len(found) > 100
    assert [line for line in found if ": What " in line] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_pages(path):
    """They repeat the noun instead of "that of", "those of" and "those that"."""
    text = " ".join(path.read_text().split())
    assert re.findall(r".{30}\b(?:that of|those of|those that|those in)\b.{30}", text) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links(path):
    """Each relative link leads to a file."""
    targets = re.findall(r"\]\(([^)#\s]+)", path.read_text())
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (path.parent / target).exists()] == []
