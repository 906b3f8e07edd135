"""``--amp`` trains each task, on a GPU or the CPU, with losses near those of float32."""

import math

import pytest

from .conftest import TOOLS, scalars, succeeds

pytestmark = pytest.mark.slow


def test_amp_is_near_float32(task, trained, folder):
    config, whole = trained
    work_dir = folder / f"amp_{task}"
    succeeds(
        *(TOOLS / "train.py", config, "--work-dir", work_dir, "--amp", "--no-validate"), cwd=folder
    )
    expected, found = scalars(whole), scalars(work_dir)
    assert found.keys() == expected.keys()
    assert all(math.isfinite(entry["loss"]) for entry in found.values())
    assert found[1]["loss"] != expected[1]["loss"], "not in mixed precision"
    assert found[1]["loss"] == pytest.approx(expected[1]["loss"], rel=0.02)
