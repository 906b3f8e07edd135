"""Multi-task dense prediction: data sets, heads and metrics of mmlocal, on MMSegmentation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mmlocal.errors import UsageError
from mmlocal.libraries.base import Library
from mmlocal.libraries.config_parts import type_name
from mmlocal.libraries.demo import Demo
from mmlocal.libraries.mmseg import MMSeg
from mmlocal.libraries.registry import register_library
from mmlocal.tasks import TASKS

if TYPE_CHECKING:
    import numpy as np
    import torch
    from mmengine.config import Config
    from mmengine.visualization import Visualizer
    from torch import nn

    from mmlocal.cli.data.datasets import DataSet
    from mmlocal.cli.data.report import Findings


@register_library
class MultiTask(MMSeg):
    """Models of the class ``MultiTaskSegmentor``, with the scope of MMSegmentation."""

    name = "multitask"
    label_loaders = MMSeg.label_loaders | {"LoadMultiTaskAnnotations"}
    demo = Demo(
        name="multitask",
        title="a multi-task network",
        tasks=("multitask",),
        config="itsa_elsa_swin_nano_scenes",
        metrics={f"{task.name}_{task.metric}": task.metric_key for task in TASKS.values()},
        losses={
            "loss": "sum of all",
            "loss_semseg": "classes",
            "loss_human_parts": "human parts",
            "loss_depth": "depth",
            "loss_normals": "normals",
        },
        curves={
            "semseg/mIoU": "classes: mean IoU",
            "human_parts/mIoU": "human parts: mean IoU",
            "sal/maxF": "saliency: maxF",
            "depth/RMSE": "depth: RMSE in m",
        },
        size="scene_size",
        sheets=False,
        references={"constant_depth_RMSE": ("counts", "val", "scenes", "constant_depth_rmse")},
    )

    def owns(self, cfg: Config) -> bool:
        """Whether the model is a multi-task segmentor; its scope is ``"mmseg"``."""
        model = cfg.get("model")
        kind = model.get("type") if isinstance(model, dict) else None
        return super().owns(cfg) or type_name(kind) == "MultiTaskSegmentor"

    def counts_classes(self, model: dict) -> bool:
        """Not here: each task has its own number of classes, which ``check_dataset`` compares."""
        return False

    def check_output(self, out: str, out_item: str | None = None) -> None:
        """Check that ``out`` can be a pickle, because a folder of PNG files holds one task."""
        Library.check_output(self, out, out_item)

    def write_predictions(self, cfg: Config, out: str) -> None:
        """Write a pickle with the predictions of all tasks."""
        Library.write_predictions(self, cfg, out)

    def predictor(self, model: nn.Module, cfg: Config) -> Callable[[torch.Tensor], Any]:
        """Return logits by task, in the size of the images."""
        if hasattr(model.decode_head, "detection"):
            raise UsageError(
                "objects cannot be exported, because their number depends on the data; export the "
                "feature maps with --part backbone",
                "part",
            )
        return self.inference(model, cfg)

    def default_shape(self, cfg: Config) -> tuple[int, int]:
        """The size to which the config pads its images: 425x560 for NYUD-v2, as in papers."""
        size = (cfg.model.get("data_preprocessor") or {}).get("size")
        if not size:
            raise UsageError("must be given: model.data_preprocessor sets no size", "shape")
        return tuple(size)

    def draw_prediction(self, visualizer: Visualizer, image: np.ndarray, sample: Any) -> np.ndarray:
        """Draw the maps of all tasks, in rows of three panels."""
        import numpy as np

        row = super().draw_prediction(visualizer, image, sample)
        number = 1 + sum(task.pred_field in sample for task in TASKS.values())
        panels = np.split(row, number, axis=1)
        panels += [np.full_like(panels[0], 255)] * (-number % 3)
        return np.vstack([np.hstack(panels[i : i + 3]) for i in range(0, len(panels), 3)])

    def layout_of(self, dataset: dict) -> tuple[str, str] | None:
        """The tree that the class of the data set shows."""
        from mmengine.registry import DATASETS

        kind = dataset.get("type")
        kind = DATASETS.get(kind) if isinstance(kind, str) else kind
        tree = getattr(kind, "TREE", None)
        return (type_name(kind), tree) if tree else None

    def check_dataset(
        self, cfg: Config, dataset: DataSet, classes: tuple[str, ...] | None, findings: Findings
    ) -> list[str] | None:
        """Check that the files are there, that the tasks have outputs, and that labels fit."""
        from mmlocal.cli.data.multitask import check_multitask
        from mmlocal.datasets.multitask import MultiTaskDataset

        if not (isinstance(dataset.kind, type) and issubclass(dataset.kind, MultiTaskDataset)):
            return None
        check_multitask(cfg, dataset, findings)
        return list(classes) if classes else None
