"""Build ``.venv``, the pinned environment that the demo, the tests and the tools run in.

``make setup`` runs this with any Python 3.10 to 3.12, without root. It needs no package, and
Python 3.6 can read it, so that an old interpreter gets one clear line and not a syntax error.

``make setup-without-ops`` leaves out the one long step, which compiles mmcv's ops: detection and
segmentation need them, classification does not.

A step that is finished is recorded in ``.venv/setup.json``; a later run does what is missing and
what has other requirement files than last time. All that pip says is in ``.venv/setup.log``.
"""

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

ROOT = Path(__file__).resolve().parent.parent
OLDEST, NEWEST = (3, 10), (3, 12)
GIGABYTE = 1 << 30

# Every pip command gets all pins, so that no step replaces what another one chose.
PINS = ["-c", "requirements/build.txt", "-c", "requirements/torch.txt"]
PINS += ["-c", "requirements/openmm.txt", "-c", "requirements/mmcv.txt"]
PINS += ["-c", "requirements/dev.txt"]


class SetupError(Exception):
    """A failure that one line explains."""


class Step(NamedTuple):
    """A part of the set-up that is recorded when it is finished.

    ``minutes`` is the time on 2 cores and a fast network, ``disk`` and ``temporary`` are the
    gigabytes that it needs in ``.venv`` and for downloads meanwhile, ``pip`` holds arguments of
    pip, ``files`` is what the step depends on besides the steps before it.
    """

    name: str
    minutes: int
    disk: float
    temporary: float
    pip: List[List[str]]
    files: List[str]
    compiles: bool = False


# The sources of the C++ extension, which the installation of mmlocal compiles.
EXTENSION = sorted(
    str(path.relative_to(ROOT)) for path in (ROOT / "mmlocal" / "ops" / "csrc").glob("*.*")
)

STEPS = [
    Step(
        "build tools",
        1,
        0.1,
        0.1,
        [["install", "--upgrade", "pip"], ["install", *PINS, "-r", "requirements/build.txt"]],
        ["requirements/build.txt"],
    ),
    Step(
        "PyTorch",
        2,
        5.0,
        2.5,
        [["install", *PINS, "-r", "requirements/torch.txt"]],
        ["requirements/torch.txt"],
    ),
    Step(
        "OpenMMLab libraries",
        2,
        0.8,
        0.3,
        [
            ["install", *PINS, "-r", "requirements/openmm.txt"],
            # Of two OpenCV distributions with the same files, the last one installed counts.
            ["install", *PINS, "--force-reinstall", "--no-deps", "opencv-python-headless"],
            # Built in isolation, where there is no torch, mmcv leaves its ops out. pip's cache does
            # not know such a wheel from a compiled one, so it must neither give nor keep it.
            ["install", *PINS, "--no-cache-dir", "-r", "requirements/mmcv.txt"],
        ],
        ["requirements/openmm.txt", "requirements/mmcv.txt"],
    ),
    Step(
        "mmcv, compiled here",
        4,
        0.6,
        0.5,
        [
            # In the place of the mmcv without ops: the same version, so pip has to be told.
            [
                *("install", "-v", *PINS, "--no-build-isolation", "--force-reinstall", "--no-deps"),
                *("-r", "requirements/mmcv.txt"),
            ]
        ],
        ["requirements/mmcv.txt"],
        compiles=True,
    ),
    Step(
        "mmlocal and tools for its development",
        2,
        0.2,
        0.1,
        [
            ["install", *PINS, "-r", "requirements/dev.txt"],
            ["install", "--no-build-isolation", "--no-deps", "-e", "."],
        ],
        ["requirements/dev.txt", "pyproject.toml", "setup.py", *EXTENSION],
    ),
]

COMPILER_FAILED = "the C++ compiler failed"

# What a failed pip's output says -> what to tell the user. The first match counts: pip also warns
# of a bad network before it fails for another reason, so the network comes late.
CAUSES = [
    (
        r"No space left on device",
        "the disk is full: free some space, or name a roomier place for downloads in TMPDIR",
    ),
    (
        r"Killed signal terminated program|internal compiler error: Killed",
        "the compiler ran out of memory: try MAX_JOBS=1 make setup",
    ),
    (r"Python\.h: No such file", "Python.h is missing: install this Python's headers"),
    (r"FAILED: |ninja: build stopped|error: command .+ failed", COMPILER_FAILED),
    (
        r"CERTIFICATE_VERIFY_FAILED|SSLError",
        "pip does not trust the certificate of its package index: see PIP_CERT, pip config list",
    ),
    (
        r"Retrying \(Retry|NewConnectionError|NameResolutionError|Read timed out|ProxyError"
        r"|Network is unreachable|IncompleteRead|Connection (?:refused|reset|broken|aborted)",
        "no network: pip cannot reach its package index, see also: pip config list",
    ),
    (
        r"No matching distribution found for (\S+)",
        "pip's package index has no {} for this Python and machine",
    ),
]

