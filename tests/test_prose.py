"""Texts keep the rules for prose that a test can hold, and pages name things that exist."""

import ast
import contextlib
import importlib.util
import io
import pkgutil
import re
import shlex
import tokenize
from pathlib import Path
from types import ModuleType

import pytest
from mmengine.registry import Registry

from mmlocal import cli, registry

ROOT = Path(__file__).parents[1]
CODE = sorted(
    path
    for folder in ("mmlocal", "configs", "tools", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
)
CONFIGS = [path for path in CODE if ROOT / "configs" in path.parents]
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("configs/*/README.md"),
    ]
)
# They stand for a noun, which the reader then has to look for.
STAND_INS = re.compile(
    r".{0,30}\b(?:that of|those of|those that|those in|the ones? of)\b.{0,30}", re.IGNORECASE
)
# They send the reader to another place on the page.
POINTERS = re.compile(r".{0,30}\b(?:as above|likewise|ditto)\b.{0,30}", re.IGNORECASE)


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=lambda path: str(path.relative_to(ROOT)))


def one_line(text: str) -> str:
    return " ".join(text.split())


def texts(path: Path) -> list[str]:
    """Docstrings, comments and other strings of a module, each on one line."""
    source = path.read_text()
    strings = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    comments = [
        token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    ]
    return [one_line(text) for text in [*strings, " ".join(comments)] if isinstance(text, str)]


def docstrings(path: Path) -> list[str]:
    nodes = ast.walk(ast.parse(path.read_text()))
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [doc for node in nodes if isinstance(node, owners) if (doc := ast.get_docstring(node))]


def headings(page: Path) -> list[str]:
    """Anchors of the headings of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE) if page.suffix == ".md" else []
    return [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]


def code_of(page: Path) -> list[str]:
    """Code spans and lines of code blocks of a page, without comments."""
    text = page.read_text()
    blocks = re.findall(r"^ *```[^\n]*\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    spans = [one_line(span) for span in re.findall(r"`([^`]+)`", prose)]
    return [line.split(" #")[0].strip() for line in lines] + spans


# ------------------------------------------------------------------------------------- prose


@each(CODE)
def test_texts_of_code(path):
    """They repeat the noun, and a docstring begins with a verb or a noun."""
    assert [doc.splitlines()[0] for doc in docstrings(path) if doc.startswith("What ")] == []
    assert [found for text in texts(path) for found in STAND_INS.findall(text)] == []
    assert [found for text in docstrings(path) for found in POINTERS.findall(one_line(text))] == []


@each(PAGES)
def test_pages(path):
    """They repeat the noun, and each paragraph stands on its own."""
    text = one_line(path.read_text())
    assert STAND_INS.findall(text) == []
    assert POINTERS.findall(text) == []


def test_the_rules_find_something():
    assert len(CODE) > 100
    assert len(CONFIGS) > 50
    assert STAND_INS.findall("Larger than\nthat of the map".replace("\n", " "))
    assert not STAND_INS.findall("so that offsets fit")
    assert POINTERS.findall("The same for val, likewise.")


# ------------------------------------------------------------------ names that pages depend on


@each(PAGES)
def test_links(path):
    """Each relative link leads to a file, and to a heading in it if it names one."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)", re.sub(r"`[^`]*`", "", path.read_text())):
        name, _, heading = target.partition("#")
        page = path.parent / name if name else path
        if "://" not in target and not (page.exists() and heading in ["", *headings(page)]):
            broken.append(target)
    assert broken == []


@each(PAGES)
def test_paths(path):
    """Each path of the repository that a page names is there."""
    folders = "mmlocal|tools|tests|docs|configs|benchmarks|requirements"
    named = [re.findall(rf"^(?:(?:python|bash) )?((?:{folders})/[\w./-]+)(?![\w*<{{])", code)
             for code in code_of(path)]  # fmt: skip
    assert [name for names in named for name in names if not (ROOT / name).exists()] == []


def exists(name: str) -> bool:
    """Whether it can be imported, or is the type of a config."""
    with contextlib.suppress(ImportError, AttributeError):
        pkgutil.resolve_name(name)
        return True
    registries = [value for value in vars(registry).values() if isinstance(value, Registry)]
    return any(name.removeprefix("mmlocal.") in found for found in registries)


@each([*PAGES, *CONFIGS])
def test_python_names(path):
    """Each name of mmlocal in a page, or in the texts of a config, exists."""
    for library in ("mmdet", "mmpretrain"):  # DETRQnA, AutoEncoder
        pytest.importorskip(f"{library}.models")
    text = path.read_text() if path.suffix == ".md" else "\n".join(texts(path))
    names = set(re.findall(r"(?<![\w/.])mmlocal(?:\.[A-Za-z_]\w*)+", text))
    for module, imported in re.findall(r"from (mmlocal[\w.]*) import ([\w, ]+)", text):
        names |= {f"{module}.{name.strip()}" for name in imported.split(",")}
    assert sorted(name for name in names if not exists(name)) == []


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def flags_of(parser: ModuleType) -> set[str]:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        parser.parse_args(["--help"])
    return set(re.findall(r"--[a-z][\w-]*", printed.getvalue()))


@pytest.fixture(scope="module")
def flags() -> dict[str, set[str]]:
    """Flags of each command, by the name of its script in ``tools/``, or of its subcommand."""
    found = {name: flags_of(cli.load(name)) for name in cli.COMMANDS}
    for path in (ROOT / "tools").glob("*.py"):
        script = load_script(path.stem) if path.stem != "compile_mmcv" else None
        if script is not None:
            found[path.name] = flags_of(getattr(script, "tool", script))
    found["dist_train.sh"] = found["slurm_train.sh"] = found["train.py"]
    found["dist_test.sh"] = found["slurm_test.sh"] = found["test.py"]
    return found


@each(PAGES)
def test_flags(path, flags):
    """Each command of mmlocal has the flags that a page gives it."""
    wrong = []
    for code in code_of(path):
        words = shlex.split(code.replace("'", " ").replace('"', " "))
        given = {flag.split("=")[0] for flag in re.findall(r"(?<!\S)\[?(--[a-z][\w-]*)", code)}
        if command := re.match(r"(?:python|bash) tools/(\S+\.(?:py|sh))", code):
            known = flags[command[1]]
        elif words[:1] == ["mmlocal"] and words[1:] and not words[1].startswith("-"):
            known = flags[words[1]] if words[1] != "COMMAND" else given
        elif code.startswith("--"):  # whose command the text names
            known = set().union(*flags.values())
        else:
            continue
        wrong += [(code, flag) for flag in given - known - {"--help"}]
    assert wrong == []


@each(PAGES)
def test_make_targets(path):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for code in code_of(path) for name in re.findall(r"\bmake ([a-z-]+)", code)}
    assert named - targets == set()
