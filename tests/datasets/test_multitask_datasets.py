"""Multi-task data sets: four layouts, decoding, and what is wrong with the files."""

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import DATASETS

pytest.importorskip("mmcv.transforms")

from multitask_files import (
    SIZE,
    annotation,
    box,
    write_array,
    write_image,
    write_mat,
    write_nyud,
    write_pascal,
)
from scipy.io import loadmat
from scipy.sparse import csc_matrix
from skimage.morphology import thin

import mmlocal.registry  # noqa: F401 - the scope of the types
from mmlocal.datasets.multitask import voc_palette
from mmlocal.datasets.nyud import NYUDv2
from mmlocal.datasets.pascal_context import PASCALContext
from mmlocal.datasets.transforms.label_formats import HUMAN_PARTS
from mmlocal.datasets.transforms.room_classes import ROOM_CLASSES
from mmlocal.tasks import TASKS

NYUD_TASKS = ("semseg", "depth", "normals", "edge")
PASCAL_TASKS = ("semseg", "human_parts", "sal", "normals", "edge")
LOAD = [
    dict(type="LoadImageFromFile", _scope_="mmcv"),
    dict(type="mmlocal.LoadMultiTaskAnnotations"),
]


def build(kind: str, root: Path, pipeline=tuple(LOAD), **more):
    return DATASETS.build(
        dict(type=f"mmlocal.{kind}", data_root=str(root), pipeline=list(pipeline), **more)
    )


@pytest.fixture(scope="session")
def nyud(tmp_path_factory):
    """Both layouts of NYUD-v2 by their old name, and what is in them."""
    root = tmp_path_factory.mktemp("nyud")
    return {
        old: (root / name, write_nyud(root / name, old=old))
        for name, old in (("NYUDv2", False), ("NYUD_MT", True))
    }


@pytest.fixture(scope="session")
def pascal(tmp_path_factory):
    root = tmp_path_factory.mktemp("pascal") / "PASCAL_MT"
    return root, write_pascal(root)


@pytest.fixture
def own_nyud(nyud, tmp_path) -> Path:
    return Path(shutil.copytree(nyud[False][0], tmp_path / "NYUDv2"))


@pytest.fixture
def own_pascal(pascal, tmp_path) -> Path:
    return Path(shutil.copytree(pascal[0], tmp_path / "PASCALContext"))


# ---------------------------------------------------------------------------------- values


def same(found: np.ndarray, expected: np.ndarray, atol: float = 0) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("old", [False, True], ids=["DeMT", "MTI-Net"])
def test_nyud_values(nyud, old):
    root, expected = nyud[old]
    for split, length in (("train", 3), ("val", 2)):
        dataset = build("NYUDv2", root, split=split, tasks=NYUD_TASKS, test_mode=split == "val")
        assert len(dataset) == length
        for item in dataset:
            truth = expected[item["sample_id"]]
            assert item["tasks"] == NYUD_TASKS
            assert [item[TASKS[t].gt_key].dtype for t in NYUD_TASKS] == [
                *(np.uint8, np.float32, np.float32, np.uint8)
            ]
            same(item["gt_seg_map"], truth["semseg"])
            same(item["gt_edge_map"], truth["edge"])
            same(item["gt_depth_map"], truth["depth"])
            same(item["gt_normal_map"], truth["normals"], 1e-6)
            if not old:  # JPEG files change the colours
                same(item["img"], truth["image"][..., ::-1])
    assert Path(item["img_path"]).suffix == (".jpg" if old else ".png")


def test_generated_extras(tmp_path):
    expected = write_nyud(tmp_path / "NYUDv2", extras=True)
    dataset = build("NYUDv2", tmp_path / "NYUDv2", tasks=("sal", "human_parts"))
    for item in dataset:
        same(item["gt_parts_map"], expected[item["sample_id"]]["human_parts"])
        same(item["gt_saliency_map"], expected[item["sample_id"]]["sal"])
        # The crop balances the classes, whatever the tasks are.
        same(item["gt_seg_map"], expected[item["sample_id"]]["semseg"])
    tested = build("NYUDv2", tmp_path / "NYUDv2", tasks=("sal",), test_mode=True)
    assert "gt_seg_map" not in tested[0]


