"""The files of the scenes hold what the renderer made, in both layouts."""

import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from scipy.io import loadmat

from mmlocal.datasets.scenes import (
    LAYOUTS,
    PART_NAMES,
    SCENE_CLASSES,
    SCENE_PALETTE,
    SOLID_CLASSES,
    export,
    make_room_scene,
    write_scenes,
)
from mmlocal.datasets.scenes.compose import FIRST_SOLID
from mmlocal.datasets.scenes.layouts import label_map
from mmlocal.datasets.shapes import add_task, generate_shapes, read_manifest
from mmlocal.datasets.transforms.room_classes import ROOM_CLASSES

COUNTS = {"train": 6, "val": 3}
SIZE = (96, 112)
NAMES = [(split, index) for split, count in COUNTS.items() for index in range(count)]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, dict]:
    root = tmp_path_factory.mktemp("scenes")
    layouts = ("nyud", "pascal")
    return root, write_scenes(root, COUNTS, seed=4, size=SIZE, layouts=layouts, progress=False)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def read(path: Path) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image is not None, path
    return image[..., ::-1] if image.ndim == 3 else image


def test_tables_fit_together():
    assert len(SCENE_PALETTE) == len(set(SCENE_PALETTE)) == len(SCENE_CLASSES) == 10
    assert set(SOLID_CLASSES) < set(SCENE_CLASSES)
    assert len(PART_NAMES) == 7
    assert set(LAYOUTS) == {"nyud", "pascal"}


@pytest.mark.parametrize(("split", "index"), NAMES)
def test_nyud_files_hold_the_scene(made, split, index):
    root, name = made[0] / "NYUDv2", f"{split}_{index + 1:06d}"
    scene = make_room_scene(4, split, index, SIZE)
    np.testing.assert_array_equal(read(root / "images" / f"{name}.png"), scene.image)
    segmentation = read(root / "segmentation" / f"{name}.png")
    assert segmentation.dtype == np.uint8
    np.testing.assert_array_equal(segmentation, scene.semantic + 1)
    depth = np.load(root / "depth" / f"{name}.npy", allow_pickle=False)
    assert depth.dtype == np.float32
    np.testing.assert_array_equal(depth, scene.depth)
    normals = 2 * read(root / "normals" / f"{name}.png").astype(float) / 255 - 1
    assert np.abs(normals - scene.normals).max() < 0.5 / 127.5 + 1e-6
    edges = read(root / "edge" / f"{name}.png")
    assert set(np.unique(edges)) == {0, 255}
    np.testing.assert_array_equal(edges == 255, scene.edges)
    np.testing.assert_array_equal(read(root / "human_parts" / f"{name}.png"), scene.parts)
    np.testing.assert_array_equal(read(root / "sal" / f"{name}.png") > 127, scene.saliency)


@pytest.mark.parametrize(("split", "index"), NAMES)
def test_pascal_files_hold_the_scene(made, split, index):
    root, name = made[0] / "PASCALContext", f"{split}_{index + 1:06d}"
    scene = make_room_scene(4, split, index, SIZE)
    image = read(root / "JPEGImages" / f"{name}.jpg").astype(float)
    assert np.abs(image - scene.image).mean() < 6
    semseg = read(root / "semseg" / "pascal-context" / f"{name}.png")
    np.testing.assert_array_equal(semseg, scene.semantic)
    numbers = loadmat(root / "pascal-context" / "trainval" / f"{name}.mat")["LabelMap"]
    assert numbers.dtype == np.uint16
    for axis in (0, 1):  # the numbers change where the owners change, and nowhere else
        changes = np.diff(scene.owner, axis=axis) != 0
        np.testing.assert_array_equal(np.diff(numbers.astype(int), axis=axis) != 0, changes)
    normals = 2 * read(root / "normals_distill" / f"{name}.png").astype(float) / 255 - 1
    assert np.abs(normals - scene.normals).max() < 0.5 / 127.5 + 1e-6
    salient = read(root / "sal_distill" / f"{name}.png") / 255 > 0.5
    np.testing.assert_array_equal(salient, scene.saliency)


@pytest.mark.parametrize(("split", "index"), NAMES)
def test_pascal_parts_read_as_the_published_loaders_do(made, split, index):
    """The loaders index the struct by position: objects, their class, mask and parts."""
    numbers = {"head": 1, "torso": 2, "luarm": 3, "llarm": 4, "luleg": 5, "llleg": 6}
    path = made[0] / "PASCALContext" / "human_parts" / f"{split}_{index + 1:06d}.mat"
    scene = make_room_scene(4, split, index, SIZE)
    objects = loadmat(path)["anno"][0][0][1][0]
    assert len(objects) == len(scene.classes) - FIRST_SOLID
    parts = np.zeros(SIZE, dtype=int)
    for k, item in enumerate(objects):
        owner = FIRST_SOLID + k
        person = SCENE_CLASSES[scene.classes[owner]] == "person"
        assert (item[1][0][0] == 15) == person
        assert (len(item[3]) != 0) == person
        np.testing.assert_array_equal(item[2] > 0, scene.owner == owner)
        if person:
            for part in item[3][0]:
                parts[part[1].astype(bool)] = numbers[str(part[0][0])]
    np.testing.assert_array_equal(parts, scene.parts)


