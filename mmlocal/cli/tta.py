"""Test-time augmentation, as ``--tta`` asks for it."""

import logging
from copy import deepcopy

from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log

from mmlocal.cli.building import type_name
from mmlocal.errors import UsageError

# Transforms that read labels, in the three libraries.
_LABEL_LOADERS = ("LoadAnnotations", "LoadPanopticAnnotations")


def augment_test(cfg: Config) -> None:
    """Wrap the model and replace the test pipeline by the config's TTA, else the task's default."""
    dataset = cfg.test_dataloader.dataset
    while "dataset" in dataset:
        dataset = dataset.dataset
    if "tta_model" not in cfg or "tta_pipeline" not in cfg:
        model, pipeline = _default_tta(cfg.default_scope, dataset.pipeline)
        print_log("no tta_model or tta_pipeline in the config: flips only", level=logging.WARNING)
        cfg.setdefault("tta_model", model)
        cfg.setdefault("tta_pipeline", pipeline)
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    labelled = any(type_name(step.get("type")) in _LABEL_LOADERS for step in dataset.pipeline)
    dataset.pipeline = cfg.tta_pipeline if labelled else _without_labels(cfg.tta_pipeline)


def _without_labels(pipeline: list[dict]) -> list[dict]:
    """A TTA pipeline for a data set without labels, whose own pipeline loads none."""
    kept = []
    for step in pipeline:
        if type_name(step.get("type")) in _LABEL_LOADERS:
            continue
        if type_name(step.get("type")) == "TestTimeAug":
            branches = [_without_labels(branch) for branch in step["transforms"]]
            step = {**step, "transforms": [branch for branch in branches if branch]}
        kept.append(step)
    return kept


def _default_tta(task: str, pipeline: list[dict]) -> tuple[dict, list[dict]]:
    """TTA model and pipeline that average an image and its mirror image."""
    if task == "mmseg":
        raise UsageError("--tta: mmseg configs must define tta_model and tta_pipeline themselves")
    if task == "mmdet":
        nms = {"type": "nms", "iou_threshold": 0.5}
        model = {"type": "DetTTAModel", "tta_cfg": {"nms": nms, "max_per_img": 100}}
        pack = {
            "type": "PackDetInputs",
            "meta_keys": (
                *("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
                *("flip", "flip_direction"),  # to flip the boxes back
            ),
        }
    else:
        model = {"type": "mmpretrain.AverageClsScoreTTA"}
        pack = pipeline[-1]
    flips = [{"type": "RandomFlip", "prob": 1.0}, {"type": "RandomFlip", "prob": 0.0}]
    return model, [*deepcopy(pipeline[:-1]), {"type": "TestTimeAug", "transforms": [flips, [pack]]}]
