"""``make setup``, in a copy with a stand-in for Python, and the compilation of mmcv's ops.

The stand-ins note the calls, and fail, hang or answer as a test tells them to.
"""

import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMPILE = "tools/compile_mmcv.py"
IN_ORDER = [
    "--upgrade pip",
    "-r requirements/build.txt",
    "-r requirements/torch.txt",
    "-r requirements/openmm.txt",
    "--force-reinstall --no-deps opencv-python-headless",
    "--no-cache-dir -r requirements/mmcv.txt",
    "-r requirements/dev.txt",
    "--no-build-isolation --no-deps -e .",
    COMPILE,
]


def write_script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


# --------------------------------------------------------------------------------- the steps


@pytest.fixture
def checkout(tmp_path):
    """A checkout whose ``.venv/bin/python`` notes its calls and fails at ``FAIL_AT``."""
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    for name in ("Makefile", "pyproject.toml", "setup.py", "mmlocal/ops/build.py", COMPILE):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    write_script(
        tmp_path / ".venv/bin/python",
        '#!/bin/sh\necho "$*" >> calls.txt\ncase "$*" in *"$FAIL_AT") exit 1;; esac\n',
    )
    return tmp_path


def make(checkout, target="setup", **environment):
    """Exit code and output of ``make``."""
    done = subprocess.run(
        ["make", target],
        cwd=checkout,
        env=os.environ | {"FAIL_AT": "never", "MAKEFLAGS": "", "MAKELEVEL": "0"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout


def calls(checkout):
    """Calls of Python since the last look, without ``-m pip install`` and its pins."""
    file = checkout / "calls.txt"
    lines = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return [re.sub(r"^-m pip install |-c \S+ ", "", line) for line in lines]


def test_does_all_steps_in_order_and_then_nothing(checkout):
    code, output = make(checkout)
    assert code == 0, output
    assert calls(checkout) == IN_ORDER
    assert "setup: 5/5 mmcv's ops, compiled here, about 2 minutes" in output
    ready = "setup: .venv is ready. Activate it with: source .venv/bin/activate"
    assert output.splitlines()[-1] == ready
    assert make(checkout) == (0, f"{ready}\n")
    assert calls(checkout) == []


def test_continues_with_the_step_that_failed(checkout):
    code, _ = make(checkout, FAIL_AT="-r requirements/openmm.txt")
    assert code != 0
    assert calls(checkout) == IN_ORDER[:4]
    assert make(checkout)[0] == 0
    assert calls(checkout) == IN_ORDER[3:]


def test_changed_requirements_repeat_the_steps_from_there_on(checkout):
    make(checkout)
    calls(checkout)
    later = time.time() + 5
    os.utime(checkout / "requirements/openmm.txt", (later, later))
    assert make(checkout)[0] == 0
    assert calls(checkout) == IN_ORDER[3:]


def test_without_ops_leaves_out_the_compilation_and_a_later_set_up_does_it(checkout):
    assert make(checkout, "setup-without-ops")[0] == 0
    assert calls(checkout) == IN_ORDER[:-1]
    assert make(checkout)[0] == 0
    assert calls(checkout) == [COMPILE]


def test_only_the_classifiers_demo_does_without_ops():
    def plan_of(target):
        command = ["make", "--dry-run", "--always-make", target]
        return subprocess.check_output(command, cwd=ROOT, text=True)

    assert COMPILE not in plan_of("demo-cls")
    for target in ("setup", "demo", "demo-seg", "test", "lint"):
        assert COMPILE in plan_of(target)


def test_every_install_is_held_to_all_pins(checkout):
    files = {f"requirements/{path.name}" for path in (ROOT / "requirements").glob("*.txt")}
    files.remove("requirements/oldest.txt")  # of another environment
    make(checkout)
    lines = [line for line in (checkout / "calls.txt").read_text().splitlines() if " -r " in line]
    assert len(lines) == 5
    for line in lines:
        assert set(re.findall(r"-c (\S+)", line)) == files


@pytest.mark.parametrize("version", ["3.9.18", "3.13.0", "2.7.18", None])
def test_other_pythons_are_refused(checkout, version):
    """In one line, whatever the Python: the stand-in runs the check with another version."""
    shutil.rmtree(checkout / ".venv")
    python = checkout / "python"
    if version:
        info = tuple(map(int, version.split(".")))
        write_script(
            python,
            f"#!{sys.executable}\nimport sys\nsys.version_info = {info}\n"
            f"print('Python {version}') if sys.argv[1] == '-V' else exec(sys.argv[2])\n",
        )
    code, output = make(checkout, PYTHON=str(python))
    assert code != 0
    found = f"Python {version}" if version else "missing"
    first = output.splitlines()[0]
    assert first.startswith(f"setup: Python 3.10, 3.11 or 3.12 is needed, and {python} is {found}:")
    assert not (checkout / ".venv").exists()


@pytest.mark.slow
def test_environment_whose_python_is_gone_is_made_anew(checkout):
    """A real environment, whose pip gets an index that nobody serves."""
    make(checkout)
    python = checkout / ".venv/bin/python"
    python.unlink()
    python.symlink_to("/nowhere/python3")
    closed = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0"}
    closed |= {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": ""}
    code, output = make(checkout, PYTHON=sys.executable, no_proxy="127.0.0.1", **closed)
    assert code != 0
    assert "setup: 1/5 build tools" in output
    assert "2/5" not in output
    subprocess.run([python, "-m", "pip", "--version"], check=True, stdout=subprocess.DEVNULL)
    assert list((checkout / ".venv").glob("*.done")) == []


# --------------------------------------------------------------------------------- mmcv's ops

FAKE_PIP = """
import json, os, pathlib, sys, time
root = pathlib.Path(__file__).parents[2]
plan = json.loads((root / "plan.json").read_text())
line = " ".join(sys.argv[1:])
names = ("FORCE_CUDA", "CUDA_VISIBLE_DEVICES", "CPPFLAGS")
with (root / "calls.jsonl").open("a") as file:
    file.write(json.dumps([line, [os.environ.get(name) for name in names]]) + "\\n")
print("  [12/78] c++ -c nms.cpp", flush=True)
time.sleep(plan.get("seconds", 0))
if plan.get("fail_at", "never") in os.environ["CPPFLAGS"]:
    sys.exit("FAILED: nms.o")
plan["ops"] = plan.get("rebuilt" if "--no-cache-dir" in line else "built", "not available")
(root / "plan.json").write_text(json.dumps(plan))
"""
FAKE_TORCH = """
import json, pathlib, types
plan = json.loads((pathlib.Path(__file__).parents[2] / "plan.json").read_text())
cuda = types.SimpleNamespace(is_available=lambda: plan.get("gpu", False))
version = types.SimpleNamespace(cuda=plan.get("cuda", "13.0"))
"""
FAKE_EXTENSION = """
import pathlib
root = pathlib.Path(__file__).parents[3]
CUDA_HOME = str(root / "cuda")
include_paths = lambda: [str(root / "include")]
"""
FAKE_OPS = """
import torch
if torch.plan.get("ops") is None:
    raise ImportError("undefined symbol")
get_compiling_cuda_version = lambda: torch.plan["ops"]
"""


@pytest.fixture
def tree(tmp_path):
    """A checkout, with stand-ins for pip, torch and mmcv in ``fake``."""
    (tmp_path / "tools").mkdir()
    (tmp_path / ".venv").mkdir()
    shutil.copyfile(ROOT / COMPILE, tmp_path / COMPILE)
    for name, text in (
        ("pip/__init__.py", ""),
        ("pip/__main__.py", FAKE_PIP),
        ("torch/__init__.py", FAKE_TORCH),
        ("torch/utils/__init__.py", ""),
        ("torch/utils/cpp_extension.py", FAKE_EXTENSION),
        ("mmcv/__init__.py", ""),
        ("mmcv/_ext.py", FAKE_OPS),
    ):
        write_script(tmp_path / "fake" / name, text)
    write_script(tmp_path / "include/torch/types.h", "#include <vector>\n")
    plan(tmp_path)
    return tmp_path


def plan(tree, nvcc="13.0", **behaviour):
    (tree / "plan.json").write_text(json.dumps(behaviour))
    shutil.rmtree(tree / "cuda", ignore_errors=True)
    if nvcc:
        write_script(tree / "cuda/bin/nvcc", f"#!/bin/sh\necho release {nvcc}, V1\n")


def start(tree, **environment):
    return subprocess.Popen(
        [sys.executable, tree / COMPILE],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tree / "fake"), "CPPFLAGS": ""} | environment,
    )


def run(tree, **environment):
    """Exit code and output; no output may be a traceback."""
    process = start(tree, **environment)
    output, _ = process.communicate(timeout=120)
    assert "Traceback" not in output
    return process.returncode, output


def compilations(tree):
    """Options of pip, then FORCE_CUDA, CUDA_VISIBLE_DEVICES and CPPFLAGS, of each compilation."""
    file = tree / "calls.jsonl"
    found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [
        [line, *switches[:2], re.sub(r"/\S+/header\.h", "HEADER", switches[2])]
        for line, switches in found
    ]


PIP = "install -v --no-build-isolation --force-reinstall --no-deps"
MMCV = "-r requirements/mmcv.txt"
CPU = [f"{PIP} {MMCV}", "0", "", "-g0 -include HEADER"]
PLAIN = [*CPU[:3], "-g0"]


@pytest.mark.parametrize(
    ("state", "force", "note"),
    [
        ({}, "0", None),
        ({"gpu": True, "built": "13.0"}, "1", None),
        ({"gpu": True, "nvcc": "12.4"}, "0", "no nvcc (found: 12.4)"),
        ({"gpu": True, "nvcc": None}, "0", "no nvcc (found: None)"),
        ({"gpu": True, "cuda": None}, "0", "no nvcc"),
    ],
    ids=["no GPU but nvcc", "GPU and nvcc", "nvcc of another CUDA", "no nvcc", "CPU torch"],
)
def test_compiles_for_cuda_only_with_gpu_and_nvcc(tree, state, force, note):
    plan(tree, **state)
    code, output = run(tree, CUDA_VISIBLE_DEVICES="0")
    assert code == 0, output
    assert compilations(tree) == [[CPU[0], "1", "0", "-g0"] if force == "1" else CPU]
    assert ("on the CPU only" in output) == (note is not None)
    assert note is None or note in output
    assert re.search(r"setup: mmcv 0:0\d  12 of 78 files compiled", output)
    assert "[12/78]" in (tree / ".venv/mmcv.log").read_text()


@pytest.mark.parametrize("ops", ["not available", "13.0"])
def test_ops_that_fit_are_left(tree, ops):
    plan(tree, gpu=ops == "13.0", ops=ops)
    code, output = run(tree, CXX="no-such-compiler")
    assert code == 0, output
    assert compilations(tree) == []


def test_ops_without_cuda_are_compiled_for_a_gpu_that_came_later(tree):
    plan(tree, gpu=True, ops="not available", built="13.0")
    assert run(tree)[0] == 0
    assert [force for _, force, *_ in compilations(tree)] == ["1"]


def test_replaces_a_cached_wheel_that_does_not_fit(tree):
    plan(tree, built=None, rebuilt="not available")
    code, output = run(tree)
    assert code == 0, output
    assert compilations(tree) == [CPU, [f"{PIP} --no-cache-dir {MMCV}", *CPU[1:]]]


def test_ops_that_do_not_load_fail_and_say_what_to_do(tree):
    plan(tree, built=None, rebuilt=None)
    code, output = run(tree)
    assert code == 1
    last = output.splitlines()[-1]
    assert "mmcv's compiled ops do not load (ImportError: undefined symbol)" in last
    assert f"see {tree}/.venv/mmcv.log, then run make setup again" in last


def test_compiles_without_the_header_if_it_is_in_the_way(tree):
    plan(tree, fail_at="-include")
    code, output = run(tree)
    assert code == 0, output
    assert "trying again without the precompiled header" in output
    assert compilations(tree) == [CPU, PLAIN]


def test_compiles_without_a_header_that_the_compiler_refuses(tree):
    compiler = write_script(
        tree / "c++", '#!/bin/sh\ncase "$*" in *c++-header*) exit 1;; esac\nexec c++ "$@"\n'
    )
    plan(tree, fail_at="-g0")
    code, output = run(tree, CXX=str(compiler), CPPFLAGS="-DMINE")
    assert code == 1
    assert "cannot precompile the header" in output
    assert "FAILED: nms.o" in output
    assert "mmcv cannot be compiled: see" in output.splitlines()[-1]
    assert compilations(tree) == [[*CPU[:3], "-DMINE -g0"]]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_ends_pip(tree, number):
    plan(tree, seconds=100)
    process = start(tree)
    while "12 of 78" not in process.stdout.readline():
        pass
    process.send_signal(number)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert output == "setup: stopped; make setup continues with mmcv's ops\n"
    for _ in range(100):
        left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
        if not re.search(r"python.* -m pip install -v --no-build-isolation", left):
            return
        time.sleep(0.1)
    raise AssertionError("pip still runs")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"CXX": "", "PATH": "/nowhere"}, "no C++ compiler: install one (g++ on Debian"),
        ({"CXX": "no-such-compiler"}, "the C++ compiler CXX=no-such-compiler does not run"),
        ({"CXX": "false"}, "the C++ compiler false cannot compile C++17"),
    ],
)
def test_compiler_that_does_not_work_is_one_line(tree, environment, message):
    code, output = run(tree, **environment)
    assert code == 1
    assert output.startswith(f"setup: {message}")
    assert output.count("\n") == 1
    assert compilations(tree) == []


