"""The QnA-ViT experiments have the official recipe: every number against the official runs."""

import math
from copy import deepcopy
from pathlib import Path

import cv2
import mmengine
import numpy as np
import pytest
import torch
from mmengine import Config
from mmengine.dataset import Compose
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, TRANSFORMS
from torch import nn

import mmlocal

from .optim import learning_rates, split_by_decay

pytest.importorskip("mmcv._ext", reason="detectors and segmentors need mmcv's compiled ops")

ROOT = Path(__file__).resolve().parents[2]
TABLES = ("attn_scale_table", "rel_pos_table", "relative_position_bias_table")


def narrow(cfg: Config) -> Config:
    """The same config, its backbone with few channels and blocks, to run on a CPU."""
    channels = [8, 16, 32, 64]
    cfg.model.backbone.arch = dict(
        embed_dims=8,
        attn_depths=[0, 0, 1, 1],
        qna_depths=[1, 1, 1, 0],
        attn_heads=[1, 1, 2, 2],
        qna_heads=[1, 2, 4, 8],
    )
    if cfg.default_scope == "mmdet":
        cfg.model.neck.in_channels = channels
        cfg.model.train_cfg.rcnn.sampler.num = 8  # of 512, to save time
    elif cfg.default_scope == "mmseg":
        cfg.model.decode_head.update(in_channels=channels, channels=8, num_classes=3)
        cfg.model.auxiliary_head.update(in_channels=32, channels=8, num_classes=3)
    else:
        cfg.model.head.in_channels = 64
        if cfg.model.neck.type == "mmlocal.QnAPooling":
            cfg.model.neck.update(in_channels=64, num_heads=8)
    return cfg


def transform(pipeline: list[dict], results: dict) -> dict:
    return Compose([TRANSFORMS.build(deepcopy(step)) for step in pipeline])(results)


# Models

