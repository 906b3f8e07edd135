"""Images reach the ELSA models as in the official code."""

import math
from copy import deepcopy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import (
    MODELS,
    TRANSFORMS,
)

from .elsa_models import narrow


def _transform(pipeline: list[dict], results: dict) -> dict:
    return Compose([TRANSFORMS.build(deepcopy(step)) for step in pipeline])(results)


def official_size(width: int, height: int, scale: tuple[int, int]) -> tuple[int, int]:
    """Height and width after ``imrescale`` of MMCV 1.x, which keeps the aspect ratio."""
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)


# The sizes by hand: 512 and 1500 are the sides that reach the limits of 256, 384, ... 896.
TTA_HEIGHTS = [256, 384, 512, 640, 768, 896]


@pytest.mark.parametrize(("width", "height"), [(683, 512), (2000, 1500)])
def test_sizes_of_the_multi_scale_test(load, image, width, height):
    cfg = narrow(load("elsa_swin_t_upernet_160k"))
    cfg.model.backbone.kernel_size = 3  # to save time
    model = MODELS.build(dict(cfg.tta_model, module=cfg.model)).eval()
    sizes = []
    model.module.backbone.register_forward_pre_hook(
        lambda module, args: sizes.append(tuple(args[0].shape[2:]))
    )
    batch = pseudo_collate([_transform(cfg.tta_pipeline, image(width, height))])
    with torch.no_grad():
        (result,) = model.test_step(batch)

    ratios = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    scales = [(int(2048 * ratio), int(512 * ratio)) for ratio in ratios]
    expected = [official_size(width, height, scale) for scale in scales]
    assert sizes == [size for size in expected for _ in ("plain", "flipped")]
    assert [size[0] for size in expected] == TTA_HEIGHTS
    assert result.pred_sem_seg.data.shape[-2:] == (height, width)
    assert result.gt_sem_seg.data.shape[-2:] == (height, width)


def test_multi_scale_test_sees_a_mirror_image_mirrored(load, image):
    """Only true if the flipped predictions are flipped back before they are averaged."""
    cfg = narrow(load("elsa_swin_t_upernet_160k"))
    torch.manual_seed(0)
    model = MODELS.build(dict(cfg.tta_model, module=cfg.model)).eval()
    results = image(101, 75)
    mirrored = results | dict(img_path=str(Path(results["img_path"]).with_name("mirrored.png")))
    cv2.imwrite(mirrored["img_path"], cv2.imread(results["img_path"])[:, ::-1])
    predictions = []
    with torch.no_grad():
        for part in (results, mirrored):
            batch = pseudo_collate([_transform(cfg.tta_pipeline, part)])
            predictions.append(model.test_step(batch)[0].pred_sem_seg.data.squeeze(0))
    plain, mirror = predictions
    assert len(plain.unique()) > 1
    assert (plain == mirror.flip(-1)).float().mean() > 0.99
    assert (plain == mirror).float().mean() < 0.9


def test_single_scale_is_the_default_of_segmentors(load, image):
    cfg = load("elsa_swin_t_upernet_160k")
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        packed = _transform(loader.dataset.pipeline, image(2000, 1500))
        assert packed["inputs"].shape[1:] == official_size(2000, 1500, (2048, 512)) == (512, 683)
        assert packed["data_samples"].gt_sem_seg.shape == (1500, 2000)


def test_training_images_of_segmentors_are_padded(load, image):
    cfg = load("elsa_swin_t_upernet_160k")
    # At most 2 * 2048 wide, so at most 205 high: always lower than a crop.
    packed = _transform(cfg.train_pipeline, image(2000, 100))
    height, width = packed["inputs"].shape[1:]
    assert height < 512
    preprocessor = MODELS.build(cfg.model.data_preprocessor)
    data = preprocessor(pseudo_collate([packed]), training=True)
    assert data["inputs"].shape == (1, 3, 512, 512)
    labels = data["data_samples"][0].gt_sem_seg.data
    assert labels.shape == (1, 512, 512)
    assert (labels[:, height:] == 255).all()
    assert (labels[:, :height, :width] < 3).all()


def test_test_images_of_classifiers_are_those_of_timm(load, image):
    from PIL import Image
    from torchvision import transforms

    results = image(500, 375)
    cfg = load("elsa_swin_t_in1k_300e")
    ours = _transform(cfg.test_dataloader.dataset.pipeline, dict(results))["inputs"]
    theirs = transforms.Compose(
        [
            transforms.Resize(int(224 / 0.9), transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.PILToTensor(),
        ]
    )(Image.open(results["img_path"]))
    assert torch.equal(ours.flip(0), theirs)  # BGR here, RGB there


@pytest.mark.parametrize(
    ("name", "side"), [("elsa_swin_t_in1k_300e", 224), ("elsa_swin_b_in1k_30e_384", 384)]
)
def test_image_sizes_of_classifiers(load, image, name, side):
    cfg = load(name)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        packed = _transform(loader.dataset.pipeline, image(500, 375) | dict(gt_label=3))
        assert packed["inputs"].shape == (3, side, side)


@pytest.mark.parametrize(
    ("name", "erased_first"),
    [("elsa_swin_t_in1k_300e", False), ("ghost_deit_ti_in1k_300e", False),
     ("elsa_swin_b_in1k_30e_384", False), ("qna_vit_t_in1k_300e", True)],
)  # fmt: skip
def test_erasing_beside_mixing(load, name, erased_first):
    """timm erases what is mixed, QnA's code mixes what is erased; the noise is N(0, 1), not cut."""
    from mmpretrain.structures import DataSample

    cfg = load(name)
    types = [step["type"] for step in cfg.train_dataloader.dataset.pipeline]
    assert "RandomErasing" not in types
    augments = cfg.model.train_cfg.augments
    assert augments.erasing == dict(p=0.25, scale=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3))
    augments.erasing.p = 1.0
    augments.augments = [dict(type="Mixup", alpha=0.8)]
    preprocessor = MODELS.build(
        dict(cfg.data_preprocessor, type="ClsDataPreprocessor", batch_augments=cfg.model.train_cfg)
    )
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - mmpretrain draws from this one
    inputs = torch.full((8, 3, 224, 224), 200, dtype=torch.uint8)
    samples = [DataSample().set_gt_label(label) for label in range(8)]
    mixed = preprocessor(dict(inputs=inputs, data_samples=samples), training=True)["inputs"]
    plain = (200 - preprocessor.mean.flatten()[0]) / preprocessor.std.flatten()[0]
    noise = mixed[:, 0][(mixed[:, 0] - plain).abs() > 1e-5]
    assert 0.02 * 0.9 < noise.numel() / mixed[:, 0].numel() < 2 / 3
    if erased_first:  # of two images, with weights that add up to 1
        assert noise.std() < 0.9
    else:
        assert noise.mean().abs() < 0.02
        assert abs(noise.std() - 1) < 0.02
    whitest = (255 - preprocessor.mean.flatten()[0]) / preprocessor.std.flatten()[0]
    assert noise.max() > whitest + 0.5


def test_steps_of_an_epoch(load):
    """timm drops the last batch of each epoch: 1,251 steps of 1024 images."""
    for name in ("elsa_swin_t_in1k_300e", "ghost_deit_ti_in1k_300e", "qna_vit_t_in1k_300e"):
        loader = load(name).train_dataloader
        assert loader.drop_last
        assert math.ceil(1281167 / 8) // loader.batch_size == 1251
