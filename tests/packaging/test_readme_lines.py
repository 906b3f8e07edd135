"""The README's pip lines, in a new environment, lead to a training step of each library."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import copy_tree

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = {
    "mmdet": "elsa_swin_nano_maskrcnn_shapes",
    "mmseg": "elsa_swin_nano_upernet_shapes",
    "mmpretrain": "elsa_swin_nano_shapes",
}


def readme_lines() -> list[str]:
    """The commands of the README's first block that installs the OpenMMLab libraries."""
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.S | re.M)
    block = next(block for block in blocks if "[onedl]" in block)
    lines = [line.split(" #")[0].strip() for line in block.splitlines()]
    return [line for line in lines if line]


def test_three_lines_are_enough():
    lines = readme_lines()
    assert len(lines) <= 3
    assert all(re.match(r"(CPPFLAGS=-g0 )?pip install ", line) for line in lines)


def has_wheel_of_mmcv() -> bool:
    """Whether pip's cache has a compiled mmcv, because compiling takes minutes."""
    pin = re.search(r"^onedl-mmcv==(\S+)", (ROOT / "requirements/mmcv.txt").read_text(), re.M)
    command = [sys.executable, "-m", "pip", "cache", "list", "onedl_mmcv"]
    done = subprocess.run(command, capture_output=True, text=True)
    tag = f"onedl_mmcv-{pin.group(1)}-cp{sys.version_info[0]}{sys.version_info[1]}-"
    return tag in done.stdout


@pytest.fixture
def folder(tmp_path):
    """A copy of the checkout, removed with its environment of several gigabytes."""
    yield copy_tree(tmp_path / "clone")
    shutil.rmtree(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not has_wheel_of_mmcv(), reason="pip has no wheel of mmcv in its cache")
def test_the_lines_lead_to_a_training_step_of_each_library(folder):
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "VIRTUAL_ENV", "MMLOCAL_BUILD_EXT")
    }
    environment["PATH"] = os.pathsep.join([str(folder / "env/bin"), os.environ["PATH"]])

    def run(command: str) -> str:
        done = subprocess.run(
            command, shell=True, cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout + done.stderr

    run(f"{sys.executable} -m venv env")
    for line in readme_lines():
        run(line)
    report = run("mmlocal info")
    assert re.search(r"^mmlocal\._C +\d+ thread", report, re.M), report
    run("mmlocal make-shapes --num-train 4 --num-val 2 --image-size 64 --out data/shapes")
    for library, config in CONFIGS.items():
        steps = "max_iters=1" if library == "mmseg" else "max_epochs=1"
        output = run(
            f"mmlocal train {config} --no-validate --cfg-options train_cfg.{steps} "
            "train_dataloader.batch_size=2 train_dataloader.num_workers=0 "
            "train_dataloader.persistent_workers=False default_hooks.logger.interval=1"
        )
        assert re.search(r"loss: \d+\.\d+", output), output
