"""Two processes train like one process with twice the batch."""

import json

import pytest
import torch
from tools.conftest import TOOLS, free_port

from .conftest import helpers_path, succeeds, write_config

pytestmark = pytest.mark.slow

# Only the order of the pictures is random, and the optimizer is linear in the gradient.
PLAIN = """
custom_imports = dict(imports=["losses"])
custom_hooks = [dict(type="mmengine.MeanLosses")]
model = dict(backbone=dict(drop_path_rate=0.0), train_cfg=None)
train_dataloader = dict(
    batch_size={batch_size},
    dataset=dict(pipeline=[dict(type="LoadImageFromFile"), dict(type="PackInputs")]),
)
train_cfg = dict(max_epochs=2)
optim_wrapper = dict(optimizer=dict(_delete_=True, type="SGD", lr=0.1, weight_decay=1e-4))
param_scheduler = None
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="torchrun takes one GPU per process")
def test_two_processes_are_one_of_twice_the_batch(folder):
    results = {}
    for processes in (1, 2):
        name = f"processes_{processes}"
        config = write_config(
            "mmpretrain", folder / f"{name}.py", PLAIN.format(batch_size=4 // processes)
        )
        succeeds(
            *(["bash", TOOLS / "dist_train.sh"] if processes == 2 else [TOOLS / "train.py"]),
            *([config, "2"] if processes == 2 else [config]),
            *("--work-dir", name, "--no-validate"),
            cwd=folder,
            PORT=free_port(),
            PYTHONPATH=helpers_path(),
        )
        losses = json.loads((folder / name / "losses.json").read_text())
        weights = torch.load(folder / name / "epoch_2.pth", weights_only=False)["state_dict"]
        results[processes] = torch.tensor(losses), weights
    losses, weights = results[1]
    assert len(losses) == 4
    assert losses.unique().numel() == 4
    torch.testing.assert_close(results[2][0], losses, rtol=1e-5, atol=0)
    for name, value in results[2][1].items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=1e-5)