@pytest.fixture
def compile_mmcv():
    spec = importlib.util.spec_from_file_location("compile_mmcv", ROOT / COMPILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_missing_headers_are_named(compile_mmcv, monkeypatch, tmp_path):
    monkeypatch.setattr(compile_mmcv.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    with pytest.raises(compile_mmcv.CompileError, match=r"Python\.h is missing: install .*-dev"):
        compile_mmcv.find_compiler()


def test_torch_compiles_with_the_header(compile_mmcv, monkeypatch, tmp_path):
    """A real compiler and torch's own build, with a header that is quickly compiled."""
    root = tmp_path / "a folder"
    root.mkdir()
    header = root / "header.h"
    header.write_text("#include <map>\n")
    (root / "source.cpp").write_text('extern "C" void* PyInit__x() { return nullptr; }\n')
    (root / "setup.py").write_text(
        "from setuptools import setup\n"
        "from torch.utils.cpp_extension import BuildExtension, CppExtension\n"
        "module = CppExtension('_x', ['source.cpp'], extra_compile_args={'cxx': ['-std=c++17']})\n"
        "setup(name='x', ext_modules=[module], cmdclass={'build_ext': BuildExtension})\n"
    )
    monkeypatch.setattr(os, "environ", os.environ.copy())
    compile_mmcv.set_switches(compile_mmcv.find_compiler(), cuda=False)
    assert compile_mmcv.precompile(header)
    flags = f"-include {shlex.quote(str(header))} -Winvalid-pch -Werror=invalid-pch -H"
    environment = dict(os.environ, CPPFLAGS=f"{os.environ['CPPFLAGS']} {flags}")
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"! {header}.gch" in done.stdout + done.stderr
