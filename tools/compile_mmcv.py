"""Compile mmcv's ops against the torch of this environment: the last step of ``make setup``.

pip alone takes 27 minutes of CPU time for this. This script takes 6 minutes: it compiles the header
that all sources include only once, and it leaves out debug information. The output of pip goes to
``.venv/mmcv.log``.
"""

import contextlib
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
from distutils.ccompiler import new_compiler
from distutils.sysconfig import customize_compiler
from pathlib import Path

import setuptools  # noqa: F401  has the distutils that Python 3.12 lacks
import torch
from torch.utils.cpp_extension import CUDA_HOME, include_paths

ROOT = Path(__file__).resolve().parent.parent
LOG = ROOT / ".venv" / "mmcv.log"

# Each of mmcv's sources includes this header first, and spends most of its compile time on it.
HEADER = "#include <torch/types.h>\n"


class CompileError(Exception):
    """A failure with a message of one line."""


def say(text: str) -> None:
    """Print a line of progress."""
    print(f"setup: {text}", flush=True)


def find_compiler() -> str:
    """Find the command of a C++17 compiler that can include Python's headers.

    Raises:
        CompileError: there is no such compiler.
    """
    found = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if found is None:
        raise CompileError(
            "no C++ compiler: install one (g++ on Debian and Ubuntu) or name it in CXX"
        )
    command = [*shlex.split(found), "-std=c++17", "-fsyntax-only", "-x", "c++", "-"]
    command += ["-I", sysconfig.get_paths()["include"]]
    source = "#include <vector>\n#include <Python.h>\n"
    try:
        done = subprocess.run(command, input=source, capture_output=True, text=True)
    except OSError as error:
        raise CompileError(f"the C++ compiler CXX={found} does not run: {error}") from None
    if "Python.h" in done.stderr:
        raise CompileError(
            "Python.h is missing: install this Python's headers "
            "(python{}.{}-dev on Debian and Ubuntu)".format(*sys.version_info)
        )
    if done.returncode:
        line = done.stderr.strip().split("\n")[0]
        raise CompileError(f"the C++ compiler {found} cannot compile C++17: {line}")
    return found


def wants_cuda() -> bool:
    """Whether mmcv can be compiled for the GPU, with an nvcc of torch's version of CUDA."""
    if not torch.cuda.is_available():
        return False
    nvcc = None
    with contextlib.suppress(OSError):
        command = [Path(CUDA_HOME or "", "bin", "nvcc"), "--version"]
        text = subprocess.run(command, capture_output=True, text=True).stdout
        if match := re.search(r"release ([0-9.]+)", text):
            nvcc = match[1]
    cuda = torch.version.cuda
    if nvcc and cuda and nvcc.split(".")[0] == cuda.split(".")[0]:
        return True
    say(
        f"mmcv's ops will run on the CPU only: there is a GPU, and torch uses CUDA {cuda}, but for "
        f"this CUDA there is no nvcc (found: {nvcc})"
    )
    return False


def why_ops_unfit(cuda: bool) -> str | None:
    """Why mmcv's ops have to be compiled; ``None`` if the installed ones fit.

    Args:
        cuda: whether the ops have to run on a GPU.
    """
    code = "import torch, mmcv._ext; print(mmcv._ext.get_compiling_cuda_version())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no output"]
        return f"mmcv's compiled ops do not load ({lines[-1]})"
    if cuda and "not available" in done.stdout:
        return "mmcv's ops are compiled for the CPU only"
    return None


