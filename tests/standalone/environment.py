"""An environment that has some of the installed distributions and nothing else."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
# mmengine-lite has the modules of MMEngine, and requires these packages: no OpenCV, no matplotlib.
# It imports packaging without requiring it, so the extra of mmlocal requires it.
LITE = ["addict", "numpy", "packaging", "pyyaml", "rich", "termcolor", "yapf"]


def link(folder: Path, *names: str) -> None:
    """Link the modules of distributions, and of all that they require, into a folder."""
    todo, done = list(names), set()
    while todo:
        name = todo.pop()
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # for another system, or never needed
            continue
        if distribution.name in done:
            continue
        done.add(distribution.name)
        needs = map(Requirement, distribution.requires or ())
        todo += [
            need.name for need in needs if not need.marker or need.marker.evaluate({"extra": ""})
        ]
        link_files(folder, distribution)


def link_files(folder: Path, distribution: metadata.Distribution) -> None:
    """Link the modules and the metadata of one distribution into a folder."""
    site = Path(distribution.locate_file(""))
    for top in {file.parts[0] for file in distribution.files or ()}:
        if top not in ("..", "__pycache__") and not (folder / top).exists():
            (folder / top).symlink_to(site / top)


def link_mmlocal(folder: Path) -> None:
    """Link mmlocal of this checkout, MMEngine, and what the extra requires."""
    link(folder, *LITE)
    link_files(folder, metadata.distribution("onedl-mmengine"))
    (folder / "mmlocal").symlink_to(ROOT / "mmlocal")


def run(folder: Path, *arguments: str, cwd: Path) -> str:
    """Run Python with the modules of a folder and the standard library, and return its output."""
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    environment |= {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    # -S leaves out site-packages.
    command = [sys.executable, "-S", *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
