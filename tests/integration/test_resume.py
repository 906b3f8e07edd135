"""A run that is killed and resumed repeats the uninterrupted run, bit for bit.

All runs have ``randomness.deterministic``, which refuses ops without a deterministic backward.
"""

import signal
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmlocal import config_path

from .conftest import TOOLS, helpers_path, scalars, start, succeeds, write_config

pytestmark = pytest.mark.slow

# In the second half of the run, past a checkpoint and its validation.
DYING = """
custom_imports = dict(imports=["mmlocal", "killer"])
custom_hooks = [dict(type="mmengine.Killer", iteration=3)]
"""


def weights(work_dir: Path) -> dict[str, torch.Tensor]:
    path = (work_dir / "last_checkpoint").read_text()
    return torch.load(path, weights_only=False)["state_dict"]


def test_killed_and_resumed(task, trained, folder):
    config, whole = trained
    kill_and_resume(task, config, whole, folder)


def test_with_a_worker(folder):
    """As the configs of runs by epoch have it."""
    names = ("elsa_swin_nano_shapes", "elsa_swin_nano_maskrcnn_shapes")
    loaders = [Config.fromfile(config_path(name)).train_dataloader for name in names]
    assert [loader.num_workers for loader in loaders] == [1, 1]
    (persistent,) = {loader.persistent_workers for loader in loaders}
    more = f"train_dataloader = dict(num_workers=1, persistent_workers={persistent})\n"
    config = write_config("mmpretrain", folder / "worker.py", more)
    whole = folder / "whole_worker"
    succeeds(TOOLS / "train.py", config, "--work-dir", whole, cwd=folder)
    kill_and_resume("mmpretrain", config, whole, folder, more)


def kill_and_resume(task: str, config: Path, whole: Path, folder: Path, more: str = "") -> None:
    """Compare with the run in ``whole`` one that is killed in between."""
    work_dir = folder / f"killed_{config.stem}"
    killed = start(
        *(TOOLS / "train.py", write_config(task, folder / f"dying_{config.stem}.py", DYING + more)),
        *("--work-dir", work_dir),
        cwd=folder,
        PYTHONPATH=helpers_path(),
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    assert max(scalars(work_dir)) == 3
    log = succeeds(TOOLS / "train.py", config, "--work-dir", work_dir, "--resume", cwd=folder)
    assert "resumed epoch: " in log
    expected = scalars(whole)
    assert len(expected) == 6
    assert scalars(work_dir) == expected
    resumed = weights(work_dir)
    for name, value in weights(whole).items():
        assert torch.equal(value, resumed[name]), name
