"""tools/setup_env.py, run as users run it, in a copy whose ``.venv/bin/python`` is a stand-in.

The stand-in notes what pip is asked to do and fails, hangs or answers as a test tells it to.
"""

import ast
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
SPEC = importlib.util.spec_from_file_location("setup_env", ROOT / "tools" / "setup_env.py")
setup_env = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(setup_env)

FAKE_PYTHON = """#!{python}
import json, os, pathlib, sys, time
root = pathlib.Path(__file__).parents[2]
plan = json.loads((root / "plan.json").read_text())
arguments = sys.argv[1:]
if arguments[0] == "-c":
    if "c++-header" in arguments[1]:
        sys.exit(plan.get("header", 0))
    if "torch" in arguments[1]:
        print(json.dumps(plan["state"]))
    else:
        print(*plan.get("version", sys.version_info[:2]), "pip")
    sys.exit()
line = " ".join(arguments[2:])
names = ("FORCE_CUDA", "CUDA_VISIBLE_DEVICES", "CPPFLAGS")
switches = [os.environ.get(name) for name in names]
with (root / "calls.jsonl").open("a") as file:
    file.write(json.dumps([line, switches]) + "\\n")
if plan.get("hang_at", "never") in line:
    print("  [12/78] c++ -c nms.cpp", flush=True)
    time.sleep(plan["seconds"])
if plan.get("fail_at", "never") in line + " " + str(switches[2]):
    print(plan["message"])
    sys.exit(1)
if "mmcv.txt" in line.split("-r ")[-1] and "--no-build-isolation" in line:
    rebuilt = "--no-cache-dir" in line
    plan["state"]["ops"] = plan.get("rebuilt" if rebuilt else "built", "not available")
    (root / "plan.json").write_text(json.dumps(plan))
"""

CPU = {"torch": "2.11.0", "cuda": "13.0", "gpu": False, "nvcc": "13.0", "ops": None, "error": "E"}
GPU = CPU | {"gpu": True}


