"""The DETR experiments of the QnA paper."""

from pathlib import Path

import pytest
import torch
from mmengine import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS

from mmlocal.datasets.shapes import CLASSES
from mmlocal.datasets.shapes.export import OBJECTS_PER_IMAGE
from mmlocal.layers import QnA

from .optim import learning_rates

pytest.importorskip("mmcv._ext", reason="detectors need mmcv's compiled ops")
mmdet = pytest.importorskip("mmdet")

STOCK = Path(mmdet.__file__).parent / ".mim/configs/detr/detr_r50_8xb2-150e_coco.py"
BACKBONES = {
    "r50_detr_75e": None,
    "r50_detr_qna_75e": None,
    "qna_vit_t_detr_75e": "tiny",
    "qna_vit_t_detr_qna_75e": "tiny",
    "qna_vit_t_7x7_detr_75e": "tiny_7x7",
    "qna_vit_t_7x7_detr_qna_75e": "tiny_7x7",
}


def width(name: str) -> int:
    """Of the windows of the encoder's QnA layers: as in the backbone, 7 for ResNet-50."""
    return 3 if BACKBONES[name] == "tiny" else 7


def build(cfg: Config) -> torch.nn.Module:
    """The model without its numbers: what counts are names and shapes."""
    with torch.device("meta"):
        return MODELS.build(cfg.model)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_baseline_is_the_detr_of_mmdet(load):
    stock = Config.fromfile(STOCK)
    ours = load("r50_detr_75e")
    assert ours.model.to_dict() == stock.model.to_dict()
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        stock[loader].setdefault("batch_size", 1)
        expected = stock[loader].to_dict()
        if loader == "train_dataloader":
            assert (expected["batch_size"], ours[loader].batch_size) == (2, 4)
            expected["batch_size"] = 4
        assert ours[loader].to_dict() == expected, loader
    assert ours.val_evaluator.metric == ours.test_evaluator.metric == "bbox"


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones(load, name):
    cfg, baseline = load(name), load("r50_detr_75e")
    if BACKBONES[name]:
        assert cfg.model.backbone == dict(
            type="mmlocal.QnAViT", arch=BACKBONES[name], out_indices=(3,)
        )
        assert cfg.model.neck.pop("in_channels") == [512]
        baseline.model.neck.pop("in_channels")
        cfg.model.backbone = baseline.model.backbone
    if "detr_qna" in name:
        assert cfg.model.type == "mmlocal.DETRQnA"
        encoder = cfg.model.encoder
        assert encoder.pop("qna_cfg") == dict(num_heads=32, kernel_size=width(name))
        # four instead of two of six
        assert (len(encoder.pop("qna_indices")), encoder.num_layers) == (4, 8)
        cfg.model.type, encoder.num_layers = "DETR", 6
    assert cfg.model.to_dict() == baseline.model.to_dict()
    for key in ("train_dataloader", "val_dataloader", "optim_wrapper", "param_scheduler"):
        assert cfg[key] == baseline[key]


@pytest.mark.parametrize("name", BACKBONES)
def test_schedule(load, name):
    """75 epochs of 32 images per step, drop after 50; a tenth of the rate for the backbone."""
    cfg = load(name)
    assert cfg.train_cfg.max_epochs == 75
    rates = learning_rates(cfg, 75)
    assert rates == pytest.approx([1e-4] * 50 + [1e-5] * 25)
    assert 8 * cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == 32
    assert cfg.optim_wrapper.clip_grad.max_norm == 0.1

    model = build(cfg)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    assert type(optimizer).__name__ == "AdamW"
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            of_backbone = names[id(parameter)].startswith("backbone.")
            assert group["lr"] == pytest.approx(1e-5 if of_backbone else 1e-4)
            assert group["weight_decay"] == pytest.approx(1e-4)


