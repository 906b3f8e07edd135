"""The command line ``tools/make_shapes.py``."""

import os
import subprocess
import sys
from pathlib import Path

from mmlocal.datasets.shapes import generate_shapes

REPO = Path(__file__).resolve().parents[2]
SMALL = ("--num-train", "2", "--num-val", "1", "--image-size", "64", "--cls-size", "32")


def run(cwd: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, REPO / "tools" / "make_shapes.py", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_writes_what_the_function_writes(tmp_path):
    result = run(tmp_path, "--seed", "3", *SMALL)
    assert result.returncode == 0, result.stderr
    assert "wrote data/shapes" in result.stdout
    assert "train scenes" in result.stderr  # progress
    other = tmp_path / "other"
    generate_shapes(
        other, num_train=2, num_val=1, image_size=64, cls_size=32, seed=3, progress=False
    )
    made = tmp_path / "data" / "shapes"
    files = sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(made) for path in made.rglob("*") if path.is_file())
    assert all((made / name).read_bytes() == (other / name).read_bytes() for name in files)


def test_refuses_and_overwrites(tmp_path):
    assert run(tmp_path, "--out", "x", "--tasks", "cls", *SMALL).returncode == 0
    refused = run(tmp_path, "--out", "x", "--tasks", "cls", *SMALL)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "--overwrite" in refused.stderr
    assert run(tmp_path, "--out", "x", "--tasks", "seg", *SMALL, "--overwrite").returncode == 0
    assert (tmp_path / "x" / "annotations" / "train").is_dir()
    assert not (tmp_path / "x" / "cls").exists()


def test_bad_input_is_one_line_and_exit_code_2(tmp_path):
    (tmp_path / "file").write_text("")
    for arguments, word in (
        (("--num-train", "0"), "num_train must be at least 1, got 0"),
        (("--tasks", "det", "depth"), "depth"),
        (("--image-size", "8"), "image_size must be at least 32, got 8"),
        (("--out", "file"), "is a file"),
        (("--out", "file/below"), "cannot be written"),
    ):
        result = run(tmp_path, *arguments)
        assert result.returncode == 2
        assert word in result.stderr
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_data_set_package_imports_no_library():
    """The DATASETS registry imports ``mmlocal.datasets``; a failure there would be swallowed."""
    code = (
        "import sys, mmlocal; before = set(sys.modules); "
        "import mmlocal.datasets; print(*set(sys.modules) - before)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        check=True,
    )
    found = {name.partition(".")[0] for name in result.stdout.split()}
    assert not found & {"mmcv", "mmdet", "mmseg", "mmpretrain", "scipy", "skimage"}
    assert "mmlocal.datasets.shapes" not in result.stdout.split()