@pytest.fixture
def checkout(tmp_path):
    """A checkout with a stand-in for ``.venv/bin/python``."""
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    for name in ("tools/setup_env.py", "pyproject.toml", "setup.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(FAKE_PYTHON.format(python=sys.executable))
    python.chmod(0o755)
    plan(tmp_path)
    return tmp_path


def plan(checkout, state=CPU, **behaviour):
    (checkout / "plan.json").write_text(json.dumps({"state": state, **behaviour}))


def start(checkout, *options, **environment):
    return subprocess.Popen(
        [sys.executable, checkout / "tools" / "setup_env.py", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | environment,
    )


def run(checkout, *options, **environment):
    """Exit code and output of a set-up; no output of a set-up may be a traceback."""
    process = start(checkout, *options, **environment)
    output, _ = process.communicate(timeout=120)
    assert "Traceback" not in output
    return process.returncode, output


def compilations(checkout):
    """FORCE_CUDA, CUDA_VISIBLE_DEVICES and CPPFLAGS of each compilation of mmcv."""
    lines = [json.loads(line) for line in (checkout / "calls.jsonl").read_text().splitlines()]
    return [s for line, s in lines if "--no-build-isolation --force-reinstall" in line]


def calls(checkout):
    """What pip was asked since the last look: what is installed, without the pins."""
    file = checkout / "calls.jsonl"
    lines = [json.loads(line)[0] for line in file.read_text().splitlines()] if file.exists() else []
    file.unlink(missing_ok=True)
    return [re.sub(r"-c \S+ ", "", line).split(" ", 1)[1] for line in lines]


COMPILE = "-v --no-build-isolation --force-reinstall --no-deps -r requirements/mmcv.txt"
IN_ORDER = [
    "--upgrade pip",
    "-r requirements/build.txt",
    "-r requirements/torch.txt",
    "-r requirements/openmm.txt",
    "--force-reinstall --no-deps opencv-python-headless",
    "--no-cache-dir -r requirements/mmcv.txt",
    COMPILE,
    "-r requirements/dev.txt",
    "--no-build-isolation --no-deps -e .",
]


def test_does_all_steps_in_order_and_then_nothing(checkout):
    code, output = run(checkout)
    assert code == 0, output
    assert calls(checkout) == IN_ORDER
    assert "4/5 mmcv, compiled here, about 4 min" in output
    assert output.splitlines()[-1].endswith("mmcv's compiled ops: CPU only")
    code, output = run(checkout)
    assert code == 0, output
    assert calls(checkout) == []


def test_continues_with_the_step_that_failed(checkout):
    plan(checkout, fail_at="-r requirements/openmm.txt", message="ERROR: something odd")
    code, output = run(checkout)
    assert code == 1
    assert re.search(r"setup: 3/5 OpenMMLab libraries: ERROR: something odd \(details in", output)
    calls(checkout)
    plan(checkout)
    code, output = run(checkout)
    assert code == 0, output
    assert calls(checkout) == IN_ORDER[3:]


def test_changed_requirements_repeat_the_steps_from_there_on(checkout):
    run(checkout)
    calls(checkout)
    with (checkout / "requirements" / "openmm.txt").open("a") as file:
        file.write("# changed\n")
    assert run(checkout)[0] == 0
    assert calls(checkout) == IN_ORDER[3:]


def test_a_broken_record_is_no_record(checkout):
    run(checkout)
    calls(checkout)
    (checkout / ".venv" / "setup.json").write_text('{"build')
    assert run(checkout)[0] == 0
    assert calls(checkout) == IN_ORDER


@pytest.mark.parametrize(
    ("state", "switches", "note"),
    [
        (CPU, ["0", ""], None),
        (GPU, ["1", None], None),
        (GPU | {"nvcc": "12.4"}, ["0", ""], "no nvcc (found: 12.4)"),
        (GPU | {"nvcc": None}, ["0", ""], "no nvcc (found: None)"),
        (GPU | {"cuda": None}, ["0", ""], "no nvcc"),
    ],
    ids=["no GPU but nvcc", "GPU and nvcc", "nvcc of another CUDA", "no nvcc", "CPU torch"],
)
def test_compiles_for_cuda_only_with_gpu_and_nvcc(checkout, state, switches, note):
    built = "13.0" if switches[0] == "1" else "not available"
    plan(checkout, state, built=built)
    visible = {"CUDA_VISIBLE_DEVICES": "0"} if switches[1] is None else {}
    code, output = run(checkout, **visible)
    assert code == 0, output
    flags = "-g0"
    if switches[0] == "0":
        flags += f" -include {checkout / '.venv' / 'header' / 'header.h'}"
    expected = [switches[0], "0" if switches[1] is None else switches[1], flags]
    assert compilations(checkout) == [expected]
    assert (note is None) == ("on the CPU only" not in output)
    assert note is None or note in output


def test_replaces_a_cached_wheel_that_does_not_fit(checkout):
    plan(checkout, built=None, rebuilt="not available")
    code, output = run(checkout)
    assert code == 0, output
    assert f"{COMPILE} --no-cache-dir" in calls(checkout)


def test_rebuilds_for_a_gpu_that_came_later(checkout):
    run(checkout)
    calls(checkout)
    plan(checkout, GPU | {"ops": "not available"}, rebuilt="13.0")
    code, output = run(checkout)
    assert code == 0, output
    assert output.splitlines()[-1].endswith("CPU and CUDA 13.0")
    assert len(calls(checkout)) == 2


def test_ops_that_do_not_load_fail_and_say_what_to_do(checkout):
    plan(checkout, built=None, rebuilt=None)
    code, output = run(checkout)
    assert code == 1
    last = output.splitlines()[-1]
    assert "mmcv's compiled ops do not load (E)" in last
    assert "setup.log" in last
    assert "make setup again" in last


@pytest.mark.parametrize(
    ("message", "tries"),
    [
        ("FAILED: nms.o", 2),
        ("ERROR: Read timed out.", 1),
        ("fatal error: Killed signal terminated program cc1plus\nFAILED: nms.o", 1),
    ],
    ids=["compiler", "network", "memory"],
)
def test_compiles_without_the_header_if_it_is_in_the_way(checkout, message, tries):
    plan(checkout, fail_at="-include", message=message)
    code, output = run(checkout)
    assert [flags for *_, flags in compilations(checkout)][1:] == ["-g0"] * (tries - 1)
    assert (code == 0) == ("once more without a precompiled header" in output) == (tries == 2)
    assert not (checkout / ".venv" / "header").exists()


def test_compiles_without_a_header_that_the_compiler_refuses(checkout):
    plan(checkout, header=1, fail_at="-g0", message="FAILED: nms.o")
    code, output = run(checkout, CPPFLAGS="-DMINE")
    assert code == 1
    assert "it goes on without a precompiled header" in output
    assert "4/5 mmcv, compiled here: the C++ compiler failed" in output
    assert [flags for *_, flags in compilations(checkout)] == ["-DMINE -g0"]


def test_torch_compiles_with_the_header(tmp_path):
    """A real compiler and torch's own build, with a header that is quickly compiled."""
    root = tmp_path / "a folder"
    (root / ".venv" / "bin").mkdir(parents=True)
    python = root / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    (root / "source.cpp").write_text('extern "C" void* PyInit__x() { return nullptr; }\n')
    (root / "setup.py").write_text(
        "from setuptools import setup\n"
        "from torch.utils.cpp_extension import BuildExtension, CppExtension\n"
        "module = CppExtension('_x', ['source.cpp'], extra_compile_args={'cxx': ['-std=c++17']})\n"
        "setup(name='x', ext_modules=[module], cmdclass={'build_ext': BuildExtension})\n"
    )
    environment = dict(os.environ)
    setup_env.check_compiler(environment)
    environment = setup_env.add_flags(environment, "-g0")
    with setup_env.precompiled("#include <map>\n", "test", root, environment) as switches:
        assert switches is not environment
        switches = setup_env.add_flags(switches, "-Winvalid-pch", "-Werror=invalid-pch", "-H")
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        done = subprocess.run(command, cwd=root, env=switches, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"! {root / '.venv' / 'header' / 'header.h.gch'}" in done.stdout + done.stderr
    assert not (root / ".venv" / "header").exists()


def test_without_ops_leaves_out_the_compilation_and_a_later_set_up_does_it(checkout):
    plan(checkout, CPU | {"ops": None})
    code, output = run(checkout, "--without-ops", CXX="no-such-compiler")
    assert code == 0, output
    assert calls(checkout) == [line for line in IN_ORDER if line != COMPILE]
    assert "make setup compiles them" in output.splitlines()[-1]
    assert "mmcv, compiled here" not in json.loads((checkout / ".venv/setup.json").read_text())
    assert run(checkout, "--without-ops")[0] == 0
    assert calls(checkout) == []
    assert run(checkout)[0] == 0
    assert calls(checkout) == [COMPILE]
    code, output = run(checkout, "--without-ops")
    assert code == 0, output
    assert calls(checkout) == []
    assert output.splitlines()[-1].endswith("mmcv's compiled ops: CPU only")


def test_only_the_classifiers_demo_does_without_ops():
    def plan_of(target):
        command = ["make", "--dry-run", target]
        environment = os.environ | {"OPTIONS": "--without-ops"}
        return subprocess.check_output(command, cwd=ROOT, env=environment, text=True)

    assert "setup_env.py --without-ops" in plan_of("demo-cls")
    for target in ("setup", "demo", "demo-seg", "test", "lint"):
        assert "setup_env.py" in plan_of(target)
        assert "--without-ops" not in plan_of(target)


def wait_for_call(checkout, text):
    """Wait until pip is asked for ``text``."""
    for _ in range(600):
        file = checkout / "calls.jsonl"
        if file.exists() and text in file.read_text():
            return
        time.sleep(0.05)
    raise AssertionError(f"pip was never asked for {text}")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupt_ends_pip_and_the_next_run_continues(checkout, number, code):
    plan(checkout, hang_at="--no-build-isolation --force-reinstall", seconds=100)
    process = start(checkout)
    wait_for_call(checkout, "--no-build-isolation")
    process.send_signal(number)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == code
    assert output.splitlines()[-1].startswith("setup: stopped; make setup continues")
    assert "Traceback" not in output
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert str(checkout / ".venv") not in left
    calls(checkout)
    plan(checkout)
    assert run(checkout)[0] == 0
    assert calls(checkout) == IN_ORDER[6:]


def test_two_at_once_work_one_after_the_other(checkout):
    plan(checkout, hang_at="-r requirements/torch.txt", seconds=2)
    first = start(checkout)
    wait_for_call(checkout, "-r requirements/torch.txt")
    code, output = run(checkout)
    first.communicate(timeout=60)
    assert first.returncode == 0
    assert code == 0, output
    assert "waits for another set-up" in output
    assert calls(checkout) == IN_ORDER


def test_another_python_in_venv_is_refused(checkout):
    plan(checkout, version=[3, 9])
    code, output = run(checkout)
    assert code == 1
    assert ".venv has Python 3.9 and this is Python" in output
    assert "make distclean" in output


def test_venv_whose_python_is_gone_is_refused(checkout):
    python = checkout / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to("/nowhere/python3")
    code, output = run(checkout)
    assert code == 1
    assert output == "setup: the Python of .venv is gone: make distclean, then make setup\n"


def test_no_network_is_one_line(checkout):
    """Makes a real environment, whose pip gets an index that nobody serves."""
    shutil.rmtree(checkout / ".venv")
    closed = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1"}
    closed |= {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": ""}
    code, output = run(checkout, **closed, no_proxy="127.0.0.1")
    assert code == 1
    last = output.splitlines()[-1]
    assert last.startswith("setup: 1/5 build tools: no network: pip cannot reach its package index")


@pytest.mark.parametrize("version", [(3, 9, 18), (3, 13, 0), (3, 6, 15), (4, 0, 0)])
def test_other_pythons_are_refused(version):
    with pytest.raises(setup_env.SetupError, match=r"3.10, 3.11 or 3.12 is needed and this is "):
        setup_env.check_python(version)


def test_python_3_6_can_read_the_script():
    ast.parse((ROOT / "tools" / "setup_env.py").read_text(), feature_version=(3, 6))


def test_missing_compiler_is_one_line(checkout, tmp_path):
    environment = {"PATH": str(tmp_path / "empty"), "CXX": ""}
    code, output = run(checkout, **environment)
    assert code == 1
    assert output.startswith("setup: no C++ compiler: install one (g++ on Debian and Ubuntu)")
    assert calls(checkout) == []


def test_compiler_that_does_not_run_is_named(checkout):
    code, output = run(checkout, CXX="no-such-compiler")
    assert code == 1
    assert "CXX=no-such-compiler does not run" in output


def test_missing_headers_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(setup_env.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    with pytest.raises(setup_env.SetupError, match=r"Python\.h is missing: install .*-dev"):
        setup_env.check_compiler({})


def test_too_little_disk_is_one_line(monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)._replace(free=3 << 30)
    monkeypatch.setattr(setup_env.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(setup_env.SetupError, match=r"GB of free disk are needed .* are 3\.0"):
        setup_env.check_disk(tmp_path, setup_env.STEPS)
    setup_env.check_disk(tmp_path, setup_env.STEPS[3:])


@pytest.mark.parametrize(
    ("output", "line"),
    [
        ("ERROR: [Errno 28] No space left on device", "the disk is full"),
        ("c++: fatal error: Killed signal terminated program cc1plus", "MAX_JOBS=1 make setup"),
        ("WARNING: Retrying (Retry(total=4))\nFAILED: nms.o", "the C++ compiler failed"),
        ("Retrying (Retry(total=0)): SSLError(CERTIFICATE_VERIFY_FAILED)", "the certificate"),
        ("WARNING: Retrying (Retry(total=4))\nERROR: No matching distribution", "no network"),
        ("ERROR: HTTPSConnectionPool(host='x'): Read timed out.", "no network"),
        ("ERROR: No matching distribution found for torch==2.11.0", "has no torch==2.11.0 for"),
        ("ERROR: first\n  error: last\nmore\n", "error: last"),
        ("killed\n", "killed"),
        ("", "no output"),
    ],
)
def test_failures_of_pip_are_explained(output, line):
    text = setup_env.explain(output, Path("setup.log"))
    assert line in text
    assert text.endswith("(details in setup.log)")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ("Building wheels\n  [1/78] c++ -MMD\n  [12/78] c++ -MMD\n  note: x", "12 of 78 files"),
        ("Collecting torch==2.11.0\n  Downloading torch.whl (530 MB)\n", "Downloading torch.whl"),
        ("WARNING: Retrying (Retry(total=4)) after", "the network does not answer"),
        ("", ""),
    ],
)
def test_progress_tells_what_pip_is_at(output, text):
    assert setup_env.latest(output).startswith(text)
    assert bool(setup_env.latest(output)) == bool(text)


def test_every_install_is_held_to_all_pins():
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "requirements").glob("*.txt")}
    files.remove("requirements/oldest.txt")  # of another environment
    assert set(setup_env.PINS) - {"-c"} == files
    for step in setup_env.STEPS:
        for command in step.pip:
            if "-r" in command:
                assert command[-2:] in [["-r", file] for file in step.files]
                assert set(setup_env.PINS) <= set(command)