# Run in .venv: what mmcv should be built for, and what it is built for.
PROBE = """
import json, os, re, subprocess, torch
from torch.utils.cpp_extension import CUDA_HOME
state = dict(torch=torch.__version__, cuda=torch.version.cuda, gpu=torch.cuda.is_available())
try:
    nvcc = [os.path.join(CUDA_HOME or "", "bin", "nvcc"), "--version"]
    text = subprocess.run(nvcc, stdout=subprocess.PIPE, text=True, check=True).stdout
    state["nvcc"] = re.search(r"release ([0-9.]+)", text).group(1)
except (OSError, subprocess.CalledProcessError):
    state["nvcc"] = None
try:
    import mmcv._ext
    state["ops"] = mmcv._ext.get_compiling_cuda_version()
except Exception as error:
    state["ops"] = None
    state["error"] = f"{type(error).__name__}: {error}"
print(json.dumps(state))
"""

# What each of mmcv's sources includes first. To read it takes most of the time of compiling one.
HEADER = "#include <torch/types.h>\n"

# Run in .venv: compiles the header in sys.argv[1], and tries whether the compiler then takes it.
# The flags have to be the ones of mmcv's build, from setuptools and from torch's BuildExtension.
PRECOMPILE = """
import os, shlex, subprocess, sys
import setuptools  # has the distutils that Python 3.12 lacks
from distutils.ccompiler import new_compiler
from distutils.sysconfig import customize_compiler
from torch.utils.cpp_extension import include_paths
compiler, header = new_compiler(), sys.argv[1]
customize_compiler(compiler)
command = [*shlex.split(os.environ["CXX"]), *compiler.compiler_so[1:], "-std=c++17"]
command += ["-DTORCH_API_INCLUDE_EXTENSION_H", *("-I" + path for path in include_paths())]
code = subprocess.run([*command, "-x", "c++-header", header, "-o", header + ".gch"]).returncode
command += ["-include", header, "-Winvalid-pch", "-Werror=invalid-pch", "-fsyntax-only"]
sys.exit(code or subprocess.run([*command, "-x", "c++", os.devnull]).returncode)
"""


def say(text: str) -> None:
    print("setup: " + text, flush=True)


def clock(seconds: float) -> str:
    return "{}:{:02d}".format(*divmod(int(seconds), 60))


def check_python(version: Tuple[int, ...] = sys.version_info[:3]) -> None:
    """Raise ``SetupError`` unless the OneDL libraries support this Python."""
    if not OLDEST <= tuple(version[:2]) <= NEWEST:
        raise SetupError(
            "Python 3.10, 3.11 or 3.12 is needed and this is {}: name one that you have, as in "
            "PYTHON=python3.12 make setup".format(".".join(map(str, version)))
        )
    if importlib.util.find_spec("ensurepip") is None:
        raise SetupError(
            "this Python cannot make virtual environments: install its venv package "
            "(python{}.{}-venv on Debian and Ubuntu)".format(*version)
        )


