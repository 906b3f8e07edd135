"""Puts configs, tools and the model index into ``mmlocal/.mim``, where ``mim`` looks for them, and
builds the optional C++ extension ``mmlocal.ops._C``.

Everything else about the package is in ``pyproject.toml``.
"""

import importlib.util
import os
import shlex
import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MIM = ("configs", "tools", "model-index.yml")
CSRC = Path("mmlocal", "ops", "csrc")
FLAGS = [] if os.name == "nt" else ["-O3", "-g0", "-fno-math-errno"]
if sys.platform == "linux":
    # Without it, at::parallel_for is a plain loop. To the compiler alone: the linker would add the
    # compiler's OpenMP library, where torch has brought its own, with threads that serve both.
    FLAGS.append("-fopenmp")


def copy(source: Path, target: Path) -> None:
    """Copy a file or a folder, without the bytecode that Python left there."""
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copyfile(source, target)


def link(source: Path, target: Path) -> None:
    """Link ``target`` to ``source`` by relative path; copy where links are not allowed."""
    try:
        target.symlink_to(os.path.relpath(source, target.parent), source.is_dir())
    except OSError:
        copy(source, target)


def why_no_extension():
    """Why the extension is not built here, or ``None`` if it is."""
    if os.environ.get("MMLOCAL_BUILD_EXT") == "0":
        return "MMLOCAL_BUILD_EXT=0"
    if importlib.util.find_spec("torch") is None:
        return "no torch in the build environment (pip install --no-build-isolation shows it yours)"
    given = os.environ.get("CXX")
    names = [shlex.split(given)[0]] if given else ["c++", "g++", "clang++", "cl"]
    if not any(map(shutil.which, names)):
        return f"no C++ compiler ({', '.join(names)})"
    return None


REASON = why_no_extension()


def say(reason: str) -> None:
    print(f"mmlocal is installed without its C++ extension: {reason}", flush=True)


class BuildPy(build_py):
    """Adds ``.mim``: copies in a wheel, links in the source tree of an editable install."""

    def run(self) -> None:
        super().run()
        if REASON:
            say(REASON)
        package = ROOT if self.editable_mode else Path(self.build_lib).resolve()
        mim = package / "mmlocal" / ".mim"
        shutil.rmtree(mim, ignore_errors=True)  # removes the links, not what they point to
        mim.mkdir(parents=True)
        for name in MIM:
            (link if self.editable_mode else copy)(ROOT / name, mim / name)


def extension() -> dict:
    """Arguments of ``setup`` for the extension; none where it cannot be built."""
    if REASON:
        return {}
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    class BuildExt(BuildExtension):
        """A failure leaves the extension out and is no failure of the installation."""

        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except Exception as error:  # what torch raises here depends on ninja
                say(f"the compiler failed: {str(error).splitlines()[0]}")

    module = CppExtension(
        "mmlocal.ops._C",
        [path.as_posix() for path in sorted(CSRC.glob("*.cpp"))],
        depends=[path.as_posix() for path in sorted(CSRC.iterdir())],
        define_macros=[("MMLOCAL_TORCH_VERSION", torch.__version__.partition("+")[0])],
        extra_compile_args=FLAGS,
        optional=True,
    )
    return {"ext_modules": [module], "cmdclass": {"build_py": BuildPy, "build_ext": BuildExt}}


setup(**({"cmdclass": {"build_py": BuildPy}} | extension()))
