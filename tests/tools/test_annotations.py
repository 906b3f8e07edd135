"""Classes, annotations and heads that disagree are reported before anything is built."""

import json
import re
import shlex
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope

from mmlocal import list_configs
from mmlocal.cli.config import load_config
from mmlocal.cli.data.datasets import datasets_of, read_classes
from mmlocal.cli.data.heads import heads_of
from mmlocal.cli.data.report import Findings
from mmlocal.cli.testing import config_for_testing
from mmlocal.cli.training import config_for_training
from mmlocal.datasets.shapes import generate_shapes
from mmlocal.errors import UsageError

from .conftest import LIBRARIES, load_tool, write_config

CLASSES = "train_dataloader.dataset.metainfo.classes"


@pytest.fixture
def own(data, tmp_path) -> Path:
    """A copy of the data that a test may change."""
    return Path(shutil.copytree(data, tmp_path / "own"))


@pytest.fixture
def train(own, tmp_path):
    """Check the config of a training run with some options."""

    def call(library: str, *options: str, flags=()) -> None:
        config = write_config(library, own, tmp_path / f"{library}.py")
        more = ["--cfg-options", *options] if options else []
        config_for_training(**vars(load_tool("train").parse_args([str(config), *flags, *more])))

    return call


@pytest.fixture
def refused(train):
    """The message that refuses a run. Its proposed settings must mend the run."""

    def call(library: str, *options: str, mends: bool = True) -> str:
        with pytest.raises(UsageError) as caught:
            train(library, *options)
        message = str(caught.value)
        proposed = re.search(r"--cfg-options (.*)", message)
        if proposed and mends:
            keys = {option.partition("=")[0] for option in shlex.split(proposed[1])}
            kept = [option for option in options if option.partition("=")[0] not in keys]
            train(library, *kept, *shlex.split(proposed[1]))
        return message

    return call


@pytest.fixture
def warned(train, capsys):
    """The warning of a run that may start."""

    def call(library: str, *options: str) -> str:
        train(library, *options)
        return capsys.readouterr().err

    return call


def test_nothing_is_said_of_what_fits(train, capsys):
    for library in LIBRARIES:
        train(library)
    assert "warning" not in capsys.readouterr().err


def test_the_check_can_be_skipped(train):
    train("mmdet", "model.bbox_head.num_classes=2", flags=["--no-data-check"])


