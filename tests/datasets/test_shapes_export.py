"""The files depend on the seed alone, COCO's code reads them, and they are written as a whole."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmlocal.datasets.shapes import (
    CLASSES,
    TASKS,
    add_task,
    annotations,
    export,
    generate_shapes,
    read_manifest,
)
from mmlocal.datasets.shapes.annotations import semantic_map
from mmlocal.datasets.shapes.export import make_class_image, make_scene

REPO = Path(__file__).resolve().parents[2]


def generate(out, **changes):
    arguments = {
        "num_train": 3,
        "num_val": 2,
        "image_size": 96,
        "cls_size": 32,
        "seed": 5,
        "progress": False,
    }
    return generate_shapes(out, **{**arguments, **changes})


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def fill_disk(monkeypatch, after: int) -> None:
    """Let the disk be full after some pictures."""
    real, calls = cv2.imencode, []

    def full_disk(*args):
        calls.append(args)
        if len(calls) > after:
            raise OSError(28, "No space left on device")
        return real(*args)

    monkeypatch.setattr(cv2, "imencode", full_disk)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A data set of default size with fewer pictures."""
    out = tmp_path_factory.mktemp("shapes") / "shapes"
    generate_shapes(out, num_train=60, num_val=40, progress=False)
    return out


def test_layout(data):
    assert sorted(path.name for path in data.iterdir()) == [
        "annotations",
        "cls",
        "shapes.json",
        "train",
        "val",
    ]
    for split, count in (("train", 60), ("val", 40)):
        names = [f"{i + 1:06d}" for i in range(count)]
        images = sorted((data / split).iterdir())
        labels = sorted((data / "annotations" / split).iterdir())
        assert [path.name for path in images] == [f"{name}.jpg" for name in names]
        assert [path.name for path in labels] == [f"{name}.png" for name in names]
        assert cv2.imread(str(images[-1])).shape == (192, 192, 3)
        folders = sorted((data / "cls" / split).iterdir())
        assert [folder.name for folder in folders] == list(CLASSES)
        pictures = sorted(path.name for folder in folders for path in folder.iterdir())
        assert pictures == [f"{name}.jpg" for name in names]
    assert [path.name for path in data.parent.iterdir()] == ["shapes"]


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_class_and_size_occurs(data, split):
    counts = read_manifest(data)["counts"][split]
    annotations = COCO(data / "annotations" / f"instances_{split}.json").dataset["annotations"]
    classes = Counter(CLASSES[a["category_id"] - 1] for a in annotations)
    edges = np.digitize([a["area"] for a in annotations], [32**2, 96**2])
    assert counts["objects"] == len(annotations)
    assert counts["objects_per_class"] == {name: classes[name] for name in CLASSES}
    assert list(counts["objects_per_size"].values()) == np.bincount(edges).tolist()
    assert min(classes[name] for name in CLASSES) >= 5
    assert min(np.bincount(edges, minlength=3)) >= 1


def test_shares_of_the_sizes():
    """The val split of the default set has enough large objects for an average over them."""
    scenes = [make_scene(0, "val", index, 192) for index in range(200)]
    areas = [np.sum(scene.owner == i) for scene in scenes for i in range(len(scene.shapes))]
    sizes = np.bincount(np.digitize(areas, [32**2, 96**2]), minlength=3)
    assert min(sizes) >= 0.07 * len(areas)


@pytest.mark.parametrize("split", ["train", "val"])
def test_files_hold_the_scenes(data, split):
    coco = COCO(data / "annotations" / f"instances_{split}.json")
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    for image in coco.loadImgs(coco.getImgIds()):
        scene = make_scene(0, split, image["id"] - 1, 192)
        path = data / split / image["file_name"]
        difference = cv2.imread(str(path)).astype(int) - scene.image
        assert np.abs(difference).mean() < 6  # JPEG of a noisy picture
        label_path = data / "annotations" / split / path.with_suffix(".png").name
        labels = cv2.imread(str(label_path), cv2.IMREAD_UNCHANGED)
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, semantic_map(scene))
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))
        assert len(annotations) == len(scene.shapes)
        for index, annotation in enumerate(annotations):
            np.testing.assert_array_equal(coco.annToMask(annotation), scene.owner == index)


