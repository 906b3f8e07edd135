"""Steps of multi-task pipelines: values, the order of random numbers, and padding."""
# ruff: noqa: NPY002 - the steps draw from NumPy's global generator

import random

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import Compose
from mmengine.registry import TRANSFORMS, DefaultScope

pytest.importorskip("mmseg.datasets")

import mmlocal.registry  # noqa: F401 - the scope of the types
from mmlocal.tasks import TASKS

SIZE = (30, 44)
MEAN = (103.53, 116.28, 123.675)


@pytest.fixture(autouse=True)
def _scope():
    with DefaultScope.overwrite_default_scope("mmseg"):
        yield


def step(kind: str, **more):
    return TRANSFORMS.build(dict(type=f"mmlocal.{kind}", **more))


def sample(seed: int = 0, size=SIZE) -> dict:
    rng = np.random.default_rng(seed)
    normals = rng.normal(size=(*size, 3)).astype(np.float32)
    blocks = rng.integers(0, 5, (size[0] // 3 + 1, size[1] // 3 + 1), dtype=np.uint8)
    semseg = blocks.repeat(3, 0).repeat(3, 1)[: size[0], : size[1]]
    return {
        "img": rng.integers(0, 256, (*size, 3), dtype=np.uint8),
        "img_path": "image.png",
        "sample_id": "image",
        "tasks": tuple(TASKS),
        "ori_shape": size,
        "img_shape": size,
        "gt_seg_map": np.where(rng.random(size) > 0.9, 255, semseg).astype(np.uint8),
        "gt_parts_map": rng.integers(0, 7, size, dtype=np.uint8),
        "gt_saliency_map": rng.integers(0, 2, size, dtype=np.uint8),
        "gt_edge_map": rng.integers(0, 2, size, dtype=np.uint8),
        "gt_depth_map": rng.uniform(1, 9, size).astype(np.float32),
        "gt_normal_map": normals / np.linalg.norm(normals, axis=-1, keepdims=True),
    }


def copy(results: dict) -> dict:
    return {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in results.items()}


KEYS = [task.gt_key for task in TASKS.values()]


@pytest.mark.parametrize("seed", range(6))
def test_scale(seed):
    before = sample(seed)
    np.random.seed(seed)
    factor = np.random.uniform(0.5, 2.0)
    np.random.seed(seed)
    after = step("MultiTaskRandomScale")(copy(before))
    height, width = int(SIZE[0] * factor), int(SIZE[1] * factor)
    assert after["img"].shape == (height, width, 3)
    assert after["img_shape"] == (height, width)
    assert after["scale_factor"] == (factor, factor)
    # The steps of OpenCV, whose rounding decides where a pixel is half way.
    rows = np.minimum((np.arange(height) * (1 / (height / SIZE[0]))).astype(int), SIZE[0] - 1)
    columns = np.minimum((np.arange(width) * (1 / (width / SIZE[1]))).astype(int), SIZE[1] - 1)
    for key in KEYS:
        nearest = before[key][rows][:, columns]
        assert after[key].dtype == before[key].dtype
        if key == "gt_depth_map":
            np.testing.assert_allclose(after[key], nearest / factor, rtol=1e-6)
        else:
            np.testing.assert_array_equal(after[key], nearest)
    # DeMT scales floats; the rounded image is at most half a grey level away.
    original = cv2.resize(before["img"].astype(np.float32), (width, height))
    assert np.abs(after["img"] - original).max() < 1.01


def test_scale_of_1_and_tiny_images():
    before = sample()
    after = step("MultiTaskRandomScale", scale_range=(1, 1))(copy(before))
    for key in ("img", *KEYS):
        np.testing.assert_array_equal(after[key], before[key])
    tiny = step("MultiTaskRandomScale", scale_range=(0.5, 0.5))(sample(size=(1, 1)))
    assert tiny["img"].shape == (1, 1, 3)


def is_balanced(labels: np.ndarray, ratio: float) -> bool:
    counts = [int((labels == label).sum()) for label in np.unique(labels) if label != 255]
    return len(counts) > 1 and max(counts) / sum(counts) < ratio


def test_crop_draws_as_in_mmseg():
    ours = step("MultiTaskRandomCrop", crop_size=(12, 20))
    theirs = TRANSFORMS.build(dict(type="RandomCrop", crop_size=(12, 20), cat_max_ratio=0.75))
    for seed in range(30):
        before = sample(seed)
        np.random.seed(seed)
        after = ours(copy(before))
        np.random.seed(seed)
        expected = theirs(copy(before) | {"seg_fields": KEYS})
        for key in ("img", *KEYS):
            np.testing.assert_array_equal(after[key], expected[key])
        assert after["img_shape"] == (12, 20)


def test_crop_tries_ten_times():
    """Few crops are balanced, so that some draws end with the eleventh crop."""
    crop = step("MultiTaskRandomCrop", crop_size=(4, 4), cat_max_ratio=0.75)
    before = sample()
    labels = before["gt_seg_map"]
    labels[:] = 1
    labels[:3] = 2
    before["img"][..., 0] = np.arange(SIZE[0])[:, None]
    before["img"][..., 1] = np.arange(SIZE[1])
    tries = []
    for seed in range(40):
        np.random.seed(seed)
        drawn = [
            (np.random.randint(0, SIZE[0] - 3), np.random.randint(0, SIZE[1] - 3))
            for _ in range(11)
        ]
        balanced = [
            is_balanced(labels[top : top + 4, left : left + 4], 0.75) for top, left in drawn[:10]
        ]
        tries.append(balanced.index(True) if any(balanced) else 10)
        np.random.seed(seed)
        assert tuple(crop(copy(before))["img"][0, 0, :2]) == drawn[tries[-1]]
    assert {0, 10} < set(tries)


def test_crop_of_small_images_and_without_balance():
    crop = step("MultiTaskRandomCrop", crop_size=(100, 20))
    after = crop(sample())
    assert after["img"].shape == (30, 20, 3)
    assert all(after[key].shape[:2] == (30, 20) for key in KEYS)
    ignored = sample()
    ignored["gt_seg_map"][:] = 255
    assert crop(ignored)["img"].shape == (30, 20, 3)
    without = sample()
    del without["gt_seg_map"]
    with pytest.raises(ValueError, match=r"needs gt_seg_map .* set cat_max_ratio=1"):
        crop(copy(without))
    any_crop = step("MultiTaskRandomCrop", crop_size=(10, 10), cat_max_ratio=1)
    assert any_crop(without)["img"].shape == (10, 10, 3)


def test_flip():
    before = sample()
    after = step("MultiTaskRandomFlip", prob=1)(copy(before))
    assert (after["flip"], after["flip_direction"]) == (True, "horizontal")
    for key in ("img", *KEYS):
        expected = before[key][:, ::-1].copy()
        if key == "gt_normal_map":
            expected[..., 0] *= -1
        np.testing.assert_array_equal(after[key], expected)
    same = step("MultiTaskRandomFlip", prob=0)(copy(before))
    assert (same["flip"], same["flip_direction"]) == (False, None)
    np.testing.assert_array_equal(same["img"], before["img"])
    flips = [step("MultiTaskRandomFlip")(sample())["flip"] for _ in range(60)]
    assert 10 < sum(flips) < 50


def test_photometric_distortion_of_mmseg_is_ours():
    """Brightness 32, contrast and saturation 0.5 to 1.5, hues from -18 to 17."""
    distort = TRANSFORMS.build(dict(type="PhotoMetricDistortion"))
    assert distort.brightness_delta == 32
    assert (distort.contrast_lower, distort.contrast_upper) == (0.5, 1.5)
    assert (distort.saturation_lower, distort.saturation_upper) == (0.5, 1.5)
    hues = set()
    pure = np.full((1, 1, 3), (40, 40, 200), np.uint8)  # hue 0 of 180
    for seed in range(600):
        np.random.seed(seed)
        changed = cv2.cvtColor(distort.hue(pure.copy()), cv2.COLOR_BGR2HSV)[0, 0, 0]
        hues.add((int(changed) + 90) % 180 - 90)
    assert max(hues) == 17
    assert min(hues) == -18


@pytest.mark.parametrize("size", [(40, 51), (30, 51), (40, 44), (30, 44), (20, 20)])
def test_pad(size):
    before = sample()
    after = step("MultiTaskPad", size=size)(copy(before))
    height, width = max(size[0], 30), max(size[1], 44)
    top, left = (height - 30) // 2, (width - 44) // 2
    assert after["padding_size"] == (left, width - 44 - left, top, height - 30 - top)
    assert after["img_shape"] == after["pad_shape"] == (height, width)
    for key, value in [("img", MEAN), *((t.gt_key, t.pad_value) for t in TASKS.values())]:
        shape = (height, width, *before[key].shape[2:])
        expected = np.empty(shape, np.float32 if key == "img" else before[key].dtype)
        expected[:] = value
        expected[top : top + 30, left : left + 44] = before[key]
        np.testing.assert_array_equal(after[key], expected)
        if key != "img":
            assert after[key].dtype == before[key].dtype


def test_padding_is_0_after_normalisation():
    from mmseg.models import SegDataPreProcessor

    pipeline = Compose([step("MultiTaskPad", size=(40, 60)), step("PackMultiTaskInputs")])
    packed = pipeline(sample())
    preprocess = SegDataPreProcessor(
        mean=list(MEAN[::-1]), std=[58.395, 57.12, 57.375], bgr_to_rgb=True, size=(40, 60)
    )
    data = {"inputs": [packed["inputs"]], "data_samples": [packed["data_samples"]]}
    image = preprocess(data, training=False)["inputs"][0]
    assert (image[:, :5] == 0).all()
    assert (image[:, :, -8:] == 0).all()
    assert (image != 0).float().mean() > 0.5


def test_marks():
    before = sample()
    before["gt_depth_map"][2] = 0
    before["gt_normal_map"][3] = 0
    before["gt_normal_map"][4] = (0, 1, 0)
    after = step("MarkIgnored")(copy(before))
    for key in KEYS:
        expected = before[key].copy()
        if key == "gt_depth_map":
            expected[2] = 255
        if key == "gt_normal_map":
            expected[3] = 255
        np.testing.assert_array_equal(after[key], expected)
    nobody = sample()
    nobody["gt_parts_map"][:] = 0
    nobody["gt_parts_map"][:5] = 255
    assert (step("MarkIgnored")(nobody)["gt_parts_map"] == 255).all()
    assert step("MarkIgnored")({"img": 1}) == {"img": 1}


def test_pack():
    before = sample()
    packed = step("PackMultiTaskInputs")(copy(before) | {"flip": False, "other": 1})
    assert packed["inputs"].dtype == torch.uint8
    np.testing.assert_array_equal(packed["inputs"], before["img"].transpose(2, 0, 1))
    found = packed["data_samples"]
    assert found.gt_sem_seg.data.shape == (1, *SIZE)
    assert {"other", "img"}.isdisjoint(found.metainfo_keys())
    assert (found.sample_id, found.ori_shape, found.tasks) == ("image", SIZE, tuple(TASKS))
    for task in TASKS.values():
        data = found.get(task.gt_field).data
        assert data.dtype == (torch.float32 if task.continuous else torch.int64)
        expected = before[task.gt_key]
        expected = expected.transpose(2, 0, 1) if task.name == "normals" else expected[None]
        np.testing.assert_array_equal(data, expected)
    # Only the tasks of the data set; others were loaded for the crop.
    only = step("PackMultiTaskInputs")(copy(before) | {"tasks": ("depth",)})["data_samples"]
    assert only.keys() == ["gt_depth_map"]
    bare = step("PackMultiTaskInputs")({"img": before["img"]})["data_samples"]
    assert bare.keys() == []


def test_bare_image_goes_through():
    """An inferencer has no label maps."""
    names = ("MultiTaskPad", "LoadMultiTaskAnnotations", "MarkIgnored", "PackMultiTaskInputs")
    steps = [step(name, **(dict(size=(40, 60)) if "Pad" in name else {})) for name in names[:1]]
    steps += [step(name) for name in names[1:]]
    image = {"img": sample()["img"], "ori_shape": SIZE, "img_path": None}
    assert Compose(steps)(image)["inputs"].shape == (3, 40, 60)


def test_seeds_repeat_a_pipeline():
    steps = [
        step("MultiTaskRandomScale"),
        step("MultiTaskRandomCrop", crop_size=(24, 30)),
        step("MultiTaskRandomFlip"),
        TRANSFORMS.build(dict(type="PhotoMetricDistortion")),
        step("MultiTaskPad", size=(24, 30)),
        step("MarkIgnored"),
        step("PackMultiTaskInputs"),
    ]
    found = []
    for seed in (0, 0, 1):
        np.random.seed(seed)
        random.seed(len(found))  # Python's generator is not used
        found.append([Compose(steps)(sample(i)) for i in range(5)])
    for first, second in zip(found[0], found[1], strict=True):
        assert torch.equal(first["inputs"], second["inputs"])
        for task in TASKS.values():
            one, two = (item["data_samples"].get(task.gt_field).data for item in (first, second))
            assert torch.equal(one, two)
            assert one.shape[1:] == (24, 30)
    assert not torch.equal(found[0][0]["inputs"], found[2][0]["inputs"])
    assert "MultiTaskRandomCrop(crop_size=(24, 30)" in repr(Compose(steps))


@pytest.mark.parametrize(
    ("kind", "arguments", "why"),
    [
        ("MultiTaskRandomScale", {"scale_range": (2, 1)}, "scale_range"),
        ("MultiTaskRandomScale", {"scale_range": (0, 1)}, "scale_range"),
        ("MultiTaskRandomCrop", {"crop_size": (0, 3)}, "crop_size"),
        ("MultiTaskRandomCrop", {"crop_size": (3, 3), "cat_max_ratio": 0}, "cat_max_ratio"),
        ("MultiTaskRandomFlip", {"prob": 2}, "prob"),
        ("MultiTaskPad", {"size": (3.5, 3)}, "size must be a height and a width"),
    ],
)
def test_arguments(kind, arguments, why):
    with pytest.raises(ValueError, match=why):
        step(kind, **arguments)