def laplacian(labels: np.ndarray) -> np.ndarray:
    """The sum of four neighbours minus four times the pixel; the border reflects, written out."""
    height, width = labels.shape
    found = np.zeros(labels.shape)
    for y in range(height):
        for x in range(width):
            for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1)):
                row = abs(y + dy) if y + dy < height else height - 2
                column = abs(x + dx) if x + dx < width else width - 2
                found[y, x] += float(labels[row, column]) - float(labels[y, x])
    return found


def test_pascal_values(pascal):
    root, expected = pascal
    for split, length in (("train", 3), ("val", 2)):
        dataset = build("PASCALContext", root, split=split, tasks=PASCAL_TASKS)
        assert len(dataset) == length
        for item in dataset:
            truth = expected[item["sample_id"]]
            same(item["gt_seg_map"], truth["semseg"])
            same(item["gt_parts_map"], truth["human_parts"])
            same(item["gt_saliency_map"], truth["sal"])
            same(item["gt_normal_map"], truth["normals"], 1e-6)
            same(item["gt_edge_map"], thin(laplacian(truth["context"]) != 0))
            assert 0 < item["gt_edge_map"].mean() < 0.2
            assert item["gt_normal_map"].any()


def test_files_of_semseg_image_by_image(pascal):
    found = [
        Path(item["labels"]["semseg"]["path"]).parent.name
        for item in build("PASCALContext", pascal[0])
    ]
    assert found == ["VOC12", "pascal-context", "VOC12"]


def test_both_folders_of_semseg(own_pascal):
    """VOC12 comes first for an image that is in both."""
    for path in (own_pascal / "semseg/VOC12").iterdir():
        shutil.copy(path, own_pascal / "semseg/pascal-context")
    paths = [item["labels"]["semseg"]["path"] for item in build("PASCALContext", own_pascal)]
    assert ["VOC12" in path for path in paths] == [True, False, True]


def test_parts_of_pascal():
    assert len(HUMAN_PARTS) == 24
    groups = {number: {n for n, k in HUMAN_PARTS.items() if k == number} for number in range(1, 7)}
    assert [len(groups[number]) for number in range(1, 7)] == [10, 2, 2, 4, 2, 4]
    assert groups[2] == {"torso", "neck"}
    assert groups[4] == {"llarm", "rlarm", "lhand", "rhand"}


def test_rooms():
    """Indoor classes have normals; grass, sky, animals of the field and traffic have none."""
    assert len(set(ROOM_CLASSES.values())) == len(ROOM_CLASSES)
    assert {"wall", "floor", "ceiling", "tvmonitor", "person", "table"} <= set(ROOM_CLASSES)
    assert not {"unknown", "grass", "sky", "tree", "road", "cow", "bus", "building"} & set(
        ROOM_CLASSES
    )
    assert max(ROOM_CLASSES.values()) <= 459
    # Context labels of PASCAL VOC's classes, which ASTMT lists.
    named = {"bicycle": 23, "bottle": 34, "car": 59, "cat": 65, "chair": 72, "table": 397}
    named |= {"dog": 113, "person": 284, "sofa": 368, "tvmonitor": 427}
    assert named.items() <= ROOM_CLASSES.items()
    assert list(ROOM_CLASSES) == sorted(ROOM_CLASSES)
    assert list(ROOM_CLASSES.values()) == sorted(ROOM_CLASSES.values())