def test_class_folders_hold_the_class_images(data):
    for path in (data / "cls").glob("*/*/*.jpg"):
        split, name = path.parts[-3:-1]
        scene = make_class_image(0, split, int(path.stem) - 1, 64)
        assert CLASSES[scene.shapes[0].category] == name
        assert np.abs(cv2.imread(str(path)).astype(int) - scene.image).mean() < 6


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_ground_truth_as_prediction_scores_1(data, kind):
    coco = COCO(data / "annotations" / "instances_val.json")
    found = [
        {
            "image_id": a["image_id"],
            "category_id": a["category_id"],
            "bbox": a["bbox"],
            "segmentation": coco.annToRLE(a),
            "score": 0.9,
        }
        for a in coco.dataset["annotations"]
    ]
    if kind == "bbox":
        for detection in found:
            del detection["segmentation"]
    evaluation = COCOeval(coco, coco.loadRes(found), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    ap, ap50, ap75, small, medium, large = evaluation.stats[:6]
    assert (ap, ap50, ap75, small, medium, large) == pytest.approx([1.0] * 6)


def test_same_arguments_give_the_same_bytes(tmp_path):
    generate(tmp_path / "a")
    generate(tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_seed_and_split_change_the_pictures(tmp_path):
    generate(tmp_path / "a")
    generate(tmp_path / "b", seed=6)
    first, second = contents(tmp_path / "a"), contents(tmp_path / "b")
    pictures = [name for name in first if name.endswith(".jpg")]
    assert pictures
    assert all(first[name] != second[name] for name in pictures)
    assert first["train/000001.jpg"] != first["val/000001.jpg"]


def test_more_pictures_begin_with_the_same_ones(tmp_path):
    generate(tmp_path / "few")
    generate(tmp_path / "many", num_train=7, num_val=4)
    few, many = contents(tmp_path / "few"), contents(tmp_path / "many")
    summaries = {"shapes.json"} | {name for name in few if name.startswith("annotations/instances")}
    assert len(summaries) == 3
    for name in few.keys() - summaries:
        assert few[name] == many[name]
    for name in summaries - {"shapes.json"}:
        short, long = json.loads(few[name]), json.loads(many[name])
        for key in ("images", "annotations"):
            assert short[key] == long[key][: len(short[key])]


def test_tasks_choose_what_is_written(tmp_path):
    whole = generate(tmp_path / "all", tasks=TASKS) and contents(tmp_path / "all")
    for task in TASKS:
        generate(tmp_path / task, tasks=[task])
    parts = {task: contents(tmp_path / task) for task in TASKS}
    assert {name.split("/")[0] for name in parts["cls"]} == {"cls", "shapes.json"}
    assert not any(name.endswith(".png") for name in parts["det"])
    assert not any("instances" in name for name in parts["seg"])
    for files in parts.values():
        assert all(whole[name] == files[name] for name in files if name != "shapes.json")
    assert set().union(*parts.values()) == set(whole)


@pytest.mark.parametrize("order", [("cls", "det", "seg"), ("seg", "det", "cls")])
def test_added_tasks_give_the_same_as_all_at_once(tmp_path, order):
    generate(tmp_path / "all")
    generate(tmp_path / "out", tasks=order[:1])
    (tmp_path / "out" / "mine.txt").write_text("a note")
    for task in order[1:]:
        manifest = add_task(tmp_path / "out", task, progress=False)
        assert manifest == read_manifest(tmp_path / "out")
    expected = contents(tmp_path / "all")
    found = contents(tmp_path / "out")
    assert found.pop("mine.txt") == b"a note"
    assert found == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all", "out"]


def test_adding_a_task_that_fails_changes_nothing(tmp_path, monkeypatch):
    generate(tmp_path / "out", tasks=["cls"])
    before = contents(tmp_path)
    fill_disk(monkeypatch, after=4)
    with pytest.raises(OSError, match=r"out_dir=.* cannot be written: No space left"):
        add_task(tmp_path / "out", "det", progress=False)
    assert contents(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_adding_a_task_is_completed_after_a_stop(tmp_path, monkeypatch):
    generate(tmp_path / "all")
    generate(tmp_path / "out", tasks=["cls"])
    real, calls = Path.rename, []

    def rename(self, target):
        calls.append(self)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            add_task(tmp_path / "out", "seg", progress=False)
    assert read_manifest(tmp_path / "out")["arguments"]["tasks"] == ["cls"]
    expected = contents(tmp_path / "all")
    stopped = contents(tmp_path / "out")
    assert len(stopped) > 6
    assert all(expected[name] == stopped[name] for name in stopped if name != "shapes.json")
    for task in ("seg", "det"):
        add_task(tmp_path / "out", task, progress=False)
    assert contents(tmp_path / "out") == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all", "out"]


def test_two_processes_add_their_tasks_at_once(tmp_path, monkeypatch):
    generate(tmp_path / "all")
    generate(tmp_path / "out", tasks=["seg"])
    real = annotations.mask_to_rle

    def other_process_is_faster(mask):
        monkeypatch.undo()
        add_task(tmp_path / "out", "cls", progress=False)
        return real(mask)

    monkeypatch.setattr(annotations, "mask_to_rle", other_process_is_faster)
    add_task(tmp_path / "out", "det", progress=False)
    assert contents(tmp_path / "out") == contents(tmp_path / "all")


def test_tasks_are_added_only_to_data_sets_of_this_version(tmp_path):
    with pytest.raises(ValueError, match=r"task must be .* got 'depth'"):
        add_task(tmp_path, "depth")
    with pytest.raises(ValueError, match="is not a data set of version"):
        add_task(tmp_path / "none", "det")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("five years of work")
    with pytest.raises(FileExistsError, match="never overwritten"):
        add_task(tmp_path / "foreign", "det")
    manifest = generate(tmp_path / "old", tasks=["cls"])
    (tmp_path / "old" / "shapes.json").write_text(json.dumps(manifest | {"version": 1}))
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="is not a data set of version"):
        add_task(tmp_path / "old", "det")
    assert contents(tmp_path) == before


def test_manifest_is_returned_and_written(tmp_path):
    manifest = generate(tmp_path / "out", tasks=("seg", "det"))
    assert manifest == read_manifest(tmp_path / "out")
    assert manifest["arguments"] == {
        "tasks": ["det", "seg"],
        "num_train": 3,
        "num_val": 2,
        "image_size": 96,
        "cls_size": 32,
        "seed": 5,
    }
    assert manifest["counts"]["train"]["images"] == 3
    assert read_manifest(tmp_path) is None


# ------------------------------------------------------------------------------ all or nothing


def test_existing_data_set_is_kept_without_overwrite(tmp_path):
    generate(tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(FileExistsError, match="already holds a data set for det, seg, cls;"):
        generate(tmp_path / "out", seed=6)
    assert contents(tmp_path / "out") == before


def test_overwrite_replaces_everything(tmp_path):
    generate(tmp_path / "out", num_train=4)
    generate(tmp_path / "out", seed=6, overwrite=True)
    generate(tmp_path / "fresh", seed=6)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "out"]


@pytest.mark.parametrize("marker", [None, "not json", '{"generator": "another"}', "[]"])
def test_foreign_folders_are_never_overwritten(tmp_path, marker):
    (tmp_path / "thesis.txt").write_text("five years of work")
    if marker is not None:
        (tmp_path / "shapes.json").write_text(marker)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match="never overwritten"):
        generate(tmp_path, overwrite=True)
    assert contents(tmp_path) == before


def test_empty_folders_and_missing_parents_are_fine(tmp_path):
    (tmp_path / "empty").mkdir()
    generate(tmp_path / "empty")
    generate(tmp_path / "a" / "b" / "c")
    assert contents(tmp_path / "empty") == contents(tmp_path / "a" / "b" / "c")


@pytest.mark.parametrize("overwrite", [False, True])
def test_failure_midway_changes_nothing(tmp_path, monkeypatch, overwrite):
    out = tmp_path / "out"
    if overwrite:
        generate(out)
    before = contents(tmp_path)
    fill_disk(monkeypatch, after=4)
    with pytest.raises(OSError, match=r"out_dir=.* cannot be written: No space left"):
        generate(out, seed=6, overwrite=overwrite)
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if overwrite else [])


