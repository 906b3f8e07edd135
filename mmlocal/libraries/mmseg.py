"""Semantic segmentation with MMSegmentation."""

from __future__ import annotations

import os.path as osp
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from mmlocal.errors import UsageError
from mmlocal.libraries.base import Library
from mmlocal.libraries.config_parts import metrics_of, type_name, visualization_hook
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

_LAYOUT = (
    "ADE20K (ADEChallengeData2016)",
    """
    {root}
    ├── annotations
    │   ├── training/*.png
    │   └── validation/*.png
    └── images
        ├── training/*.jpg
        └── validation/*.jpg""",
)


@register_library
class MMSeg(Library):
    """MMSegmentation."""

    name = "mmseg"
    packages = ("torch", "numpy", "mmengine", "mmcv", "mmseg")
    modules = ("mmcv._ext", "mmseg", "mmseg.models", "mmseg.datasets")
    heads = ("decode_head", "auxiliary_head")
    odd_heads = frozenset({"STDCHead"})  # it finds the borders of the classes
    demo = Demo(
        name="seg",
        title="UPerNet",
        tasks=("seg",),
        config="elsa_swin_nano_upernet_shapes",
        metrics={"mIoU": "mIoU", "mAcc": "mAcc", "aAcc": "aAcc"},
        losses={
            "loss": "sum of both",
            "decode.loss_ce": "head",
            "aux.loss_ce": "auxiliary head",
        },
        curves={
            "aAcc": "accuracy of pixels",
            "mAcc": "mean accuracy of classes",
            "mIoU": "mean IoU of classes",
        },
        scale=0.01,
    )

    def takes_pretrained(self, backbone: dict) -> bool:
        """Not for backbones of mmlocal: mmseg hands the path to the backbone as an argument."""
        return "mmlocal" not in str(backbone.get("type"))

    def check_output(self, out: str, out_item: str | None = None) -> None:
        """Check that ``out`` can be a folder for PNG files."""
        if osp.isfile(out):
            raise UsageError(f"mmseg writes PNG files into a folder, but {out!r} is a file", "out")

    def write_predictions(self, cfg: Config, out: str) -> None:
        """Let the metrics write PNG files."""
        for metric in metrics_of(cfg, "test").values():
            metric.update(output_dir=out, keep_results=True)

    def show_predictions(
        self,
        cfg: Config,
        show: bool,
        show_dir: str | None,
        wait_time: float,
        interval: int | None = None,
    ) -> None:
        """Let the hook draw, and the visualizer write the pictures."""
        hook = visualization_hook(cfg)
        hook.draw = True
        if show:
            hook.update(show=True, wait_time=wait_time)
        if show_dir:
            cfg.visualizer.save_dir = show_dir

    def draw(
        self,
        visualizer: Visualizer,
        image: np.ndarray,
        sample: Any,
        rescale_factor: float | None = None,
        **where: Any,
    ) -> None:
        """Draw the label map."""
        visualizer.add_datasample(image=image, data_sample=sample.numpy(), draw_pred=False, **where)

    def see_whole_image(self, model: dict) -> None:
        """Turn sliding windows off, because each window sees only a part of the image."""
        model["test_cfg"] = {"mode": "whole"}

    def predictor(self, model: nn.Module, cfg: Config) -> Callable[[torch.Tensor], Any]:
        """Return logits in the size of the images."""

        def logits(image: torch.Tensor) -> Any:
            size = tuple(image.shape[2:])
            meta = dict.fromkeys(("img_shape", "pad_shape", "ori_shape"), size)
            return cast(Any, model).encode_decode(image, [meta])

        return logits

    def default_shape(self, cfg: Config) -> tuple[int, int]:
        """512x2048, as in papers."""
        return 512, 2048

    def counts_classes(self, model: dict) -> bool:
        """Not for SAN, which compares images with text."""
        return "text_encoder" not in model

    def layout_of(self, dataset: dict) -> tuple[str, str] | None:
        """The layout of ADE20K, which has its own data set class."""
        of_ade = type_name(dataset.get("type")) == "ADE20KDataset"
        return _LAYOUT if of_ade else None

    def check_dataset(
        self, cfg: Config, dataset: DataSet, classes: tuple[str, ...] | None, findings: Findings
    ) -> list[str] | None:
        """Check the label maps, and the number of classes."""
        from mmseg.datasets import BaseSegDataset

        from mmlocal.cli.data.heads import compare_heads, heads_of
        from mmlocal.cli.data.segmentation import check_segmentation

        if not (isinstance(dataset.kind, type) and issubclass(dataset.kind, BaseSegDataset)):
            return None
        if not classes and dataset.phase != "train":
            _check_iou(cfg, dataset, findings)
        faults = len(findings.errors)
        check_segmentation(cfg, dataset, classes, findings)
        if classes and len(findings.errors) == faults:
            # The check of the labels reports missing outputs as errors, so here they are warnings.
            compare_heads(heads_of(cfg), len(classes), f"{dataset.key} has", False, findings)
        return list(classes) if classes else None


def _check_iou(cfg: Config, dataset: DataSet, findings: Findings) -> None:
    """Check that class names are set, because IoUMetric needs them unless it only writes files."""
    for metric in metrics_of(cfg, dataset.phase).values():
        if type_name(metric.get("type")) == "IoUMetric" and not metric.get("format_only"):
            findings.error(f"{dataset.classes_key} is not set, and IoUMetric needs it")
