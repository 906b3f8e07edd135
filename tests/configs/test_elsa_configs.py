"""The ELSA experiments are the published ones: every number against the official runs."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from mmengine import Config
from mmengine.model.utils import convert_sync_batchnorm
from mmengine.registry import (
    HOOKS,
    MODELS,
)
from torch import nn

from .elsa_models import PUBLISHED, narrow

pytest.importorskip("mmcv._ext", reason="detectors and segmentors need mmcv's compiled ops")


DETECTION = {
    "elsa_swin_t_maskrcnn_1x": (0.1, 12, [8, 11]),
    "elsa_swin_t_maskrcnn_3x": (0.2, 36, [27, 33]),
    "elsa_swin_s_maskrcnn_1x": (0.2, 12, [8, 11]),
    "elsa_swin_s_maskrcnn_3x": (0.75, 36, [27, 33]),
    "elsa_swin_t_cascade_maskrcnn_1x": (0.0, 12, [8, 11]),
    "elsa_swin_t_cascade_maskrcnn_3x": (0.2, 36, [27, 33]),
    "elsa_swin_s_cascade_maskrcnn_1x": (0.2, 12, [8, 11]),
    "elsa_swin_s_cascade_maskrcnn_3x": (0.75, 36, [27, 33]),
}


@pytest.mark.parametrize("name", DETECTION)
def test_detection_table(load, name):
    drop_path_rate, epochs, drops = DETECTION[name]
    cfg = load(name)
    assert cfg.model.backbone == dict(
        type="mmlocal.ELSASwin",
        arch={"t": "tiny", "s": "small"}[name.split("_")[2]],
        drop_path_rate=drop_path_rate,
    )
    assert cfg.train_cfg.max_epochs == epochs
    warmup, steps = cfg.param_scheduler
    assert (warmup.start_factor, warmup.begin, warmup.end) == (0.001, 0, 500)
    assert not warmup.by_epoch
    assert (steps.milestones, steps.gamma, steps.end) == (drops, 0.1, epochs)
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ("AdamW", 1e-4, 0.05)
    assert "clip_grad" not in cfg.optim_wrapper
    assert cfg.train_dataloader.batch_size == 2
    assert cfg.auto_scale_lr.base_batch_size == 16


@pytest.mark.parametrize("variant", "tsb")
@pytest.mark.parametrize("schedule", ["1x", "3x"])
def test_base_detectors_are_as_small_ones(load, variant, schedule):
    cascade, plain = (
        load(f"elsa_swin_{variant}_{head}maskrcnn_{schedule}") for head in ("cascade_", "")
    )
    assert cascade.train_pipeline == plain.train_pipeline
    assert cascade.optim_wrapper == plain.optim_wrapper
    if variant == "b":
        small = load(f"elsa_swin_s_cascade_maskrcnn_{schedule}")
        small.model.backbone.arch = "base"
        small.model.neck.in_channels = [128, 256, 512, 1024]
        assert small.to_dict() == cascade.to_dict()


def test_cascade_is_the_official_one(load):
    """Against MMDetection's own Cascade Mask R-CNN, which the official file only changes so far."""
    import mmdet

    stock = Config.fromfile(
        Path(mmdet.__file__).parent / ".mim/configs/_base_/models/cascade-mask-rcnn_r50_fpn.py"
    ).model
    for head in stock.roi_head.bbox_head:
        head.update(type="ConvFCBBoxHead", num_shared_convs=4, num_shared_fcs=1)
        head.update(conv_out_channels=256, reg_class_agnostic=False, reg_decoded_bbox=True)
        head.update(norm_cfg=dict(type="BN", requires_grad=True))
        head.loss_bbox = dict(type="GIoULoss", loss_weight=10.0)
    ours = load("elsa_swin_t_cascade_maskrcnn_1x").model
    for part in (stock, ours):
        part.pop("backbone")
        part.neck.pop("in_channels")
    assert ours.to_dict() == stock.to_dict()


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("elsa_swin_t_cascade_maskrcnn_1x", 3 * 4),
        # pyramid pooling, laterals, FPN, fusion, auxiliary head
        ("elsa_swin_t_upernet_160k", 5 + 3 + 3 + 1 + 1),
    ],
)
def test_heads_synchronise_in_distributed_runs(load, name, layers):
    """What MMEngine's Runner does to a model in a distributed run, and only there."""
    cfg = narrow(load(name))
    model = MODELS.build(cfg.model)
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())
    model = convert_sync_batchnorm(model, cfg.sync_bn)
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in model.modules()) == layers
    assert not any(type(m) is nn.BatchNorm2d for m in model.modules())


# Millions, as counted from the official code and config files.
PARAMETERS = {
    "elsa_swin_t_maskrcnn_1x": 48.65,
    "elsa_swin_s_maskrcnn_1x": 72.38,
    "elsa_swin_t_cascade_maskrcnn_1x": 86.5,
    "elsa_swin_s_cascade_maskrcnn_1x": 110.2,
    "elsa_swin_t_upernet_160k": 60.8,
    "elsa_swin_s_upernet_160k": 84.5,
    "elsa_swin_t_in1k_300e": 29.140978,
    "elsa_swin_s_in1k_300e": 52.874626,
    "elsa_swin_b_in1k_300e": 92.682464,
}


