"""Boxes of objects in multi-task data sets: reading, transforms and packing."""
# ruff: noqa: NPY002 - the steps draw from NumPy's global generator

import json

import numpy as np
import pytest
from mmengine.registry import DATASETS, TRANSFORMS, DefaultScope

pytest.importorskip("mmseg.datasets")

from multitask_files import write_nyud

import mmlocal.registry  # noqa: F401 - the scope of the types


@pytest.fixture(autouse=True)
def _scope():
    with DefaultScope.overwrite_default_scope("mmseg"):
        yield


def step(kind: str, **more):
    return TRANSFORMS.build(dict(type=f"mmlocal.{kind}", **more))


def item(height=40, width=60):
    return dict(
        img=np.zeros((height, width, 3), dtype=np.uint8),
        gt_bboxes=np.array([[10, 5, 30, 25], [50, 30, 60, 40]], dtype=np.float32),
        gt_bboxes_labels=np.array([1, 0]),
    )


def test_scale():
    results = step("MultiTaskRandomScale", scale_range=(1.5, 1.5))(item())
    assert results["gt_bboxes"].tolist() == [[15, 7.5, 45, 37.5], [75, 45, 90, 60]]


def test_crop_cuts_and_drops():
    crop = step("MultiTaskRandomCrop", crop_size=(20, 25), cat_max_ratio=1)
    left = set()
    for seed in range(20):
        np.random.seed(seed)
        results = crop(item() | dict(img=np.arange(2400).reshape(40, 60)))
        first = results["img"][0, 0]
        shifted = item()["gt_bboxes"] - np.array([first % 60, first // 60] * 2)
        cut = shifted.clip(0, [25, 20, 25, 20])
        inside = [i for i, (x0, y0, x1, y1) in enumerate(cut) if x1 - x0 >= 1 and y1 - y0 >= 1]
        assert results["gt_bboxes"].tolist() == cut[inside].tolist()
        assert results["gt_bboxes_labels"].tolist() == [[1, 0][i] for i in inside]
        left.add(len(inside))
    assert len(left) > 1


def test_flip():
    results = step("MultiTaskRandomFlip", prob=1.0)(item())
    assert results["gt_bboxes"].tolist() == [[30, 5, 50, 25], [0, 30, 10, 40]]


def test_padding():
    results = step("MultiTaskPad", size=(50, 70))(item())
    assert results["gt_bboxes"].tolist() == [[15, 10, 35, 30], [55, 35, 65, 45]]


def test_images_without_objects():
    results = item() | dict(gt_bboxes=np.zeros((0, 4), np.float32), gt_bboxes_labels=np.zeros(0))
    for kind, more in (
        ("MultiTaskRandomScale", {}),
        ("MultiTaskRandomCrop", dict(crop_size=(20, 25), cat_max_ratio=1)),
        ("MultiTaskRandomFlip", dict(prob=1.0)),
        ("MultiTaskPad", dict(size=(90, 130))),
    ):
        results = step(kind, **more)(results)
    sample = step("PackMultiTaskInputs")(results)["data_samples"]
    assert sample.gt_instances.bboxes.shape == (0, 4)
    assert sample.gt_instances.labels.shape == (0,)


@pytest.fixture
def nyud(tmp_path):
    root = tmp_path / "NYUDv2"
    write_nyud(root, train=2, val=1)
    coco = dict(
        images=[dict(id=7, file_name="0000.png"), dict(id=3, file_name="0001.png")],
        annotations=[
            dict(id=1, image_id=3, category_id=9, bbox=[4, 2, 10, 20], iscrowd=0),
            dict(id=2, image_id=3, category_id=5, bbox=[0, 0, 3, 3]),
        ],
        categories=[dict(id=9, name="ball"), dict(id=5, name="box")],
    )
    (root / "boxes.json").write_text(json.dumps(coco))
    return root


def build(root, **more):
    pipeline = [
        dict(type="LoadImageFromFile"),
        dict(type="mmlocal.LoadMultiTaskAnnotations"),
        dict(type="mmcv.LoadAnnotations", with_bbox=True, with_label=True),
        dict(type="mmlocal.PackMultiTaskInputs"),
    ]
    return DATASETS.build(
        dict(type="mmlocal.NYUDv2", data_root=str(root), pipeline=pipeline) | more
    )


def test_data_set_reads_boxes(nyud):
    first, second = build(nyud, ann_file="boxes.json")
    assert len(first["data_samples"].gt_instances.bboxes) == 0
    assert first["data_samples"].img_id == 7
    objects = second["data_samples"].gt_instances
    assert objects.bboxes.tolist() == [[4, 2, 14, 22], [0, 0, 3, 3]]
    assert objects.labels.tolist() == [0, 1]  # in the order of the categories
    assert second["data_samples"].img_id == 3


def test_file_of_boxes_is_missing(nyud):
    with pytest.raises(FileNotFoundError, match=r"ann_file: there is no file .*other.json"):
        build(nyud, ann_file="other.json")


@pytest.mark.parametrize("content", ["{", "[]", '{"images": []}', '{"annotations": 3}'])
def test_file_of_boxes_is_damaged(nyud, content):
    (nyud / "boxes.json").write_text(content)
    with pytest.raises(ValueError, match=r"boxes.json is no file of boxes in COCO's format"):
        build(nyud, ann_file="boxes.json")


def test_boxes_of_another_split(nyud):
    with pytest.raises(ValueError, match=r"does not list 1 of 1 images of the split 'val': 0002"):
        build(nyud, ann_file="boxes.json", split="val")
