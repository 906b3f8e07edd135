"""The documentation site: it tells of broken links, and has every page and every public name."""

import importlib
import importlib.util
import re
import shutil
import sys
from pathlib import Path

import pytest
from mmengine.registry import Registry

from mmlocal import registry

pytest.importorskip("sphinx", reason="requirements/docs.txt is not installed")
from sphinx.cmd.build import build_main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
MENU = re.MULTILINE | re.DOTALL
# Packages whose `__all__` users import from.
PACKAGES = [
    "mmlocal",
    "mmlocal.analysis",
    "mmlocal.checkpoints",
    "mmlocal.datasets.scenes",
    "mmlocal.datasets.shapes",
    "mmlocal.evaluation",
    "mmlocal.export",
    "mmlocal.layers",
    "mmlocal.libraries",
    "mmlocal.models.autoencoders",
    "mmlocal.models.backbones",
    "mmlocal.models.classifiers",
    "mmlocal.models.detectors",
    "mmlocal.models.heads",
    "mmlocal.models.necks",
    "mmlocal.ops",
    "mmlocal.visualization",
]


@pytest.fixture(autouse=True)
def _path(monkeypatch):
    """conf.py changes the path of imports."""
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def tiny(tmp_path):
    """A function that builds a small site with our settings, and returns its warnings."""
    docs = tmp_path / "docs"
    for part in ("_ext", "_static"):
        shutil.copytree(DOCS / part, docs / part)
    shutil.copy(DOCS / "conf.py", docs)
    (tmp_path / "README.md").write_text("# Title\n\n## A `part` of it\n")
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "train.py").touch()
    (docs / "other.md").write_text("# Other\n\n## Its part\n")
    (docs / "numbers.json").touch()

    def build(text: str, builder: str = "dummy") -> list[str]:
        (docs / "index.md").write_text(f"# Start\n\n{text}\n\n```{{toctree}}\nother\n```\n")
        told = tmp_path / "warnings"
        arguments = ["-q", "-E", "-W", "--keep-going", "-w", str(told), "-b", builder]
        failed = build_main([*arguments, str(docs), str(tmp_path / "site")])
        warnings = told.read_text().splitlines()
        assert failed == bool(warnings)
        return [line.replace(f"{docs}/", "") for line in warnings]

    return build


@pytest.fixture(scope="module")
def entries():
    """The names in the API reference, as the directive ``api`` finds them."""
    for library in ("mmdet", "mmpretrain", "mmseg"):
        pytest.importorskip(f"{library}.models")
    spec = importlib.util.spec_from_file_location("api_pages", DOCS / "_ext" / "api_pages.py")
    api_pages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(api_pages)
    found = set()
    for page in (DOCS / "api").glob("*.md"):
        directive = r"^\.\. api:: (\S+)\n(?: +:only: (.+)\n)?( +:files:\n)?"
        for name, only, files in re.findall(directive, page.read_text(), re.MULTILINE):
            for module in api_pages.modules_of(name, bool(files)):
                names = only.split() or api_pages.names_of(module)
                found |= {f"{module.__name__}.{name}" for name in names}
    return found


# ------------------------------------------------------------------------------- links


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a](missing.md)", "broken link: there is no docs/missing.md"),
        ("[a](missing.md#part)", "broken link: there is no docs/missing.md"),
        ("[a](../tools/missing.py)", "broken link: there is no tools/missing.py"),
        ("[a](../missing/)", "broken link: there is no missing"),
        ("[a](../../elsewhere.md)", "broken link: there is no "),
        ("[a](../README.md#missing)", "broken link: README.md has no heading #missing"),
        ("[a](other.md#missing)", "local id not found in doc 'other': 'missing'"),
        ("[a](#missing)", "cross-reference target not found: 'missing'"),
        ("![a](missing.png)", "image file not readable: missing.png"),
    ],
)
def test_broken_link(tiny, text, message):
    """It is one warning, with the page and the line, and it fails the build."""
    (warning,) = tiny(text)
    assert warning.startswith("index.md:3: WARNING: ")
    assert message in warning


