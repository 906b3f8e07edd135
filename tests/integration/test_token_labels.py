"""Token labelling by the tools: label maps, mixed tokens, distributed, in mixed precision."""

import mmengine
import pytest
import torch
from mmengine import Config
from mmengine.registry import MODELS, DefaultScope
from tools.conftest import TOOLS, free_port, load_tool

from mmlocal import config_path
from mmlocal.engine.optim import CPUAmpOptimWrapper

from .conftest import random_batch, scalars, succeeds

NARROW = """
_base_ = "{base}"
model = dict(
    backbone=dict(
        arch=dict(
            embed_dims=16, depths=(1, 1, 1, 1), num_heads=(2, 4, 4, 4), mlp_ratio=2.0, stem_dims=8
        ),
        pretrain_img_size=32,
        drop_path_rate=0.3,
    ),
    head=dict(in_channels=32),
    mix_token=True,
)
"""
TRAINING = """
pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="mmlocal.RecordCrop", crop=dict(type="RandomResizedCrop", scale=32)),
    dict(type="RandomFlip", prob=0.5, direction="horizontal"),
    dict(type="mmlocal.LoadTokenLabels", label_root="data/maps"),
    dict(type="PackInputs", algorithm_keys=("token_labels", "token_box")),
]
loader = dict(batch_size=4, num_workers=0, persistent_workers=False)
train_dataloader = dict(dataset=dict(pipeline=pipeline), **loader)
val_dataloader = loader
test_dataloader = loader
train_cfg = dict(max_epochs=1)
default_hooks = dict(logger=dict(interval=1))
"""


@pytest.mark.slow
def test_label_maps_in_a_distributed_run(folder, monkeypatch):
    """All parameters get gradients, or the second step of a distributed run would fail."""
    for image in (folder / "data/shapes/cls/train").rglob("*.jpg"):
        path = folder / "data/maps" / image.parent.name / f"{image.stem}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        label_map = torch.stack([torch.randn(5, 6, 6), torch.rand(9, 6, 6).argsort(0)[:5]])
        torch.save(label_map.half(), path)
    config = folder / "token_labels.py"
    config.write_text(NARROW.format(base=config_path("elsa_volo_nano_shapes")) + TRAINING)
    command = ["bash", TOOLS / "dist_train.sh", config, "1", "--work-dir", "token_labels"]
    succeeds(*command, cwd=folder, PORT=free_port())
    logged = scalars(folder / "token_labels")
    assert sorted(logged) == [1, 2]  # 8 images, 4 in each step
    for entry in logged.values():
        assert entry["loss"] == pytest.approx(entry["loss_cls"] + entry["loss_aux"], rel=1e-5)
        assert 0 < entry["loss_aux"] < entry["loss_cls"]
    monkeypatch.chdir(folder)
    with DefaultScope.overwrite_default_scope("mmpretrain"):  # restored at the end
        load_tool("test").main([str(config), "token_labels/epoch_1.pth", "--out", "scores.pkl"])
    predictions = mmengine.load("scores.pkl")
    assert len(predictions) == 4
    for prediction in predictions:
        assert prediction["pred_label"] == prediction["pred_score"].argmax()
        assert prediction["pred_score"].sum().item() == pytest.approx(1)


def test_mixed_precision(tmp_path):
    config = tmp_path / "narrow.py"
    config.write_text(NARROW.format(base=config_path("elsa_volo_nano_shapes")))
    cfg = Config.fromfile(config)
    cfg.model.data_preprocessor = cfg.data_preprocessor
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model).train()
    data = model.data_preprocessor(random_batch("mmpretrain", 9, 32), training=True)
    wrapper = CPUAmpOptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))

    def loss() -> torch.Tensor:
        torch.manual_seed(0)  # the same rectangle
        return sum(model(**data, mode="loss").values())

    full = loss()
    with wrapper.optim_context(model):
        half = loss()
    assert half.dtype == torch.float32
    assert half != full
    torch.testing.assert_close(half, full, rtol=0.02, atol=0)
    wrapper.update_params(half)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
