"""The auto-encoder, its configs, and the comparison of its kinds."""

import json
from itertools import product

import cv2
import numpy as np
import pytest
import torch
from mmengine import Config
from mmengine.registry import DATASETS, DefaultScope
from mmengine.structures import BaseDataElement
from torch import nn

import mmlocal
from mmlocal.layers import QnA, UpsampleQnA
from mmlocal.models.autoencoders import AutoEncoder
from mmlocal.models.autoencoders.autoencoder import DECODERS, ENCODERS

KINDS = list(product(ENCODERS, DECODERS))
VARIANTS = ("conv_bilinear", "conv_transposed", "qna_uqna")


def make(encoder: str = "qna", decoder: str = "uqna", **kwargs) -> AutoEncoder:
    torch.manual_seed(0)
    defaults = dict(embed_dims=16, num_heads=2, num_layers=2)
    return AutoEncoder(encoder, decoder, **defaults | kwargs)


def images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kinds", KINDS, ids="-".join)
def test_shapes(kinds):
    model = make(*kinds)
    x = images(2, 3, 8, 12)
    code = model.encoder(model.stem(x))
    assert code.shape == (2, 16, 2, 3)
    assert model(x).shape == (2, 3, 8, 12)


@pytest.mark.parametrize("kinds", KINDS, ids="-".join)
def test_every_parameter_gets_a_gradient(kinds):
    model = make(*kinds, num_layers=5)
    model(images(2, 3, 64, 96), mode="loss")["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name  # noqa: PT018


@pytest.mark.parametrize("kinds", KINDS, ids="-".join)
def test_learns_one_batch(kinds):
    model = make(*kinds, num_layers=1)
    x = torch.nn.functional.interpolate(images(4, 3, 4, 4), size=16, mode="bilinear")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        loss = model(x, mode="loss")["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]


def test_layers_are_those_of_the_paper():
    def layers(kinds: dict, name: str) -> list[nn.Module]:
        return list(kinds[name](16, 2))

    conv, norm, _ = layers(ENCODERS, "conv_stride")
    assert (conv.kernel_size, conv.stride) == ((3, 3), (2, 2))
    assert isinstance(norm, nn.InstanceNorm2d)

    conv, norm, _, pool = layers(ENCODERS, "conv_max")
    assert (conv.kernel_size, conv.stride) == ((3, 3), (1, 1))
    assert isinstance(norm, nn.InstanceNorm2d)
    assert isinstance(pool, nn.MaxPool2d)

    norm, qna = layers(ENCODERS, "qna")
    assert isinstance(norm, nn.LayerNorm)
    assert isinstance(qna, QnA)
    assert (qna.kernel_size, qna.stride, qna.num_queries) == (3, 2, 1)

    up, conv, norm, _ = layers(DECODERS, "bilinear_conv")
    assert (up.mode, up.scale_factor) == ("bilinear", 2)
    assert (conv.kernel_size, conv.stride) == ((3, 3), (1, 1))
    assert isinstance(norm, nn.InstanceNorm2d)

    conv, norm, _ = layers(DECODERS, "conv_transposed")
    assert isinstance(conv, nn.ConvTranspose2d)
    assert (conv.kernel_size, conv.stride) == ((3, 3), (2, 2))
    assert isinstance(norm, nn.InstanceNorm2d)

    norm, qna = layers(DECODERS, "uqna")
    assert isinstance(norm, nn.LayerNorm)
    assert isinstance(qna, UpsampleQnA)
    assert (qna.kernel_size, qna.scale_factor, qna.num_queries) == (3, 2, 4)


def test_parameter_counts():
    dims, heads = 64, 8
    ends = 3 * dims + dims + 3 * dims + 3
    conv = 9 * dims**2 + 2 * dims
    norm, linear = 2 * dims, 3 * dims**2
    down, up = (norm + linear + queries * (dims + 9 * heads) for queries in (1, 4))
    for kinds, count in {
        ("conv_max", "bilinear_conv"): 10 * conv,
        ("conv_max", "conv_transposed"): 10 * conv,
        ("qna", "uqna"): 5 * down + 5 * up,
    }.items():
        with torch.device("meta"):
            model = AutoEncoder(*kinds)
        assert sum(parameter.numel() for parameter in model.parameters()) == count + ends


def test_modes():
    model = make()
    x = images(2, 3, 8, 8)
    raw = 4 * model(x)
    model.head.weight.data *= 4
    model.head.bias.data *= 4
    torch.testing.assert_close(model(x), raw)
    assert raw.min() < 0 or raw.max() > 1
    torch.testing.assert_close(model(x, mode="loss")["loss"], (raw - x).abs().mean())
    given = [BaseDataElement(metainfo=dict(index=i)) for i in range(2)]
    for samples in (model(x, given, mode="predict"), model(x, mode="predict")):
        assert torch.equal(torch.stack([sample.gt_image for sample in samples]), x)
        pred = torch.stack([sample.pred_image for sample in samples])
        torch.testing.assert_close(pred, raw.clamp(0, 1))
    assert [sample.index for sample in model(x, given, mode="predict")] == [0, 1]


def test_autocast():
    model = make()
    x = images(1, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(x, mode="loss")["loss"]
        (sample,) = model(x, mode="predict")
    loss.backward()
    assert loss.dtype == sample.pred_image.dtype == torch.float32
    torch.testing.assert_close(loss, model(x, mode="loss")["loss"], rtol=0.02, atol=0.0)


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"encoder must be one of conv_stride, .*, got 'max'"):
        make(encoder="max")
    with pytest.raises(ValueError, match=r"decoder must be one of bilinear_conv, .*, got 'qna'"):
        make(decoder="qna")
    with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
        make(num_layers=0)
    with pytest.raises(ValueError, match=r"num_heads must divide .*16.*, got num_heads=3"):
        make(num_heads=3)


@pytest.mark.parametrize("size", [(7, 8), (8, 10), (0, 8)], ids=str)
def test_wrong_sizes(size):
    with pytest.raises(ValueError, match=f"multiples of 4, got {size[0]}x{size[1]}; resize"):
        make()(torch.zeros(1, 3, *size))


def test_wrong_inputs():
    with pytest.raises(ValueError, match=r"in_channels=3, H, W\), got \(1, 4, 8, 8\)"):
        make()(torch.zeros(1, 4, 8, 8))
    with pytest.raises(ValueError, match="mode must be tensor, loss or predict, got 'train'"):
        make()(torch.zeros(1, 3, 8, 8), mode="train")


# Configs and comparison


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with five images like CelebA's and five generated scenes."""
    rng = np.random.default_rng(0)
    monkeypatch.chdir(tmp_path)
    for name, (width, height) in (
        ("celeba/img_align_celeba", (178, 218)),
        ("shapes/train", (192, 192)),
        ("shapes/val", (192, 192)),
    ):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(1, 6):
            pixels = cv2.resize(rng.integers(0, 255, (5, 5, 3), dtype=np.uint8), (width, height))
            cv2.imwrite(f"data/{name}/{index:06d}.jpg", pixels)
    return tmp_path


@pytest.mark.parametrize("variant", VARIANTS)
def test_celeba_data(folder, variant):
    pytest.importorskip("mmpretrain")
    cfg = Config.fromfile(mmlocal.config_path(f"qna_autoencoder_{variant}_celeba"))
    splits = {phase: cfg[f"{phase}_dataloader"].dataset for phase in ("train", "val", "test")}
    # The sizes of the official parts, which are 202,599 images with those to validate.
    assert {phase: split.indices for phase, split in splits.items()} == dict(
        train=162770, val=-19962, test=-19962
    )
    splits["train"].indices, splits["test"].indices = 3, -1
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        train, test = (DATASETS.build(splits[phase]) for phase in ("train", "test"))
    names = [[item["data_samples"].img_path[-10:] for item in data] for data in (train, test)]
    assert names == [["000001.jpg", "000002.jpg", "000003.jpg"], ["000005.jpg"]]
    # Rows 20 to 198 of 218, and all columns.
    pixels = cv2.imread(str(folder / "data/celeba/img_align_celeba/000005.jpg"))[20:198]
    expected = cv2.resize(pixels, (256, 256), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(test[0]["inputs"].permute(1, 2, 0).numpy(), expected)


def test_comparison(folder):
    pytest.importorskip("mmpretrain")
    pytest.importorskip("skimage")
    from mmlocal.cli.compare_autoencoders import CONFIGS, compare_autoencoders, format_comparison

    assert [name.removesuffix("_shapes") for name in CONFIGS] == [
        f"qna_autoencoder_{variant}" for variant in VARIANTS
    ]
    summary = compare_autoencoders(
        folder / "out",
        CONFIGS[1:],
        lrs=(1e-12, 0.01),
        cfg_options={
            "model.embed_dims": 8,
            "model.num_heads": 1,
            "train_cfg.max_epochs": 3,
            "train_dataloader.batch_size": 2,
            "default_hooks.checkpoint.interval": 9,
        },
        num_pictures=3,
    )
    assert json.loads((folder / "out/summary.json").read_text()) == summary
    assert [(run["config"], run["lr"]) for run in summary["runs"]] == list(
        product(CONFIGS[1:], (1e-12, 0.01))
    )
    assert all(run["iterations"] == 9 for run in summary["runs"])
    # At 1e-12 nothing is learned.
    assert summary["best"] == {CONFIGS[1]: 1, CONFIGS[2]: 3}
    table = format_comparison(summary).splitlines()
    assert [line.split(" ")[0] for line in table[1:]] == [
        f"{name}{mark}" for name in CONFIGS[1:] for mark in ("", "*")
    ]

    # The middle of the first test image. JPEG is decoded alike in both places.
    first = cv2.imread(str(folder / "data/shapes/val/000001.jpg"))[64:128, 64:128]
    assert np.array_equal(cv2.imread(str(folder / "out/01/image_00.png")), first)
    # Rows of the sheet: the images, and what the best run of each config makes of them.
    pictures = [
        [cv2.imread(str(folder / f"out/{run}/{name}_{index:02d}.png")) for index in range(3)]
        for run, name in (("01", "image"), ("01", "pred"), ("03", "pred"))
    ]
    sheet = cv2.imread(str(folder / "out/reconstructions.jpg"))
    for index, found in enumerate(tiles(sheet, rows=3)):
        assert len(found) == 3
        for column, tile in enumerate(found):
            shown = cv2.resize(tile, (64, 64), interpolation=cv2.INTER_AREA)
            errors = np.array([[cv2.absdiff(shown, one).mean() for one in row] for row in pictures])
            others = np.delete(errors, index, axis=0)  # reconstructions by one model look alike
            if index == 0:
                others = np.append(others, np.delete(errors[0], column))
            assert 3 * errors[index, column] < others.min()
    assert cv2.imread(str(folder / "out/curves.png")).std() > 10


def tiles(sheet: np.ndarray, rows: int) -> list[list[np.ndarray]]:
    """The pictures on a white sheet, row by row. Names of rows are smaller than pictures."""
    dark = (sheet < 240).any(axis=-1).astype(np.uint8)
    stats = cv2.connectedComponentsWithStats(dark)[2][1:]
    boxes = sorted(box[:4].tolist() for box in stats if min(box[2:4]) > 100)
    steps = sorted({y for _, y, _, _ in boxes})
    assert len(steps) == rows
    return [[sheet[y : y + h, x : x + w] for x, y, w, h in boxes if y == step] for step in steps]


def test_comparison_of_other_models(tmp_path):
    """Before any training."""
    pytest.importorskip("mmpretrain")
    from mmlocal.cli.compare_autoencoders import compare_autoencoders
    from mmlocal.errors import UsageError

    with pytest.raises(UsageError, match="'elsa_swin_nano_shapes' has no ReconstructionMetric"):
        compare_autoencoders(tmp_path, ["elsa_swin_nano_shapes"])