def test_classes_and_colours(nyud, pascal):
    names = NYUDv2.METAINFO["classes"]
    assert len(names) == len(set(names)) == len(NYUDv2.METAINFO["palette"]) == 40
    assert (names[0], names[4], names[17], names[39]) == ("wall", "chair", "pillow", "otherprop")
    names = PASCALContext.METAINFO["classes"]
    assert len(names) == len(set(names)) == len(PASCALContext.METAINFO["palette"]) == 21
    assert (names[0], names[15], names[20]) == ("background", "person", "tvmonitor")
    colours = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]
    assert voc_palette(5) == colours
    assert voc_palette(16)[15] == (192, 128, 128)  # a person
    own = build("NYUDv2", nyud[False][0], metainfo=dict(classes=("a", "b")), lazy_init=True)
    assert own.metainfo["classes"] == ("a", "b")
    assert own.metainfo["palette"] == colours[1:3]
    own = build("PASCALContext", pascal[0], metainfo=dict(classes=("a", "b")), lazy_init=True)
    assert own.metainfo["palette"] == colours[:2]
    assert own.metainfo["tasks"] == ("semseg",)


def test_options_of_base_dataset(nyud):
    root = nyud[False][0]
    lazy = build("NYUDv2", root / "absent", lazy_init=True)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        lazy.full_init()
    assert len(build("NYUDv2", root, indices=2)) == 2
    plain, packed = (build("NYUDv2", root, serialize_data=s) for s in (False, True))
    assert plain.get_data_info(1) == packed.get_data_info(1)


# ------------------------------------------------------------------------------ wrong files


def message(kind: str, root: Path, error=FileNotFoundError, **more) -> str:
    with pytest.raises(error) as caught:
        build(kind, root, **more)
    return str(caught.value)


def test_missing_files_name_the_tree(own_nyud, own_pascal):
    text = message("NYUDv2", own_nyud / "typo")
    assert str(own_nyud / "typo") in text
    for part in ("images/*.png", "or *.jpg", "depth/*.npy", "gt_sets/{train,val}.txt"):
        assert part in text
    (own_nyud / "depth/0001.npy").unlink()
    text = message("NYUDv2", own_nyud, tasks=NYUD_TASKS)
    assert text.startswith("1 of 3 images of the split 'train' have no file of the labels for 'de")
    assert "0001" in text
    assert "segmentation/*.png" in text
    assert len(build("NYUDv2", own_nyud, tasks=("semseg", "edge"))) == 3  # needs no depth
    (own_pascal / "semseg/pascal-context/2008_000001.png").unlink()
    text = message("PASCALContext", own_pascal)
    assert "semseg/VOC12/*.png or semseg/pascal-context/*.png" in text
    assert "ImageSets/Context/{train,val}.txt" in text
    for path in (own_pascal / "pascal-context/trainval").iterdir():
        path.unlink()
    text = message("PASCALContext", own_pascal, tasks=("normals",))
    assert "pascal-context/trainval/*.mat" in text


def test_images_are_missing(own_nyud):
    (own_nyud / "images/0000.png").unlink()
    assert "1 of 3 images of the split 'train' have no file of the images" in message(
        "NYUDv2", own_nyud
    )


def test_half_of_another_layout(own_nyud):
    """The form with all files is taken, not the form of the first file."""
    write_array(own_nyud / "edge/0000.npy", np.ones(SIZE))
    write_image(own_nyud / "images/0000.jpg", np.zeros((*SIZE, 3), np.uint8))
    item = build("NYUDv2", own_nyud, tasks=("edge",))[0]
    assert item["labels"]["edge"]["path"].endswith("edge/0000.png")
    assert item["img_path"].endswith(".png")