# config: (arch, drop path rate, channels, parameters as in the official code, top-1)
CLASSIFIERS = {
    "qna_vit_t_in1k_300e": ("tiny", 0.05, 512, 15_715_560, 81.7),
    "qna_vit_t_7x7_in1k_300e": ("tiny_7x7", 0.05, 512, 15_753_960, 82.0),
    "qna_vit_s_in1k_300e": ("small", 0.2, 512, 24_971_560, 83.2),
    "qna_vit_b_in1k_300e": ("base", 0.5, 768, 55_670_008, 83.9),
}
# Ours: parameters, where they follow from the official ones.
EXTENSIONS = {
    # 2 queries, keys and values and output, two tables of 49 taps
    "qna_vit_t_qnav1_in1k_300e": 15_715_560 + 2 * 512 + 3 * 512**2 + 2 * 49 * 2 * 64,
    "qna_vit_t_qnav2_in1k_300e": 15_715_560 + 2 * 512 + 3 * 512**2 + 2 * 49 * 2 * 64,
    # tables of 12 layers with 8 or 12 heads in stage 3 and of 2 with 16 or 24 in stage 4
    "qna_vit_s_in1k_30e_384": 24_971_560 + 12 * 8 * (47**2 - 27**2) + 2 * 16 * (23**2 - 13**2),
    "qna_vit_b_in1k_30e_384": 55_670_008 + 12 * 12 * (47**2 - 27**2) + 2 * 24 * (23**2 - 13**2),
    "qna_vit_t_maskrcnn_1x": None,
    "qna_vit_s_maskrcnn_1x": None,
    "qna_vit_t_upernet_160k": None,
    "qna_vit_s_upernet_160k": None,
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classification_table(load, name):
    arch, rate, channels, parameters, _ = CLASSIFIERS[name]
    cfg = load(name)
    assert cfg.model.backbone == dict(
        type="mmlocal.QnAViT", arch=arch, out_indices=(3,), drop_path_rate=rate
    )
    assert cfg.model.head.in_channels == channels
    with torch.device("meta"):
        model = MODELS.build(cfg.model)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters

    assert cfg.train_cfg.max_epochs == 300
    optimizer = cfg.optim_wrapper.optimizer
    assert optimizer == dict(
        type="AdamW", lr=5e-4 * 1024 / 256, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05
    )
    assert "clip_grad" not in cfg.optim_wrapper
    assert "custom_hooks" not in cfg  # no averaged weights
    assert 8 * cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == 1024
    assert cfg.train_dataloader.drop_last
    augments = cfg.model.train_cfg.augments
    assert augments.augments == [dict(type="Mixup", alpha=0.8), dict(type="CutMix", alpha=1.0)]
    assert augments.erase_first
    assert cfg.model.head.loss.label_smooth_val == 0.1


@pytest.mark.parametrize("name", list(CLASSIFIERS) + list(EXTENSIONS))
def test_index_readme_and_docstring(load, name):
    cfg = load(name)
    with torch.device("meta"):
        model = MODELS.build(cfg.model)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert EXTENSIONS.get(name) in (None, count)

    path = Path(mmlocal.config_path(name))
    folder = ROOT / "configs" / cfg.default_scope
    (entry,) = [
        model for model in mmengine.load(folder / "metafile.yml")["Models"] if model["Name"] == name
    ]
    assert entry["Metadata"]["Parameters"] == count
    (row,) = [
        line
        for line in (folder / "README.md").read_text().splitlines()
        if line.startswith(f"| [{name}]({name}.py) |")
    ]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert str(cfg.model.backbone.drop_path_rate) in cells
    assert f"{count:,}" in cells
    figures = [figure for result in entry["Results"] for figure in result["Metrics"].values()]
    docstring = " ".join(path.read_text().split('"""')[1].split())
    if name in CLASSIFIERS:
        assert figures[0] == CLASSIFIERS[name][-1]
        assert all(str(figure) in docstring for figure in figures)
        assert cells[-1] == str(figures[0])
        assert f"Published: {figures[0]} % top-1" in docstring
        assert "Not reproduced here." in docstring
    else:
        assert figures == []
        assert cells[-1] == "-"
        assert "Our extension:" in docstring


@pytest.mark.parametrize("variant", ["t", "s"])
def test_dense_table(load, variant):
    arch, rate = {"t": ("tiny", 0.05), "s": ("small", 0.2)}[variant]
    backbone = dict(type="mmlocal.QnAViT", arch=arch, drop_path_rate=rate)
    detector = load(f"qna_vit_{variant}_maskrcnn_1x")
    assert detector.model.backbone == backbone
    assert detector.model.neck.in_channels == [64, 128, 256, 512]
    segmentor = load(f"qna_vit_{variant}_upernet_160k")
    assert segmentor.model.backbone == backbone
    assert segmentor.model.decode_head.in_channels == [64, 128, 256, 512]
    assert segmentor.model.auxiliary_head.in_channels == 256
    # All else as in the ELSA experiments, whose recipe is Swin's.
    for cfg, elsa in (
        (detector, load("elsa_swin_t_maskrcnn_1x")),
        (segmentor, load("elsa_swin_t_upernet_160k")),
    ):
        for part in (cfg, elsa):
            part.pop("model")
            for table in TABLES:
                part.optim_wrapper.paramwise_cfg.custom_keys.pop(table, None)
        assert cfg.to_dict() == elsa.to_dict()


def test_classifier_starts_as_in_flax(load):
    """LeCun normal everywhere, the classifier included, and no bias."""
    torch.manual_seed(0)
    model = MODELS.build(load("qna_vit_t_in1k_300e").model)
    model.init_weights()
    for linear in (model.head.fc, model.backbone.stages[3].blocks[0].mlp.fc1):
        assert linear.weight.std().item() == pytest.approx(linear.in_features**-0.5, rel=0.01)
        assert not linear.bias.any()


def test_fine_tuning_starts_from_the_smaller_images(load, tmp_path):
    source = MODELS.build(narrow(load("qna_vit_b_in1k_300e")).model)
    source.init_weights()
    for name, parameter in source.named_parameters():
        if name.endswith(TABLES):  # they start at zero or near it
            nn.init.normal_(parameter)
    checkpoint = tmp_path / "epoch_300.pth"
    torch.save(dict(state_dict=source.state_dict()), checkpoint)

    for variant in "sb":
        cfg = narrow(load(f"qna_vit_{variant}_in1k_30e_384"))
        for part in (cfg.model.backbone, cfg.model.head):
            expected = f"work_dirs/qna_vit_{variant}_in1k_300e/epoch_300.pth"
            assert part.init_cfg.checkpoint == expected
        with pytest.raises(FileNotFoundError, match=r"epoch_300\.pth"):
            MODELS.build(deepcopy(cfg.model)).init_weights()
        for part in (cfg.model.backbone, cfg.model.head):
            part.init_cfg.checkpoint = str(checkpoint)
        model = MODELS.build(cfg.model).eval()
        model.init_weights()
        old = source.state_dict()
        resized = {}
        for name, tensor in model.state_dict().items():
            if name.endswith("relative_position_bias_table"):
                resized[name.split(".")[2]] = (len(old[name]), len(tensor))
                assert tensor.std() > 0.1
            else:
                torch.testing.assert_close(tensor, old[name], rtol=0, atol=0)
        assert resized == {"2": (27**2, 47**2), "3": (13**2, 23**2)}

        # Attention stays global in both of these stages.
        windows = []
        for stage in model.backbone.stages[2:]:
            stage.blocks[0].attn.w_msa.register_forward_pre_hook(
                lambda module, args, windows=windows: windows.append(args[0].shape[1])
            )
        with torch.no_grad():
            assert model(torch.rand(1, 3, 384, 384)).shape == (1, 1000)
        assert windows == [24 * 24, 12 * 12]


def test_forward_at_384(load):
    cfg = load("qna_vit_s_in1k_30e_384")
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).eval()
    with torch.no_grad():
        scores = model(torch.rand(1, 3, 384, 384))
    assert scores.shape == (1, 1000)
    assert scores.isfinite().all()