@pytest.mark.parametrize("name", [n for n in PUBLISHED if not n.endswith("_3x")])
def test_parameters_and_forward(load, index, name):
    """Of the whole model, without its memory; test_prediction in test_configs.py has numbers."""
    cfg = load(name)
    with torch.device("meta"):
        model = MODELS.build(cfg.model).eval()
    count = sum(parameter.numel() for parameter in model.parameters())
    if name in PARAMETERS:
        digits = len(str(PARAMETERS[name]).split(".")[1])
        assert round(count / 1e6, digits) == PARAMETERS[name]
    for same in {name, name.replace("_1x", "_3x")}:
        assert index[same].metadata.data["Parameters"] == count

    with torch.no_grad(), torch.device("meta"):
        if cfg.default_scope == "mmdet":
            outs = model.extract_feat(torch.rand(1, 3, 50, 70))
            assert [tuple(out.shape[1:]) for out in outs] == [
                (256, 13, 18), (256, 7, 9), (256, 4, 5), (256, 2, 3), (256, 1, 2)
            ]  # fmt: skip
        elif cfg.default_scope == "mmseg":
            assert model(torch.rand(1, 3, 50, 70)).shape == (1, 150, 13, 18)
        else:
            side = cfg.test_pipeline[-2].get("crop_size", 384)
            assert model(torch.rand(1, 3, side, side)).shape == (1, 1000)


def test_segmentation_table(load):
    for variant, arch, channels in (("t", "tiny", 96), ("s", "small", 96), ("b", "base", 128)):
        cfg = load(f"elsa_swin_{variant}_upernet_160k")
        assert cfg.model.backbone == dict(type="mmlocal.ELSASwin", arch=arch, drop_path_rate=0.3)
        assert cfg.model.decode_head.in_channels == [channels * 2**i for i in range(4)]
        assert (cfg.model.decode_head.channels, cfg.model.decode_head.num_classes) == (512, 150)
        assert cfg.model.auxiliary_head.in_channels == 4 * channels
        assert cfg.model.auxiliary_head.loss_decode.loss_weight == 0.4
        assert cfg.train_cfg.max_iters == 160000
        optimizer = cfg.optim_wrapper.optimizer
        assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ("AdamW", 6e-5, 0.01)
        assert cfg.train_dataloader.batch_size == 2
        assert cfg.auto_scale_lr.base_batch_size == 16


def test_classification_table(load):
    for variant, arch, rate in (("t", "tiny", 0.1), ("s", "small", 0.3), ("b", "base", 0.5)):
        cfg = load(f"elsa_swin_{variant}_in1k_300e")
        assert cfg.model.backbone == dict(
            type="mmlocal.ELSASwin",
            arch=arch,
            fit_window=True,
            out_indices=(3,),
            drop_path_rate=rate,
        )
        assert cfg.train_cfg.max_epochs == 310
        optimizer = cfg.optim_wrapper.optimizer
        assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ("AdamW", 1e-3, 0.05)
        assert cfg.optim_wrapper.clip_grad == dict(max_norm=5.0)
        assert 8 * cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == 1024
        hooks = [HOOKS.build(deepcopy(hook)) for hook in cfg.get("custom_hooks", [])]
        if variant == "b":
            assert hooks[0].ema_cfg["momentum"] == pytest.approx(1 - 0.99992)
            assert hooks[0].evaluate_on_ema
            assert not hooks[0].evaluate_on_origin
        else:
            assert not hooks


def test_classifier_starts_as_timm_does(load):
    torch.manual_seed(0)
    model = MODELS.build(narrow(load("elsa_swin_t_in1k_300e")).model)
    model.init_weights()
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert model.head.fc in linears
    for linear in linears:
        assert linear.weight.detach().std().item() == pytest.approx(0.02, rel=0.2)
        assert linear.bias is None or not linear.bias.any()


def test_fine_tuning_starts_from_the_smaller_images(load, tmp_path):
    source = MODELS.build(narrow(load("elsa_swin_b_in1k_300e")).model)
    source.init_weights()
    checkpoint = tmp_path / "epoch_310.pth"
    torch.save(dict(state_dict=source.state_dict()), checkpoint)

    cfg = narrow(load("elsa_swin_b_in1k_30e_384"))
    assert cfg.model.backbone.init_cfg.checkpoint == cfg.model.head.init_cfg.checkpoint
    with pytest.raises(FileNotFoundError, match=r"epoch_310\.pth"):
        MODELS.build(deepcopy(cfg.model)).init_weights()
    for part in (cfg.model.backbone, cfg.model.head):
        part.init_cfg.checkpoint = str(checkpoint)
    model = MODELS.build(cfg.model)
    model.init_weights()
    old = source.state_dict()
    for name, tensor in model.state_dict().items():
        if name.endswith("relative_position_bias_table"):
            assert (len(old[name]), len(tensor)) == (13**2, 23**2)
        else:
            torch.testing.assert_close(tensor, old[name], rtol=0, atol=0)
