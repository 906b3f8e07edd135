"""The configs on generated shapes augment each epoch differently."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import nn

from mmlocal import config_path

pytestmark = pytest.mark.slow

NAMES = {
    "mmdet": "elsa_swin_nano_maskrcnn_shapes",
    "mmseg": "elsa_swin_nano_upernet_shapes",
    "mmpretrain": "elsa_swin_nano_shapes",
}
EPOCHS = 3


class Model(BaseModel):
    """A model to train."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: list, data_samples: list, mode: str) -> dict:
        return dict(loss=self.weight.sum())


class RecordFlips(Hook):
    """A hook that keeps the file and the flip of each sample."""

    def __init__(self) -> None:
        self.flips = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        for sample in data_batch["data_samples"]:
            self.flips.append((sample.img_path, sample.get("flip_direction")))


def flips(library: str, folder: Path, work_dir: Path, **loader) -> list[tuple]:
    """Files and flips of all samples of a short run, in order."""
    cfg = Config.fromfile(config_path(NAMES[library]))
    cfg.train_dataloader.update(batch_size=4, **loader)
    dataset = cfg.train_dataloader.dataset
    dataset.data_root = str(folder / dataset.data_root)
    if cfg.train_cfg.get("type") == "IterBasedTrainLoop":
        images = len(list((folder / "data/shapes/train").glob("*")))
        cfg.train_cfg.update(max_iters=EPOCHS * images // 4)
    else:
        cfg.train_cfg.update(max_epochs=EPOCHS)
    record = RecordFlips()
    runner = Runner(
        Model(),
        str(work_dir),
        train_dataloader=cfg.train_dataloader,
        train_cfg=cfg.train_cfg,
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1)),
        default_hooks=dict(
            iter_seed=cfg.default_hooks.iter_seed, checkpoint=None, logger=None, timer=None
        ),
        custom_hooks=[record],
        randomness=dict(seed=0),
        log_level="ERROR",
        default_scope=library,
        experiment_name=work_dir.name,
    )
    runner.train()
    return record.flips


@pytest.mark.parametrize("workers", [1, 2])
def test_epochs_differ(library, folder, tmp_path, workers):
    with DefaultScope.overwrite_default_scope(library):
        whole = flips(library, folder, tmp_path / "none", num_workers=0, persistent_workers=False)
        seen = flips(library, folder, tmp_path / "workers", num_workers=workers)
    assert seen == whole
    images = len({path for path, _ in seen})
    assert len(seen) == EPOCHS * images > EPOCHS
    epochs = [tuple(seen[i * images : (i + 1) * images]) for i in range(EPOCHS)]
    assert len({tuple(direction for _, direction in epoch) for epoch in epochs}) == EPOCHS
    directions = {direction for _, direction in seen}
    assert directions == {None, "horizontal", "vertical"}
