"""Missing data is reported before anything is built."""

import pytest
from mmengine.config import Config

from mmlocal.cli.data import check_data
from mmlocal.errors import UsageError


def cfg_of(dataset: dict, library: str = "mmdet", **more) -> Config:
    return Config(dict(default_scope=library, train_dataloader={"dataset": dataset}, **more))


def coco(root) -> dict:
    return {
        "type": "CocoDataset",
        "data_root": str(root),
        "ann_file": "annotations/instances_train2017.json",
        "data_prefix": {"img": "train2017/"},
    }


def missing(cfg: Config, phases=("train",)) -> str:
    with pytest.raises(UsageError) as caught:
        check_data(cfg, phases)
    return str(caught.value)


def test_complete_data_passes(tmp_path):
    (tmp_path / "train2017").mkdir()
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_train2017.json").touch()
    check_data(cfg_of(coco(tmp_path)), ["train"])


def test_coco_message():
    message = missing(cfg_of(coco("data/coco/")))
    assert "data/coco/annotations/instances_train2017.json" in message
    assert "data/coco/train2017/" in message
    assert "Lay out COCO 2017 like this" in message
    assert "mmlocal demo" in message


def test_types_that_are_classes():
    """New-style configs name classes instead of strings."""
    dataset = coco("data/coco/") | {"type": type("CocoDataset", (), {})}
    assert "Lay out COCO 2017 like this" in missing(cfg_of(dataset))


@pytest.mark.parametrize(
    ("library", "dataset", "path", "name"),
    [
        (
            "mmseg",
            {
                "type": "mmseg.ADE20KDataset",
                "data_root": "data/ade",
                "data_prefix": {
                    "img_path": "images/training",
                    "seg_map_path": "annotations/training",
                },
            },
            "data/ade/annotations/training",
            "ADE20K",
        ),
        (
            "mmpretrain",
            {"type": "ImageNet", "data_root": "data/in1k", "split": "val"},
            "data/in1k/val",
            "ImageNet-1k",
        ),
        (
            "mmpretrain",
            {"type": "ImageNet", "data_root": "data/in1k", "data_prefix": "v"},
            "data/in1k/v",
            "ImageNet",
        ),
        ("mmpretrain", {"type": "CustomDataset", "data_root": "data/own"}, "data/own", "data_root"),
        ("mmengine", {"type": "Mine", "data_root": "data/own"}, "data/own", "data_root"),
    ],
)
def test_other_data_sets(library, dataset, path, name):
    message = missing(cfg_of(dataset, library))
    assert f"    {path}\n" in message
    assert name in message


@pytest.mark.parametrize(
    "wrap",
    [
        lambda leaf: {"type": "RepeatDataset", "times": 2, "dataset": leaf},
        lambda leaf: {
            "type": "ClassBalancedDataset",
            "dataset": {"type": "Repeat", "dataset": leaf},
        },
        lambda leaf: {"type": "ConcatDataset", "datasets": [leaf, leaf]},
    ],
)
def test_wrapped_data_sets(wrap):
    message = missing(cfg_of(wrap(coco("no"))))
    assert message.count("no/train2017/") == 1, "each path once"


def test_only_the_phases_that_run_are_checked(tmp_path):
    good = {"type": "CustomDataset", "data_root": str(tmp_path)}
    cfg = cfg_of(good, val_dataloader={"dataset": coco("no")})
    check_data(cfg, ["train"])
    assert "no/train2017/" in missing(cfg, ["train", "val"])
    assert "test_dataloader" in missing(cfg, ["test"])


def test_absolute_names_are_not_joined(tmp_path):
    (tmp_path / "list.txt").touch()
    dataset = {
        "data_root": "no",
        "ann_file": str(tmp_path / "list.txt"),
        "data_prefix": str(tmp_path),
    }
    check_data(cfg_of(dataset), ["train"])


def test_annotations_of_the_evaluator(tmp_path):
    good = {"type": "CustomDataset", "data_root": str(tmp_path)}
    for evaluator in ({"ann_file": "no.json"}, [{"type": "A"}, {"ann_file": "no.json"}]):
        assert "    no.json\n" in missing(cfg_of(good, train_evaluator=evaluator))


@pytest.mark.parametrize(
    ("library", "dataset"),
    [
        ("mmdet", {"type": "CocoDataset", "data_root": "s3://bucket/coco", "ann_file": "a.json"}),
        (
            "mmdet",
            {"type": "CocoDataset", "data_root": "no", "backend_args": {"backend": "petrel"}},
        ),
        ("mmpretrain", {"type": "CIFAR10", "data_root": "no", "split": "train"}),
        ("mmengine", {"type": "InMemory"}),
    ],
)
def test_what_cannot_be_known_is_left_alone(library, dataset):
    check_data(cfg_of(dataset, library), ["train"])


def test_cifar_that_must_not_be_downloaded():
    dataset = {"type": "CIFAR10", "data_root": "no", "download": False}
    assert "    no\n" in missing(cfg_of(dataset, "mmpretrain"))
