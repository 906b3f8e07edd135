"""Wheel, sdist, editable install and bare source tree: each one finds its configs.

All of it offline and in a copy of the checkout, with the build tools of this environment.
"""

import email
import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from shutil import copyfile, copytree, ignore_patterns

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
# What a release is made of.
PARTS = ["configs", "mmlocal", "requirements", "tools", "LICENSE", "MANIFEST.in", "README.md"]
PARTS += ["model-index.yml", "pyproject.toml", "setup.py"]
MIM = ["configs", "model-index.yml", "tools"]
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
        # Compiling the extension takes most of a minute; what leaves it out is tested here.
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
    """What the mmlocal in ``folder`` says about its configs; run from elsewhere."""
    env = {"PYTHONPATH": str(folder)}
    return json.loads(call(sys.executable, "-c", ASK, cwd=tmp_path, env=env).splitlines()[-1])


def check(answer, home):
    """All configs of this checkout are found below ``home``, without importing torch."""
    file, names, paths, heavy = answer
    sources = [p for p in (ROOT / "configs").rglob("*.py") if "_base_" not in p.parts]
    assert Path(file).is_relative_to(home)
    assert names == sorted(path.stem for path in sources)
    assert names
    for path in paths:
        assert Path(path).is_relative_to(home)
        assert Path(path).is_file()
    assert heavy == []


def copy_tree(target):
    """A fresh checkout, as far as packaging goes."""
    target.mkdir(exist_ok=True)
    for name in PARTS:
        if (ROOT / name).is_dir():
            built = ignore_patterns(".mim", "__pycache__", "*.so", "*.pyd")
            copytree(ROOT / name, target / name, ignore=built)
        else:
            copyfile(ROOT / name, target / name)
    return target


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
    """Built from a tree with the links of an editable install, which must not get into it."""
    return build_wheel(source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(editable, source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdist")
    code = f"import setuptools.build_meta as b; b.build_sdist({str(folder)!r})"
    call(sys.executable, "-c", code, cwd=source)
    return next(folder.glob("mmlocal-*.tar.gz"))


@pytest.fixture(scope="module")
def wheel_of_sdist(sdist, tmp_path_factory):
    return build_wheel(sdist, tmp_path_factory.mktemp("wheel_of_sdist"))


def tracked_files(*folders):
    """Files of this checkout that belong into ``.mim``, relative to the root."""
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    return {
        str(path.relative_to(ROOT))
        for path in files
        if path.suffix in (".py", ".md", ".yml", ".sh") and "__pycache__" not in path.parts
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
    expected = tracked_files("configs", "tools") | {"model-index.yml"}
    assert {f"mmlocal/.mim/{name}" for name in expected} <= names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"mmlocal"}
    assert not [name for name in names if "__pycache__" in name]
    assert metadata["Name"] == "mmlocal"
    requirements = metadata.get_all("Requires-Dist")
    assert not [line for line in requirements if "<" in line or "==" in line.split(";")[0]]
    forced = [line for line in requirements if "extra ==" not in line]
    assert not [line for line in forced if "mm" in line]
    assert {"onedl", "openmmlab", "flax", "dev"} == set(metadata.get_all("Provides-Extra"))


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

    monkeypatch.setattr("setuptools.setup", lambda **kwargs: None)
    monkeypatch.setattr(Path, "symlink_to", refuse)
    scope = {"__file__": str(ROOT / "setup.py"), "__name__": "setup"}
    exec((ROOT / "setup.py").read_text(), scope)
    scope["link"](ROOT / "requirements", tmp_path / "requirements")
    scope["link"](ROOT / "model-index.yml", tmp_path / "model-index.yml")
    assert (tmp_path / "requirements" / "torch.txt").is_file()
    assert (tmp_path / "model-index.yml").is_file()


WITHOUT = "mmlocal is installed without its C++ extension: "
RUN_OP = """
import torch
from mmlocal.ops import elsa_attention
from mmlocal.ops.elsa import BACKENDS
cpp = next(b for b in BACKENDS if b.name == "cpp")
print(cpp.unavailable_reason())
print(*elsa_attention(torch.ones(1, 1, 1, 1), torch.ones(1, 9, 1, 1), kernel_size=3).shape)
"""


def test_wheel_without_extension_works(wheel, tmp_path):
    site = tmp_path / "site"
    pip("install", "--no-deps", "--no-index", "--target", site, wheel)
    assert wheel.name.endswith("-py3-none-any.whl")
    env = {"PYTHONPATH": str(site)}
    *_, reason, shape = call(sys.executable, "-c", RUN_OP, cwd=tmp_path, env=env).splitlines()
    assert reason.startswith("the C++ extension is not built")
    assert shape == "1 1 1 1"


def test_a_compiler_that_fails_leaves_the_extension_out(source, tmp_path):
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\necho no >&2\nexit 1\n")
    compiler.chmod(0o755)
    env = {"MMLOCAL_BUILD_EXT": "1", "CXX": str(compiler), "CC": str(compiler)}
    options = ["--no-build-isolation", "--no-deps", "--no-index", "-v", "-w", tmp_path]
    output = pip("wheel", *options, source, env=env)
    assert output.count(WITHOUT) == 1
    assert WITHOUT + "the compiler failed: " in output
    with zipfile.ZipFile(next(tmp_path.glob("mmlocal-*.whl"))) as archive:
        names = archive.namelist()
    assert "mmlocal/ops/backends.py" in names
    assert not [name for name in names if name.endswith((".so", ".pyd"))]


def setup_arguments(monkeypatch, **environment):
    """What setup.py gives to ``setup``, and its globals."""
    given = {}
    monkeypatch.setattr("setuptools.setup", lambda **kwargs: given.update(kwargs))
    monkeypatch.chdir(ROOT)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    scope = {"__file__": str(ROOT / "setup.py"), "__name__": "setup"}
    exec((ROOT / "setup.py").read_text(), scope)
    return given, scope


def test_extension_is_of_all_sources_where_it_can_be_built(monkeypatch):
    given, scope = setup_arguments(monkeypatch, MMLOCAL_BUILD_EXT="1")
    assert scope["REASON"] is None
    (module,) = given["ext_modules"]
    assert module.name == "mmlocal.ops._C"
    assert module.optional
    sources = {path.as_posix() for path in Path("mmlocal/ops/csrc").glob("*.cpp")}
    assert set(module.sources) == sources


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"MMLOCAL_BUILD_EXT": "0"}, "MMLOCAL_BUILD_EXT=0"),
        ({"MMLOCAL_BUILD_EXT": "1", "CXX": "no-such-compiler -O2"}, "no C++ compiler"),
    ],
    ids=["switched off", "no compiler"],
)
def test_extension_is_left_out_with_a_reason(environment, reason, monkeypatch):
    given, scope = setup_arguments(monkeypatch, **environment)
    assert scope["REASON"].startswith(reason)
    assert list(given) == ["cmdclass"]


def test_extension_is_left_out_without_torch(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    given, scope = setup_arguments(monkeypatch, MMLOCAL_BUILD_EXT="1")
    assert scope["REASON"].startswith("no torch in the build environment")
    assert list(given) == ["cmdclass"]


def test_source_tree_without_installation(tmp_path):
    tree = copy_tree(tmp_path / "tree")
    check(ask(tree, tmp_path), tree)