def check_compiler(environment: Dict[str, str]) -> None:
    """Raise ``SetupError`` unless a C++17 compiler finds Python's headers.

    Names the compiler in ``environment["CXX"]``, which torch and setuptools read.
    """
    given = environment.get("CXX")
    found = given or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if found is None:
        raise SetupError(
            "no C++ compiler: install one (g++ on Debian and Ubuntu) or name it in CXX"
        )
    environment["CXX"] = found
    command = [*shlex.split(found), "-std=c++17", "-fsyntax-only", "-x", "c++", "-"]
    command += ["-I", sysconfig.get_paths()["include"]]
    try:
        done = subprocess.run(
            command,
            input=b"#include <vector>\n#include <Python.h>\n",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
    except OSError as error:
        raise SetupError(f"the C++ compiler CXX={found} does not run: {error}") from None
    message = done.stderr.decode(errors="replace").strip()
    if "Python.h" in message:
        raise SetupError(
            "Python.h is missing: install this Python's headers "
            "(python{}.{}-dev on Debian and Ubuntu)".format(*sys.version_info)
        )
    if done.returncode:
        line = message.split("\n")[0]
        raise SetupError(f"the C++ compiler {found} cannot compile C++17: {line}")


def check_disk(root: Path, steps: Sequence[Step]) -> None:
    """Raise ``SetupError`` unless there is room for ``steps``."""
    temporary = Path(tempfile.gettempdir())
    needs = [
        (root, sum(step.disk for step in steps)),
        (temporary, max([step.temporary for step in steps], default=0)),
    ]
    if root.stat().st_dev == temporary.stat().st_dev:
        needs = [(root, needs[0][1] + needs[1][1])]
    for folder, need in needs:
        free = shutil.disk_usage(folder).free / GIGABYTE
        if free < need:
            raise SetupError(
                f"{need:.1f} GB of free disk are needed in {folder} and there are {free:.1f}"
            )


def explain(output: str, log: Path) -> str:
    """The one line for what a failed command printed."""
    for pattern, text in CAUSES:
        match = re.search(pattern, output)
        if match:
            return f"{text.format(*match.groups())} (details in {log})"
    errors = [line for line in output.splitlines() if re.match(r"\s*error:", line, re.I)]
    lines = errors or output.split("\n")[-2:-1] or ["no output"]
    return f"{lines[-1].strip()} (details in {log})"


def latest(output: str) -> str:
    """Progress of a running pip: files compiled by ninja, or the last thing it announced."""
    for line in reversed(output.splitlines()):
        ninja = re.match(r"\s*\[(\d+)/(\d+)\] ", line)
        if ninja:
            return "{} of {} files compiled".format(*ninja.groups())
        if re.match(r"\s*(Collecting|Downloading|Installing|Building|Preparing) ", line):
            return line.strip()[:50]
        if "Retrying (Retry" in line:
            return "the network does not answer, pip tries again"
    return ""


def tail(log: Path, start: int, size: int) -> str:
    """The last ``size`` bytes of the log, from byte ``start`` on."""
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - size))
        return file.read().decode(errors="replace")


def end(process: subprocess.Popen) -> None:
    """End a command and all that it started; an interrupt lets pip remove its temporary files."""
    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run(command: Sequence[str], title: str, root: Path, environment: Dict[str, str]) -> None:
    """Run a command with its output in the log, and show how far it is.

    Raises:
        SetupError: the command failed.
    """
    log = root / ".venv" / "setup.log"
    begin = time.monotonic()
    terminal = sys.stdout.isatty()
    with log.open("ab") as file:
        file.write("\n$ {}\n".format(" ".join(map(shlex.quote, command))).encode())
        file.flush()
        start = file.tell()
        process = subprocess.Popen(
            command,
            cwd=root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that an interrupt also ends the compilers below pip
        )
    try:
        while True:
            try:
                code = process.wait(timeout=1 if terminal else 30)
                break
            except subprocess.TimeoutExpired:
                doing = latest(tail(log, start, 20000))
                text = f"{title} {clock(time.monotonic() - begin)}  {doing}"
                if terminal:
                    width = shutil.get_terminal_size().columns - 1
                    print("\r\033[K" + ("setup: " + text)[:width], end="", flush=True)
                else:
                    say(text)
    except BaseException:
        end(process)
        raise
    finally:
        if terminal:
            print("\r\033[K", end="", flush=True)
    if code:
        raise SetupError(f"{title}: {explain(tail(log, start, 1000000), log)}")


@contextlib.contextmanager
def lock(venv: Path) -> Iterator[None]:
    """Hold the environment alone; wait for another set-up of the same checkout."""
    venv.mkdir(exist_ok=True)
    with (venv / "setup.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waits for another set-up of this checkout")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make_venv(root: Path, environment: Dict[str, str]) -> None:
    """Make ``.venv``, or check that the one that is there fits.

    Raises:
        SetupError: its Python is gone or is not the one asked for.
    """
    python = root / ".venv" / "bin" / "python"
    if os.path.lexists(str(python)):
        code = "import sys, importlib.util as u; print(*sys.version_info[:2], u.find_spec('pip'))"
        try:
            words = subprocess.check_output([str(python), "-c", code]).decode().split(None, 2)
        except (OSError, subprocess.CalledProcessError):
            raise SetupError(
                "the Python of .venv is gone: make distclean, then make setup"
            ) from None
        if tuple(map(int, words[:2])) != sys.version_info[:2]:
            raise SetupError(
                ".venv has Python {}.{} and this is Python {}.{}: make distclean to change".format(
                    *words[:2], *sys.version_info[:2]
                )
            )
        if words[2].strip() != "None":
            return
    say("virtual environment, with Python {}.{}.{}".format(*sys.version_info))
    base = getattr(sys, "_base_executable", None) or sys.executable
    run([base, "-m", "venv", ".venv"], "virtual environment", root, environment)


