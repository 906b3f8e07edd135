"""Build steps of the package. All other settings are in ``pyproject.toml``.

The build puts configs, tools and the model index into ``mmlocal/.mim``, where ``mim`` looks for
them. It also compiles the C++ kernels if there is a compiler. The long description is README.md
with absolute links, because a package index shows it outside the repository.
"""

import os
import re
import runpy
import shutil
from pathlib import Path

from setuptools import Distribution, __version__, setup
from setuptools.command.build_py import build_py

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools before 70.1
    try:
        from wheel.bdist_wheel import bdist_wheel
    except ImportError:
        raise SystemExit(
            f"setuptools {__version__} cannot build mmlocal without the package wheel: "
            "pip install wheel, or leave out --no-build-isolation"
        ) from None

ROOT = Path(__file__).resolve().parent
MIM = ("configs", "tools", "weights", "model-index.yml")
# Not copied: bytecode, and scripts that need the folder benchmarks/ of a clone.
LEFT_OUT = ("__pycache__", "benchmark_*.py", "audit_*.py")
OPS = Path("mmlocal", "ops")
# Run by its path, because mmlocal.ops imports torch, which a build environment does not have.
BUILD = runpy.run_path(str(ROOT / OPS / "build.py"))
HOME = "mmlocal/mmlocal"
PICTURES = (".gif", ".jpg", ".png", ".svg", ".webp")
# The target of a link or picture, in Markdown or HTML, which is neither a URL nor an address.
RELATIVE = re.compile(
    r"""(?P<before>\]\(|^\[[^]]+\]: |(?:href|src)=")(?!\w+:)(?P<to>[^)\s"]+)""", re.M
)
CODE = re.compile(r"(^ *```.*?^ *```$|`[^`\n]*`)", re.M | re.S)


def long_description() -> str:
    """README.md with links to the release on GitHub in place of relative ones."""
    version = runpy.run_path(str(ROOT / "mmlocal" / "version.py"))["__version__"]

    def absolute(match: re.Match) -> str:
        target = match["to"]
        if target.startswith("#"):
            url = f"https://github.com/{HOME}/blob/v{version}/README.md{target}"
        elif target.lower().endswith(PICTURES):
            url = f"https://raw.githubusercontent.com/{HOME}/v{version}/{target}"
        else:
            url = f"https://github.com/{HOME}/blob/v{version}/{target}"
        return match["before"] + url

    parts = CODE.split((ROOT / "README.md").read_text(encoding="utf-8"))
    parts[::2] = [RELATIVE.sub(absolute, part) for part in parts[::2]]
    return "".join(parts)


def copy(source: Path, target: Path) -> None:
    """Copy a file or a folder, without ``LEFT_OUT``."""
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(*LEFT_OUT))
    else:
        shutil.copyfile(source, target)


def link(source: Path, target: Path) -> None:
    """Link ``target`` to ``source`` by a relative path, or copy if links are not allowed."""
    try:
        target.symlink_to(os.path.relpath(source, target.parent), source.is_dir())
    except OSError:
        copy(source, target)


def compile_kernels(folder: Path) -> bool:
    """Compile the kernels into a folder, or say why not.

    Without the kernels, the package works in plain PyTorch, and says so when its ops run.

    Args:
        folder: folder that holds the package.

    Returns:
        Whether the kernels are there.
    """
    library = folder / OPS / BUILD["LIBRARY"].name
    try:
        if os.environ.get("MMLOCAL_BUILD_EXT") == "0":
            raise BUILD["BuildError"]("MMLOCAL_BUILD_EXT=0")
        BUILD["build"](library)
    except BUILD["BuildError"] as error:
        print(f"mmlocal is installed without its C++ kernels: {error}", flush=True)
        library.unlink(missing_ok=True)  # from an earlier build
    return library.is_file()


class BuildPy(build_py):
    """Adds the kernels and ``.mim``: copies in a wheel, links in an editable installation."""

    def run(self) -> None:
        super().run()
        package = ROOT if self.editable_mode else Path(self.build_lib).resolve()
        self.distribution.has_kernels = compile_kernels(package)
        mim = package / "mmlocal" / ".mim"
        shutil.rmtree(mim, ignore_errors=True)  # removes the links, not what they point to
        mim.mkdir(parents=True)
        for name in MIM:
            (link if self.editable_mode else copy)(ROOT / name, mim / name)


class BdistWheel(bdist_wheel):
    """Marks a wheel with kernels for this platform and any Python, and one without as pure."""

    def run(self) -> None:
        self.run_command("build")
        self.root_is_pure = not self.distribution.has_kernels
        super().run()

    def get_tag(self) -> tuple:
        return "py3", "none", super().get_tag()[2]


class KernelDistribution(Distribution):
    """A distribution that is bound to a platform only if its kernels were compiled."""

    has_kernels = False

    def has_ext_modules(self) -> bool:
        return self.has_kernels


if __name__ == "__main__":
    setup(
        distclass=KernelDistribution,
        cmdclass={"build_py": BuildPy, "bdist_wheel": BdistWheel},
        license="Apache-2.0",
        long_description=long_description(),
        long_description_content_type="text/markdown",
    )
