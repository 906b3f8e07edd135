"""Wheel, sdist, editable install and bare source tree: each one finds its configs.

All of it offline and in a copy of the checkout, with the build tools of this environment.
"""

import email
import json
import os
import re
import runpy
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from checkout import copy_tree

import mmlocal

ROOT = Path(__file__).resolve().parent.parent.parent
MIM = ["configs", "model-index.yml", "tools", "weights"]
ASK = """
import json, sys, mmlocal
names = mmlocal.list_configs()
paths = [mmlocal.config_path(name) for name in names]
heavy = [name for name in ("torch", "mmengine") if name in sys.modules]
print(json.dumps([mmlocal.__file__, names, paths, heavy]))
"""


def call(*command, **kwargs):
    done = subprocess.run(
        [str(c) for c in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Compiling the kernels takes half a minute; most tests leave them out.
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        | {"MMLOCAL_BUILD_EXT": "0"}
        | kwargs.pop("env", {}),
        **kwargs,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def pip(*arguments, **kwargs):
    return call(sys.executable, "-m", "pip", *arguments, **kwargs)


def ask(folder, tmp_path):
    """Ask the mmlocal in ``folder`` for its configs, from another working directory."""
    env = {"PYTHONPATH": str(folder)}
    return json.loads(call(sys.executable, "-c", ASK, cwd=tmp_path, env=env).splitlines()[-1])


def check(answer, home):
    """Check that all configs are found below ``home``, without importing torch."""
    file, names, paths, heavy = answer
    sources = [p for p in (ROOT / "configs").rglob("*.py") if "_base_" not in p.parts]
    assert Path(file).is_relative_to(home)
    assert names == sorted(path.stem for path in sources)
    assert names
    for path in paths:
        assert Path(path).is_relative_to(home)
        assert Path(path).is_file()
    assert heavy == []


def build_wheel(source, folder):
    options = ["--no-build-isolation", "--no-deps", "--no-index", "-w", folder]
    pip("wheel", *options, source)
    return next(folder.glob("mmlocal-*.whl"))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return copy_tree(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def editable(source, tmp_path_factory):
    """The Python of an environment with an editable install of ``source``."""
    venv = tmp_path_factory.mktemp("editable") / "venv"
    call(sys.executable, "-m", "venv", "--without-pip", venv)
    python = venv / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(venv)}))
    # The build tools of this environment; .pth files in there do not count.
    (site / "tools.pth").write_text(sysconfig.get_path("purelib"))
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--ignore-installed"]
    pip("--python", python, "install", *options, "-e", source)
    return python