def test_splits(own_nyud):
    text = message("NYUDv2", own_nyud, split="test")
    assert "'test'" in text
    assert "there are the splits train, val;" in text
    listed = own_nyud / "gt_sets/train.txt"
    listed.write_text("\n  \n")
    assert "lists no image" in message("NYUDv2", own_nyud, ValueError)
    listed.write_text("0000\n0001\n0000\n")
    assert "lists 1 images more than once: 0000" in message("NYUDv2", own_nyud, ValueError)
    for text in ("0000\r\n0001  \r\n\r\n", "\ufeff0000\n0001"):  # as written on Windows
        listed.write_text(text, encoding="utf-8", newline="")
        assert len(build("NYUDv2", own_nyud)) == 2
    listed.write_bytes("0000\n".encode("utf-16"))
    text = message("NYUDv2", own_nyud, ValueError)
    assert text.startswith(f"{listed} must be a text file in UTF-8: ")


def test_tasks(own_nyud, own_pascal):
    text = message("PASCALContext", own_pascal, ValueError, tasks=("depth",))
    assert text.startswith("PASCALContext has no labels for 'depth'; it has semseg, human_parts,")
    text = message("NYUDv2", own_nyud, ValueError, tasks=("semseg", "human_parts"))
    assert "has no labels for 'human_parts'; it has semseg, depth, normals, edge;" in text
    for tasks, why in ((("edge", "edge"), "2 times"), ((), "at least one"), (("flow",), "unknown")):
        assert why in message("NYUDv2", own_nyud, ValueError, tasks=tasks)
    assert "got the string" in message("NYUDv2", own_nyud, TypeError, tasks="semseg")


def failure(kind: str, root: Path, *tasks: str) -> str:
    dataset = build(kind, root, tasks=tasks)
    with pytest.raises(ValueError) as caught:
        dataset[0]
    return str(caught.value)


def test_another_size(own_nyud, own_pascal):
    write_array(own_nyud / "depth/0000.npy", np.ones((8, 9), np.float32))
    text = failure("NYUDv2", own_nyud, "depth")
    assert re.search(r"depth/0000.npy has 8x9 pixels, and its image \S+0000.png has 36x48", text)
    write_image(own_pascal / "normals_distill/2008_000000.png", np.ones((8, 9, 3), np.uint8))
    text = failure("PASCALContext", own_pascal, "normals")
    assert "normals_distill/2008_000000.png has 8x9 pixels, and its label map" in text
    person = [(15, box(0, 9, 0, 9), [("head", np.ones((4, 4), bool))])]
    write_mat(own_pascal / "human_parts/2008_000000.mat", anno=annotation(person))
    assert "2008_000000.mat is no annotation of" in failure(
        "PASCALContext", own_pascal, "human_parts"
    )


def test_depth(own_nyud):
    depth = np.full(SIZE, 2.0)
    depth[0, :4] = [0, np.nan, np.inf, 3]
    write_array(own_nyud / "depth/0000.npy", depth[..., None])
    found = build("NYUDv2", own_nyud, tasks=("depth",))[0]["gt_depth_map"]
    assert found[0, :5].tolist() == [0, 0, 0, 3, 2]
    write_array(own_nyud / "depth/0000.npy", np.full(SIZE, 1e99))  # too large for float32
    assert not build("NYUDv2", own_nyud, tasks=("depth",))[0]["gt_depth_map"].any()
    depth[5, 5] = -1.5
    write_array(own_nyud / "depth/0000.npy", depth)
    assert "depth/0000.npy has negative depth, down to -1.5" in failure("NYUDv2", own_nyud, "depth")


def test_normals_that_are_no_numbers(nyud, tmp_path):
    root = Path(shutil.copytree(nyud[True][0], tmp_path / "NYUD_MT"))
    normals = np.ones((*SIZE, 3))
    normals[2, 2, 1] = np.nan
    write_array(root / "normals/0000.npy", normals)
    found = build("NYUDv2", root, tasks=("normals",))[0]["gt_normal_map"]
    assert not found[2, 2].any()
    assert (found == 1).all(axis=-1).sum() == SIZE[0] * SIZE[1] - 1