def another_is_faster(monkeypatch, out: Path, **changes) -> None:
    """Let another process finish ``out`` while the first picture is written."""
    real = export.make_scene

    def other_process(*args):
        monkeypatch.undo()
        generate(out, **changes)
        return real(*args)

    monkeypatch.setattr(export, "make_scene", other_process)


def test_slower_of_two_processes_uses_the_files_of_the_faster(tmp_path, monkeypatch):
    out = tmp_path / "out"
    another_is_faster(monkeypatch, out)
    manifest = generate(out)
    assert manifest == read_manifest(out)
    generate(tmp_path / "alone")
    assert contents(out) == contents(tmp_path / "alone")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "out"]


def test_slower_of_two_processes_never_overwrites_another_data_set(tmp_path, monkeypatch):
    out = tmp_path / "out"
    another_is_faster(monkeypatch, out, seed=6)
    with pytest.raises(FileExistsError, match="already holds a data set"):
        generate(out)
    generate(tmp_path / "alone", seed=6)
    assert contents(out) == contents(tmp_path / "alone")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "out"]


@contextlib.contextmanager
def long_run(out: Path, *flags: str) -> Iterator[subprocess.Popen]:
    """A process that has begun to write for hours. It is killed at the end of the block."""
    command = [sys.executable, REPO / "tools" / "make_shapes.py", "--out", out, *flags]
    process = subprocess.Popen(
        [*command, "--num-train", "1000000", "--image-size", "64"],
        env={**os.environ, "PYTHONPATH": str(REPO)},
        stderr=subprocess.DEVNULL,
        # A shell may have started the tests with interrupts ignored, which is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 60
        while len(list(out.parent.glob(f".{out.name}.*/new/train/*.jpg"))) < 5:
            assert process.poll() is None, "the run ended by itself"
            assert time.monotonic() < deadline, "the run did not start"
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_run_leaves_no_half_data_set(tmp_path, overwrite):
    out = tmp_path / "out"
    before = {}
    if overwrite:
        generate(out)
        before = contents(out)
    with long_run(out, *(["--overwrite"] if overwrite else [])):
        pass
    assert contents(out) == before
    assert out.exists() == overwrite

    generate(out, seed=6, overwrite=overwrite)
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["out"]
    assert read_manifest(out)["arguments"]["seed"] == 6
    assert len(list((out / "train").iterdir())) == 3


def test_interrupted_run_cleans_up(tmp_path):
    with long_run(tmp_path / "out") as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) != 0
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"num_train": 0}, ValueError, r"num_train must be at least 1, got 0"),
        ({"num_val": -1}, ValueError, r"num_val must be at least 1, got -1"),
        ({"image_size": 31}, ValueError, r"image_size must be at least 32, got 31"),
        ({"cls_size": 8}, ValueError, r"cls_size must be at least 32, got 8"),
        ({"seed": -1}, ValueError, r"seed must be at least 0, got -1"),
        ({"seed": 1.5}, TypeError, r"seed must be an integer, got 1.5"),
        ({"num_train": "10"}, TypeError, r"num_train must be an integer, got '10'"),
        (
            {"tasks": ("det", "depth")},
            ValueError,
            r"tasks must be .*'seg'.* got \('det', 'depth'\)",
        ),
        ({"tasks": ()}, ValueError, r"tasks must be .* got \(\)"),
        ({"tasks": "det"}, TypeError, r"tasks must be a sequence .* got the string 'det'"),
    ],
)
def test_bad_arguments_are_named(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        generate(tmp_path / "out", **changes)
    assert list(tmp_path.iterdir()) == []


def test_out_dir_that_is_a_file(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(FileExistsError, match=r"out_dir=.*is a file"):
        generate(tmp_path / "out", overwrite=True)
    with pytest.raises(OSError, match=r"out_dir=.*cannot be written: Not a directory"):
        generate(tmp_path / "out" / "shapes")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("size", [32, 33, 300])
def test_any_picture_size(tmp_path, size):
    manifest = generate(tmp_path / "out", image_size=size, cls_size=size)
    assert manifest["counts"]["train"]["objects"] >= 3
    for path in (tmp_path / "out").rglob("*.jpg"):
        assert cv2.imread(str(path)).shape == (size, size, 3)


def test_numpy_integers_are_integers(tmp_path):
    manifest = generate(tmp_path / "out", seed=np.int64(5), num_train=np.int32(3))
    generate(tmp_path / "plain")
    assert manifest == read_manifest(tmp_path / "plain")
