"""``benchmarks/gpu_check.sh`` with PyTorch, Triton and NumPy alone, in Triton's interpreter."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from environment import ROOT, link

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """A folder that holds these libraries and no other."""
    folder = tmp_path_factory.mktemp("bare")
    link(folder, "torch", "triton", "numpy")
    return folder


def start(bare: Path, out: Path, *arguments: str) -> subprocess.Popen:
    environment = {name: x for name, x in os.environ.items() if name not in ("WHEELS", "CUDA_HOME")}
    environment |= {"PYTHONPATH": str(bare), "PYTHON": f"{sys.executable} -S"}
    environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [ROOT / "benchmarks/gpu_check.sh", "--minutes", "30", "--out", out, *arguments],
        env=environment,
        cwd=out.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def read(out: Path) -> dict:
    return json.loads((out / "gpu_check.json").read_text())


def test_rehearsal(bare, tmp_path):
    """Everything but the checks of values, which come below."""
    parts = ["shapes", "big maps", "ops", "first step", "models", "compiled"]
    process = start(bare, tmp_path / "out", "--parts", *parts)
    output, errors = process.communicate()
    assert process.returncode == 0, output + errors
    result = read(tmp_path / "out")
    assert result["finished"]
    assert result["settings"]["rehearsal"]
    assert result["versions"]["torch"]
    rows = {part: [r for r in result["results"] if r["part"] == part] for part in parts}
    assert all(row["passed"] for row in rows["shapes"] + rows["big maps"])
    assert {row["item"].partition(",")[0] for row in rows["big maps"]} == {
        "deformable_attention",
        "deformable_attention_from_offsets",
        "elsa_attention",
        "elsa_attention_projected",
        "neighborhood_scores",
        "outlook_attention",
        "qna_attention",
    }
    contestants = {row["contestant"] for row in rows["ops"]}
    assert contestants >= {"copy", "matrix product", "triton", "eager", "from_offsets"}
    assert [row["cache"] for row in rows["first step"]] == ["empty", "full"]
    skipped = [row["skipped"] for row in rows["models"] if "skipped" in row]
    assert skipped == ["does not import: No module named 'mmengine'"] * 2
    assert {row["mode"] for row in rows["models"] if "median_ms" in row} == {
        "training",
        "inference",
    }
    # FlexAttention and torch.compile need a GPU.
    assert rows["compiled"] == []
    table = (tmp_path / "out/gpu_check.md").read_text()
    assert table in output
    assert "| WindowAttention |  training |" in table


def test_wrong_results_are_reported(bare, tmp_path):
    """With a tolerance of nothing, every result is wrong. All are within the true tolerances."""
    process = start(bare, tmp_path / "out", "--tolerance", "0", "--parts", "correctness")
    output, errors = process.communicate()
    assert process.returncode == 1, output + errors
    rows = read(tmp_path / "out")["results"]
    assert len(rows) >= 10
    assert not any(row["passed"] for row in rows)
    assert all(error <= row["limit"] for row in rows for error in row["errors"].values())
    assert {row["item"].rpartition(", ")[2] for row in rows} == {
        "float32",
        "bfloat16",
        "float16",
        "same bits",
    }
    assert output.count("WRONG") == 2 * len(rows)  # as they come, and at the end
    assert f"| correctness |     0 |    {len(rows)} |      0 |" in output


def test_a_cut_leaves_what_was_measured(bare, tmp_path):
    process = start(bare, tmp_path / "out", "--parts", "correctness")
    results = tmp_path / "out/gpu_check.json"
    while process.poll() is None and not (
        results.exists() and len(read(results.parent)["results"])
    ):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    output, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, output + errors
    result = read(tmp_path / "out")
    assert result["hardware"]["cpu"]
    assert not result["finished"]
    assert all(row["passed"] for row in result["results"])
    assert len(result["results"]) >= 1