def probe(python: Path) -> Dict[str, Any]:
    """Versions, GPU and compiled ops as the environment sees them; see ``PROBE``."""
    done = subprocess.run([str(python), "-c", PROBE], capture_output=True)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no output"]
        raise SetupError(f"torch does not run in .venv: {lines[-1]} (make distclean starts anew)")
    return json.loads(done.stdout.decode().splitlines()[-1])


def wants_cuda(state: Dict[str, Any]) -> bool:
    """Whether mmcv can be compiled for the GPU: torch refuses an nvcc of another CUDA."""
    major = [(state[name] or "").split(".")[0] for name in ("cuda", "nvcc")]
    return bool(state["gpu"] and state["nvcc"] and major[0] == major[1])


def why_ops_unfit(state: Dict[str, Any]) -> Optional[str]:
    """Why mmcv's compiled ops have to be built again, or ``None``."""
    if state["ops"] is None:
        return "mmcv's compiled ops do not load ({})".format(state["error"])
    if wants_cuda(state) and state["ops"] == "not available":
        return "mmcv's ops are compiled for the CPU only"
    return None


def ops_environment(environment: Dict[str, str], state: Dict[str, Any]) -> Dict[str, str]:
    """The switches that mmcv's build reads: for CUDA or, even beside an nvcc, for the CPU."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    jobs = max(1, min(os.cpu_count() or 1, memory // (2 * GIGABYTE)))
    switches = {"MAX_JOBS": environment.get("MAX_JOBS", str(jobs))}
    if wants_cuda(state):
        switches["FORCE_CUDA"] = "1"
    else:
        switches.update(FORCE_CUDA="0", CUDA_VISIBLE_DEVICES="")
    return dict(environment, **switches)


def add_flags(environment: Dict[str, str], *flags: str) -> Dict[str, str]:
    """Compiler flags that come after Python's own; CFLAGS would replace Python's."""
    given = environment.get("CPPFLAGS", "")
    return dict(environment, CPPFLAGS=" ".join([given, *map(shlex.quote, flags)]).strip())


@contextlib.contextmanager
def precompiled(
    header: str, title: str, root: Path, environment: Dict[str, str]
) -> Iterator[Dict[str, str]]:
    """Compile a header once, instead of with each source that includes it.

    Yields:
        The environment in which setuptools and torch compile with that header; ``environment``
        itself if the compiler cannot make one.
    """
    folder = root / ".venv" / "header"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    file = folder / "header.h"
    file.write_text(header)
    python = str(root / ".venv" / "bin" / "python")
    try:
        run([python, "-c", PRECOMPILE, str(file)], title + ", header", root, environment)
        switches = add_flags(environment, "-include", str(file))
    except SetupError as error:
        say(f"{error}; it goes on without a precompiled header")
        switches = environment
    try:
        yield switches
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def step_keys(root: Path, steps: Sequence[Step]) -> Dict[str, str]:
    """A digest per step of what it and all steps before it depend on."""
    digest = hashlib.sha256(f"{sys.version_info[:2]} {root}".encode())
    keys = {}
    for step in steps:
        digest.update(repr(step.pip).encode())
        for file in step.files:
            digest.update((root / file).read_bytes())
        keys[step.name] = digest.hexdigest()
    return keys


def read_record(root: Path) -> Dict[str, str]:
    """Name and key of each finished step; none if the record is missing or broken."""
    try:
        return dict(json.loads((root / ".venv" / "setup.json").read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def write_record(root: Path, finished: Dict[str, str]) -> None:
    """Replace the record in one go, so that a kill leaves the old one or the new one."""
    draft = root / ".venv" / "setup.json.tmp"
    draft.write_text(json.dumps(finished, indent=1))
    os.replace(draft, root / ".venv" / "setup.json")


def install_ops(
    step: Step, title: str, pip: List[str], root: Path, environment: Dict[str, str]
) -> None:
    """Install mmcv and check its ops.

    pip may hold a wheel that was built for another torch, without torch or without CUDA, and does
    not know the difference. So a wheel that does not fit is built again, without pip's cache.
    """
    python = root / ".venv" / "bin" / "python"
    state = probe(python)
    if state["gpu"] and not wants_cuda(state):
        say(
            "mmcv's ops will run on the CPU only: there is a GPU, but for torch's CUDA {} there is "
            "no nvcc (found: {})".format(state["cuda"], state["nvcc"])
        )
    # Debug information, which many Pythons ask for, takes half of the time and most of the disk.
    environment = add_flags(ops_environment(environment, state), "-g0")
    if wants_cuda(state):
        header = contextlib.nullcontext(environment)  # not tried with nvcc
    else:
        header = precompiled(HEADER, title, root, environment)
    with header as switches:
        for again in ([], ["--no-cache-dir"]):
            for arguments in step.pip:
                command = [*pip, *arguments, *again]
                try:
                    run(command, title, root, switches)
                except SetupError as error:
                    if switches is environment or COMPILER_FAILED not in str(error):
                        raise
                    say(f"{error}; once more without a precompiled header")
                    run(command, title, root, environment)
            why = why_ops_unfit(probe(python))
            if why is None:
                return
            say(f"{title} {why}")
    raise SetupError(
        "{}: see {} for how mmcv was compiled, then run make setup again".format(
            why, root / ".venv" / "setup.log"
        )
    )


def build(root: Path, steps: Sequence[Step], environment: Dict[str, str]) -> None:
    """Do those of ``steps`` that are missing.

    Raises:
        SetupError: a step failed; the ones before it are recorded.
    """
    python = root / ".venv" / "bin" / "python"
    pip = [str(python), "-m", "pip"]
    keys = step_keys(root, STEPS)
    finished = read_record(root)
    pending = [step for step in steps if finished.get(step.name) != keys[step.name]]
    check_disk(root, pending)
    if any(step.compiles for step in pending):
        check_compiler(environment)
    make_venv(root, environment)
    for step in pending:
        title = f"{steps.index(step) + 1}/{len(steps)} {step.name}"
        say(f"{title}, about {step.minutes} min")
        begin = time.monotonic()
        if step.compiles:
            install_ops(step, title, pip, root, environment)
        else:
            for arguments in step.pip:
                run([*pip, *arguments], title, root, environment)
        finished[step.name] = keys[step.name]
        write_record(root, finished)
        say(f"{title} done in {clock(time.monotonic() - begin)}")


def pip_environment() -> Dict[str, str]:
    """The user's environment with pip's settings in it, less what belongs to another Python."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    environment.update(PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1", PIP_USER="0")
    return environment