def test_normals_of_all_surfaces_are_kept_in_the_pascal_layout():
    """The classes of LabelMap are among those that the loader keeps, the first of each its own."""
    for index in range(8):
        scene = make_room_scene(1, "val", index, SIZE)
        numbers = label_map(scene)
        assert set(np.unique(numbers)) <= set(ROOM_CLASSES.values())
        for name, other in (("floor", "floor"), ("picture", "picture"), ("cylinder", "can")):
            here = numbers[scene.semantic == SCENE_CLASSES.index(name)]
            assert ROOM_CLASSES[other] in here or not here.size
        assert len(np.unique(numbers)) == len(np.unique(scene.owner))


@pytest.mark.parametrize("images", ["NYUDv2/images", "PASCALContext/JPEGImages"])
def test_boxes(made, images):
    folder = images.split("/")[0]
    for split, count in COUNTS.items():
        coco = COCO(made[0] / folder / f"boxes_{split}.json")
        assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(SOLID_CLASSES)
        assert len(coco.getImgIds()) == count
        assert 0 not in coco.getAnnIds()
        for image in coco.loadImgs(coco.getImgIds()):
            assert (made[0] / images / image["file_name"]).is_file()
            assert (image["height"], image["width"]) == SIZE
            scene = make_room_scene(4, split, image["id"] - 1, SIZE)
            found = coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))
            assert len(found) == len(scene.classes) - FIRST_SOLID
            for owner, box in enumerate(found, FIRST_SOLID):
                mask = scene.owner == owner
                x, y, width, height = box["bbox"]
                assert box["area"] == mask.sum() == mask[y : y + height, x : x + width].sum()
                assert all(mask[row].any() for row in (y, y + height - 1))
                assert all(mask[:, column].any() for column in (x, x + width - 1))
                assert box["category_id"] == scene.classes[owner] + 1


def test_figures(made):
    figures = made[1]
    depths = {
        split: np.stack([make_room_scene(4, split, i, SIZE).depth for i in range(count)])
        for split, count in COUNTS.items()
    }
    constant = depths["train"].mean(dtype=np.float64)
    for split, found in figures.items():
        assert found["mean_depth"] == pytest.approx(depths[split].mean(), abs=1e-3)
        error = np.sqrt(np.square(depths[split].astype(float) - constant).mean())
        assert found["constant_depth_rmse"] == pytest.approx(error, abs=1e-3)
        assert sum(found["pixel_shares"].values()) == pytest.approx(1, abs=1e-3)
        assert sum(found["solids_per_class"].values()) == found["solids"]


def test_files_do_not_depend_on_the_number_of_cores_or_scenes(made, tmp_path, monkeypatch):
    monkeypatch.setattr(export.os, "cpu_count", lambda: 1)
    write_scenes(
        tmp_path,
        {"train": 2, "val": 1},
        seed=4,
        size=SIZE,
        layouts=("pascal", "nyud"),
        progress=False,
    )
    whole, found = contents(made[0]), contents(tmp_path)
    summaries = {name for name in found if "boxes_" in name or name.endswith(".txt")}
    assert len(summaries) == 8
    for name in set(found) - summaries:
        assert found[name] == whole[name], name
    other = make_room_scene(5, "train", 0, SIZE)
    assert not np.array_equal(other.image, make_room_scene(4, "train", 0, SIZE).image)
    assert not np.array_equal(other.image, make_room_scene(5, "val", 0, SIZE).image)


def test_a_layout_can_be_added(tmp_path):
    arguments = {"num_train": 2, "num_val": 1, "cls_size": 32, "progress": False}
    scenes = {"scene_size": (64, 80), "tasks": ("cls", "multitask")}
    generate_shapes(tmp_path / "all", **arguments, **scenes, layouts=("pascal", "nyud"))
    generate_shapes(tmp_path / "out", **arguments, **scenes)
    assert not (tmp_path / "out" / "PASCALContext").exists()
    manifest = add_task(tmp_path / "out", "multitask", layouts=["pascal"], progress=False)
    assert manifest["arguments"]["layouts"] == ["nyud", "pascal"]
    assert manifest == read_manifest(tmp_path / "all")
    assert contents(tmp_path / "out") == contents(tmp_path / "all")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"layouts": ("coco",)}, ValueError, r"layouts must be .*'pascal'.* got \('coco',\)"),
        ({"layouts": "nyud"}, TypeError, r"layouts must be a sequence .* got the string 'nyud'"),
        ({"scene_size": (128,)}, ValueError, r"scene_size must be a height and a width"),
        ({"scene_size": (128, 32)}, ValueError, "scene_size must be at least 64, got 32"),
    ],
)
def test_bad_arguments(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        generate_shapes(tmp_path / "out", tasks=["multitask"], **changes)
    assert not (tmp_path / "out").exists()


def test_matlab_files_name_no_time(made):
    for path in made[0].rglob("*.mat"):
        assert path.read_bytes()[:116].strip() == b"MATLAB 5.0 MAT-file, generated scenes"
        assert loadmat(io.BytesIO(path.read_bytes()))


def test_lists_name_the_scenes(made):
    for split, count in COUNTS.items():
        names = [f"{split}_{i + 1:06d}" for i in range(count)]
        for place in ("NYUDv2/gt_sets", "PASCALContext/ImageSets/Context"):
            assert (made[0] / place / f"{split}.txt").read_text().splitlines() == names
        boxes = json.loads((made[0] / "NYUDv2" / f"boxes_{split}.json").read_text())
        assert [image["file_name"] for image in boxes["images"]] == [f"{n}.png" for n in names]
