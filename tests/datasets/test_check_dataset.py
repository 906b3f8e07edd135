"""The check of a whole multi-task data set: counts, faults and the sheet."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("mmcv.transforms")

from multitask_files import (
    SIZE,
    write_array,
    write_image,
    write_nyud,
    write_pascal,
)

from mmlocal.cli.check_dataset import check_dataset
from mmlocal.cli.data.label_maps import TaskCounts, count_map
from mmlocal.errors import UsageError

PIXELS = SIZE[0] * SIZE[1]
SCRIPT = Path(__file__).parents[2] / "tools/check_dataset.py"


def test_counts_of_nyud(tmp_path, capsys):
    root = tmp_path / "NYUD_MT"
    truth = write_nyud(root, old=True)
    (report,) = check_dataset(type="NYUDv2", data_root=str(root))
    train = [truth[f"{i:04d}"] for i in range(3)]
    tasks = report["tasks"]
    assert (report["images"], report["sizes"]) == (3, {"36x48": 3})
    assert list(tasks) == ["semseg", "depth", "normals", "edge"]
    assert all(task["images"] == 3 for task in tasks.values())
    assert all(t["valid_pixels"] + t["ignored_pixels"] == 3 * PIXELS for t in tasks.values())
    labels = np.concatenate([t["semseg"].ravel() for t in train])
    assert tasks["semseg"]["ignored_pixels"] == (labels == 255).sum()
    assert tasks["semseg"]["pixels_of_labels"] == {
        str(label): (labels == label).sum() for label in np.unique(labels) if label != 255
    }
    assert tasks["semseg"]["classes_seen"] == len(np.unique(labels)) - (255 in labels)
    depth = np.concatenate([t["depth"].ravel() for t in train])
    depth = depth[depth > 0]
    assert tasks["depth"]["ignored_pixels"] == 12
    assert tasks["depth"]["images_with_holes"] == 3
    assert tasks["depth"]["nearest"] == pytest.approx(depth.min())
    assert tasks["depth"]["furthest"] == pytest.approx(depth.max())
    assert tasks["depth"]["median"] == pytest.approx(np.median(depth), abs=0.02)
    assert tasks["normals"]["ignored_pixels"] == 9
    assert tasks["normals"]["not_of_length_1"] == 0
    edges = np.concatenate([t["edge"].ravel() for t in train])
    assert tasks["edge"]["pixels_of_labels"]["1"] == edges.sum()
    text = capsys.readouterr().out
    assert f"NYUDv2 in {root}, split train: 3 images, 36x48" in text
    assert f"{100 * edges.mean():.1f} % boundary" in text


@pytest.mark.slow
def test_pascal_from_a_config(tmp_path):
    """With two processes, through the script."""
    write_pascal(tmp_path / "data/PASCALContext")
    config = tmp_path / "config.py"
    config.write_text(
        'default_scope = "mmseg"\n'
        "val_dataloader = dict(dataset=dict(type='RepeatDataset', times=2, dataset=dict(\n"
        "    type='mmlocal.PASCALContext', data_root='data/PASCALContext', split='train',\n"
        "    tasks=('human_parts', 'sal', 'normals'), pipeline=[])))\n"
    )
    options = ["--split", "val", "--workers", "2", "--out-dir", "out", "--pictures", "2"]
    command = [sys.executable, str(SCRIPT), str(config), *options]
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (report,) = json.loads((tmp_path / "out/report.json").read_text())
    assert report["tasks"]["human_parts"]["images_without_labels"] == 2
    assert report["tasks"]["human_parts"]["classes_seen"] == 7
    assert 0.2 < report["tasks"]["normals"]["ignored_share"] < 0.8
    assert "2 maps without any label" in done.stdout
    sheet = cv2.imread(str(tmp_path / "out/contact_sheet.png"))
    assert sheet.shape[0] > 2 * SIZE[0]
    assert sheet.shape[1] > 4 * SIZE[1]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "contact_sheet.png",
        "report.json",
    ]


def test_faults_are_listed(tmp_path, capsys):
    root = tmp_path / "NYUDv2"
    write_nyud(root, train=5)
    labels = np.full(SIZE, 3, np.uint8)
    labels[0, :3] = (41, 60, 40)
    write_image(root / "segmentation/0001.png", labels)
    write_array(root / "depth/0000.npy", np.ones((5, 6)))
    write_array(root / "depth/0002.npy", -np.ones(SIZE))
    normals = np.zeros((*SIZE, 3), np.uint8)  # (-1, -1, -1)
    write_image(root / "normals/0003.png", normals)
    (root / "images/0004.png").write_bytes(b"")
    (root / "edge/0003.png").write_bytes(b"no picture")
    with pytest.raises(UsageError, match="5 files with faults"):
        check_dataset(type="NYUDv2", data_root=str(root), out_dir=str(tmp_path / "out"))
    text = capsys.readouterr().out
    assert "1 maps have labels that are no class" in text
    assert f"{root}/segmentation/0001.png (40, 59)" in text
    size = f"has 5x6 pixels, and its image {root}/images/0000.png has 36x48"
    assert f"{root}/depth/0000.npy: {size}" in text
    assert f"{root}/depth/0002.npy: has negative depth" in text
    assert f"{root}/images/0004.png: " in text
    assert f"{root}/edge/0003.png: " in text
    assert "25.0 % not of length 1" in text
    assert "5 files" not in text
    (report,) = json.loads((tmp_path / "out/report.json").read_text())
    assert len(report["unusable_files"]) == 4
    assert (tmp_path / "out/contact_sheet.png").exists()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({}, "give a config, or --type and --data-root"),
        ({"type": "NYUDv2"}, "data_root: must be given with --type"),
        ({"type": "NYUDv2", "data_root": "nowhere"}, "there is no folder nowhere"),
        ({"type": "mmengine.BaseDataset", "data_root": "."}, "which is no multi-task data set"),
        ({"type": "Unknown", "data_root": "."}, "which is no multi-task data set"),
        ({"config": "elsa_swin_t_upernet_160k"}, "which is no multi-task data set"),
        ({"config": "elsa_swin_t_upernet_160k", "data_root": "."}, "data_root: goes with --type"),
        ({"type": "NYUDv2", "data_root": ".", "cfg_options": {"a": 1}}, "cfg_options: goes with"),
        ({"config": "elsa_swin_t_upernet_160k", "split": "x"}, "split: .* no x_dataloader"),
    ],
)
def test_wrong_arguments(arguments, why):
    pytest.importorskip("mmseg.datasets")
    with pytest.raises(UsageError, match=why):
        check_dataset(**arguments)


def test_folder_that_cannot_be_made(tmp_path, capsys):
    """It is found before the work."""
    write_nyud(tmp_path / "NYUDv2")
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UsageError, match="out_dir: cannot be written: "):
        check_dataset(
            type="NYUDv2", data_root=str(tmp_path / "NYUDv2"), out_dir=str(tmp_path / "out")
        )
    assert capsys.readouterr().out == ""


def test_missing_library(tmp_path, monkeypatch):
    write_pascal(tmp_path / "PASCALContext")
    monkeypatch.setitem(sys.modules, "skimage.morphology", None)
    with pytest.raises(UsageError, match="pip install scikit-image"):
        check_dataset(type="PASCALContext", data_root=str(tmp_path / "PASCALContext"))


def test_counts_add_up():
    """Maps together count like the sum of maps."""
    rng = np.random.default_rng(0)
    for task, shape in (("semseg", (9, 8)), ("depth", (9, 8)), ("normals", (9, 8, 3))):
        maps = []
        for _ in range(3):
            if task == "semseg":
                maps.append(rng.integers(0, 30, shape, dtype=np.uint8))
            else:
                maps.append(rng.uniform(0.1, rng.uniform(1, 9), shape).astype(np.float32))
            maps[-1][0] = 255
        summed = TaskCounts()
        for labels in maps:
            summed.add(count_map(task, labels, None))
        once = count_map(task, np.concatenate(maps), None)
        for name in ("valid", "ignored", "nearest", "furthest", "not_unit"):
            assert getattr(summed, name) == getattr(once, name)
        assert (summed.images, once.images) == (3, 1)
        np.testing.assert_array_equal(summed.labels, once.labels)
        np.testing.assert_array_equal(summed.depths, once.depths)
