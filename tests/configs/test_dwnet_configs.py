"""The DWNet experiments are the published ones: every number against the official runs."""

from pathlib import Path

import mmengine
import numpy as np
import pytest
import torch
from mmengine import Config
from mmengine.dataset import Compose
from mmengine.model.utils import convert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, TRANSFORMS
from torch import nn

import mmlocal

from .optim import learning_rates, split_by_decay

ROOT = Path(__file__).parents[2]
SPATIAL = {"": "static", "_dynamic": "dynamic", "_idynamic": "inhomogeneous"}
ARCHS = {"t": ("tiny", 96), "b": ("base", 128)}
# Top-1 accuracies of the official README, and counts of the official code.
CLASSIFIERS = {
    "dwnet_t_in1k_300e": (0.2, 24_172_744, [81.2]),
    "dwnet_t_dynamic_in1k_300e": (0.2, 51_131_752, [81.8]),
    "dwnet_t_idynamic_in1k_300e": (0.2, 26_244_280, []),
    "dwnet_b_in1k_300e": (0.5, 74_347_112, [83.2]),
    "dwnet_b_dynamic_in1k_300e": (0.5, 161_597_928, [83.2]),
    "dwnet_b_idynamic_in1k_300e": (0.5, 80_253_608, []),
}
# Millions of parameters, box AP and mask AP, or mIoU, of the official README.
DENSE = {
    "dwnet_t_cascade_maskrcnn_3x": (0.2, 82, [49.9, 43.4]),
    "dwnet_t_dynamic_cascade_maskrcnn_3x": (0.2, 108, [50.5, 43.7]),
    "dwnet_b_cascade_maskrcnn_3x": (0.3, 132, [51.0, 44.1]),
    "dwnet_b_dynamic_cascade_maskrcnn_3x": (0.3, 219, [51.2, 44.4]),
    "dwnet_t_upernet_160k": (0.3, 56, [45.5]),
    "dwnet_t_dynamic_upernet_160k": (0.3, 83, [45.7]),
    "dwnet_b_upernet_160k": (0.3, 108, [48.3]),
    "dwnet_b_dynamic_upernet_160k": (0.3, 195, [48.0]),
}


def needs_ops(name: str) -> None:
    if name in DENSE:
        pytest.importorskip("mmcv._ext", reason="detectors and segmentors need mmcv's ops")


def backbone_of(name: str, rate: float) -> dict:
    _, variant, kind = name.split("_")[:3]
    spatial = SPATIAL.get(f"_{kind}", "static")
    cfg = dict(type="mmlocal.DWNet", arch=ARCHS[variant][0], drop_path_rate=rate)
    if spatial != "static":
        cfg["spatial"] = spatial
    if name in CLASSIFIERS:
        cfg |= dict(pad_size_divisor=1, out_norm="LN", out_indices=(3,))
    return cfg


def narrow(cfg: Config) -> Config:
    """The same config, its backbone with few channels and blocks, to run on a CPU."""
    cfg.model.backbone.update(arch=dict(embed_dims=8, depths=[1, 1, 1, 1]), num_heads=4)
    channels = [8, 16, 32, 64]
    if cfg.default_scope == "mmdet":
        cfg.model.neck.in_channels = channels
    elif cfg.default_scope == "mmseg":
        cfg.model.decode_head.update(in_channels=channels, channels=8, num_classes=3)
        cfg.model.auxiliary_head.update(in_channels=32, channels=8, num_classes=3)
    else:
        cfg.model.head.in_channels = 64
    return cfg


