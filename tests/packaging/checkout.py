"""A fresh checkout, as far as packaging goes."""

from pathlib import Path
from shutil import copyfile, copytree, ignore_patterns

ROOT = Path(__file__).resolve().parents[2]
# What a release is made of.
PARTS = ["benchmarks", "configs", "mmlocal", "requirements", "tools"]
PARTS += ["LICENSE", "MANIFEST.in", "README.md", "model-index.yml", "pyproject.toml", "setup.py"]


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
