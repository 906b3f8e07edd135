"""Object detection and instance segmentation with MMDetection."""

from __future__ import annotations

import os.path as osp
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mmlocal.errors import UsageError
from mmlocal.libraries.base import Library
from mmlocal.libraries.config_parts import (
    add_metric,
    metrics_of,
    type_name,
    visualization_hook,
    with_flips,
)
from mmlocal.libraries.demo import Demo
from mmlocal.libraries.registry import register_library

if TYPE_CHECKING:
    import numpy as np
    import torch
    from mmengine.config import Config
    from mmengine.visualization import Visualizer
    from torch import nn

    from mmlocal.cli.data.datasets import DataSet
    from mmlocal.cli.data.report import Findings

_COCO_METRICS = {
    "AP": "mAP",
    "AP50": "mAP_50",
    "AP75": "mAP_75",
    "APs": "mAP_s",
    "APm": "mAP_m",
    "APl": "mAP_l",
}
_META_KEYS = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")

_LAYOUT = (
    "COCO 2017",
    """
    {root}
    ├── annotations
    │   ├── instances_train2017.json
    │   └── instances_val2017.json
    ├── train2017/*.jpg
    └── val2017/*.jpg""",
)


@register_library
class MMDet(Library):
    """MMDetection."""

    name = "mmdet"
    packages = ("torch", "numpy", "mmengine", "mmcv", "mmdet")
    modules = ("mmcv._ext", "mmdet", "mmdet.models", "mmdet.datasets")
    # Not rpn_head, which has one class, nor semantic_head of HTC, which has other classes.
    heads = ("bbox_head", "mask_head", "mask_iou_head", "point_head")
    label_loaders = Library.label_loaders | {"LoadPanopticAnnotations"}
    demo = Demo(
        name="det",
        title="Mask R-CNN",
        tasks=("det",),
        config="elsa_swin_nano_maskrcnn_shapes",
        metrics={
            f"{kind}_{name}": f"coco/{kind}_{key}"
            for kind in ("bbox", "segm")
            for name, key in _COCO_METRICS.items()
        },
        losses={
            "loss": "sum of all",
            "loss_cls": "class",
            "loss_bbox": "box",
            "loss_mask": "mask",
            "loss_rpn_cls": "proposal: object or not",
            "loss_rpn_bbox": "proposal: box",
        },
        curves={
            "coco/bbox_mAP_50": "box AP50",
            "coco/segm_mAP_50": "mask AP50",
            "coco/bbox_mAP": "box AP",
            "coco/segm_mAP": "mask AP",
        },
    )

    def write_predictions(self, cfg: Config, out: str) -> None:
        """Write a pickle with packed masks."""
        evaluator = cfg.test_evaluator
        kind = evaluator.get("type") if isinstance(evaluator, dict) else None
        if type_name(kind) == "MultiDatasetsEvaluator":  # it drops all metrics but one per data set
            raise UsageError("MultiDatasetsEvaluator writes no predictions", "out")
        add_metric(cfg, {"type": "DumpDetResults", "out_file_path": out})

    def show_predictions(
        self,
        cfg: Config,
        show: bool,
        show_dir: str | None,
        wait_time: float,
        interval: int | None = None,
    ) -> None:
        """Let the hook draw. It puts ``show_dir`` into the run's folder in the work dir."""
        hook = visualization_hook(cfg)
        hook.draw = True
        if show:
            hook.update(show=True, wait_time=wait_time)
        if show_dir:
            hook.test_out_dir = show_dir

    def default_tta(self, pipeline: list[dict]) -> tuple[dict, list[dict]]:
        """Merge the boxes of an image and its mirror image by non-maximum suppression."""
        nms = {"type": "nms", "iou_threshold": 0.5}
        model = {"type": "DetTTAModel", "tta_cfg": {"nms": nms, "max_per_img": 100}}
        to_flip_back = ("flip", "flip_direction")
        pack = {"type": "PackDetInputs", "meta_keys": (*_META_KEYS, *to_flip_back)}
        return model, with_flips(pipeline[:-1], pack)

    def draw(
        self,
        visualizer: Visualizer,
        image: np.ndarray,
        sample: Any,
        rescale_factor: float | None = None,
        **where: Any,
    ) -> None:
        """Draw boxes and masks."""
        from mmdet.models.utils import mask2ndarray
        from mmdet.structures.bbox import BaseBoxes

        sample = sample.numpy()
        instances = sample.gt_instances  # pipelines make structures, the visualizer takes arrays
        if isinstance(instances.get("bboxes"), BaseBoxes):
            instances.bboxes = instances.bboxes.tensor
        if "masks" in instances:
            instances.masks = mask2ndarray(instances.masks).astype(bool)
        visualizer.add_datasample(image=image, data_sample=sample, draw_pred=False, **where)

    def default_shape(self, cfg: Config) -> tuple[int, int]:
        """800x1280, as in papers."""
        return 800, 1280

    def inference(self, model: nn.Module, cfg: Config) -> Callable[[torch.Tensor], Any]:
        """Run the model from the image to the raw output of its heads.

        A two-stage detector is counted as in papers, because its real numbers of boxes depend on
        the weights. Box heads get as many proposals as ``test_cfg`` allows, and mask heads get as
        many boxes as it allows.
        """
        from mmdet.models.detectors import TwoStageDetector

        if isinstance(model, TwoStageDetector):
            return lambda image: _detect_in_two_stages(model, cfg.model.test_cfg, image)
        return lambda image: _detect(model, image)

    def predictor(self, model: nn.Module, cfg: Config) -> Callable[[torch.Tensor], Any]:
        """Return logits and boxes of the queries of a DETR; refuse other detectors.

        A DETR has one output for each query. Other detectors return as many objects as they find.
        """
        from mmdet.models.detectors import DETR

        if isinstance(model, DETR):
            return lambda image: _queries(model, image)
        raise UsageError(
            "a whole detector cannot be exported, because the shapes of its outputs depend on the "
            "data; export its feature maps with --part backbone, or --part neck",
            "part",
        )

    def counts_classes(self, model: dict) -> bool:
        """Not for GLIP and Grounding DINO, which compare images with text."""
        return "language_model" not in model

    def layout_of(self, dataset: dict) -> tuple[str, str] | None:
        """The layout of COCO 2017, if the annotation file has this year in its name."""
        of_coco = type_name(dataset.get("type")) == "CocoDataset"
        return _LAYOUT if of_coco and "2017" in str(dataset.get("ann_file")) else None

    def check_dataset(
        self, cfg: Config, dataset: DataSet, classes: tuple[str, ...] | None, findings: Findings
    ) -> list[str] | None:
        """Check annotation files of COCO, and the number of classes of Pascal VOC."""
        from mmdet.datasets import CocoDataset, XMLDataset

        from mmlocal.cli.data.coco import check_coco
        from mmlocal.cli.data.heads import compare_heads, heads_of

        if not classes or dataset.cfg.get("return_classes"):  # the labels are words
            return None
        names = None
        if dataset.takes_from(CocoDataset) and dataset.takes_from(CocoDataset, "parse_data_info"):
            names = check_coco(dataset, classes, findings)
        elif dataset.takes_from(XMLDataset):
            names = list(classes)
        if names:
            where = f"{dataset.key} has"
            compare_heads(heads_of(cfg), len(names), where, dataset.phase == "train", findings)
        return names

    def check_evaluator(self, cfg: Config, phase: str, findings: Findings) -> None:
        """Compare the annotation files of COCO metrics with the files of the data sets."""
        from mmlocal.cli.data.coco import check_evaluator
        from mmlocal.cli.data.datasets import datasets_of, is_local

        files = [
            osp.join(dataset.cfg.get("data_root") or "", dataset.cfg.get("ann_file") or "")
            for dataset in datasets_of(cfg, phase)
            if is_local(dataset.cfg)
        ]
        if not files or not all(map(osp.isfile, files)):
            return
        for where, metric in metrics_of(cfg, phase).items():
            path = metric.get("ann_file")
            if type_name(metric.get("type")) != "CocoMetric" or not path or not osp.isfile(path):
                continue
            if osp.abspath(path) not in map(osp.abspath, files):
                check_evaluator(path, files, where, findings)


