"""A new op, mixer, backbone or library is one file or folder, and every tool finds it.

The package ``boxes`` in this folder adds one of each from outside mmlocal. If one of these tests
needs an edit in mmlocal to pass, the layout of mmlocal is wrong.
"""

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tools.copies import run_copy

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def succeeds(*command: object, cwd: Path) -> str:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}"}
    result = run_copy([*map(str, command)], cwd, environment, timeout=300)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def runs(code: str, folder: Path) -> str:
    """The output of a program of this text."""
    script = folder / "code.py"
    script.write_text(code)
    return succeeds(script, cwd=folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("outside")
    shutil.copy(HERE / "config.py", folder)
    return folder


def test_op_is_right(folder):
    """Both backends agree, or the other tests would prove little."""
    code = """
import torch
from boxes.op import box_attention

torch.manual_seed(0)
value, attn = torch.randn(2, 4, 5, 7).double(), torch.randn(2, 9, 5, 7).double()
results = {}
for backend in ("eager", "reference"):
    inputs = [x.clone().requires_grad_() for x in (value, attn)]
    out = box_attention(*inputs, kernel_size=3, backend=backend)
    results[backend] = [out, *torch.autograd.grad(out.square().sum(), inputs)]
for one, other in zip(*results.values()):
    torch.testing.assert_close(one, other)
"""
    runs(code, folder)


def test_info_lists_the_op_and_the_library(folder):
    code = "import boxes; from mmlocal.info import main; main([])"
    report = runs(code, folder).splitlines()
    assert "box, backend eager (plain PyTorch, one tap at a time): runs here" in report
    assert "boxes can train here" in report


@pytest.mark.slow
def test_benchmark_times_the_op(folder):
    """The op is checked against its definition first, then timed with its peers."""
    code = """
import boxes, runpy, sys
sys.argv = ["benchmark_ops.py", *"--op box --shapes smoke --rounds 1 --peers dwconv".split()]
runpy.run_path(PATH, run_name="__main__")
""".replace("PATH", repr(str(ROOT / "tools" / "benchmark_ops.py")))
    runs(code, folder)
    (written,) = (folder / "work_dirs" / "benchmark").glob("*.json")
    results = json.loads(written.read_text())["results"]
    assert {run["case"]["name"] for run in results} == {"boxes, 3x3"}
    assert {"eager", "reference", "dwconv"} <= {run["contestant"] for run in results}


def test_flops_count_the_op(folder):
    """9 taps for each of the 8 channels at 8x12, and of the 16 channels at 4x6 in two blocks."""
    report = succeeds("mmlocal", "flops", "config.py", cwd=folder)
    assert "image       32x48" in report
    lines = [line.split() for line in report.splitlines() if "mmlocal.box_attention" in line]
    macs = 9 * (8 * 8 * 12 + 2 * 16 * 4 * 6)
    assert lines == [[f"{macs / 1e9:.3f}", "mmlocal.box_attention"]]


@pytest.mark.slow
def test_backbone_trains_in_the_library_and_is_drawn(folder):
    succeeds(ROOT / "tools" / "train.py", "config.py", "--work-dir", "run", cwd=folder)
    names = torch.load(folder / "run" / "epoch_1.pth", weights_only=False)["state_dict"]
    assert "backbone.stages.1.blocks.1.attn.logits.weight" in names
    assert {"backbone.stages.0.downsample.norm.weight", "backbone.norm1.weight"} <= set(names)
    dumped = (folder / "run" / "config.py").read_text()
    assert "drop_last=True" in dumped, "the object of the library completes the data loader"

    cv2.imwrite(str(folder / "image.png"), np.zeros((32, 48, 3), np.uint8))
    draw = (ROOT / "tools" / "visualize_attention.py", "config.py")
    layers = succeeds(*draw, "--list-layers", cwd=folder).splitlines()
    assert layers[0] == "backbone.stages.0.blocks.0.attn  BoxAttention 3x3"
    assert len(layers) == 3
    kinds = ("--kinds", "overview", "kernels")
    succeeds(*draw, "run/epoch_1.pth", "image.png", "--out-dir", "drawn", *kinds, cwd=folder)
    assert len(list((folder / "drawn").iterdir())) == 1 + 3
