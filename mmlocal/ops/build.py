"""Compile the C++ kernels in ``csrc`` to the shared library ``_C.so`` next to this file.

The library knows neither PyTorch nor Python. So one build works with every version of both, and
survives an upgrade of PyTorch. ``setup.py`` builds it with the package. Where there was no compiler
then, ``mmlocal build`` builds it later.

This module imports the standard library only, because ``setup.py`` runs it by its path.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HOME = Path(__file__).resolve().parent
LIBRARY = HOME / "_C.so"
SOURCES = HOME / "csrc"

# There is no flag for threads: the library borrows PyTorch's, see extension.py.
FLAGS = ["-std=c++17", "-O3", "-g0", "-fPIC", "-fno-exceptions"]
FLAGS += ["-fno-math-errno", "-fvisibility=hidden"]


class BuildError(RuntimeError):
    """The kernels cannot be compiled here; the message is one sentence."""


def digest() -> str:
    """A digest of the sources and flags that a library is built from."""
    total = hashlib.sha256(" ".join(FLAGS).encode())
    # Only these files count: editors and file managers leave others in the folder.
    for path in sorted(
        path for pattern in ("*.cpp", "*.h", "*.inc") for path in SOURCES.glob(pattern)
    ):
        total.update(path.name.encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:16]


def compiler() -> list[str]:
    """Return the command of a C++ compiler: ``CXX`` if it is set, else the first one found.

    Raises:
        BuildError: there is none.
    """
    if os.name == "nt":
        raise BuildError("the kernels need GCC or Clang, which is not supported on Windows")
    try:
        given = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise BuildError(f"CXX={os.environ['CXX']} is not a command: {error}") from error
    names = [given[0]] if given else ["c++", "g++", "clang++"]
    found = next(filter(shutil.which, names), None)
    if found is None:
        quotes = "; a path with blanks needs quotes" if len(given) > 1 else ""
        raise BuildError(f"there is no C++ compiler ({', '.join(names)}){quotes}")
    return given or [found]


def build(library: Path = LIBRARY) -> Path:
    """Compile the kernels. It takes about half a minute on 2 cores.

    The library appears at its place only when it is complete. A failure leaves the old one there.

    Args:
        library: the file to write.

    Returns:
        ``library``.

    Raises:
        BuildError: there is no compiler, the compiler fails, the compiled library does not load, or
            ``library`` cannot be written.
    """
    command = compiler()
    sources = sorted(SOURCES.glob("*.cpp"))
    with tempfile.TemporaryDirectory() as folder:
        objects = [Path(folder, path.stem + ".o") for path in sources]
        flags = [*command, *FLAGS, f"-DMMLOCAL_DIGEST={digest()}"]

        def compile_one(source: Path, target: Path) -> None:
            _run([*flags, "-c", str(source), "-o", str(target)])

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(compile_one, sources, objects))
        draft = Path(folder, library.name)
        _run([*flags, "-shared", *map(str, objects), "-o", str(draft)])
        try:
            ctypes.CDLL(str(draft))
        except OSError as error:
            raise BuildError(f"the compiled library does not load: {error}") from error
        _move(draft, library)
    return library


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise BuildError(f"the compiler {command[0]} does not run: {error}") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        line = next((line for line in lines if "error" in line), lines[0])
        raise BuildError(f"the compiler {command[0]} failed: {line.strip()}")


def _move(draft: Path, library: Path) -> None:
    """Replace a library in one step. A process that runs the old one keeps it."""
    partial = library.with_name(f"{library.name}.{os.getpid()}")
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(draft, partial)
            partial.replace(library)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise BuildError(f"the library cannot be written: {error}") from error
