"""The demo end to end, on a few steps: train, be killed, resume, test, draw."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import cv2
import pytest
from mmengine.config import Config

from mmlocal import config_path
from mmlocal.cli.demo import demos, format_summary, run_demo
from mmlocal.cli.generated_data import prepare_shapes
from mmlocal.datasets.scenes import PART_NAMES, SCENE_CLASSES, SCENE_PALETTE
from mmlocal.datasets.shapes import (
    CLASSES,
    PALETTE,
    SEG_CLASSES,
    SEG_PALETTE,
    generate_shapes,
    read_manifest,
)
from mmlocal.errors import UsageError
from mmlocal.files import only_user_of
from mmlocal.tasks import TASKS

from .conftest import TOOLS, environment, start

SMOKE = "elsa_swin_nano_maskrcnn_shapes_smoke"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A working directory with ``data/shapes``."""
    folder = tmp_path_factory.mktemp("demo")
    generate_shapes(
        folder / "data/shapes",
        tasks=("det",),
        num_train=8,
        num_val=4,
        image_size=128,
        progress=False,
    )
    return folder


def _scalars(work_dir: Path) -> list[dict]:
    """Training entries of the newest log."""
    path = max(work_dir.glob("*/vis_data/scalars.json"))
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    return [entry for entry in entries if "loss" in entry]


def test_configs_know_the_classes():
    cfg = Config.fromfile(config_path(demos()["det"].config))
    assert cfg.metainfo.classes == CLASSES
    assert [tuple(colour) for colour in cfg.metainfo.palette] == list(PALETTE)
    assert cfg.model.roi_head.bbox_head.num_classes == len(CLASSES)
    assert cfg.model.roi_head.mask_head.num_classes == len(CLASSES)

    cfg = Config.fromfile(config_path(demos()["seg"].config))
    assert cfg.metainfo.classes == SEG_CLASSES
    assert [tuple(colour) for colour in cfg.metainfo.palette] == list(SEG_PALETTE)
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
        assert head.num_classes == len(SEG_CLASSES)

    cfg = Config.fromfile(config_path(demos()["multitask"].config))
    assert cfg.metainfo.classes == SCENE_CLASSES
    assert [tuple(colour) for colour in cfg.metainfo.palette] == list(SCENE_PALETTE)
    tasks = cfg.model.decode_head.tasks
    assert tasks.semseg.num_classes == len(SCENE_CLASSES)
    assert tasks.human_parts.num_classes == len(PART_NAMES)
    assert set(tasks) == set(TASKS)

    cfg = Config.fromfile(config_path(demos()["cls"].config))
    assert tuple(cfg.train_dataloader.dataset.metainfo.classes) == CLASSES
    assert cfg.model.head.num_classes == len(CLASSES)


def test_data_of_another_version_is_not_used(folder, tmp_path, monkeypatch):
    shutil.copytree(folder / "data", tmp_path / "data")
    manifest = tmp_path / "data/shapes/shapes.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": 1}))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UsageError, match=r"was made by version 1 .*mmlocal make-shapes --overwrite"
    ):
        run_demo(work_dir=tmp_path / "out")
    assert not (tmp_path / "out/summary.json").exists()


def test_generates_the_data_of_its_task_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generate_shapes("data/shapes", tasks=["cls"], num_train=3, num_val=2, image_size=96)
    pictures = sorted((tmp_path / "data/shapes/cls").rglob("*.jpg"))
    for tasks in (["cls"], ["seg", "cls"], ["det", "seg", "cls"]):
        arguments = prepare_shapes(tasks[:1])
        assert arguments == read_manifest("data/shapes")["arguments"]
        assert arguments["tasks"] == tasks
        assert arguments["num_train"] == 3
    assert sorted((tmp_path / "data/shapes/cls").rglob("*.jpg")) == pictures


@pytest.mark.parametrize("tasks", [["det"], ["cls"]])
def test_another_process_makes_the_data_first(tasks, tmp_path, monkeypatch):
    """The other process finishes just before this one generates its data."""
    monkeypatch.chdir(tmp_path)

    def generate_too_late(*args, **kwargs):
        generate_shapes("data/shapes", tasks=tasks, num_train=3, num_val=2, image_size=96)
        return generate_shapes(*args, **kwargs)

    monkeypatch.setattr("mmlocal.cli.generated_data.generate_shapes", generate_too_late)
    arguments = prepare_shapes(["det"])
    assert arguments == read_manifest("data/shapes")["arguments"]
    assert arguments["num_train"] == 3
    assert "det" in arguments["tasks"]