# Training


@pytest.mark.parametrize("name", [n for n in [*CLASSIFIERS, *EXTENSIONS] if "in1k" in n])
def test_weight_decay_of_classifiers(load, name):
    cfg = narrow(load(name))
    model = MODELS.build(cfg.model)
    spared = (*TABLES, "query") if name.endswith("384") else TABLES
    with_decay, without = split_by_decay(cfg, model)
    assert without == {n for n, _ in model.named_parameters() if n.endswith(spared)}
    for kind in ("attn.attn_scale_table", "attn.rel_pos_table", "relative_position_bias_table"):
        assert any(n.endswith(kind) for n in without), kind
    for kind in ("norm1.weight", "norm3.bias", "fc1.bias", "key.weight", "patch_embed.proj.weight"):
        assert any(n.endswith(kind) for n in with_decay), kind
    assert any(n.endswith("attn.query") for n in (without if "query" in spared else with_decay))


@pytest.mark.parametrize("name", ["qna_vit_t_maskrcnn_1x", "qna_vit_s_upernet_160k"])
def test_weight_decay_of_dense_models(load, name):
    model = MODELS.build(narrow(cfg := load(name)).model)
    norms = {
        f"{name}.{kind}"
        for name, module in model.backbone.named_modules(prefix="backbone")
        if isinstance(module, nn.LayerNorm)
        for kind in ("weight", "bias")
    }
    with_decay, without = split_by_decay(cfg, model)
    assert without == norms | {n for n, _ in model.named_parameters() if n.endswith(TABLES)}
    assert "backbone.stages.0.blocks.0.attn.query" in with_decay


