"""The loaders of NYUD-v2 and of PASCAL-Context read the scenes."""

import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile

from mmlocal.datasets.nyud import NYUDv2
from mmlocal.datasets.pascal_context import PASCALContext
from mmlocal.datasets.scenes import (
    SCENE_CLASSES,
    SCENE_PALETTE,
    SOLID_CLASSES,
    make_room_scene,
    write_scenes,
)
from mmlocal.datasets.scenes.compose import FIRST_SOLID
from mmlocal.datasets.transforms.multitask_loading import LoadMultiTaskAnnotations, MarkIgnored

SIZE = (96, 112)
METAINFO = {"classes": SCENE_CLASSES, "palette": SCENE_PALETTE}
TASKS = {
    NYUDv2: ("semseg", "human_parts", "sal", "depth", "normals", "edge"),
    PASCALContext: ("semseg", "human_parts", "sal", "normals", "edge"),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    counts = {"train": 5, "val": 1}
    write_scenes(root, counts, seed=2, size=SIZE, layouts=("nyud", "pascal"), progress=False)
    return root


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("index", range(5))
def test_loaded_labels_are_those_of_the_scene(root, kind, index):
    data = kind(
        str(root / kind.__name__),
        tasks=TASKS[kind],
        ann_file="boxes_train.json",
        metainfo=METAINFO,
    )
    assert len(data) == 5
    results = data[index]
    scene = make_room_scene(2, "train", index, SIZE)
    for step in (LoadImageFromFile(), LoadMultiTaskAnnotations()):
        results = step.transform(results)
    difference = np.abs(results["img"][..., ::-1].astype(float) - scene.image)
    assert difference.mean() < (6 if kind is PASCALContext else 1e-9)
    np.testing.assert_array_equal(results["gt_seg_map"], scene.semantic)
    np.testing.assert_array_equal(results["gt_parts_map"], scene.parts)
    np.testing.assert_array_equal(results["gt_saliency_map"], scene.saliency)
    # Normals come to 8 bits; each surface keeps them.
    np.testing.assert_allclose(results["gt_normal_map"], scene.normals, atol=0.5 / 127.5 + 1e-6)
    if kind is NYUDv2:
        np.testing.assert_array_equal(results["gt_depth_map"], scene.depth)
        np.testing.assert_array_equal(results["gt_edge_map"], scene.edges)
    else:
        _assert_same_lines(results["gt_edge_map"] > 0, scene)
    labels = [SCENE_CLASSES.index(SOLID_CLASSES[box["bbox_label"]]) for box in results["instances"]]
    assert labels == scene.classes[FIRST_SOLID:]


def _assert_same_lines(edges, scene):
    """Lines of PASCAL-Context lie on either side of a change, ours on the upper left side."""
    change = np.zeros(SIZE, dtype=bool)
    for axis in (0, 1):
        different = np.diff(scene.owner, axis=axis) != 0
        first = [slice(None)] * 2
        second = [slice(None)] * 2
        first[axis], second[axis] = slice(None, -1), slice(1, None)
        change[tuple(first)] |= different
        change[tuple(second)] |= different
    assert not edges[~change].any()
    assert edges.sum() > 0.4 * scene.edges.sum()


@pytest.mark.parametrize("kind", TASKS)
def test_only_pictures_without_people_are_ignored(root, kind):
    data = kind(str(root / kind.__name__), tasks=TASKS[kind], metainfo=METAINFO)
    for index, results in enumerate(data):
        results = MarkIgnored().transform(
            LoadMultiTaskAnnotations().transform(LoadImageFromFile().transform(results))
        )
        scene = make_room_scene(2, "train", index, SIZE)
        assert np.all(results["gt_parts_map"] == 255) == (not scene.parts.any())
        assert not (results["gt_normal_map"] == 255).any()
        if "depth" in TASKS[kind]:
            assert not (results["gt_depth_map"] == 255).any()
