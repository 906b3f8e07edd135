"""DWNet trains through the tools in two processes."""

import pytest
import torch
from tools.conftest import TOOLS, free_port

from .conftest import succeeds, write_config

pytestmark = pytest.mark.slow

DWNET = """
model = dict(
    backbone=dict(
        _delete_=True,
        type="mmlocal.DWNet",
        arch=dict(embed_dims=16, depths=[1, 1, 1, 1]),
        spatial="dynamic",
        out_norm="LN",
        out_indices=(3,),
        with_cp=True,
    )
)
train_dataloader = dict(batch_size=2)
train_cfg = dict(max_epochs=1, val_interval=1)
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="torchrun takes one GPU per process")
def test_two_processes(folder):
    """In mixed precision, with 2 images per process for the predictors' batch norms.

    There is no ``find_unused_parameters``, and a checkpointed block counts each batch once.
    """
    config = write_config("mmpretrain", folder / "dwnet.py", DWNET)
    output = succeeds(
        *("bash", TOOLS / "dist_train.sh", config, "2"),
        *("--work-dir", "dwnet", "--amp"),
        cwd=folder,
        PORT=free_port(),
    )
    assert "accuracy/top1" in output
    saved = torch.load(folder / "dwnet" / "epoch_1.pth", weights_only=False)["state_dict"]
    assert all(value.isfinite().all() for value in saved.values())
    counts = {v.item() for k, v in saved.items() if k.endswith("num_batches_tracked")}
    assert counts == {2}