@pytest.fixture(scope="module")
def wheel(editable, source, tmp_path_factory):
    """A wheel of a tree with the links of an editable install, which must stay out of it."""
    return build_wheel(source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(editable, source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdist")
    call(sys.executable, "-m", "build", "--no-isolation", "--sdist", "-o", folder, source)
    return next(folder.glob("mmlocal-*.tar.gz"))


@pytest.fixture(scope="module")
def wheel_of_sdist(sdist, tmp_path_factory):
    return build_wheel(sdist, tmp_path_factory.mktemp("wheel_of_sdist"))


def tracked_files(*folders):
    """Files of this checkout that belong in ``.mim``, relative to the root."""
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    return {
        str(path.relative_to(ROOT))
        for path in files
        if path.suffix in (".py", ".md", ".yml", ".sh", ".pth") and "__pycache__" not in path.parts
    }


@pytest.mark.parametrize("form", ["wheel", "wheel_of_sdist"])
def test_wheel_holds_mim_and_types(form, request):
    with zipfile.ZipFile(request.getfixturevalue(form)) as archive:
        names = set(archive.namelist())
        for name in ("mmlocal/.mim/configs/mmdet", "mmlocal/.mim/tools"):
            assert name not in names, "a link instead of its files"
        metadata = email.message_from_bytes(
            archive.read(next(name for name in names if name.endswith("/METADATA")))
        )
    assert "mmlocal/py.typed" in names
    expected = tracked_files("configs", "tools", "weights") | {"model-index.yml"}
    # They need the folder benchmarks/ of a clone.
    only_in_clones = {n for n in expected if n.startswith(("tools/benchmark_", "tools/audit_"))}
    assert len(only_in_clones) == 7
    assert {f"mmlocal/.mim/{name}" for name in expected - only_in_clones} <= names
    assert not [name for name in names if "benchmark" in name or "audit" in name]
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"mmlocal"}
    assert not [name for name in names if "__pycache__" in name]
    assert metadata["Name"] == "mmlocal"
    assert metadata["License"] == "Apache-2.0"
    assert "mmlocal/ops/csrc/kernels.h" in names
    requirements = metadata.get_all("Requires-Dist")
    # No requirement may replace the torch of an environment, not even one of an extra.
    assert not [line for line in requirements if line.startswith("torch")]
    forced = [line for line in requirements if "extra ==" not in line]
    assert forced == ["numpy>=1.24"]
    extras = set(metadata.get_all("Provides-Extra"))
    assert extras == {
        "onedl",
        "standalone",
        "multitask",
        "flax",
        "onnx",
        "safetensors",
        "explore",
        "dev",
    }


@pytest.mark.parametrize("form", ["wheel", "wheel_of_sdist"])
def test_metadata_for_a_package_index(form, request):
    """The description has no link that works in the repository only."""
    with zipfile.ZipFile(request.getfixturevalue(form)) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
        licences = {n.rpartition("/")[2] for n in archive.namelist() if "dist-info/" in n}
    assert metadata["Version"] == mmlocal.__version__
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert {"LICENSE", "NOTICE"} <= licences
    assert {"LICENSE", "NOTICE"} <= set(metadata.get_all("License-File"))
    urls = dict(line.split(", ") for line in metadata.get_all("Project-URL"))
    assert set(urls) == {"Homepage", "Documentation", "Source", "Issues", "Changelog"}
    assert all(url.startswith("https://github.com/mmlocal/mmlocal") for url in urls.values())
    assert "Typing :: Typed" in metadata.get_all("Classifier")
    text = metadata.get_payload(decode=True).decode()
    targets = targets_of(text)
    assert [target for target in targets if not target.startswith("https://")] == []
    # The same links as in the README, and code unchanged.
    readme = (ROOT / "README.md").read_text()
    assert len(targets) == len(targets_of(readme)) > 10
    assert re.findall(r"```.*?```", text, re.S) == re.findall(r"```.*?```", readme, re.S)
    release = f"v{mmlocal.__version__}"
    for target in targets:
        kind = r"https://(github\.com/mmlocal/mmlocal/blob|raw\.githubusercontent\.com/mmlocal/mmlocal)/"
        if match := re.match(kind, target):
            version, _, path = target[match.end() :].partition("#")[0].partition("/")
            assert version == release
            assert (ROOT / path).exists(), target
            assert path.endswith((".gif", ".jpg", ".png")) == ("raw." in match[0])


def targets_of(markdown):
    """Targets of all links and pictures, in Markdown and in HTML, as a renderer finds them."""
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable("table")
    found, todo = [], parser.parse(markdown)
    while todo:
        token = todo.pop()
        todo += token.children or []
        found += [token.attrs[key] for key in ("href", "src") if key in token.attrs]
        if token.type.startswith("html"):
            found += re.findall(r'(?:href|src)="([^"]*)"', token.content)
    return found


def test_links_of_a_description(monkeypatch):
    """All forms of links, beside text that only looks like a link."""
    scope = runpy.run_path(str(ROOT / "setup.py"))
    text = """
[a](docs/a.md#x), ![b](docs/b.png), [c](https://example.org)
[d](#install), [e](mailto:a@b.c), [![g](g.svg)](docs/g.md)
<img src="docs/B.JPG" width="9"> <a href="LICENSE">f</a>
[h]: docs/h.md
`x[0](y)` and `[i](i.md)`

```python
maps[0](image)
[j](j.md)
```
[`k`](k.md)
"""
    monkeypatch.setattr(Path, "read_text", lambda path, **_: text)
    home, raw = (
        f"https://{host}/v{mmlocal.__version__}/"
        for host in ("github.com/mmlocal/mmlocal/blob", "raw.githubusercontent.com/mmlocal/mmlocal")
    )
    expected = f"""
[a]({home}docs/a.md#x), ![b]({raw}docs/b.png), [c](https://example.org)
[d]({home}README.md#install), [e](mailto:a@b.c), [![g]({raw}g.svg)]({home}docs/g.md)
<img src="{raw}docs/B.JPG" width="9"> <a href="{home}LICENSE">f</a>
[h]: {home}docs/h.md
`x[0](y)` and `[i](i.md)`

```python
maps[0](image)
[j](j.md)
```
[`k`]({home}k.md)
"""
    assert scope["long_description"]() == expected


@pytest.mark.parametrize("form", ["wheel", "wheel_of_sdist"])
def test_installed_wheel_finds_its_configs(form, request, tmp_path):
    site = tmp_path / "site"
    pip("install", "--no-deps", "--no-index", "--target", site, request.getfixturevalue(form))
    check(ask(site, tmp_path), site)


def test_sdist_holds_no_links_and_no_mim(sdist):
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert not [member.name for member in members if member.issym() or ".mim" in member.name]
    names = {member.name.partition("/")[2] for member in members}
    assert "requirements/torch.txt" in names
    assert {"CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "NOTICE"} <= names
    assert tracked_files("benchmarks", "tools") <= names
    sources = (ROOT / "mmlocal" / "ops" / "csrc").iterdir()
    assert {str(path.relative_to(ROOT)) for path in sources} <= names


def test_editable_install_links_to_the_tree(editable, source, tmp_path):
    answer = json.loads(call(editable, "-c", ASK, cwd=tmp_path).splitlines()[-1])
    check(answer, source)
    mim = source / "mmlocal" / ".mim"
    assert sorted(path.name for path in mim.iterdir()) == MIM
    for name in MIM:
        assert (mim / name).is_symlink()
        assert (mim / name).resolve() == source / name
    new = source / "configs" / "mmdet" / "just_written.py"
    new.write_text("")
    try:
        answer = json.loads(call(editable, "-c", ASK, cwd=tmp_path).splitlines()[-1])
        assert "just_written" in answer[1]
    finally:
        new.unlink()


def test_editable_install_copies_where_links_are_refused(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("links are not allowed here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    scope = runpy.run_path(str(ROOT / "setup.py"))
    scope["link"](ROOT / "requirements", tmp_path / "requirements")
    scope["link"](ROOT / "model-index.yml", tmp_path / "model-index.yml")
    assert (tmp_path / "requirements" / "torch.txt").is_file()
    assert (tmp_path / "model-index.yml").is_file()


WITHOUT = "mmlocal is installed without its C++ kernels: "
RUN_OP = """
import torch
from mmlocal.ops import elsa_attention
from mmlocal.ops.elsa import BACKENDS
cpp = next(b for b in BACKENDS if b.name == "cpp")
out = elsa_attention(torch.ones(1, 1, 1, 1), torch.ones(1, 9, 1, 1), kernel_size=3)
print("says:", cpp.unavailable_reason(), tuple(out.shape), sep="|")
"""


def run_op(site, tmp_path):
    """Why the kernels of an installation do not run; "None" if they run."""
    env = {"PYTHONPATH": str(site)}
    output = call(sys.executable, "-c", RUN_OP, cwd=tmp_path, env=env)
    reason, shape = re.search(r"says:\|(.*)\|(.*)", output).groups()
    assert shape == "(1, 1, 1, 1)"
    assert ("UserWarning: mmlocal runs its eager backend" in output) == (reason != "None")
    return reason


@pytest.fixture
def compiler(tmp_path) -> Path:
    """The C++ compiler without optimisation, which takes less time."""
    path = tmp_path / "compiler"
    path.write_text(f'#!/bin/sh\nexec {os.environ.get("CXX", "c++")} "$@" -O0\n')
    path.chmod(0o755)
    return path


def test_kernels_can_be_compiled_after_the_installation(wheel, compiler, tmp_path):
    """A wheel without kernels is pure Python, works, and can compile them later."""
    assert wheel.name.endswith("-py3-none-any.whl")
    site = tmp_path / "site"
    pip("install", "--no-deps", "--no-index", "--target", site, wheel)
    assert run_op(site, tmp_path).startswith("the C++ kernels are not compiled: `mmlocal build`")
    env = {"PYTHONPATH": str(site), "CXX": str(compiler)}
    output = call(sys.executable, "-m", "mmlocal", "build", cwd=tmp_path, env=env)
    assert output.endswith(f"the C++ kernels are compiled: {site}/mmlocal/ops/_C.so\n")
    assert run_op(site, tmp_path) == "None"


@pytest.mark.slow
def test_a_wheel_with_kernels_is_for_any_python_and_torch(source, compiler, tmp_path):
    """The README's command builds the wheel in isolation, without torch."""
    env = {"MMLOCAL_BUILD_EXT": "1", "CXX": str(compiler)}
    pip("wheel", "--no-deps", "-w", tmp_path, source, env=env)
    wheel = next(tmp_path.glob("mmlocal-*.whl"))
    assert re.search(r"-py3-none-(?!any).*\.whl$", wheel.name)
    site = tmp_path / "site"
    pip("install", "--no-deps", "--no-index", "--target", site, wheel)
    assert run_op(site, tmp_path) == "None"


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("#!/bin/sh\necho error: no >&2\nexit 1\n", "the compiler {} failed: error: no"),
        (None, "there is no C++ compiler ({})"),
    ],
    ids=["a broken one", "none"],
)
def test_without_a_compiler_a_wheel_is_pure_python(compiler, reason, source, tmp_path):
    path = tmp_path / "compiler"
    if compiler:
        path.write_text(compiler)
        path.chmod(0o755)
    env = {"MMLOCAL_BUILD_EXT": "1", "CXX": str(path)}
    options = ["--no-build-isolation", "--no-deps", "--no-index", "-v", "-w", tmp_path]
    output = pip("wheel", *options, source, env=env)
    assert output.count(WITHOUT) == 1
    assert WITHOUT + reason.format(path) in output
    wheel = next(tmp_path.glob("mmlocal-*.whl"))
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith((".so", ".pyd"))]


def test_setuptools_without_wheel_is_one_sentence(tmp_path):
    """A new environment of Python 3.10, without pip's build isolation, has this setuptools."""
    code = f"""
import runpy, sys, setuptools
sys.modules["setuptools.command.bdist_wheel"] = sys.modules["wheel.bdist_wheel"] = None
runpy.run_path({str(ROOT / "setup.py")!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "pip install wheel, or leave out --no-build-isolation" in line


def test_benchmarks_of_a_clone_use_the_installed_package(wheel, source, tmp_path):
    """The scripts import benchmarks/ from the clone, but not the clone's mmlocal."""
    site = tmp_path / "site"
    pip("install", "--no-deps", "--no-index", "--target", site, wheel)
    code = """
import runpy, sys
runpy.run_path(sys.argv[1])
import benchmarks, mmlocal
print("found:", benchmarks.__file__, mmlocal.__file__, sep="|")
"""
    script = source / "tools" / "benchmark_ops.py"
    env = {"PYTHONPATH": str(site)}
    output = call(sys.executable, "-c", code, script, cwd=tmp_path, env=env)
    _, benchmarks, package = output.splitlines()[-1].split("|")
    assert Path(benchmarks) == source / "benchmarks" / "__init__.py"
    assert Path(package) == site / "mmlocal" / "__init__.py"
    assert "--shapes" in call(sys.executable, script, "--help", cwd=tmp_path, env=env)


def test_source_tree_without_installation(tmp_path):
    tree = copy_tree(tmp_path / "tree")
    check(ask(tree, tmp_path), tree)