@pytest.mark.parametrize(
    ("file", "task"),
    [
        ("segmentation/0000.png", "semseg"),
        ("depth/0000.npy", "depth"),
        ("normals/0000.png", "normals"),
        ("edge/0000.png", "edge"),
    ],
)
@pytest.mark.parametrize("damage", ["cut", "empty", "pickle"])
def test_damaged_files_of_nyud(own_nyud, file, task, damage):
    path = own_nyud / file
    content = path.read_bytes()
    if damage == "pickle" and path.suffix == ".npy":
        np.save(path, np.array([{"a": 1}], dtype=object))
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    assert str(path) in failure("NYUDv2", own_nyud, task)


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "other"])
@pytest.mark.parametrize(
    ("folder", "task"), [("human_parts", "human_parts"), ("pascal-context/trainval", "edge")]
)
def test_damaged_mat_files(own_pascal, folder, task, damage):
    path = own_pascal / folder / "2008_000000.mat"
    content = path.read_bytes()
    wrong = {"cut": content[: len(content) // 2], "empty": b"", "text": b"no matrix " * 30}
    if damage == "other":
        write_mat(path, something=np.ones(3))
    else:
        path.write_bytes(wrong[damage])
    assert str(path) in failure("PASCALContext", own_pascal, task)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (np.ones(SIZE), "is no annotation of PASCAL-Part"),
        (csc_matrix(np.eye(4)), "is no annotation of PASCAL-Part"),
        (annotation([(15, box(0, 9, 0, 9), [("wing", box(0, 3, 0, 3))])]), "'wing'"),
    ],
    ids=["matrix", "sparse matrix", "unknown part"],
)
def test_wrong_annotations(own_pascal, content, why):
    write_mat(own_pascal / "human_parts/2008_000000.mat", anno=content)
    assert why in failure("PASCALContext", own_pascal, "human_parts")


@pytest.mark.parametrize(
    "labels", [np.zeros((0, 0)), np.zeros((2, 2, 2)), csc_matrix(np.eye(4)), 1j * np.eye(4)]
)
def test_wrong_label_maps(own_pascal, labels):
    write_mat(own_pascal / "pascal-context/trainval/2008_000000.mat", LabelMap=labels)
    assert "must be a full matrix of numbers" in failure("PASCALContext", own_pascal, "edge")


def test_images_of_1_bit(own_nyud):
    edges = np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) % 3 == 0
    for folder in ("edge", "segmentation"):
        write_image(own_nyud / folder / "0000.png", edges)
    item = build("NYUDv2", own_nyud, tasks=("edge", "semseg"))[0]
    same(item["gt_edge_map"], edges)
    same(item["gt_seg_map"], np.where(edges, 0, 255))


@pytest.mark.parametrize(
    ("module", "library"), [("scipy.io", "scipy"), ("skimage.morphology", "scikit-image")]
)
def test_missing_libraries(pascal, monkeypatch, module, library):
    monkeypatch.setitem(sys.modules, module, None)
    dataset = build("PASCALContext", pascal[0], tasks=("edge",))
    with pytest.raises(ModuleNotFoundError, match=f"pip install {library}$"):
        dataset[0]
    assert "gt_saliency_map" in build("PASCALContext", pascal[0], tasks=("sal",))[0]


def test_nobody_is_there(own_pascal):
    """Files without any thing are empty matrices."""
    write_mat(own_pascal / "human_parts/2008_000000.mat", anno=annotation([]))
    assert not build("PASCALContext", own_pascal, tasks=("human_parts",))[0]["gt_parts_map"].any()
    path = own_pascal / "human_parts/2008_000000.mat"
    assert loadmat(path)["anno"][0, 0]["objects"].size == 0


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (np.zeros((*SIZE, 3), np.uint8), r"must have the shape \(H, W\)"),
        (np.zeros(SIZE, np.uint16), "must have 8 bits"),
    ],
    ids=["colours", "16 bits"],
)
def test_wrong_kinds_of_images(own_nyud, image, why):
    write_image(own_nyud / "segmentation/0000.png", image)
    assert re.search(why, failure("NYUDv2", own_nyud, "semseg"))