def test_one_process_of_a_machine_reads(train, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    train("mmdet", "model.bbox_head.num_classes=2")


def test_shipped_configs_on_generated_data(tmp_path, monkeypatch, capsys):
    generate_shapes(tmp_path / "data/shapes", num_train=24, num_val=12, progress=False)
    monkeypatch.chdir(tmp_path)
    configs = [name for name in list_configs() if "shapes" in name.split("_")]
    assert len(configs) > 5
    for name in configs:
        config_for_training(name)
    assert "warning" not in capsys.readouterr().err


def test_shipped_configs_on_public_data():
    """Classes of the libraries' own data sets are compared with all heads, without the data."""
    compared = 0
    for name in list_configs():
        cfg, findings = load_config(name), Findings()
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            for phase in ("train", "val", "test"):
                for dataset in datasets_of(cfg, phase):
                    classes = read_classes(dataset, findings)
                    for head in heads_of(cfg) if classes else []:
                        compared += 1
                        assert head.num_classes == len(classes), (name, head)
        assert not findings.errors
    assert compared > 50


# ------------------------------------------------------------------------------- names


def test_misspelt_name(refused):
    message = refused("mmdet", f"{CLASSES}=[persn,bicycle,car]")
    assert "persn: not among the categories" in message
    assert f"{CLASSES}=[person,bicycle,car]" in message


def test_names_of_another_data_set(refused, own):
    """A config gets another annotation file, but keeps the 80 classes of COCO."""
    edit_coco(own, "train", lambda coco: coco.update(categories=[{"id": 1, "name": "blob"}]))
    edit_coco(own, "val", lambda coco: coco.update(categories=[{"id": 1, "name": "blob"}]))
    message = refused("mmdet")
    for phase in ("train", "val"):
        assert f"{phase}_dataloader.dataset.metainfo.classes=[blob]" in message
    assert "model.bbox_head.num_classes=1" in message


def test_classes_left_to_the_library(refused, own, tmp_path, train):
    edit_coco(own, "train", lambda coco: coco.update(categories=[{"id": 1, "name": "blob"}]))
    with pytest.raises(UsageError, match=r"classes is not set, so CocoDataset looks for person"):
        train("mmdet", "train_dataloader.dataset.metainfo=None")


def test_names_that_the_command_line_would_change(refused, own):
    two = [{"id": 1, "name": "traffic light"}, {"id": 2, "name": "42"}]
    edit_coco(own, "train", lambda coco: coco.update(categories=two))
    assert f"{CLASSES} = ('traffic light', '42')" in refused("mmdet", mends=False)


@pytest.mark.parametrize("library", LIBRARIES)
def test_one_string(library, train):
    with pytest.raises(UsageError, match=r"one string, 'person', .*classes=\('person',\)"):
        train(library, f"{CLASSES}=person")


def test_names_in_a_file(train, tmp_path):
    (tmp_path / "names.txt").write_text("person\nbicycle\ncar\n")
    train("mmdet", f"{CLASSES}={tmp_path}/names.txt")


def test_order_of_names(warned):
    message = warned("mmdet", f"{CLASSES}=[car,person,bicycle]")
    assert "another order than the categories" in message
    assert f"{CLASSES}=[person,bicycle,car]" in message


def test_fewer_classes_than_the_file_are_no_mistake(train, capsys):
    options = [
        f"{phase}_dataloader.dataset.metainfo.classes=[bicycle]" for phase in ("train", "val")
    ]
    train("mmdet", *options, "model.bbox_head.num_classes=1")
    assert "warning" not in capsys.readouterr().err


# ------------------------------------------------------------------------------- heads


@pytest.mark.parametrize("library", ["mmdet", "mmseg", "mmpretrain"])
def test_number_of_outputs(library, refused, warned):
    head = {"mmdet": "bbox_head", "mmseg": "decode_head", "mmpretrain": "head"}[library]
    number = 2 if library == "mmpretrain" else 3
    message = refused(library, f"model.{head}.num_classes={number - 1}")
    assert f"--cfg-options model.{head}.num_classes={number}" in message
    message = warned(library, f"model.{head}.num_classes=9")
    assert f"num_classes is 9, train_dataloader.dataset has {number} classes" in message
    assert f"--cfg-options model.{head}.num_classes={number}" in message


def test_all_heads_of_a_cascade(own, tmp_path):
    heads = [
        *(f"model.roi_head.bbox_head.{i}.num_classes" for i in range(3)),
        "model.roi_head.mask_head.num_classes",
    ]
    config = write_config("mmdet", own, tmp_path / "cascade.py")
    config.write_text(
        config.read_text()
        + """
model["rpn_head"] = dict(type="RPNHead", num_classes=1)
model["roi_head"] = dict(
    bbox_head=[dict(type="Shared2FCBBoxHead", num_classes=2)] * 3,
    mask_head=dict(type="FCNMaskHead", num_classes=2),
    semantic_head=dict(type="FusedSemanticHead", num_classes=183),
)
"""
    )
    with pytest.raises(UsageError) as caught:
        config_for_training(str(config))
    message = str(caught.value)
    assert all(f"{key}=3" in message for key in heads)
    assert "rpn_head" not in message
    assert "semantic_head" not in message


def test_wrapped_data_sets(refused, own, tmp_path):
    config = write_config("mmdet", own, tmp_path / "wrapped.py")
    config.write_text(
        config.read_text()
        + """
train_dataloader["dataset"] = dict(
    type="RepeatDataset",
    times=2,
    dataset=dict(type="ConcatDataset", datasets=[dataset("train"), dataset("val")]),
)
train_dataloader["dataset"]["dataset"]["datasets"][1]["metainfo"] = dict(classes=("persn",))
"""
    )
    with pytest.raises(UsageError, match=r"datasets\.1\.metainfo\.classes=\[person\]"):
        config_for_training(str(config))


def test_unknown_data_sets_are_left_alone(train, tmp_path):
    """A data set class of the user may read its data in any way."""
    train("mmdet", "train_dataloader.dataset.type=Unknown", "model.bbox_head.num_classes=2")


# ------------------------------------------------------------------------------- COCO


def edit_coco(root: Path, split: str, change) -> None:
    path = root / f"det/{split}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def change(part: str, *, index: int | None = None, **values):
    """Set values in one entry or in all entries of a part of the annotation file."""

    def apply(coco: dict) -> None:
        for entry in coco[part] if index is None else [coco[part][index]]:
            entry.update(values)

    return apply


def drop(part: str, key: str | None = None):
    def apply(coco: dict) -> None:
        if key is None:
            del coco[part]
        else:
            del coco[part][0][key]

    return apply


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda coco: coco.update(images=[]), "has no images"),
        (lambda coco: coco.update(annotations=[]), "has no box of the classes"),
        (lambda coco: coco.update(categories=[]), "has no categories"),
        (drop("images"), "no list of images"),
        (drop("categories"), "no list of categories"),
        (drop("annotations", "bbox"), r"annotations\[0\] must have .*bbox"),
        (drop("annotations", "area"), r"annotations\[0\] must have .*area"),
        (drop("images", "width"), r"images\[0\] must have .*width"),
        (change("images", index=0, width="64"), "not in the format of COCO"),
        (change("annotations", index=0, bbox=[1, 2, 3]), r"annotation 1 needs a box .*\[1, 2, 3\]"),
        (change("annotations", index=1, id=1), "annotations share the id 1"),
        (change("images", index=1, id=1), "images share the id 1"),
        (change("categories", index=1, id=1), "categories share the id 1"),
        (change("categories", index=1, name="person"), "categories share the name person"),
        (change("images", index=2, file_name="x.jpg"), r"1 of 4 images .* x\.jpg"),
        (
            change("annotations", bbox=[8, 8, 0, 9]),
            "no box of .*; 4 of 4 .*below one pixel",
        ),
        (change("annotations", bbox=[8, 8, -4, 9]), "4 of 4 annotations have a box of negative"),
        (change("annotations", bbox=[8, float("nan"), 4, 4]), "4 of 4 .* not a number"),
        (change("annotations", bbox=[99, 8, 4, 4]), "4 of 4 .*outside their image"),
        (change("annotations", category_id=0), "4 of 4 .*no category"),
        (change("annotations", image_id="1"), "4 of 4 .*no image"),
        (change("annotations", index=0, segmentation=[]), "1 of 4 .*no segmentation .*with_mask"),
    ],
)
def test_broken_file(spoil, message, refused, own):
    edit_coco(own, "train", spoil)
    assert re.search(message, refused("mmdet", mends=False))