def test_links(tiny, tmp_path):
    """A link leads to a page, to a file of the site, or to the home of the project."""
    (tmp_path / "NOTES.md").write_text("[g](docs/other.md)\n[h](tools)\n")
    text = """\
[a](other.md) [b](other.md#its-part) [c](../tools/train.py) [d](../README.md#a-part-of-it)
[e](numbers.json) [f](https://example.org)

```{include} ../NOTES.md
```
"""
    assert tiny(text, "html") == []
    page = (tmp_path / "site" / "index.html").read_text()
    article = re.search(r"<article.*</article>", page, re.DOTALL)[0]
    links = {
        text[-1]: url for url, text in re.findall(r'href="([^"]+)"[^>]*>(.*?[a-h])</', article)
    }
    home = "https://github.com/mmlocal/mmlocal"
    assert links.pop("e").startswith("_downloads/")
    assert links == {
        "a": "other.html",
        "b": "other.html#its-part",
        "c": f"{home}/blob/main/tools/train.py",
        "d": f"{home}/blob/main/README.md#a-part-of-it",
        "f": "https://example.org",
        "g": "other.html",
        "h": f"{home}/tree/main/tools",
    }
    loaded = re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(\w+:)?//', page)
    assert loaded == []


# ------------------------------------------------------------------------------- API reference


def test_names_in_docstrings(tiny, monkeypatch, tmp_path):
    """A name that means nothing is one warning. A name of another library is a text."""
    (tmp_path / "made_up.py").write_text(
        '"""A module."""\n\nfrom torch import nn\n\n\n'
        "def function(x: nn.Module) -> None:\n"
        '    """See :func:`no_such_function`, :class:`nn.Linear`, :class:`torch.Tensor`."""\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    (warning,) = tiny("```{eval-rst}\n.. api:: made_up\n```")
    assert "made_up.function" in warning
    assert "reference target not found: no_such_function" in warning


def test_directive(tiny, tmp_path):
    """It writes an entry for each public name, with types."""
    assert tiny("```{eval-rst}\n.. api:: mmlocal.errors\n.. api:: mmlocal.tasks\n```", "html") == []
    page = (tmp_path / "site" / "index.html").read_text()
    names = ["errors.UsageError", "tasks.IGNORE", "tasks.TASKS", "tasks.Task", "tasks.find_tasks"]
    assert [name for name in names if f'id="mmlocal.{name}"' not in page] == []
    text = " ".join(re.sub(r"<[^>]+>", "", page).split())
    assert re.search(r"channels \(int \| None\) . channels of a network", text)
    assert "All tasks by name" in text


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_have_an_entry(entries, package):
    names = [f"{package}.{name}" for name in importlib.import_module(package).__all__]
    assert [name for name in names if name not in entries] == []


def test_registered_classes_have_an_entry(entries):
    registries = {k: v for k, v in vars(registry).items() if isinstance(v, Registry)}
    ours = {name: found for name, found in registries.items() if found.scope == "mmlocal"}
    assert [name for name in ours if f"mmlocal.registry.{name}" not in entries] == []
    names = {name.rpartition(".")[2] for name in entries}
    classes = []
    for found in ours.values():
        found.import_from_location()
        classes += [c for c in found.module_dict.values() if c.__module__.startswith("mmlocal.")]
    assert len(classes) > 30
    assert [cls for cls in classes if cls.__name__ not in names] == []


def test_packages_are_all_packages():
    """A new package with `__all__` gets a page, unless only a command uses it."""
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "mmlocal").rglob("__init__.py")
        if re.search(r"^__all__ = ", path.read_text(), re.MULTILINE)
    }
    of_ops = {name for name in found if name.startswith("mmlocal.ops.")}
    assert found - of_ops - {"mmlocal.cli.data", "mmlocal.models"} == set(PACKAGES)


def test_docstrings_have_no_formulas():
    """Sphinx would load MathJax for them from another host."""
    marks = (":math:`", ".. math::")
    files = [*(ROOT / "mmlocal").rglob("*.py"), *DOCS.rglob("*.md")]
    assert [path for path in files if any(mark in path.read_text() for mark in marks)] == []


# ------------------------------------------------------------------------------- pages


def test_each_page_is_in_a_menu():
    pages = {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")}
    pages = {page for page in pages if not page.startswith(("benchmarks/", "images/"))}
    listed = {"index"}
    for page in pages:
        folder = (DOCS / page).parent
        for menu in re.findall(
            r"^```{toctree}\n(.*?)^```", (DOCS / f"{page}.md").read_text(), MENU
        ):
            names = [line for line in menu.splitlines() if line and not line.startswith(":")]
            names = [re.sub(r".*<(.+)>", r"\1", name) for name in names]
            listed |= {(folder / name).relative_to(DOCS).as_posix() for name in names}
    assert listed == pages
    assert len(pages) > 30