@pytest.mark.parametrize(("name", "epochs"), [(n, 20 if "_b_" in n else 5) for n in CLASSIFIERS])
def test_learning_rate(load, name, epochs):
    """Linear from 0 and then a cosine to 0, both by step; 1251 steps per epoch, here 20."""
    cfg = load(name)
    for scheduler in cfg.param_scheduler:
        assert scheduler.convert_to_iter_based
        scheduler.epoch_length = 20
    steps, warmup = 300 * 20, epochs * 20
    rates = learning_rates(cfg, steps)

    def official(step: int) -> float:
        if step < warmup:
            return 2e-3 * step / warmup
        return 1e-3 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))

    assert rates[0] == pytest.approx(2e-9)
    # The warm-up of MMEngine ends a step earlier.
    assert rates[:warmup] == pytest.approx([official(s) for s in range(warmup)], abs=2e-3 / warmup)
    assert rates[warmup:] == pytest.approx([official(s) for s in range(warmup, steps)], rel=1e-3)
    assert max(rates) == pytest.approx(2e-3)
    assert rates[-1] < 1e-9


@pytest.mark.parametrize("variant", ["s", "b"])
def test_schedule_of_fine_tuning(load, variant):
    cfg = load(f"qna_vit_{variant}_in1k_30e_384")
    assert cfg.train_cfg.max_epochs == 30
    assert cfg.param_scheduler == []  # constant
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.lr, optimizer.weight_decay) == (1e-5 * 1024 / 256, 1e-8)
    assert cfg.auto_scale_lr.base_batch_size == 1024


@pytest.mark.parametrize(
    "name",
    [
        "qna_vit_t_in1k_300e",
        "qna_vit_t_qnav1_in1k_300e",
        "qna_vit_t_qnav2_in1k_300e",
        "qna_vit_t_maskrcnn_1x",
        "qna_vit_t_upernet_160k",
    ],
)
def test_train_step_in_one_process(load, name):
    cfg = narrow(load(name))
    cfg.model.backbone.drop_path_rate = 0.0  # every block takes part
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    if cfg.default_scope != "mmpretrain":
        # Stands for trained weights: the images are padded, see the docstrings of the configs.
        for name, parameter in model.backbone.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter, std=0.02)
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
    losses = model.train_step(data, wrapper)
    assert torch.isfinite(losses["loss"])
    assert losses["loss"] > 0
    unchanged = [n for n, p in model.named_parameters() if torch.equal(p, before[n])]
    # Without a good proposal, some heads have nothing to learn from.
    assert not [n for n in unchanged if n.startswith(("backbone.", "neck."))], unchanged


# Data


SIDES = {"qna_vit_t_in1k_300e": 224, "qna_vit_b_in1k_30e_384": 384}


@pytest.mark.parametrize("name", SIDES)
def test_rand_augment_is_the_official_one(load, name):
    """What each of the 16 operations does at level 9, from the official formulas."""
    cfg, side = load(name), SIDES[name]
    (step,) = [step for step in cfg.train_pipeline if step.type == "RandAugment"]
    assert (step.num_policies, step.total_level) == (2, 10)
    assert (step.magnitude_level, step.magnitude_std) == (9, 0.5)
    augment = TRANSFORMS.build(dict(step, magnitude_std=0.0))
    shift = 100 if side == 224 else int(0.3 * side)
    values, signed = {}, {}
    for op in augment:
        kind = type(op).__name__ + {"vertical": "Y"}.get(getattr(op, "direction", None), "")
        if kind == "Invert" and op.prob == 0.0:
            kind = "Identity"
        else:
            assert op.prob == 0.5
        assert kind not in values
        values[kind] = op.random_magnitude() if op.magnitude_range else None
        signed[kind] = op.random_negative_prob
    assert math.ceil(values.pop("Posterize")) == int(0.9 * 4)
    assert {kind for kind, value in values.items() if value is None} == {
        "AutoContrast", "Equalize", "Invert", "Identity"
    }  # fmt: skip
    values = {kind: value for kind, value in values.items() if value is not None}
    factor = 0.9 * 1.8 + 0.1
    for kind in ("ColorTransform", "Contrast", "Brightness", "Sharpness"):
        assert values.pop(kind) == pytest.approx(factor - 1)
        assert signed[kind] == 0
    assert values == pytest.approx(
        {
            "Rotate": 0.9 * 30,
            "Solarize": 0.9 * 256,
            "SolarizeAdd": 0.9 * 110,
            "Shear": 0.9 * 0.3,
            "ShearY": 0.9 * 0.3,
            "Translate": 0.9 * shift / side,
            "TranslateY": 0.9 * shift / side,
        }
    )
    for kind in ("Rotate", "Shear", "ShearY", "Translate", "TranslateY"):
        assert signed[kind] == 0.5