@pytest.mark.parametrize("crowd", [0, 1])
def test_run_lengths_where_polygons_are_loaded(crowd, train, refused, own):
    """mmdet drops them silently."""
    rle = {"size": [64, 64], "counts": [0, 4096]}
    edit_coco(own, "train", change("annotations", index=0, segmentation=rle, iscrowd=crowd))
    train("mmdet")
    polygons = "train_dataloader.dataset.pipeline.1.poly2mask=False"
    if crowd:
        train("mmdet", polygons)
    else:
        message = refused("mmdet", polygons, mends=False)
        assert re.search(r"1 of 4 .*run-length encoded .*ignores with poly2mask=False", message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [{"id": 1', r"not valid JSON \(line 1, column 21.*whole file"),
        ("", "not valid JSON"),
        ("[]", "not in the format of COCO"),
        ("\x80\x81", "not in|not valid"),
    ],
)
def test_no_coco_at_all(content, message, refused, own):
    (own / "det/train.json").write_text(content, encoding="latin-1")
    assert re.search(message, refused("mmdet"))


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([8, 8, 0, 9], "below one pixel"),
        ([8, 8, 9, -9], "negative size"),
        ([float("nan"), 8, 9, 9], "not a number"),
    ],
)
def test_some_bad_boxes(box, message, warned, own):
    edit_coco(own, "train", change("annotations", index=0, bbox=box))
    assert re.search(rf"1 of 4 annotations .*{message} .*id 1.*dropped", warned("mmdet"))


def test_images_that_are_never_opened(train, own):
    """The filter drops images without boxes, so their files may be missing."""
    image = {"id": 9, "file_name": "no.jpg", "height": 64, "width": 64}
    edit_coco(own, "train", lambda coco: coco["images"].append(image))
    train("mmdet", "train_dataloader.dataset.filter_cfg.filter_empty_gt=True")
    with pytest.raises(UsageError, match=r"1 of 5 images .* no\.jpg"):
        train("mmdet")


def test_parent_category(warned, own):
    """Some services export a parent category with id 0 and without boxes."""

    def add(coco):
        names = ("person", "bicycle", "car")
        children = [{"id": i, "name": n, "supercategory": "all"} for i, n in enumerate(names, 1)]
        coco["categories"] = [{"id": 0, "name": "all", "supercategory": "none"}, *children]

    for split in ("train", "val"):
        edit_coco(own, split, add)
    assert not warned("mmdet"), "left out by the config"
    options = [
        *(f"{phase}_dataloader.dataset.metainfo.classes=[all,person,bicycle,car]"
          for phase in ("train", "val")),
        "model.bbox_head.num_classes=4",
    ]  # fmt: skip
    message = warned("mmdet", *options)
    assert "all is the parent of other categories and has no boxes" in message
    assert f"{CLASSES}=[person,bicycle,car]" in message


