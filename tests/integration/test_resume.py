"""A run that is killed and resumed repeats the uninterrupted run."""

import signal

import pytest
import torch

from .conftest import TOOLS, scalars, start, succeeds, write_config

pytestmark = pytest.mark.slow

# Dies in the second half of the run, past a checkpoint and its validation.
KILLER = """
import os, signal
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class Killer(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 3:
            os.kill(os.getpid(), signal.SIGKILL)
"""


def state_dict(work_dir) -> dict[str, torch.Tensor]:
    path = (work_dir / "last_checkpoint").read_text()
    return torch.load(path, weights_only=False)["state_dict"]


def test_killed_and_resumed(task, trained, folder):
    config, whole = trained[task]
    dying = write_config(
        task,
        folder / f"dying_{task}.py",
        'custom_hooks = [dict(type="mmengine.Killer")]\n',
    )
    work_dir = folder / f"killed_{task}"
    command = [TOOLS / "train.py", config, "--work-dir", work_dir]
    killed = start(TOOLS / "train.py", dying, *command[2:], cwd=folder)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    assert max(scalars(work_dir)) == 3
    log = succeeds(*command, "--resume", cwd=folder)
    assert "resumed epoch: " in log
    expected, found = scalars(whole), scalars(work_dir)
    assert len(expected) == 6
    assert expected == found
    weights = state_dict(work_dir)
    for name, value in state_dict(whole).items():
        assert torch.equal(value, weights[name]), name
