"""Mistakes between a config and a multi-task data set are reported before anything is built."""

import shutil

import cv2
import numpy as np
import pytest
from mmengine.config import Config

from mmlocal import config_path
from mmlocal.cli.data import check_annotations, check_data
from mmlocal.datasets.scenes import write_scenes
from mmlocal.errors import UsageError
from mmlocal.libraries import library_of

DEMO = "itsa_elsa_swin_nano_scenes"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, {"train": 3, "val": 2}, seed=0, size=(64, 64), progress=False)
    return root / "NYUDv2"


@pytest.fixture
def cfg(scenes):
    return config_of(scenes)


def config_of(root, **options) -> Config:
    cfg = Config.fromfile(config_path(DEMO))
    loaders = ("train_dataloader", "val_dataloader", "test_dataloader")
    cfg.merge_from_dict({f"{loader}.dataset.data_root": str(root) for loader in loaders} | options)
    return cfg


def complaint(cfg: Config, phases=("train", "val")) -> str:
    with pytest.raises(UsageError) as caught:
        check_annotations(cfg, phases)
    return str(caught.value)


def test_scenes_fit_the_demo(cfg, capsys):
    assert library_of(cfg).name == "multitask"
    check_data(cfg, ["train", "val", "test"])
    check_annotations(cfg, ["train", "val", "test"])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["itsa_swin_t_nyud_40k", "demt_swin_t_pascal_40k"])
def test_missing_data_shows_the_tree(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        check_data(Config.fromfile(config_path(name)), ["train"])
    message = str(caught.value)
    folder, part = ("NYUDv2", "gt_sets/{train,val}.txt")
    if "pascal" in name:
        folder, part = ("PASCALContext", "ImageSets/Context/{train,val}.txt")
    assert f"    data/{folder}" in message
    assert part in message
    assert "mmlocal demo" in message


def test_missing_file_shows_the_tree(scenes, tmp_path):
    root = shutil.copytree(scenes, tmp_path / "NYUDv2")
    next(iter(sorted((root / "depth").iterdir()))).unlink()
    message = complaint(config_of(root))
    assert "depth" in message
    assert "the expected tree is" in message


def test_too_few_outputs(cfg):
    cfg.merge_from_dict({"model.decode_head.tasks.semseg.num_classes": 4})
    message = complaint(cfg)
    assert "no output for label 4" in message
    assert "--cfg-options model.decode_head.tasks.semseg.num_classes=10" in message


def test_task_without_labels(scenes):
    cfg = config_of(scenes, **{"train_dataloader.dataset.tasks": ("semseg", "depth")})
    message = complaint(cfg, ["train"])
    assert "human_parts, sal, normals, edge" in message
    assert "(semseg, depth) loads no labels" in message


def test_task_without_outputs_is_a_warning(cfg, capsys):
    del cfg.model.decode_head.tasks["sal"]
    check_annotations(cfg, ["train"])
    assert "loads sal, which model.decode_head.tasks does not have" in capsys.readouterr().err


def test_metric_of_a_task_without_outputs(cfg):
    del cfg.model.decode_head.tasks["sal"]
    message = complaint(cfg, ["val"])
    assert "val_evaluator.tasks has sal, which model.decode_head.tasks does not have" in message


def test_labels_of_another_size(scenes, tmp_path):
    root = shutil.copytree(scenes, tmp_path / "NYUDv2")
    path = next(iter(sorted((root / "segmentation").iterdir())))
    cv2.imwrite(str(path), np.ones((5, 6), np.uint8))
    assert "has 5x6 pixels" in complaint(config_of(root))