def test_place_of_the_data_is_taken(tmp_path, monkeypatch):
    (tmp_path / "data/shapes/mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"data/shapes is not a data set .* move it"):
        run_demo(work_dir=tmp_path / "out")


def test_library_is_missed_before_data_is_made(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mmcv._ext", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"mmdet cannot run here: mmcv's compiled ops do not load"):
        run_demo(work_dir=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_two_demos_in_a_folder(tmp_path, monkeypatch):
    """The second one says so, and leaves the files of the first one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "summary.json").write_text("{}")
    with only_user_of(tmp_path) as alone:
        assert alone
        with pytest.raises(UsageError, match="work_dir: another demo runs in "):
            run_demo(work_dir=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "summary.json"]
    with only_user_of(tmp_path) as alone:
        assert alone


@pytest.mark.slow
def test_killed_training_resumes(folder):
    work_dir = folder / "killed"
    dying = folder / "dying.py"
    dying.write_text(
        f"""
_base_ = {config_path(SMOKE)!r}
custom_imports = dict(imports=["mmlocal", "killer"])
custom_hooks = [dict(type="mmengine.Killer", iteration=6)]  # in the second of three epochs
"""
    )
    helpers = str(Path(__file__).parents[1] / "integration")
    path = os.pathsep.join([helpers, environment()["PYTHONPATH"]])
    command = [TOOLS / "train.py", dying, "--work-dir", work_dir]
    killed = start(*command, cwd=folder, PYTHONPATH=path)
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr

    result = start(TOOLS / "train.py", SMOKE, "--work-dir", work_dir, "--resume", cwd=folder)
    assert result.returncode == 0, result.stdout + result.stderr
    steps = [entry["step"] for entry in _scalars(work_dir)]
    assert steps == list(range(5, 13))
    assert (work_dir / "epoch_3.pth").exists()


@pytest.mark.slow
def test_demo(folder):
    result = start(TOOLS / "demo.py", "--config", SMOKE, "--work-dir", "out", cwd=folder)
    assert result.returncode == 0, result.stdout + result.stderr
    summary = json.loads((folder / "out/summary.json").read_text())
    assert list(summary["metrics"]) == list(demos()["det"].metrics)
    assert set(summary["seconds"]) == {"data", "train", "test"}
    assert format_summary(summary) in result.stdout
    assert "8 training and 4 test images of 128x128 pixels" in result.stdout
    assert summary["data"]["num_train"] == 8
    for name in (summary["checkpoint"], summary["curves"], *summary["pictures"]):
        assert (folder / name).exists()
    for name in (summary["curves"], summary["pictures"][0]):
        assert cv2.imread(str(folder / name)).std() > 10
    for step in ("training", "testing"):
        assert f"{step} done in" in result.stdout
        assert "Epoch(" in (folder / f"out/{step}.log").read_text()
    assert "Epoch(" not in result.stdout
    assert "arn" not in result.stderr  # a warning
    # Ground truth and prediction side by side, for each validation image.
    drawn = list((folder / "out/pictures").iterdir())
    assert len(drawn) == 4
    assert cv2.imread(str(drawn[0])).shape == (128, 256, 3)


def test_interrupted_run_goes_on(folder, tmp_path, monkeypatch):
    """Only with the same config. A finished run starts anew."""
    calls = []

    def run(step, work_dir, arguments, sheets=False):
        calls.append((step, "--resume" in arguments))
        train = work_dir / "train" / f"run{len(calls)}" / "vis_data"
        if step == "training":
            train.mkdir(parents=True)
            (train / "scalars.json").write_text(json.dumps(dict(loss=1.0, step=len(calls))))
            (work_dir / "train/last_checkpoint").write_text("epoch_1.pth")
        if len(calls) in stops:
            raise KeyboardInterrupt
        if step == "testing":
            results = dict.fromkeys(demos()["det"].metrics.values(), 0.5)
            (work_dir / "test/time").mkdir(parents=True, exist_ok=True)
            (work_dir / "test/time/time.json").write_text(json.dumps(results))

    drawn = []
    monkeypatch.setattr("mmlocal.cli.demo._start", run)
    monkeypatch.setattr("mmlocal.cli.demo.plot_curves", lambda found, *_: drawn.append(found))
    monkeypatch.chdir(folder)
    out = tmp_path / "out"
    stops = {1, 3}
    for _ in stops:
        with pytest.raises(KeyboardInterrupt):
            run_demo(work_dir=out)
    summary = run_demo(work_dir=out)
    assert calls == [
        ("training", False),
        ("training", True),
        ("testing", False),
        ("testing", False),  # the training was complete
    ]
    assert [path.parts[-3] for path in drawn[0]] == ["run1", "run2"]
    assert set(summary["seconds"]) == {"data", "train", "test"}

    stops = {5}
    with pytest.raises(KeyboardInterrupt):
        run_demo(work_dir=out)
    run_demo(work_dir=out, config=SMOKE)
    assert calls[4:] == [("training", False), ("training", False), ("testing", False)]
    assert [path.parts[-3] for path in drawn[1]] == ["run6"]


def test_model_that_finds_nothing(folder, tmp_path, monkeypatch):
    def run(step, work_dir, arguments, sheets=False):
        folder = work_dir / ("train" if step == "training" else "test/time")
        folder.mkdir(parents=True)
        (folder / "last_checkpoint").write_text("epoch_1.pth")
        (folder / "time.json").write_text('{"data_time": 0.1}')  # as mmdet's CocoMetric

    monkeypatch.setattr("mmlocal.cli.demo._start", run)
    monkeypatch.chdir(folder)
    with pytest.raises(UsageError, match=r"testing gave no coco/bbox_mAP: a model that finds"):
        run_demo(work_dir=tmp_path / "out")
    assert not (tmp_path / "out/summary.json").exists()


@pytest.mark.slow
def test_demo_says_which_step_failed(folder):
    bad = folder / "bad.py"
    bad.write_text(f"_base_ = {config_path(SMOKE)!r}\nmodel = dict(backbone=dict(kernel_size=4))\n")
    result = start(TOOLS / "demo.py", "--config", bad, "--work-dir", "bad", cwd=folder)
    assert result.returncode == 2
    assert "training failed with exit code 2, see bad/training.log" in result.stderr
    assert "kernel_size must be a positive odd number, got 4" in result.stderr
    assert not (folder / "bad/summary.json").exists()