def test_weights_of_detr_fit_while_no_layer_is_qna(load):
    """Names are unchanged, so checkpoints of mmdet load."""
    cfg = load("r50_detr_qna_75e")  # also sets the scope
    stock = build(Config.fromfile(STOCK))
    cfg.model.encoder.update(num_layers=6, qna_indices=[])
    ours = build(cfg)
    assert type(ours).__name__ == "DETRQnA"
    ours.load_state_dict(stock.state_dict(), strict=True, assign=True)


@pytest.mark.parametrize("backbone", ["r50", "qna_vit_t", "qna_vit_t_7x7"])
def test_what_qna_adds(load, backbone):
    plain, mixed = build(load(f"{backbone}_detr_75e")), build(load(f"{backbone}_detr_qna_75e"))
    c, queries, heads, hidden = 256, 2, 32, 2048
    taps = width(f"{backbone}_detr_qna_75e") ** 2
    rest = c * hidden + hidden + hidden * c + c + 2 * 2 * c  # FFN, two norms
    attn = 4 * (c * c + c)
    qna = queries * c + 3 * c * c + 2 * taps * queries * heads
    assert count(plain.encoder) == 6 * (attn + rest)
    assert count(mixed) - count(plain) == 4 * (qna + rest) - 2 * (attn + rest)
    assert sum(isinstance(module, QnA) for module in mixed.encoder.modules()) == 4


# Also in README.md and metafile.yml, which test_model_index.py compares.
PARAMETERS = {
    "r50_detr_75e": 41_575_061,
    "r50_detr_qna_75e": 43_966_101,
    "qna_vit_t_detr_75e": 32_876_373,
    "qna_vit_t_detr_qna_75e": 35_246_933,
    "qna_vit_t_7x7_detr_75e": 32_914_773,
    "qna_vit_t_7x7_detr_qna_75e": 35_305_813,
}


def test_training_step(load):
    """In full size, on a padded batch; every layer of the encoder learns."""
    from mmdet.testing import demo_mm_inputs

    cfg = load("qna_vit_t_detr_qna_75e")
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).train()
    model.init_weights()
    for name, parameter in model.backbone.named_parameters():
        # Stands for trained weights: with biases of zero, padding stays zero in every layer.
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.02)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    before = {key: value.detach().clone() for key, value in model.encoder.named_parameters()}
    data = demo_mm_inputs(2, [(3, 64, 96), (3, 96, 64)], num_classes=80, device="cpu")
    losses = model.train_step(data, wrapper)
    assert losses["loss"].isfinite()
    after = dict(model.encoder.named_parameters())
    assert all(value.isfinite().all() for value in after.values())
    assert [key for key in after if torch.equal(after[key], before[key])] == []


@pytest.mark.parametrize("name", BACKBONES)
def test_parameters(load, name):
    model = build(load(name))
    assert count(model) == PARAMETERS[name]
    if name == "r50_detr_75e":
        # The official code prints 41302368, for 91 classes, without frozen layers and batch norms.
        resnet = model.backbone
        frozen = resnet.conv1.weight.numel() + sum(
            parameter.numel() for parameter in resnet.layer1.parameters() if parameter.dim() == 4
        )
        norms = sum(parameter.numel() for parameter in resnet.parameters() if parameter.dim() == 1)
        assert count(model) - frozen - norms + 11 * (256 + 1) == 41_302_368
    elif BACKBONES[name]:
        official = {"tiny": 15_715_560, "tiny_7x7": 15_753_960}[BACKBONES[name]]
        assert count(model.backbone) == official - (512 + 1) * 1000


@pytest.mark.parametrize(
    ("name", "detector"),
    [("detr_qna_shapes", "DETRQnA"), ("conditional_detr_qna_shapes", "ConditionalDETRQnA")],
)
def test_on_the_generated_data(load, name, detector):
    cfg = load(name)
    model = build(cfg)
    assert type(model).__name__ == detector
    layers = [isinstance(layer.self_attn, QnA) for layer in model.encoder.layers]
    assert layers == [True, True, False, False]
    assert model.bbox_head.num_classes == len(CLASSES)
    # No picture holds more objects than can be found.
    assert OBJECTS_PER_IMAGE[1] <= model.num_queries == cfg.model.test_cfg.max_per_img