def build_and_check(with_ops: bool = True) -> Dict[str, Any]:
    """Do what is missing, and once more for mmcv if its ops no longer fit: a GPU came, say.

    Without ops, the step that compiles them stays as it is, done or not.
    """
    python = ROOT / ".venv" / "bin" / "python"
    steps = [step for step in STEPS if with_ops or not step.compiles]
    build(ROOT, steps, pip_environment())
    state = probe(python)
    why = why_ops_unfit(state)
    if with_ops and why is not None:
        say(why)
        names = [step.name for step in STEPS if step.compiles]
        write_record(ROOT, {k: v for k, v in read_record(ROOT).items() if k not in names})
        build(ROOT, steps, pip_environment())
        state = probe(python)
    return state


def stop(number: int, frame: Any) -> None:
    raise KeyboardInterrupt(number)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--without-ops",
        action="store_true",
        help="do not compile mmcv's ops: classifiers need none",
    )
    args = parser.parse_args()
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, stop)
    try:
        check_python()
        with lock(ROOT / ".venv"):
            state = build_and_check(not args.without_ops)
    except (SetupError, OSError) as error:
        say(str(error))
        return 1
    except KeyboardInterrupt as error:
        say("stopped; make setup continues with the step that was running")
        return 128 + error.args[0]
    if state["ops"] is None:
        ops = "none, which classifiers do not miss; make setup compiles them"
    else:
        ops = "CPU only" if state["ops"] == "not available" else "CPU and CUDA " + state["ops"]
    say(
        ".venv is ready: Python {}.{}.{}, torch {}, mmcv's compiled ops: {}".format(
            *sys.version_info[:3], state["torch"], ops
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
