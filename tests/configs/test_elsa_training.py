"""The ELSA experiments train as the official ones did: decay, learning rate, loss."""

import math

import pytest
import torch
import torch.nn.functional as F
from mmengine.optim import build_optim_wrapper
from mmengine.registry import (
    MODELS,
)
from torch import nn

from .elsa_models import PUBLISHED, narrow
from .optim import learning_rates, split_by_decay

pytest.importorskip("mmcv._ext", reason="detectors and segmentors need mmcv's compiled ops")


@pytest.mark.parametrize(
    "name",
    ["elsa_swin_t_maskrcnn_1x", "elsa_swin_t_cascade_maskrcnn_3x", "elsa_swin_t_upernet_160k"],
)
def test_weight_decay_of_dense_models(load, name):
    cfg = narrow(load(name))
    # Not published, to see that the rules hold there too.
    cfg.model.backbone.update(use_abs_pos_embed=True, lam=1.0)
    model = MODELS.build(cfg.model)
    norms = {
        f"{name}.{kind}"
        for name, module in model.backbone.named_modules(prefix="backbone")
        if isinstance(module, nn.LayerNorm)
        for kind in ("weight", "bias")
    }
    decayed, exempt = split_by_decay(cfg, model)
    assert exempt == norms | {"backbone.absolute_pos_embed"}
    for kind in ("relative_position_bias_table", "ghost_add", "ghost_mul", "qkv.bias"):
        assert any(name.endswith(kind) for name in decayed), kind


def test_weight_decay_of_classifiers(load):
    for name in (name for name in PUBLISHED if "in1k" in name):
        cfg = narrow(load(name))
        cfg.model.backbone.update(use_abs_pos_embed=True, lam=1.0)
        model = MODELS.build(cfg.model)
        decayed, exempt = split_by_decay(cfg, model)
        assert exempt == {
            name
            for name, parameter in model.named_parameters()
            if parameter.dim() == 1 or name.endswith((".bias", ".absolute_pos_embed"))
        }
        for kind in ("relative_position_bias_table", "ghost_add", "ghost_mul", "qkv.weight"):
            assert any(name.endswith(kind) for name in decayed), kind


def timm_cosine(epoch: int) -> float:
    """CosineLRScheduler of timm 0.4.9, with the official arguments."""
    if epoch < 20:
        return 1e-6 + epoch * (1e-3 - 1e-6) / 20
    if epoch >= 300:
        return 1e-5
    return 1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + math.cos(math.pi * epoch / 300))


def test_learning_rate_of_classifiers(load):
    cfg = load("elsa_swin_t_in1k_300e")
    assert all(scheduler.by_epoch for scheduler in cfg.param_scheduler)
    rates = learning_rates(cfg, cfg.train_cfg.max_epochs)
    assert rates[0] == pytest.approx(1e-6)
    assert rates[10] == pytest.approx(timm_cosine(10), rel=0.003)
    for epoch in (20, 150, 299, 305):
        assert rates[epoch] == pytest.approx(timm_cosine(epoch), rel=1e-4)
    # The stated difference: up to 1 % lower during the warm-up, none afterwards.
    official = [timm_cosine(epoch) for epoch in range(310)]
    assert rates[20:] == pytest.approx(official[20:], rel=1e-4)
    for ours, theirs in zip(rates[:20], official[:20], strict=True):
        assert 0.99 * theirs < ours <= theirs * (1 + 1e-9)


def test_learning_rate_of_segmentors(load):
    """Against the poly policy of MMCV 1.x, whose warm-up scales the falling line."""

    def official(iteration: int) -> float:
        rate = 6e-5 * (1 - iteration / 160000)
        if iteration < 1500:
            rate *= 1 - (1 - iteration / 1500) * (1 - 1e-6)
        return rate

    cfg = load("elsa_swin_t_upernet_160k")
    rates = learning_rates(cfg, cfg.train_cfg.max_iters)
    for iteration in (0, 1, 750, 1499, 1500, 1501, 50000, 100000, 150000):
        assert rates[iteration] == pytest.approx(official(iteration), rel=1e-3)
    assert rates[-1] < 1e-9


def test_label_smoothing_of_mixed_labels(load):
    """As timm: each of the two labels smoothed, then mixed."""
    head = MODELS.build(load("elsa_swin_t_in1k_300e").model.head)
    torch.manual_seed(0)
    scores, weight = torch.randn(4, 1000), 0.3
    first, second = torch.arange(4), torch.tensor([7, 1, 500, 999])
    mixed = weight * F.one_hot(first, 1000) + (1 - weight) * F.one_hot(second, 1000)

    on, off = 1 - 0.1 + 0.1 / 1000, 0.1 / 1000
    target = torch.full((4, 1000), off)
    for index in range(4):
        for label, share in ((first[index], weight), (second[index], 1 - weight)):
            target[index, label] += share * (on - off)
    expected = -(target * scores.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(head.loss_module(scores, mixed), expected)


@pytest.mark.parametrize(
    "name",
    [
        "elsa_swin_t_maskrcnn_1x",
        "elsa_swin_t_cascade_maskrcnn_1x",
        "elsa_swin_t_upernet_160k",
        "elsa_swin_t_in1k_300e",
    ],
)
def test_train_step_in_one_process(load, name):
    cfg = narrow(load(name))
    if cfg.default_scope == "mmdet":
        rcnn = cfg.model.train_cfg.rcnn
        for stage in rcnn if isinstance(rcnn, list) else [rcnn]:
            stage.sampler.num = 8  # of 512, to save time
    model = MODELS.build(cfg.model)
    model.init_weights()
    model.train()
    if cfg.default_scope == "mmdet":
        from mmdet.testing import demo_mm_inputs

        shapes = [(3, 96, 128), (3, 128, 96)]
        data = demo_mm_inputs(2, shapes, num_classes=80, with_mask=True, device="cpu")
    elif cfg.default_scope == "mmseg":
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        samples = [SegDataSample(metainfo=dict(img_shape=(64, 96))) for _ in range(2)]
        for sample in samples:
            sample.gt_sem_seg = PixelData(data=torch.randint(0, 3, (1, 64, 96)))
        images = list(torch.randint(0, 255, (2, 3, 64, 96), dtype=torch.uint8))
        data = dict(inputs=images, data_samples=samples)
    else:
        from mmpretrain.structures import DataSample

        data = dict(
            inputs=torch.randint(0, 255, (2, 3, 224, 224), dtype=torch.uint8),
            data_samples=[DataSample().set_gt_label(label) for label in (1, 999)],
        )
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    torch.manual_seed(0)
    losses = model.train_step(data, wrapper)
    assert torch.isfinite(losses["loss"])
    assert losses["loss"] > 0
    unchanged = [n for n, p in model.named_parameters() if torch.equal(p, before[n])]
    # Only the backbone: without a good proposal, some heads have nothing to learn from.
    assert not [n for n in unchanged if n.startswith("backbone.")], unchanged
