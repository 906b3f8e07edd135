"""The scenes: annotations match the drawn objects, and a person can see the objects."""

import json

import cv2
import numpy as np
import pytest
from matplotlib.path import Path
from pycocotools import mask as coco_mask

from mmlocal.datasets.shapes import CLASSES, PALETTE, SEG_CLASSES, SEG_PALETTE
from mmlocal.datasets.shapes.annotations import coco_annotations, mask_to_rle, semantic_map
from mmlocal.datasets.shapes.export import MIN_VISIBLE, make_class_image, make_scene

SIZE = 256
SCENES = [make_scene(7, "val", index, SIZE) for index in range(24)]


def rasterise(rle: dict) -> np.ndarray:
    """Read the mask from JSON by COCO's own code."""
    rle = json.loads(json.dumps(rle))
    return coco_mask.decode(coco_mask.frPyObjects(rle, *rle["size"])).astype(bool)


def area(shape) -> float:
    outer, *holes = (cv2.contourArea(ring.astype(np.float32)) for ring in shape.rings)
    return outer - sum(holes)


def masks_from_geometry(scene) -> list[np.ndarray]:
    """Compute visible masks from outlines and drawing order, by 16 points per pixel."""
    height, width = scene.owner.shape
    steps = (np.arange(4) + 0.5) / 4
    y = (np.arange(height)[:, None] + steps).reshape(-1, 1)
    x = (np.arange(width)[:, None] + steps).reshape(1, -1)
    points = np.stack(np.broadcast_arrays(x, y), axis=-1).reshape(-1, 2)
    masks = []
    for shape in scene.shapes:
        outer, *holes = (Path(ring, closed=False).contains_points(points) for ring in shape.rings)
        inside = outer & ~np.any(holes, axis=0)
        covered = inside.reshape(height, 4, width, 4).mean(axis=(1, 3)) >= 0.5
        masks = [mask & ~covered for mask in masks]
        masks.append(covered)
    return masks


def iou(first: np.ndarray, second: np.ndarray) -> float:
    return (first & second).sum() / (first | second).sum()


def test_class_names_are_in_the_order_of_folders():
    assert len(CLASSES) >= 8
    assert list(CLASSES) == sorted(CLASSES)
    assert len(set(PALETTE)) == len(PALETTE) == len(CLASSES)
    assert len(set(SEG_PALETTE)) == len(SEG_PALETTE) == len(SEG_CLASSES)


@pytest.mark.parametrize("scene", SCENES)
def test_annotations_match_the_visible_outlines(scene):
    annotations = coco_annotations(scene)
    truth = masks_from_geometry(scene)
    assert len(annotations) == len(scene.shapes) == len(truth) > 0
    for annotation, shape, mask in zip(annotations, scene.shapes, truth, strict=True):
        drawn = rasterise(annotation["segmentation"])
        assert iou(drawn, mask) >= (0.9 if annotation["area"] < 32**2 else 0.97)
        assert annotation["category_id"] == shape.category + 1
        assert annotation["iscrowd"] == 0


@pytest.mark.parametrize("scene", SCENES)
def test_masks_boxes_and_areas_are_exact(scene):
    for index, annotation in enumerate(coco_annotations(scene)):
        drawn = rasterise(annotation["segmentation"])
        np.testing.assert_array_equal(drawn, scene.owner == index)
        assert annotation["area"] == drawn.sum()
        x, y, w, h = annotation["bbox"]
        rows, columns = np.nonzero(drawn)
        assert (x, y) == (columns.min(), rows.min())
        assert (x + w, y + h) == (columns.max() + 1, rows.max() + 1)


@pytest.mark.parametrize("scene", SCENES)
def test_enough_of_each_object_shows(scene):
    for annotation, shape in zip(coco_annotations(scene), scene.shapes, strict=True):
        assert annotation["area"] >= 0.999 * MIN_VISIBLE * area(shape)


