"""Label maps follow the crop and the flip of their image."""

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("mmpretrain.datasets")

from mmengine.dataset import Compose
from mmengine.registry import DefaultScope

import mmlocal.registry  # noqa: F401 - the scope of the types
from mmlocal.models.heads.token_targets import pool_label_maps

BLOCKS = 6
CLASSES = BLOCKS**2


@pytest.fixture(autouse=True)
def _scope():
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        yield


@pytest.fixture
def sample(tmp_path) -> dict:
    """An oblong picture of 6x6 blocks of grey, and the map with the number of each block."""
    numbers = np.arange(CLASSES, dtype=np.uint8).reshape(BLOCKS, BLOCKS)
    pixels = cv2.resize(numbers, (16 * BLOCKS, 10 * BLOCKS), interpolation=cv2.INTER_NEAREST)
    path = tmp_path / "train/n01/n01_1.png"
    path.parent.mkdir(parents=True)
    cv2.imwrite(str(path), np.repeat(pixels[..., None], 3, axis=2))
    logits = torch.full((1, BLOCKS, BLOCKS), 20.0)
    save(tmp_path, torch.stack([logits, torch.from_numpy(numbers)[None].float()]).half())
    return dict(img_path=str(path), gt_label=3)


def save(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "maps/n01/n01_1.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def crop(**more) -> dict:
    inner = dict(type="RandomResizedCrop", scale=56, interpolation="nearest", **more)
    return dict(type="mmlocal.RecordCrop", crop=inner)


def flip(prob: float, direction: str = "horizontal") -> dict:
    return dict(type="RandomFlip", prob=prob, direction=direction)


def run(tmp_path: Path, sample: dict, *steps: dict) -> dict:
    pipeline = [
        dict(type="LoadImageFromFile"),
        *steps,
        dict(type="mmlocal.LoadTokenLabels", label_root=str(tmp_path / "maps")),
        dict(type="PackInputs", algorithm_keys=("token_labels", "token_box")),
    ]
    return Compose(pipeline)(dict(sample))


def agreement(packed: dict, size: int = 14, swap_axes: bool = False) -> float:
    """Share of the tokens whose target is the block of the picture in their centre."""
    found = packed["data_samples"]
    targets = pool_label_maps(
        *(found.token_labels[None], found.token_box[None], CLASSES, (size, size)),
        swap_axes=swap_axes,
    )
    centres = packed["inputs"][0, 2 :: 56 // size, 2 :: 56 // size]
    return (targets[0].argmax(0) == centres).float().mean().item()


@pytest.mark.parametrize("steps", [(crop(),), (flip(1.0), crop()), (crop(), flip(1.0))])
def test_the_map_follows_the_picture(tmp_path, sample, steps):
    seen = []
    for seed in range(12):
        np.random.seed(seed)  # noqa: NPY002 - mmpretrain draws from this one
        packed = run(tmp_path, sample, *steps)
        seen.append([agreement(packed), agreement(packed, swap_axes=True)])
    right, swapped = np.transpose(seen)
    print(f"share of right targets: {right.mean():.3f}, with exchanged axes {swapped.mean():.3f}")
    assert right.min() > 0.7  # a row of centres may lie on the border of two blocks
    assert right.mean() > 0.95
    assert swapped.mean() < 0.4


def test_results(tmp_path, sample):
    np.random.seed(0)  # noqa: NPY002
    found = run(tmp_path, sample, flip(0.0), crop())["data_samples"]
    assert found.gt_label.item() == 3
    assert found.token_labels.shape == (2, 1, BLOCKS, BLOCKS)
    assert found.token_labels.dtype == torch.float16
    left, top, right, bottom = found.token_box.tolist()
    assert found.token_box.dtype == torch.float32
    assert 0 <= left < right <= 1
    assert 0 <= top < bottom <= 1


def test_boxes_are_drawn_anew_and_repeat_with_a_seed(tmp_path, sample):
    boxes = []
    for seed in (0, 1, 0):
        np.random.seed(seed)  # noqa: NPY002
        boxes.append(run(tmp_path, sample, crop())["data_samples"].token_box)
    assert torch.equal(boxes[0], boxes[2])
    assert not torch.equal(boxes[0], boxes[1])


def test_the_crop_is_the_crop_of_mmpretrain(tmp_path, sample):
    """Same random numbers, same picture."""
    pictures = []
    for step in (crop(), crop()["crop"]):
        np.random.seed(0)  # noqa: NPY002
        pipeline = [dict(type="LoadImageFromFile"), step, dict(type="PackInputs")]
        pictures.append(Compose(pipeline)(dict(sample))["inputs"])
    assert torch.equal(*pictures)


def test_without_maps(sample):
    step = dict(type="mmlocal.LoadTokenLabels", label_root=None)
    results = Compose([dict(type="LoadImageFromFile"), step])(dict(sample))
    assert "token_labels" not in results


def test_missing_map(tmp_path, sample):
    (tmp_path / "maps/n01/n01_1.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no label map .*n01_1\.pt; label_root must be"):
        run(tmp_path, sample, crop())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(5, 18, 18), r"tensor \(2, K, H, W\) .* got \(5, 18, 18\)"),
        (torch.zeros(3, 5, 18, 18), r"got \(3, 5, 18, 18\)"),
        ({"map": torch.zeros(2)}, "got dict"),
        (Path("map"), "cannot be read safely"),  # an object that would run code
    ],
)
def test_other_content(tmp_path, sample, content, message):
    save(tmp_path, content)
    with pytest.raises(ValueError, match=message):
        run(tmp_path, sample, crop())


@pytest.mark.parametrize("damage", [b"", b"not a file of torch", pickle.dumps([1, 2], 2)[:-3]])
def test_damaged_file(tmp_path, sample, damage):
    (tmp_path / "maps/n01/n01_1.pt").write_bytes(damage)
    with pytest.raises(ValueError, match="cannot be read safely"):
        run(tmp_path, sample, crop())


def test_crop_that_is_not_recorded(tmp_path, sample):
    with pytest.raises(ValueError, match=r"put the crop before it, as .*mmlocal\.RecordCrop"):
        run(tmp_path, sample, crop()["crop"])


def test_vertical_flip(tmp_path, sample):
    with pytest.raises(ValueError, match="horizontal flips only, got 'vertical'"):
        run(tmp_path, sample, crop(), flip(1.0, "vertical"))


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"crop must be RandomResizedCrop .* got CenterCrop"):
        Compose([dict(type="mmlocal.RecordCrop", crop=dict(type="CenterCrop", crop_size=8))])
    with pytest.raises(TypeError, match="label_root must be a folder or None, got 3"):
        Compose([dict(type="mmlocal.LoadTokenLabels", label_root=3)])


def test_repr():
    text = repr(Compose([crop(), dict(type="mmlocal.LoadTokenLabels", label_root="maps")]))
    assert "RecordCrop(crop=RandomResizedCrop(" in text
    assert "LoadTokenLabels(label_root='maps')" in text
