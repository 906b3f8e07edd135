"""mmdet's own tools run our config and our backbone, without imports on the command line."""

from pathlib import Path

import mmdet
import pytest
from mmengine.config import Config

from .conftest import TOOLS, start

pytestmark = pytest.mark.slow

STOCK = Path(mmdet.__path__[0]) / ".mim"
OURS = TOOLS.parent / "configs/mmdet/elsa_swin_t_maskrcnn_1x.py"


def shrinking_options(config: Path, data: Path) -> list[str]:
    """``--cfg-options`` for a few tiny images and one epoch, without models or imports."""
    cfg = Config.fromfile(config)
    options = ["train_cfg.max_epochs=1", "default_hooks.logger.interval=1"]
    for phase, split in (("train", "train"), ("val", "val"), ("test", "val")):
        key = f"{phase}_dataloader"
        options += [
            f"{key}.batch_size=2",
            f"{key}.num_workers=0",
            f"{key}.persistent_workers=False",
            f"{key}.dataset.data_root={data}/det",
            f"{key}.dataset.ann_file={split}.json",
            f"{key}.dataset.data_prefix.img={split}",
            *small_images(cfg[key].dataset.pipeline, f"{key}.dataset.pipeline"),
        ]
        if phase != "train":
            options.append(f"{phase}_evaluator.ann_file={data}/det/val.json")
    return ["--cfg-options", *options]


def small_images(node, path: str) -> list[str]:
    """Options that set every size in a pipeline to 64 pixels, at any depth."""
    if isinstance(node, (list, tuple)):
        return [o for i, child in enumerate(node) for o in small_images(child, f"{path}.{i}")]
    if not isinstance(node, dict):
        return []
    options = []
    for key, value in node.items():
        if key in ("scale", "crop_size"):
            options.append(f"{path}.{key}=(64,64)")
        elif key == "scales":
            options.append(f"{path}.{key}=[(64,64)]")
        else:
            options += small_images(value, f"{path}.{key}")
    return options


def succeeds(*command, cwd) -> str:
    result = start(*command, cwd=cwd)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout + result.stderr


def test_stock_train_and_test_run_our_config(data, tmp_path):
    # After two steps no score reaches the usual threshold, and without boxes there are no metrics.
    options = [*shrinking_options(OURS, data), "model.test_cfg.rcnn.score_thr=0.0"]
    stock_train, stock_test = STOCK / "tools/train.py", STOCK / "tools/test.py"
    log = succeeds(stock_train, OURS, "--work-dir", tmp_path / "w", *options, cwd=tmp_path)
    assert "loss_mask" in log
    checkpoint = tmp_path / "w/epoch_1.pth"
    log = succeeds(stock_test, OURS, checkpoint, "--work-dir", "t", *options, cwd=tmp_path)
    assert "coco/segm_mAP:" in log


def test_backbone_in_a_stock_retinanet(data, tmp_path):
    """Only the backbone and the channels of the neck are replaced."""
    config = tmp_path / "retinanet.py"
    config.write_text(
        f"""
_base_ = "{STOCK}/configs/retinanet/retinanet_r50_fpn_1x_coco.py"
model = dict(
    backbone=dict(_delete_=True, type="mmlocal.ELSASwin", arch="tiny"),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
"""
    )
    options = shrinking_options(config, data)
    log = succeeds(STOCK / "tools/train.py", config, *options, cwd=tmp_path)
    assert "loss_bbox" in log
    assert (tmp_path / "work_dirs/retinanet/epoch_1.pth").is_file()
