"""Puts configs, tools and the model index into ``mmlocal/.mim``, where ``mim`` looks for them.

Everything else about the package is in ``pyproject.toml``.
"""

import os
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MIM = ("configs", "tools", "model-index.yml")


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


class BuildPy(build_py):
    """Adds ``.mim``: copies in a wheel, links in the source tree of an editable install."""

    def run(self) -> None:
        super().run()
        package = ROOT if self.editable_mode else Path(self.build_lib).resolve()
        mim = package / "mmlocal" / ".mim"
        shutil.rmtree(mim, ignore_errors=True)  # removes the links, not what they point to
        mim.mkdir(parents=True)
        for name in MIM:
            (link if self.editable_mode else copy)(ROOT / name, mim / name)


setup(cmdclass={"build_py": BuildPy})
