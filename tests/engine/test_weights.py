"""A run takes only checkpoints that fit its model."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.model import BaseModel, BaseTTAModel, MMDistributedDataParallel
from torch import nn

from mmlocal.engine.weights import CheckWeightsHook
from mmlocal.errors import UsageError
from mmlocal.models.backbones import ELSASwin


class Model(BaseModel):
    def __init__(self, channels: int = 4, classes: int = 3):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(2, channels), nn.BatchNorm1d(channels))
        self.head = nn.Linear(channels, classes)

    def forward(self, x):
        return self.head(self.backbone(x))


class TTAModel(BaseTTAModel):
    def merge_preds(self, data_samples_list):
        return data_samples_list


def check(checkpoint: dict, whole: bool, model: nn.Module | None = None, resume: bool = False):
    cfg = dict(load_from="some.pth", resume=resume)
    runner = SimpleNamespace(model=model or Model(), cfg=cfg)
    CheckWeightsHook(whole).after_load_checkpoint(runner, checkpoint)


def test_the_same_model_fits():
    weights = Model().state_dict()
    for whole in (True, False):
        check(weights, whole)
        check({"state_dict": weights | {"old_head.weight": torch.ones(1)}}, whole)
        check({f"module.{key}": value for key, value in weights.items()}, whole)
    # as of old BatchNorm, which MMEngine does not ask for either
    del weights["backbone.1.num_batches_tracked"]
    check(weights, True, TTAModel(Model()))


def test_wrapped_for_a_distributed_run(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        check(Model().state_dict(), True, MMDistributedDataParallel(Model()))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            Model(channels=5).state_dict(),
            r"7 mismatched \(backbone\.0\.weight: \(5, 2\) for \(4, 2",
        ),
        (Model().backbone.state_dict(), r"0 loaded; .*9 missing .*7 unexpected"),
        ({}, "0 loaded"),
    ],
)
def test_another_model_does_not(weights, message):
    for model in (Model(), TTAModel(Model())):
        with pytest.raises(UsageError, match=f"'some.pth' does not fit the model.*{message}"):
            check({"state_dict": weights}, True, model)


def test_start_needs_something_that_fits():
    check(Model(classes=7).state_dict(), whole=False)
    with pytest.raises(UsageError, match=r"'some.pth' does not fit .* 0 loaded"):
        check(Model().backbone.state_dict(), whole=False)


def test_resumes_need_the_state_of_the_run():
    weights = Model().state_dict()
    with pytest.raises(UsageError, match=r"'some.pth' has no state .*load_from=some.pth"):
        check({"state_dict": weights}, True, resume=True)
    check({"state_dict": weights, "meta": {}, "message_hub": {}}, True, resume=True)


def test_modules_may_convert_what_they_load():
    model = Model()
    model.head._register_load_state_dict_pre_hook(
        lambda state_dict, prefix, *_: state_dict.update(
            {f"{prefix}bias": state_dict.pop(f"{prefix}old_bias")}
        )
    )
    weights = Model().state_dict()
    weights["head.old_bias"] = weights.pop("head.bias")
    check(weights, True, model)


class Versioned(nn.Linear):
    _version = 2

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        assert local_metadata["version"] == 2
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


@pytest.mark.parametrize("wrap", [False, True])
def test_modules_see_the_version_of_what_they_load(wrap):
    model = nn.Sequential(Versioned(2, 3))
    source = nn.Module()
    source.module = model
    check({"state_dict": (source if wrap else model).state_dict()}, True, model)


class Segmentor(BaseModel):
    def __init__(self, classes: int = 3, **kwargs):
        super().__init__()
        arch = dict(embed_dims=6, depths=(1, 1), num_heads=(1, 2), group_width=2)
        self.backbone = ELSASwin(arch, kernel_size=3, out_indices=(0, 1), **kwargs)
        self.head = nn.Linear(2, classes)

    def forward(self, x):
        return self.head(x)


def test_tables_of_other_windows():
    """A start and a test resize them, but a resumed optimizer would not fit them."""
    weights = Segmentor(window_size=5).state_dict()
    check(weights, True, Segmentor(window_size=7))
    check(weights, False, Segmentor(classes=7, window_size=7))
    checkpoint = {"state_dict": weights, "meta": {}, "message_hub": {}}
    check(checkpoint, True, Segmentor(window_size=5), resume=True)
    message = r"'some.pth' cannot be resumed, .* 1 resized .*bias_table: .* load_from=some.pth"
    with pytest.raises(UsageError, match=message):
        check(checkpoint, True, Segmentor(window_size=7), resume=True)


def test_a_backbone_of_other_shapes():
    weights = Segmentor(in_channels=4).state_dict()
    with pytest.raises(UsageError, match=r"does not fit .* ELSASwin cannot take .*\(6, 4"):
        check(weights, False, Segmentor(classes=7))
