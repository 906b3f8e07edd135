"""The base configs of the multi-task data sets, on tiny files, and what a launch says without."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, DefaultScope

pytest.importorskip("mmseg.datasets")

from multitask_files import SIZE, write_nyud, write_pascal

from mmlocal.cli.data import check_data
from mmlocal.datasets.nyud import NYUDv2
from mmlocal.datasets.pascal_context import PASCALContext
from mmlocal.datasets.scenes import PART_NAMES, SCENE_CLASSES, SCENE_PALETTE
from mmlocal.errors import UsageError
from mmlocal.tasks import TASKS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs/mmseg/_base_/datasets"
KINDS = {"nyud": ("NYUDv2", (425, 560), 40), "pascal": ("PASCALContext", (512, 512), 21)}


def load(kind: str, root: Path) -> Config:
    cfg = Config.fromfile(FOLDER / f"{kind}_multitask.py")
    cfg.default_scope = "mmseg"
    cfg.model = dict(type="mmlocal.MultiTaskSegmentor")
    for phase in ("train", "val", "test"):
        cfg[f"{phase}_dataloader"].dataset.data_root = str(root)
    return cfg


@pytest.mark.parametrize("kind", KINDS)
def test_batches(kind, tmp_path):
    name, size, classes = KINDS[kind]
    (write_nyud if kind == "nyud" else write_pascal)(tmp_path / name)
    cfg = load(kind, tmp_path / name)
    check_data(cfg, ["train", "val", "test"])
    assert cfg.train_dataloader.batch_size == 8
    assert cfg.val_evaluator.num_classes.semseg == classes
    with DefaultScope.overwrite_default_scope("mmseg"):
        train, val = (DATASETS.build(cfg[f"{p}_dataloader"].dataset) for p in ("train", "val"))
    assert (len(train), len(val)) == (3, 2)
    batch = pseudo_collate([train[i] for i in range(3)])
    assert torch.stack(batch["inputs"]).shape == (3, 3, *size)
    for sample in batch["data_samples"]:
        assert sample.tasks == tuple(cfg.tasks)
        assert sample.img_shape == sample.pad_shape == size
        for task in cfg.tasks:
            assert sample.get(TASKS[task].gt_field).shape == size
    tested = val[0]
    assert tested["inputs"].shape[1:] == size
    sample = tested["data_samples"]
    assert sample.ori_shape == SIZE
    left, right, top, bottom = sample.padding_size
    assert (SIZE[0] + top + bottom, SIZE[1] + left + right) == size
    assert all(sample.get(TASKS[task].gt_field).shape == SIZE for task in cfg.tasks)


def test_generated_scenes():
    cfg = Config.fromfile(FOLDER / "scenes_multitask.py")
    assert cfg.tasks == tuple(TASKS)
    assert cfg.metainfo.classes == SCENE_CLASSES
    assert tuple(map(tuple, cfg.metainfo.palette)) == SCENE_PALETTE
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        assert evaluator.num_classes == {
            "semseg": len(SCENE_CLASSES),
            "human_parts": len(PART_NAMES),
        }


@pytest.mark.parametrize("kind", [NYUDv2, PASCALContext])
def test_trees_of_the_documentation(kind):
    root = f"data/{kind.__name__}"
    tree = kind.TREE.format(root=root).replace("\n    ", "\n")
    assert f"{tree}\n" in (ROOT / "docs/multitask_data.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", KINDS)
def test_launch_without_data(kind, tmp_path):
    root = tmp_path / "nothing"
    with pytest.raises(UsageError) as caught:
        check_data(load(kind, root), ["train", "val"])
    text = str(caught.value)
    assert f"Lay out {KINDS[kind][0]} like this, or make {root} a link to it:" in text
    assert f"\n    {root}\n    ├── " in text
    assert "{train,val}.txt" in text
