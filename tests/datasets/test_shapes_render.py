"""The scenes: what is drawn is what is annotated, and a person can see it."""

import cv2
import numpy as np
import pytest
import shapely
from pycocotools import mask as coco_mask

from mmlocal.datasets.shapes import CLASSES, PALETTE, SEG_CLASSES, SEG_PALETTE
from mmlocal.datasets.shapes.export import (
    MIN_VISIBLE,
    coco_annotations,
    make_class_image,
    make_scene,
    mask_to_polygons,
    semantic_map,
)

SIZE = 256
SCENES = [make_scene(7, "val", index, SIZE) for index in range(24)]


def rasterise(polygons: list[list[float]], height: int, width: int) -> np.ndarray:
    parts = coco_mask.frPyObjects(polygons, height, width)
    return coco_mask.decode(coco_mask.merge(parts)).astype(bool)


def masks_from_geometry(scene) -> list[np.ndarray]:
    """Visible masks from the outlines alone, by 16 points in each pixel and the painter's order."""
    height, width = scene.owner.shape
    steps = (np.arange(4) + 0.5) / 4
    y = (np.arange(height)[:, None] + steps).reshape(-1, 1)
    x = (np.arange(width)[:, None] + steps).reshape(1, -1)
    masks = []
    for shape in scene.shapes:
        polygon = shapely.Polygon(shape.rings[0], shape.rings[1:])
        shapely.prepare(polygon)
        inside = shapely.contains_xy(polygon, *np.broadcast_arrays(x, y))
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
        drawn = rasterise(annotation["segmentation"], SIZE, SIZE)
        assert iou(drawn, mask) >= (0.9 if annotation["area"] < 32**2 else 0.97)
        assert annotation["category_id"] == shape.category + 1
        assert annotation["iscrowd"] == 0


@pytest.mark.parametrize("scene", SCENES)
def test_polygons_boxes_and_areas_are_exact(scene):
    for index, annotation in enumerate(coco_annotations(scene)):
        drawn = rasterise(annotation["segmentation"], SIZE, SIZE)
        np.testing.assert_array_equal(drawn, scene.owner == index)
        assert annotation["area"] == drawn.sum()
        x, y, w, h = annotation["bbox"]
        rows, columns = np.nonzero(drawn)
        assert (x, y) == (columns.min(), rows.min())
        assert (x + w, y + h) == (columns.max() + 1, rows.max() + 1)


@pytest.mark.parametrize("scene", SCENES)
def test_enough_of_each_object_shows(scene):
    for annotation, shape in zip(coco_annotations(scene), scene.shapes, strict=True):
        full = shapely.Polygon(shape.rings[0], shape.rings[1:]).area
        assert annotation["area"] >= 0.999 * MIN_VISIBLE * full


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
        expected[rasterise(annotation["segmentation"], SIZE, SIZE)] = annotation["category_id"]
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
        full = shapely.Polygon(shape.rings[0], shape.rings[1:]).area
        assert (scene.owner == 0).sum() >= 0.9 * full


MASKS = {
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
def test_any_mask_survives_the_way_through_polygons(rows, pad):
    mask = np.pad(np.array([[char == "#" for char in row] for row in rows]), pad)
    polygons = mask_to_polygons(mask)
    np.testing.assert_array_equal(rasterise(polygons, *mask.shape), mask)
    assert all(shapely.Polygon(np.reshape(p, (-1, 2))).is_valid for p in polygons)
    assert sum(shapely.Polygon(np.reshape(p, (-1, 2))).area for p in polygons) == mask.sum()


def test_random_masks_survive_the_way_through_polygons():
    rng = np.random.default_rng(0)
    for density in np.linspace(0.1, 0.9, 40):
        mask = rng.random((17, 23)) < density
        np.testing.assert_array_equal(rasterise(mask_to_polygons(mask), 17, 23), mask)