def test_filter_that_leaves_nothing(refused):
    options = ["train_dataloader.dataset.filter_cfg.min_size=999"]
    assert "'min_size': 999" in refused("mmdet", *options)


def test_annotations_of_other_images_for_the_evaluator(refused, own):
    edit_coco(own, "val", lambda coco: coco["images"].append({**coco["images"][0], "id": 7}))
    path = own / "det/other.json"
    shutil.copy(own / "det/train.json", path)
    edit_coco(own, "other", lambda coco: coco.update(images=coco["images"][:1]))
    message = refused("mmdet", f"val_evaluator.ann_file={path}")
    assert "lacks 2 of 3 images" in message
    assert f"val_evaluator.ann_file={own}/det/val.json" in message


def test_unlabelled_test_images(own, tmp_path):
    edit_coco(own, "val", lambda coco: coco.pop("annotations"))
    config = write_config("mmdet", own, tmp_path / "c.py")
    checkpoint = tmp_path / "c.pth"
    torch.save({}, checkpoint)
    config_for_testing(str(config), str(checkpoint))


# ------------------------------------------------------------------------------- mmseg


def paint(root: Path, split: str, *labels: int, channels: int = 1) -> None:
    for path in (root / "seg/labels" / split).iterdir():
        pixels = np.resize(np.array(labels, np.uint8), (64, 64))
        cv2.imwrite(str(path), pixels if channels == 1 else np.dstack([pixels] * channels))


def test_label_maps(refused, train, own):
    paint(own, "train", 255)
    assert "every pixel is to be ignored" in refused("mmseg")
    paint(own, "train", 0)
    reduced = "train_dataloader.dataset.reduce_zero_label=True"
    assert "is reduce_zero_label meant?" in refused("mmseg", reduced)
    paint(own, "train", 0, 1, 2, 3)
    message = refused("mmseg")
    assert "no output for label 3" in message
    assert reduced in message
    train("mmseg", reduced)
    paint(own, "train", 0, 128)
    assert "numbers of the classes, from 0" in refused("mmseg")
    paint(own, "train", 0, 1, channels=3)
    assert "has 3 channels" in refused("mmseg")
    paint(own, "train", 0, 254, 255)
    train("mmseg", "model.decode_head.ignore_index=254")


def test_label_maps_of_validation(warned, refused, own):
    paint(own, "val", 0, 7)
    assert "label 7 is counted for no class" in warned("mmseg")
    paint(own, "val", 255)
    assert "val_dataloader.dataset" in refused("mmseg")