def test_what_moves_in_is_grey(load):
    """All three channels of it, for each operation that leaves a gap."""
    cfg = load("qna_vit_t_in1k_300e")
    (step,) = [step for step in cfg.train_pipeline if step.type == "RandAugment"]
    moving = [op for op in TRANSFORMS.build(step) if hasattr(op, "pad_val")]
    assert len(moving) == 5
    for op in moving:
        op.prob = 1.0
        image = op(dict(img=np.zeros((224, 224, 3), np.uint8)))["img"]
        assert {tuple(colour) for colour in image.reshape(-1, 3)} == {(0,) * 3, (128,) * 3}, op


@pytest.mark.parametrize("name", SIDES)
@pytest.mark.parametrize("size", [(500, 375), (90, 120), (2000, 50)])
def test_training_images(load, image, name, size):
    """Any image gives a square, also where no crop of a fitting shape is found."""
    pipeline = Compose([TRANSFORMS.build(deepcopy(step)) for step in load(name).train_pipeline])
    results = image(*size) | dict(gt_label=3)
    packed = []
    for seed in range(20):
        np.random.seed(seed)  # noqa: NPY002  (the generator of the transforms)
        packed.append(pipeline(deepcopy(results)))
    for one in packed:
        assert one["inputs"].shape == (3, SIDES[name], SIDES[name])
        assert one["inputs"].dtype == torch.uint8
        assert one["data_samples"].gt_label == 3
    assert not all(torch.equal(one["inputs"], packed[0]["inputs"]) for one in packed)


def test_colours_are_jittered_and_sometimes_grey(load):
    cfg = load("qna_vit_t_in1k_300e")
    jitter, grey = cfg.train_pipeline[4:6]
    assert (jitter.type, jitter.prob) == ("RandomApply", 0.8)
    (colours,) = jitter.transforms
    assert (colours.brightness, colours.contrast, colours.saturation) == (0.8 * 0.3,) * 3
    assert colours.hue == pytest.approx(0.2 * 0.3)
    assert (grey.type, grey.prob) == ("RandomGrayscale", 0.2)

    pixels = np.full((4, 4, 3), (200, 100, 50), np.uint8)  # blue, green, red
    always = TRANSFORMS.build(dict(grey, prob=1.0))(dict(img=pixels))["img"]
    assert always.shape == (4, 4, 3)
    assert set(always.flatten()) == {int(0.299 * 50 + 0.587 * 100 + 0.114 * 200)}


@pytest.mark.parametrize("name", SIDES)
def test_test_images_are_the_official_crop(load, image, name):
    """The centre, N / (N + 32) of the shorter side, then resized."""
    cfg, side = load(name), SIDES[name]
    results = image(500, 416)
    packed = transform(cfg.test_dataloader.dataset.pipeline, dict(results, gt_label=3))
    crop = {224: 364, 384: 384}[side]
    top, left = (416 - crop) // 2, (500 - crop) // 2
    pixels = cv2.imread(results["img_path"])[top : top + crop, left : left + crop]
    expected = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_CUBIC)
    assert torch.equal(packed["inputs"], torch.from_numpy(expected).permute(2, 0, 1))