def set_switches(compiler: str, cuda: bool) -> None:
    """Set the environment variables that mmcv's build reads.

    Args:
        compiler: command of the C++ compiler.
        cuda: whether to compile for the GPU.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    os.environ.setdefault("MAX_JOBS", str(max(1, min(os.cpu_count() or 1, memory >> 31))))
    os.environ["CXX"] = compiler
    # Many Pythons set -g. CPPFLAGS adds to Python's flags, but CFLAGS would replace them.
    os.environ["CPPFLAGS"] = f"{os.environ.get('CPPFLAGS', '')} -g0".strip()
    os.environ["FORCE_CUDA"] = str(int(cuda))
    if not cuda:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # mmcv must not find an nvcc


def precompile(header: Path) -> bool:
    """Precompile a header with the compiler flags of mmcv's build.

    These flags come from setuptools and from torch's BuildExtension.

    Args:
        header: path of the header.

    Returns:
        Whether the compiler accepts the precompiled header.
    """
    compiler = new_compiler()
    customize_compiler(compiler)
    command = [*shlex.split(os.environ["CXX"]), *compiler.compiler_so[1:], "-std=c++17"]
    command += ["-DTORCH_API_INCLUDE_EXTENSION_H", *(f"-I{path}" for path in include_paths())]
    use = ["-include", str(header), "-Winvalid-pch", "-Werror=invalid-pch", "-fsyntax-only"]
    return all(
        subprocess.run([*command, *step], capture_output=True).returncode == 0
        for step in (
            ["-x", "c++-header", str(header), "-o", f"{header}.gch"],
            [*use, "-x", "c++", os.devnull],
        )
    )


def install(flags: str, *options: str) -> bool:
    """Compile and install mmcv with pip.

    Args:
        flags: flags for the compiler.
        *options: options for pip.

    Returns:
        Whether pip succeeded.
    """
    # The mmcv without ops has the same version, so pip replaces it only with --force-reinstall.
    command = [sys.executable, "-m", "pip", "install", "-v", "--no-build-isolation"]
    command += ["--force-reinstall", "--no-deps", *options, "-r", "requirements/mmcv.txt"]
    begin = time.monotonic()
    with (
        LOG.open("a") as log,
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"CPPFLAGS": f"{os.environ['CPPFLAGS']} {flags}".strip()},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # so that an interrupt also ends the compilers below pip
        ) as process,
    ):
        try:
            for line in process.stdout:
                log.write(line)
                if match := re.match(r"\s*\[(\d+)/(\d+)\] ", line):
                    clock = "{}:{:02d}".format(*divmod(int(time.monotonic() - begin), 60))
                    say(f"mmcv {clock}  {match[1]} of {match[2]} files compiled")
        except BaseException:
            os.killpg(process.pid, signal.SIGINT)
            raise
    return process.returncode == 0


def compile_ops() -> None:
    """Compile and install mmcv, unless the installed ops fit.

    Raises:
        CompileError: there is no compiler, the compiler fails, or the ops do not load.
    """
    cuda = wants_cuda()
    if why_ops_unfit(cuda) is None:
        return
    set_switches(find_compiler(), cuda)
    LOG.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        header = Path(folder, "header.h")
        header.write_text(HEADER)
        flags = ""
        if not cuda:  # precompiled headers are not tested with nvcc
            say("mmcv: compiling the header that its sources share, about 1 minute")
            if precompile(header):
                flags = f"-include {shlex.quote(str(header))}"
            else:
                say("the compiler cannot precompile the header, so the next step takes longer")
        done = install(flags)
        if not done and flags:
            say("mmcv: trying again without the precompiled header")
            done = install("")
        why = why_ops_unfit(cuda) if done else "mmcv cannot be compiled"
        if done and why is not None:
            # pip's cache may hold a wheel for another torch, or without CUDA.
            say(f"{why}: trying again without pip's cache")
            done = install(flags, "--no-cache-dir")
            why = why_ops_unfit(cuda)
    if why is not None:
        print(*LOG.read_text().splitlines()[-15:], sep="\n")
        raise CompileError(
            f"{why}: see {LOG}, then run make setup again (MAX_JOBS=1 make setup if memory ran out)"
        )


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        compile_ops()
    except CompileError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("stopped; make setup continues with mmcv's ops")
        return 130
    say("mmcv's compiled ops are ready")
    return 0


if __name__ == "__main__":
    sys.exit(main())