@pytest.mark.parametrize("scene", SCENES)
def test_objects_stand_out_in_the_picture(scene):
    """Mean colours just inside and just outside of each mask differ in the picture itself, which
    also proves that the masks lie where the objects are drawn."""
    lab = cv2.cvtColor(scene.image.astype(np.float32) / 255, cv2.COLOR_BGR2Lab)
    kernel = np.ones((3, 3), np.uint8)
    for index in range(len(scene.shapes)):
        mask = (scene.owner == index).astype(np.uint8)
        inside = cv2.erode(mask, kernel, borderValue=1).astype(bool)
        near = cv2.dilate(mask, kernel)
        outside = (cv2.dilate(near, kernel, iterations=2) - near).astype(bool)
        assert np.linalg.norm(lab[inside].mean(axis=0) - lab[outside].mean(axis=0)) > 20


@pytest.mark.parametrize("scene", SCENES)
def test_semantic_map_is_the_union_of_the_instances(scene):
    expected = np.zeros((SIZE, SIZE), np.uint8)
    for annotation in coco_annotations(scene):
        expected[rasterise(annotation["segmentation"])] = annotation["category_id"]
    np.testing.assert_array_equal(semantic_map(scene), expected)


def test_scenes_have_what_makes_annotation_hard():
    """Rings with a whole hole, objects in several parts, and objects cut by the border occur."""
    whole_rings = split = at_border = 0
    for scene in SCENES:
        for index, shape in enumerate(scene.shapes):
            mask = (scene.owner == index).astype(np.uint8)
            parts = cv2.connectedComponents(mask, connectivity=8)[0] - 1
            gaps = cv2.connectedComponents(1 - np.pad(mask, 1), connectivity=4)[0] - 1
            split += parts > 1
            whole_rings += CLASSES[shape.category] == "ring" and parts == 1 and gaps > 1
            at_border += mask[0].any() or mask[:, -1].any()
    assert whole_rings
    assert split
    assert at_border


@pytest.mark.parametrize("size", [32, 64, 256])
def test_first_objects_walk_through_the_classes(size):
    scenes = [make_scene(1, "train", index, size) for index in range(3 * len(CLASSES))]
    assert [scene.shapes[0].category for scene in scenes] == 3 * list(range(len(CLASSES)))


@pytest.mark.parametrize("size", [32, 64, 100])
def test_class_images_hold_one_whole_object(size):
    for index in range(5 * len(CLASSES)):
        scene = make_class_image(3, "train", index, size)
        (shape,) = scene.shapes
        assert scene.image.shape == (size, size, 3)
        assert shape.category == index % len(CLASSES)
        assert (scene.owner == 0).sum() >= 0.9 * area(shape)


MASKS = {
    "empty": ["..", ".."],
    "full": ["###", "###"],
    "pixel": ["#"],
    "two parts": ["#.#", "#.#"],
    "touching at a corner": ["#.", ".#"],
    "hole": ["###", "#.#", "###"],
    "two holes": ["#####", "#.#.#", "#####"],
    "stacked holes": ["###", "#.#", "###", "#.#", "###"],
    "wide hole": ["######", "#....#", "######"],
    "island in a hole": ["#####", "#...#", "#.#.#", "#...#", "#####"],
    "hole that touches the outside at a corner": [".###", "#.##", "####"],
    "holes that touch": ["####", "#.##", "##.#", "####"],
}


@pytest.mark.parametrize("rows", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("pad", [0, 3])
def test_any_mask_survives_the_way_through_run_lengths(rows, pad):
    mask = np.pad(np.array([[char == "#" for char in row] for row in rows]), pad)
    rle = mask_to_rle(mask)
    np.testing.assert_array_equal(rasterise(rle), mask)
    assert rle["size"] == list(mask.shape)
    assert sum(rle["counts"][1::2]) == mask.sum()
    assert sum(rle["counts"]) == mask.size


def test_run_lengths_are_the_ones_of_coco():
    rng = np.random.default_rng(0)
    for density in np.linspace(0.1, 0.9, 40):
        mask = rng.random((17, 23)) < density
        rle = mask_to_rle(mask)
        np.testing.assert_array_equal(rasterise(rle), mask)
        assert coco_mask.frPyObjects(rle, 17, 23) == coco_mask.encode(np.asfortranarray(mask))


def test_run_lengths_written_out():
    mask = np.array([[True, False, False], [True, True, False]])
    assert mask_to_rle(mask) == {"size": [2, 3], "counts": [0, 2, 1, 1, 2]}
    assert mask_to_rle(~mask) == {"size": [2, 3], "counts": [2, 1, 1, 2]}
