"""A fresh checkout, as far as packaging goes."""

from pathlib import Path
from shutil import copyfile, copytree, ignore_patterns

ROOT = Path(__file__).resolve().parents[2]
# Files and folders that a release is built from.
PARTS = ["benchmarks", "configs", "mmlocal", "requirements", "tools", "weights"]
PARTS += ["CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "NOTICE"]
PARTS += ["README.md", "model-index.yml", "pyproject.toml", "setup.py"]


def copy_tree(target):
    """Copy these files and folders to ``target``, without build products."""
    target.mkdir(exist_ok=True)
    for name in PARTS:
        if (ROOT / name).is_dir():
            built = ignore_patterns(".mim", "__pycache__", "*.so", "*.pyd")
            copytree(ROOT / name, target / name, ignore=built)
        else:
            copyfile(ROOT / name, target / name)
    return target