def _detect(model: nn.Module, image: torch.Tensor) -> Any:
    from mmdet.structures import DetDataSample

    size = tuple(image.shape[2:])
    keys = ("img_shape", "ori_shape", "pad_shape", "batch_input_shape")
    sample = DetDataSample(metainfo=dict.fromkeys(keys, size) | dict(scale_factor=(1.0, 1.0)))
    return model(image, [sample], mode="tensor")


def _queries(model: nn.Module, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """Logits and boxes (centre, width and height, as shares) of the last layer of a DETR."""
    logits, boxes = _detect(model, image)
    return dict(logits=logits[-1], boxes=boxes[-1])


def _detect_in_two_stages(model: Any, test_cfg: Any, image: torch.Tensor) -> None:
    features = model.extract_feat(image)
    model.rpn_head(features)
    heads = model.roi_head
    _run_heads(image, heads.bbox_roi_extractor, heads.bbox_head, test_cfg.rpn.max_per_img)
    if heads.with_mask:
        _run_heads(image, heads.mask_roi_extractor, heads.mask_head, test_cfg.rcnn.max_per_img)


def _run_heads(image: torch.Tensor, extractors: Any, heads: Any, boxes: int) -> None:
    """Run the head, or each head of a cascade, on empty features for a number of boxes."""
    from torch import nn

    cascade = isinstance(heads, nn.ModuleList)
    for extractor, head in zip(
        extractors if cascade else [extractors], heads if cascade else [heads], strict=True
    ):
        size = extractor.roi_layers[0].output_size
        head(image.new_zeros(boxes, extractor.out_channels, *size))
