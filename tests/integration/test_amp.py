"""``--amp`` trains each library, on a GPU or the CPU, with losses near those of float32."""

import math

import pytest
import torch
from mmengine.device import get_device
from mmengine.model import BaseModel
from torch import nn

from mmlocal.cli.runner import has_bfloat16
from mmlocal.engine.optim import CPUAmpOptimWrapper
from mmlocal.models.autoencoders import AutoEncoder

from .conftest import TOOLS, scalars, succeeds


class Backbone(nn.Linear):
    def forward(self, x):
        if x.isnan().any():
            raise FloatingPointError
        out = super().forward(x)
        self.seen = out.dtype
        return (out,)


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.backbone = Backbone(4, 4)
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        (features,) = self.backbone(x)
        return features, self.head(features)


def test_only_the_backbone_is_in_bfloat16():
    model, x = Model(), torch.ones(2, 4)
    wrapper = CPUAmpOptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    with wrapper.optim_context(model):
        features, out = model(x)
    assert model.backbone.seen == torch.bfloat16
    assert features.dtype == out.dtype == torch.float32
    wrapper.update_params(out.sum())
    assert model.backbone.weight.dtype == torch.float32
    with pytest.raises(FloatingPointError), wrapper.optim_context(model):
        model(x * torch.nan)
    assert not torch.is_autocast_enabled("cpu")
    model(x)
    assert model.backbone.seen == torch.float32


def test_without_a_backbone_all_is_in_bfloat16():
    model = AutoEncoder(embed_dims=8, num_heads=2, num_layers=2)
    wrapper = CPUAmpOptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    seen = []
    model.head.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    data = dict(inputs=torch.rand(2, 3, 16, 16))
    with wrapper.optim_context(model):
        loss = model(**data, mode="loss")["loss"]
    assert seen == [torch.bfloat16]
    assert loss.dtype == torch.float32
    wrapper.update_params(loss)
    assert not torch.is_autocast_enabled("cpu")
    assert model(**data, mode="loss")["loss"] < loss


@pytest.mark.slow
def test_amp_is_near_float32(library, trained, folder):
    config, whole = trained
    work_dir = folder / f"amp_{library}"
    succeeds(
        *(TOOLS / "train.py", config, "--work-dir", work_dir, "--amp", "--no-validate"), cwd=folder
    )
    expected, found = scalars(whole), scalars(work_dir)
    assert found.keys() == expected.keys()
    assert all(math.isfinite(entry["loss"]) for entry in found.values())
    in_float32 = get_device() == "cpu" and not has_bfloat16()
    assert (found[1]["loss"] == expected[1]["loss"]) == in_float32
    names = {name for name in expected[1] if "loss" in name}
    if library == "mmdet":
        # Rounding changes which proposals come first, and with them the boxes to regress.
        names -= {"loss", "loss_bbox"}
        assert names == {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_mask"}
    for name in names:
        assert found[1][name] == pytest.approx(expected[1][name], rel=0.02), name