@pytest.mark.parametrize("name", [*CLASSIFIERS, *DENSE])
def test_table(load, name):
    """Config, metafile and README agree with the official code and its README."""
    needs_ops(name)
    rate, parameters, figures = (CLASSIFIERS | DENSE)[name]
    cfg = load(name)
    dims = ARCHS[name.split("_")[1]][1]
    assert cfg.model.backbone == backbone_of(name, rate)
    with torch.device("meta"):
        model = MODELS.build(cfg.model)
    count = sum(parameter.numel() for parameter in model.parameters())
    if name in CLASSIFIERS:
        assert count == parameters
        assert cfg.model.head.in_channels == 8 * dims
    else:
        assert round(count / 1e6) == parameters
        channels = cfg.model.get("neck", cfg.model.get("decode_head")).in_channels
        assert channels == [dims * 2**i for i in range(4)]
    folder = ROOT / "configs" / cfg.default_scope
    (entry,) = [
        model for model in mmengine.load(folder / "metafile.yml")["Models"] if model["Name"] == name
    ]
    assert entry["Metadata"]["Parameters"] == count
    values = [value for result in entry["Results"] for value in result["Metrics"].values()]
    assert values == figures
    (row,) = [
        line
        for line in (folder / "README.md").read_text().splitlines()
        if line.startswith(f"| [{name}]({name}.py) |")
    ]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    expected = [str(rate), f"{count:,}", *(str(figure) for figure in figures or ["-"])]
    assert cells[-len(expected) :] == expected
    docstring = " ".join(Path(mmlocal.config_path(name)).read_text().split('"""')[1].split())
    assert "Published:" in docstring
    assert "Not reproduced here." in docstring
    assert all(str(figure) in docstring for figure in figures)


def test_classification_recipe(load):
    """Swin's, and the same for all six networks."""
    cfg = load("dwnet_t_in1k_300e")
    for name in CLASSIFIERS:
        other = load(name)
        assert other.optim_wrapper == cfg.optim_wrapper
        assert other.param_scheduler == cfg.param_scheduler
        assert other.train_pipeline == cfg.train_pipeline
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ("AdamW", 1e-3, 0.05)
    assert (optimizer.betas, optimizer.eps) == ((0.9, 0.999), 1e-8)
    assert cfg.optim_wrapper.clip_grad == dict(max_norm=5.0)
    assert cfg.train_cfg.max_epochs == 300
    assert 8 * cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == 1024
    assert cfg.model.train_cfg == dict(
        augments=[dict(type="Mixup", alpha=0.8), dict(type="CutMix", alpha=1.0)]
    )
    assert cfg.model.head.loss.label_smooth_val == 0.1
    assert cfg.test_pipeline[1].scale == 256
    assert "custom_hooks" not in cfg  # no averaged weights


def test_learning_rate(load):
    """Linear from 1e-6, then a cosine to 1e-5, by step; an epoch has 1251 steps, here 5."""
    cfg = load("dwnet_b_in1k_300e")
    for scheduler in cfg.param_scheduler:
        assert scheduler.convert_to_iter_based
        scheduler.epoch_length = 5
    rates = learning_rates(cfg, 300 * 5)
    assert rates[0] == pytest.approx(1e-6)
    assert rates[50] == pytest.approx(5e-4, rel=0.03)
    assert max(rates) == pytest.approx(1e-3, rel=0.02)
    assert rates.index(max(rates)) in range(98, 102)
    # MMEngine computes each rate from the one before it, so the end of the warm-up has an effect.
    assert rates[750] == pytest.approx((1e-3 + 1e-5) / 2, rel=0.02)
    assert rates[-1] == pytest.approx(1e-5, rel=0.02)


@pytest.mark.parametrize(
    "name", ["dwnet_t_dynamic_in1k_300e", "dwnet_t_dynamic_cascade_maskrcnn_3x",
             "dwnet_t_dynamic_upernet_160k"]
)  # fmt: skip
def test_weight_decay(load, name):
    """ImageNet spares all norms and biases. COCO and ADE20K spare what is called ``norm``."""
    needs_ops(name)
    cfg = narrow(load(name))
    model = MODELS.build(cfg.model)
    with_decay, without = split_by_decay(cfg, model)
    if name in CLASSIFIERS:
        assert without == {n for n, p in model.named_parameters() if p.dim() <= 1}
        return
    assert without == {n for n in with_decay | without if "norm" in n}
    outputs = {f"backbone.norm{i}.{kind}" for i in range(4) for kind in ("weight", "bias")}
    assert outputs <= without
    block = "backbone.stages.0.blocks.0."
    for kind in ("bn1", "bn2", "bn3", "bn_mlp", "attn.predictor.bn"):
        assert block + kind + ".weight" in with_decay
    assert block + "attn.bias" in with_decay