def test_label_map_of_another_size(warned, own):
    path = own / "seg/labels/train/0.png"
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(path), labels[: len(labels) // 2])
    assert re.search(r"0\.png has \d+x\d+ pixels, its image \d+x\d+", warned("mmseg"))


def test_damaged_label_map(refused, own):
    (own / "seg/labels/train/0.png").write_bytes(b"no picture")
    assert "0.png cannot be read as a label map" in refused("mmseg")


def test_images_and_maps_that_are_not_found(refused, train):
    message = refused("mmseg", "train_dataloader.dataset.img_suffix=.png")
    assert "no image *.png in" in message
    assert "img_suffix=.jpg" in message
    suffix = "train_dataloader.dataset.seg_map_suffix=.gif"
    assert re.search(r"4 files of 4 images .*0\.gif", refused("mmseg", suffix))


def test_colours_and_classes(refused):
    palette = "train_dataloader.dataset.metainfo.palette=[[0,0,0],[1,1,1]]"
    assert "palette has 2 colours for 3 classes" in refused("mmseg", palette)


def test_classes_that_the_data_set_does_not_have(train):
    kind = "train_dataloader.dataset.type=ADE20KDataset"
    with pytest.raises(UsageError, match=r"a, b, c not among the classes of ADE20KDataset \(wall"):
        train("mmseg", kind)


def test_classes_that_the_metric_needs(refused):
    message = refused("mmseg", "val_dataloader.dataset.metainfo=None")
    assert "val_dataloader.dataset.metainfo.classes is not set, and IoUMetric needs it" in message


# ------------------------------------------------------------------------------- mmpretrain


def test_class_folders(refused, warned, own):
    root = own / "cls/train"
    (root / "c").mkdir()
    message = warned("mmpretrain", "model.head.num_classes=3")
    assert re.search(r"no image .* in c; they still count", message)
    assert (
        "val_dataloader has other classes than train_dataloader: a, b instead of a, b, c" in message
    )
    for path in root.rglob("*.png"):
        path.unlink()
    assert "no image" in refused("mmpretrain", "model.head.num_classes=3", mends=False)
    shutil.rmtree(root)
    root.mkdir()
    assert "has no class folders" in refused("mmpretrain")


def test_names_of_class_folders(refused, warned):
    message = refused("mmpretrain", f"{CLASSES}=[x,y,z]")
    assert re.search(r"2 class folders \(a, b\), but .* has 3 names \(x, y, z\)", message)
    assert "another order than the folders" in warned("mmpretrain", f"{CLASSES}=[b,a]")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            "a/0.png 0\nb/1.png",
            r"line 2 must be an image and the number of .*, got 'b/1\.png'",
        ),
        ("a/0.png 0\nb/1.png cat", "line 2 must be"),
        ("a/0.png 0\nb/1.png 2", "num_classes is 2, train_dataloader.dataset has 3 classes"),
        ("a/0.png 0\nb/1.png -1", "label -1; labels start at 0"),
        ("a/0.png 0\nb/7.png 1", r"1 of 2 images .* b/7\.png"),
        ("", "lists no image"),
    ],
)
def test_list_of_images(lines, message, refused, own):
    (own / "cls/list.txt").write_text(lines)
    assert re.search(message, refused("mmpretrain", "train_dataloader.dataset.ann_file=list.txt"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"metainfo": {}, "data_list": [{"img_path": "a/0.png", "gt_label": [0, 5]}]}, "6 classes"),
        ({"metainfo": {}, "data_list": []}, "lists no image"),
        ({"data_list": []}, "must have metainfo"),
        ({"metainfo": {}, "data_list": [{"img_path": "a/0.png"}]}, "gt_label"),
        ('{"metainfo"', "not valid JSON"),
    ],
)
def test_list_of_several_labels(content, message, refused, own):
    path = own / "cls/many.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    kind = "train_dataloader.dataset.type=MultiLabelDataset"
    assert message in refused("mmpretrain", kind, "train_dataloader.dataset.ann_file=many.json")


def test_accuracy_of_more_classes_than_there_are(refused):
    message = refused("mmpretrain", "val_evaluator.topk=[1,5]")
    assert "val_evaluator.topk is (1, 5), model.head.num_classes is 2" in message
    assert "val_evaluator.topk=[1]" in refused("mmpretrain", "val_evaluator.topk=5")


# ------------------------------------------------------------------- settings of any type


def test_an_empty_val_cfg_means_to_validate(refused, train):
    """All configs of mmpretrain set ``val_cfg`` to an empty dict."""
    options = ["val_cfg._delete_=True", "val_evaluator._delete_=True"]
    options += ["val_evaluator.type=Accuracy", "val_evaluator.topk=[1,50]"]
    assert "val_evaluator.topk" in refused("mmpretrain", *options, mends=False)
    with pytest.raises(UsageError, match="is not here"):
        train("mmpretrain", "val_cfg._delete_=True", "val_dataloader.dataset.data_root=nope")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("model=3", "model must be a dict, got 3"),
        ("train_cfg=3", "train_cfg must be a dict, got 3"),
        ("train_dataloader=3", "train_dataloader must be a dict, got 3"),
        ("load_from=3", "load_from must be the path of a checkpoint, got 3"),
        (f"{CLASSES}=3", "metainfo.classes must be a sequence of names, got 3"),
        (f"{CLASSES}=[]", r"metainfo.classes must be a sequence of names, got \[\]"),
    ],
)
def test_settings_of_another_type(option, message, train):
    with pytest.raises(UsageError, match=message):
        train("mmdet", option)


@pytest.mark.parametrize(
    ("library", "setting"),
    [
        ("mmdet", "metainfo=[arrow]"),
        ("mmdet", "pipeline=3"),
        ("mmdet", "ann_file=3"),
        ("mmdet", "backend_args=local"),
        ("mmseg", "metainfo.palette=3"),
        ("mmseg", "data_prefix=3"),
        ("mmpretrain", "data_prefix=3"),
    ],
)
def test_the_check_leaves_strange_settings_to_the_libraries(library, setting, train, capsys):
    """The builders report them, so the check itself must not fail."""
    try:
        train(library, f"train_dataloader.dataset.{setting}")
    except UsageError:
        return
    assert "the data was not checked" in capsys.readouterr().err
