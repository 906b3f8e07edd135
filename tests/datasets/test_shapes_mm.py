"""The settings in the docstring of ``mmlocal.datasets.shapes`` work in the OpenMMLab libraries."""

from pathlib import Path

import numpy as np
import pytest

from mmlocal.datasets.shapes import CLASSES, PALETTE, SEG_CLASSES, SEG_PALETTE, generate_shapes
from mmlocal.datasets.shapes.annotations import semantic_map
from mmlocal.datasets.shapes.export import make_scene

NUM_TRAIN = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("mm") / "shapes"
    generate_shapes(out, num_train=NUM_TRAIN, num_val=9, image_size=128, progress=False)
    return out


def test_mmdet_coco_dataset(data):
    pytest.importorskip("mmdet", reason="mmdet is optional")
    from mmdet.datasets import CocoDataset

    dataset = CocoDataset(
        data_root=str(data),
        ann_file="annotations/instances_train.json",
        data_prefix={"img": "train/"},
        metainfo={"classes": CLASSES, "palette": PALETTE},
        filter_cfg={"filter_empty_gt": True, "min_size": 32},
        pipeline=[
            {"type": "LoadImageFromFile"},
            {"type": "mmdet.LoadAnnotations", "with_bbox": True, "with_mask": True},
            {"type": "mmdet.PackDetInputs"},
        ],
    )
    assert len(dataset) == NUM_TRAIN
    assert dataset.metainfo["classes"] == CLASSES
    for index in range(NUM_TRAIN):
        scene = make_scene(0, "train", index, 128)
        item = dataset[index]
        assert item["inputs"].shape == (3, 128, 128)
        instances = item["data_samples"].gt_instances
        assert instances.labels.tolist() == [shape.category for shape in scene.shapes]
        masks = instances.masks.to_ndarray().astype(bool)
        expected = [scene.owner == k for k in range(len(scene.shapes))]
        np.testing.assert_array_equal(masks, expected)
        boxes = instances.bboxes
        boxes = getattr(boxes, "tensor", boxes).numpy()
        np.testing.assert_array_equal(boxes[:, 2], [m.any(0).nonzero()[0][-1] + 1 for m in masks])


@pytest.mark.parametrize("reduce_zero_label", [False, True])
def test_mmseg_base_dataset(data, reduce_zero_label):
    pytest.importorskip("mmseg", reason="mmseg is optional")
    from mmseg.datasets import BaseSegDataset

    names = (CLASSES, PALETTE) if reduce_zero_label else (SEG_CLASSES, SEG_PALETTE)
    dataset = BaseSegDataset(
        data_root=str(data),
        data_prefix={"img_path": "train", "seg_map_path": "annotations/train"},
        metainfo={"classes": names[0], "palette": names[1]},
        reduce_zero_label=reduce_zero_label,
        pipeline=[
            {"type": "LoadImageFromFile"},
            {"type": "mmseg.LoadAnnotations"},
            {"type": "mmseg.PackSegInputs"},
        ],
    )
    assert len(dataset) == NUM_TRAIN
    for index in range(NUM_TRAIN):
        expected = semantic_map(make_scene(0, "train", index, 128)).astype(int)
        if reduce_zero_label:
            expected = np.where(expected == 0, 255, expected - 1)
        labels = dataset[index]["data_samples"].gt_sem_seg.data[0].numpy()
        np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize("kind", ["CustomDataset", "ImageNet"])
def test_mmpretrain_class_folders(data, kind):
    pytest.importorskip("mmpretrain", reason="mmpretrain is optional")
    from mmpretrain import datasets

    if kind == "CustomDataset":
        where = {"data_root": str(data), "data_prefix": "cls/train"}
    else:
        where = {"data_root": str(data / "cls"), "split": "train"}
    dataset = getattr(datasets, kind)(
        **where,
        metainfo={"classes": CLASSES},
        pipeline=[{"type": "LoadImageFromFile"}, {"type": "mmpretrain.PackInputs"}],
    )
    assert len(dataset) == NUM_TRAIN
    for index in range(NUM_TRAIN):
        sample = dataset[index]["data_samples"]
        folder = Path(sample.img_path).parent.name
        assert CLASSES[sample.gt_label.item()] == folder
        assert (int(Path(sample.img_path).stem) - 1) % len(CLASSES) == sample.gt_label.item()