@pytest.mark.parametrize("name", ["dwnet_t_cascade_maskrcnn_3x", "dwnet_t_dynamic_upernet_160k"])
def test_batch_norms_synchronise_in_distributed_runs(load, name):
    """All of them, as MMEngine's Runner does to the model in a distributed run."""
    needs_ops(name)
    cfg = narrow(load(name))
    model = convert_sync_batchnorm(MODELS.build(cfg.model), cfg.sync_bn)
    norms = [m for m in model.backbone.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert len(norms) == (4 if "dynamic" not in name else 5) * 4 + 4
    assert not any(type(m) is nn.BatchNorm2d for m in model.modules())


@pytest.mark.parametrize(
    ("name", "elsa"),
    [
        ("dwnet_b_dynamic_cascade_maskrcnn_3x", "elsa_swin_t_cascade_maskrcnn_3x"),
        ("dwnet_b_dynamic_upernet_160k", "elsa_swin_t_upernet_160k"),
    ],
)
def test_dense_recipe_is_the_one_of_elsa(load, name, elsa):
    """Both are Swin's."""
    needs_ops(name)
    cfg, elsa = load(name), load(elsa)
    for part in (cfg, elsa):
        part.pop("model")
    assert cfg.to_dict() == elsa.to_dict()


@pytest.mark.parametrize(
    "name",
    ["dwnet_t_in1k_300e", "dwnet_t_dynamic_in1k_300e", "dwnet_t_idynamic_in1k_300e"],
)
def test_train_step(load, name):
    from mmpretrain.structures import DataSample

    cfg = narrow(load(name))
    cfg.model.backbone.drop_path_rate = 0.0  # every block takes part
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    wrapper = build_optim_wrapper(model.train(), cfg.optim_wrapper)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    data = dict(
        inputs=torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8),
        data_samples=[DataSample().set_gt_label(label) for label in (1, 999)],
    )
    losses = model.train_step(data, wrapper)
    assert losses["loss"].isfinite()
    unchanged = {n for n, p in model.named_parameters() if torch.equal(p, before[n])}
    assert not unchanged


def test_training_images(load, image):
    """They are erased with the noise of the mean and the spread of ImageNet, before they mix."""
    cfg = load("dwnet_t_in1k_300e")
    *steps, erasing, _ = cfg.train_pipeline
    assert [step.type for step in steps] == [
        "LoadImageFromFile", "RandomResizedCrop", "RandomFlip", "RandAugment"
    ]  # fmt: skip
    assert steps[1].interpolation == "bicubic"
    noise = TRANSFORMS.build(dict(erasing, erase_prob=1.0, min_area_ratio=0.3))
    np.random.seed(0)  # noqa: NPY002  (the generator of the transform)
    erased = noise(dict(img=np.zeros((224, 224, 3), np.uint8)))["img"]
    values = erased[erased.any(axis=2)]
    assert 0.25 < len(values) / 224**2 < 0.4
    assert values.mean(axis=0) == pytest.approx([103.53, 116.28, 123.675], rel=0.03)
    pipeline = Compose([TRANSFORMS.build(dict(step)) for step in cfg.train_pipeline])
    packed = pipeline(image(320, 240) | dict(gt_label=3))
    assert packed["inputs"].shape == (3, 224, 224)
    assert packed["inputs"].dtype == torch.uint8
